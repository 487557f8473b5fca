"""Experiments in 3D segmentation of brain metastases: PyTorch Lightning, Hydra configs, the challenge's own scores."""

import os

# OpenMP's threads would spin at every barrier: beside other work that makes a step ten times slower, on idle cores it
# gains nothing. Read when torch is loaded, so it is set before; a user's own value wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

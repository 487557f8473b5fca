"""Experiments in 3D segmentation of brain metastases: PyTorch Lightning, Hydra configs, the challenge's own scores."""

import os

# OpenMP's threads would spin at every barrier: beside other work that makes a step ten times slower, on idle cores it
# gains nothing. Read when torch is loaded, so it is set before; a user's own value wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What torch lacks on a Mac's GPU, such as adaptive pooling in three dimensions, the CPU then does, with a warning; else
# it would be an error. Read when torch is loaded, likewise.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

"""Experiments in 3D segmentation of brain metastases: PyTorch Lightning, Hydra configs, the challenge's own scores."""

import os

# By default OpenMP's threads spin at every barrier, which makes a step ten times slower beside other work and gains
# nothing on idle cores. Read when torch is loaded, so it is set before; a user's own value wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Operations that torch lacks on a Mac's GPU, such as adaptive pooling in three dimensions, then run on the CPU with a
# warning instead of failing. Also read when torch is loaded.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

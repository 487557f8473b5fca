"""Experiments in 3D segmentation of brain metastases: PyTorch Lightning, Hydra configs, the challenge's own scores."""

import os

from brats_lightning.api import load as load

# OpenMP's threads spin for milliseconds at every barrier, which makes a step several times slower beside other work;
# microseconds spare idle cores the cost of waking them. Read when torch is loaded; a user's own value wins.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
# Operations that torch lacks on a Mac's GPU, such as adaptive pooling in three dimensions, then run on the CPU with a
# warning instead of failing. Also read when torch is loaded.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

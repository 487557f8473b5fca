"""Experiments in 3D segmentation of brain metastases: PyTorch Lightning, Hydra configs, the challenge's own scores."""

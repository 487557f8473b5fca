"""Callbacks: averaged weights, final validation, finite losses, interruptions, pictures, progress, step counts."""

from brats_lightning.training.callbacks.average import AveragedWeights
from brats_lightning.training.callbacks.finite import FiniteLoss
from brats_lightning.training.callbacks.interruption import Interruption
from brats_lightning.training.callbacks.overlay import Overlay
from brats_lightning.training.callbacks.progress import Progress, ProgressLog
from brats_lightning.training.callbacks.resumed_steps import ResumedSteps
from brats_lightning.training.callbacks.validate_last import ValidateLast

__all__ = [
    "AveragedWeights",
    "FiniteLoss",
    "Interruption",
    "Overlay",
    "Progress",
    "ProgressLog",
    "ResumedSteps",
    "ValidateLast",
]

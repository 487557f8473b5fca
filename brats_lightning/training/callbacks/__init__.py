"""Callbacks: averaged weights, final validation, finite losses, interruptions, pictures, progress, step counts."""

from brats_lightning.training.callbacks.average import AveragedWeights as AveragedWeights
from brats_lightning.training.callbacks.finite import FiniteLoss as FiniteLoss
from brats_lightning.training.callbacks.interruption import Interruption as Interruption
from brats_lightning.training.callbacks.overlay import Overlay as Overlay
from brats_lightning.training.callbacks.progress import Progress as Progress
from brats_lightning.training.callbacks.resumed_steps import ResumedSteps as ResumedSteps
from brats_lightning.training.callbacks.validate_last import ValidateLast as ValidateLast

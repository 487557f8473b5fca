"""What happens around training: averaged weights, the last validation, losses that are numbers, interruptions,
pictures, progress, the steps.
"""

from brats_lightning.callbacks.average import AveragedWeights
from brats_lightning.callbacks.finite import FiniteLoss
from brats_lightning.callbacks.interruption import Interruption
from brats_lightning.callbacks.overlay import Overlay
from brats_lightning.callbacks.progress import Progress, ProgressLog
from brats_lightning.callbacks.resumed_steps import ResumedSteps
from brats_lightning.callbacks.validate_last import ValidateLast

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

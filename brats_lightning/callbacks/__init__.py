"""What happens around training: averaged weights, the last validation, pictures, the progress bar, the step axis."""

from brats_lightning.callbacks.average import AveragedWeights
from brats_lightning.callbacks.overlay import Overlay
from brats_lightning.callbacks.progress import Progress
from brats_lightning.callbacks.resumed_steps import ResumedSteps
from brats_lightning.callbacks.validate_last import ValidateLast

__all__ = ["AveragedWeights", "Overlay", "Progress", "ResumedSteps", "ValidateLast"]

"""What happens around training: the last validation, pictures, the progress bar."""

from brats_lightning.callbacks.overlay import Overlay
from brats_lightning.callbacks.progress import Progress
from brats_lightning.callbacks.validate_last import ValidateLast

__all__ = ["Overlay", "Progress", "ValidateLast"]

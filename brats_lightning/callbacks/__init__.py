"""What happens around training: the last validation, pictures."""

from brats_lightning.callbacks.overlay import Overlay
from brats_lightning.callbacks.validate_last import ValidateLast

__all__ = ["Overlay", "ValidateLast"]

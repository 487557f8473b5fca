"""Callbacks: averages, dashboards, final validation, finite losses, interruptions, progress, pruning, step counts."""

from brats_lightning.training.callbacks.average import AveragedWeights as AveragedWeights
from brats_lightning.training.callbacks.case_pictures import CasePictures as CasePictures
from brats_lightning.training.callbacks.dashboard import Dashboard as Dashboard
from brats_lightning.training.callbacks.finite import FiniteLoss as FiniteLoss
from brats_lightning.training.callbacks.interruption import Interruption as Interruption
from brats_lightning.training.callbacks.precision_recall import PrecisionRecall as PrecisionRecall
from brats_lightning.training.callbacks.progress import Progress as Progress
from brats_lightning.training.callbacks.pruning import Pruning as Pruning
from brats_lightning.training.callbacks.resumed_steps import ResumedSteps as ResumedSteps
from brats_lightning.training.callbacks.validate_last import ValidateLast as ValidateLast

"""From class probabilities to labels: decoding, and the steps of post-processing."""

from brats_lightning.inference.postprocessing.by_region import ByRegion as ByRegion
from brats_lightning.inference.postprocessing.components import ConfidentCore as ConfidentCore
from brats_lightning.inference.postprocessing.components import Hysteresis as Hysteresis
from brats_lightning.inference.postprocessing.components import MinVolume as MinVolume
from brats_lightning.inference.postprocessing.components import RequireCore as RequireCore
from brats_lightning.inference.postprocessing.filling import FillHoles as FillHoles
from brats_lightning.inference.postprocessing.filling import SolidCore as SolidCore
from brats_lightning.inference.postprocessing.rules import Labelling as Labelling
from brats_lightning.inference.postprocessing.rules import Postprocessing as Postprocessing
from brats_lightning.inference.postprocessing.rules import PostprocessingError as PostprocessingError
from brats_lightning.inference.postprocessing.rules import Step as Step

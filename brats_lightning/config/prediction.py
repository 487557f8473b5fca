"""What `predict` needs of its config: models, post-processing and how exactly images must agree."""

import logging

from omegaconf import DictConfig

from brats_lightning.config.build import build_part
from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
from brats_lightning.config.postprocessing import as_config, trained_postprocessing
from brats_lightning.inference.prediction import Predictor
from brats_lightning.runtime.device import share_device

log = logging.getLogger(__name__)


def load_predictor(cfg: DictConfig, number: int | None = None) -> Predictor:
    """The models of a config's ``ckpt`` with its post-processing, else that of their runs.

    Args:
        cfg: a config as ``conf/predict.yaml`` composes it.
        number: of this process among ``devices`` ones, from 0 on; None if it is alone, or the one that starts them.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
        PostprocessingError: none is chosen, and the models were trained with different rules.
    """
    rules = build_part("postprocessing", cfg.get("postprocessing"))
    if number is not None:
        share_device(cfg.device, number, cfg.devices)
    ensemble = load_ensemble(cfg)
    chosen = (rules or trained_postprocessing(ensemble.models, tuple(cfg.trust))).decoding(ensemble.decode)
    log.info("post-processing%s: %s", "" if rules else " as in training", chosen.described())
    return Predictor(ensemble, chosen, as_config(chosen), affine_tolerance(cfg, ensemble))

"""Scores of a prediction against a reference: voxels, surfaces, and the challenge's lesion-wise protocols."""

from brats_lightning.metrics.official import (
    DEFAULT_PROTOCOL,
    PROTOCOLS,
    ScoreError,
    headline_names,
    headline_scores,
    score_case,
)

__all__ = ["DEFAULT_PROTOCOL", "PROTOCOLS", "ScoreError", "headline_names", "headline_scores", "score_case"]

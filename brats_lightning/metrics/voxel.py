"""Scores of whole masks: those of voxels, which belong to no challenge protocol, and the means of all over cases."""

from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor
from torchmetrics import Metric

from brats_lightning.core.geometry import Triple, bounding_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.metrics.official import headline_scores, mean_without_nan, score_case
from brats_lightning.metrics.surfaces import directed_distances, pooled_hd95, surface_dice, surface_points
from brats_lightning.runtime.device import on_host


def confusion_matrix(
    reference: Integer[Tensor, "*shape"], prediction: Integer[Tensor, "*shape"], num_classes: int
) -> Int64[Tensor, "k k"]:
    """Voxels of reference class (row) predicted as class (column), without those whose reference is `IGNORE`."""
    # int32 is the narrowest type bincount takes.
    pairs = reference.to(torch.int32) * num_classes + prediction.to(torch.int32)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes**2)
    return counts[: num_classes**2].reshape(num_classes, num_classes)  # the pairs of IGNORE come after


def scored_classes(scheme: LabelScheme) -> dict[str, tuple[int, ...]]:
    """Class indices behind each scored name; a class that shares its name with a region is called ``<name>_class``."""
    classes = {
        f"{name}_class" if name in scheme.regions else name: (index,) for index, name in enumerate(scheme.names, 1)
    }
    return {**scheme.regions, **classes}


def voxel_scores(confusion: Int64[Tensor, "k k"], scheme: LabelScheme) -> dict[str, float]:
    """Scores of one case (or one batch of patches) from its confusion matrix.

    ``accuracy`` over all voxels of the matrix; ``dice_<name>`` = 2·TP/(reference + prediction) and ``iou_<name>`` =
    TP/(reference + prediction - TP) for every region and class, NaN where neither has a voxel; ``dice_mean`` over ET,
    TC and WT (over all regions of a scheme without them), ``iou_mean`` over the foreground classes, NaN skipped.
    """
    counts = on_host(confusion).astype(np.float64)
    total = counts.sum()
    scores = {"accuracy": float(np.trace(counts) / total) if total else float("nan")}
    for name, members in scored_classes(scheme).items():
        index = list(members)
        overlap = counts[np.ix_(index, index)].sum()
        sizes = counts[index].sum() + counts[:, index].sum()
        scores[f"dice_{name}"] = float(2 * overlap / sizes) if sizes else float("nan")
        scores[f"iou_{name}"] = float(overlap / (sizes - overlap)) if sizes else float("nan")
    classes = [name for name in scored_classes(scheme) if name not in scheme.regions]
    scores["dice_mean"] = mean_without_nan([scores[f"dice_{name}"] for name in scheme.headline_regions])
    scores["iou_mean"] = mean_without_nan([scores[f"iou_{name}"] for name in classes])
    return scores


def score_masks(
    reference: Integer[np.ndarray, "x y z"],
    prediction: Integer[np.ndarray, "x y z"],
    spacing: Sequence[SupportsFloat],
    scheme: LabelScheme,
    protocols: Iterable[str],
) -> dict[str, float]:
    """The scores of a case by their names in training: `voxel_scores`, and the `headline_scores` of the protocols."""
    pair = torch.from_numpy(reference), torch.from_numpy(prediction)
    scores = voxel_scores(confusion_matrix(*pair, scheme.num_classes), scheme)
    for protocol in protocols:
        scores |= headline_scores(score_case(reference, prediction, spacing, scheme, protocol), scheme, protocol)
    return scores


def surface_scores(
    reference: Integer[np.ndarray, "x y z"],
    prediction: Integer[np.ndarray, "x y z"],
    spacing: Triple,
    scheme: LabelScheme,
    tolerance: float = 1.0,
) -> dict[str, dict[str, float]]:
    """HD95, normalised surface Dice and volume error of every class and region, by the names of the voxel scores.

    ======================  ==========================  ===========  ===============
    case                    ``hd95`` in mm              ``nsd``      ``volume_error``
    ======================  ==========================  ===========  ===============
    both masks present      pooled 95th percentile      0 … 1        predicted − reference, in ml
    both empty              NaN: nothing to measure     NaN          0
    one empty               the volume's diagonal       0            as above
    ======================  ==========================  ===========  ===============

    Args:
        reference: class indices.
        prediction: likewise, on the same grid.
        spacing: of the axes in mm, in their order.
        scheme: the classes.
        tolerance: of the surface Dice in mm.
    """
    diagonal = float(np.linalg.norm(np.multiply(reference.shape, spacing)))
    box = bounding_box(reference, prediction)
    table = {}
    for name, classes in scored_classes(scheme).items():
        a, b = in_classes(reference[box], classes), in_classes(prediction[box], classes)
        difference = int(np.count_nonzero(b)) - int(np.count_nonzero(a))
        scores = {"hd95": np.nan, "nsd": np.nan, "volume_error": difference * float(np.prod(spacing)) / 1000}
        if a.any() and b.any():
            points, others = surface_points(a), surface_points(b)
            pair = directed_distances(points, others, spacing), directed_distances(others, points, spacing)
            scores |= {"hd95": pooled_hd95(*pair), "nsd": surface_dice(*pair, tolerance)}
        elif a.any() or b.any():
            scores |= {"hd95": diagonal, "nsd": 0.0}
        table[name] = scores
    return table


class CaseScores(Metric):
    """Per-case scores gathered over an evaluation and over processes, each case exactly once.

    The state is one row per case, written by whichever process scored it; rows add up across processes because all
    others hold zeros. That needs no equal share of cases per process, unlike lists that are concatenated.

    Args:
        cases: ids of all cases of the evaluation, in the same order on every process.
        names: the scores each case has.
    """

    full_state_update = False
    values: Tensor
    scored: Tensor

    def __init__(self, cases: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.cases, self.names = list(cases), list(names)
        # float32: devices without float64 exist, and a score needs no more.
        self.add_state("values", torch.zeros(len(cases), len(names)), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros(len(cases)), dist_reduce_fx="sum")

    def update(self, case: str, scores: Mapping[str, float] | None) -> None:
        """Set one case's scores, a name that is missing being NaN; None leaves the case to another process."""
        if scores is None:
            return
        row = [scores.get(name, float("nan")) for name in self.names]
        self.values[self.cases.index(case)] = torch.tensor(row, dtype=torch.float32, device=self.values.device)
        self.scored[self.cases.index(case)] = 1

    def of(self, case: str) -> dict[str, float]:
        """The scores of a case that this process has scored."""
        return dict(zip(self.names, self.values[self.cases.index(case)].tolist(), strict=True))

    def compute(self) -> Float[Tensor, "cases names"]:
        """Scores of every case, NaN for a case that was not scored or a score it does not have."""
        return torch.where(self.scored[:, None] > 0, self.values, torch.nan)

    def means(self) -> dict[str, float]:
        """Mean of each score over the cases that have it; NaN if none has."""
        return dict(zip(self.names, self._table().double().nanmean(0).tolist(), strict=True))

    def counts(self) -> dict[str, int]:
        """How many cases have each score."""
        return dict(zip(self.names, (~self._table().isnan()).sum(0).tolist(), strict=True))

    def _table(self) -> Float[Tensor, "cases names"]:
        # On the host. torchmetrics makes a scalar of a single element.
        return torch.from_numpy(on_host(self.compute())).reshape(len(self.cases), len(self.names))

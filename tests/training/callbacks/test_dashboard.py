"""What trackers get besides curves."""

import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.training.callbacks import CasePictures, Dashboard
from brats_lightning.training.callbacks.dashboard import layout, network_table
from brats_lightning.training.callbacks.precision_recall import THRESHOLDS, count_probabilities, curve
from brats_lightning.training.trackers import Tracker


def test_curves_are_grouped_by_what_is_read_together():
    names = ["dice_et", "iou_et", "dice_tc", "dice_wt", "dice_netc", "iou_netc", "dice_mean", "iou_mean", "loss"]
    found = layout([*names, "brats2024/lesion_dice_et"], BRATS_METS, ["brats2024"])
    charts = found["Validation, mean over cases"]
    assert charts["Dice of regions"] == ["Multiline", [f"val/dice_{n}$" for n in ("mean", "et", "tc", "wt")]]
    assert charts["Dice of classes"] == ["Multiline", ["val/dice_netc$"]]
    assert charts["IoU"] == ["Multiline", ["val/iou_et$", "val/iou_netc$", "val/iou_mean$"]]
    assert charts["Lesions by brats2024"] == ["Multiline", ["val/brats2024/lesion_dice_et$"]]
    assert found["Training"]["Loss"] == ["Multiline", ["train/loss$", "val/loss$"]]


def test_the_networks_parts_are_listed_with_their_parameters():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Sequential(nn.Sequential(nn.Linear(2, 3))))
    assert network_table(network).splitlines()[2:] == [
        *("| all | Sequential | 13 |", "| 0 | Conv3d | 4 |", "| 2 | Sequential | 9 |", "| 2.0 | Sequential | 9 |"),
    ]


def test_waiting_and_patches_are_counted_between_two_logs(monkeypatch):
    clock = iter([0.0, 8.0, 8.0])  # start · after two steps · start anew
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    logger, root = MagicMock(), SimpleNamespace(root_device=torch.device("cpu"))
    trainer = MagicMock(spec=pl.Trainer, global_step=10, world_size=2, strategy=root, loggers=[logger])
    trainer.log_every_n_steps = 2
    trainer.train_dataloader = SimpleNamespace(waited=1.5)
    batch = SimpleNamespace(image=torch.zeros(3, 1))
    board = Dashboard()
    board.on_train_start(trainer, None)
    for step in (11, 12):
        trainer.train_dataloader.waited += 2.0
        trainer.global_step = step
        board.on_train_batch_end(trainer, None, None, batch, 0)
    ((values, step), _) = logger.log_metrics.call_args
    assert step == 12
    assert values.pop("speed/memory_gb") > 0.1
    assert values == {
        "speed/steps_per_second": 2 / 8,
        "speed/patches_per_second": 12 / 8,  # two processes, each with three in a batch
        "speed/waiting_for_data": 4 / 8,
    }


def case(name, dice):
    mask = np.zeros((2, 3, 4), np.uint8)
    found = MagicMock(spec=CachedCase, id=name, shape=mask.shape, modalities=("t1c",), spacing=(1.0, 1.0, 1.0))
    found.mask.return_value, found.image.return_value = mask, np.ones((1, *mask.shape), np.uint16)
    found.dice = dice
    return found


def pictures_of(cases):
    tracker = MagicMock(spec=Tracker)
    trainer = MagicMock(spec=pl.Trainer, loggers=[tracker], global_step=5, is_global_zero=True, sanity_checking=False)
    scores = {each.id: {"dice_mean": each.dice} for each in cases}
    module = SimpleNamespace(case_scores={"val": SimpleNamespace(of=scores.get)}, scheme=BRATS_METS)
    callback = CasePictures()
    callback.on_validation_epoch_start(trainer, module)
    for each in cases:
        labels = torch.zeros(each.shape, dtype=torch.uint8)
        callback.on_validation_batch_end(trainer, module, {"labels": labels}, SimpleNamespace(case=each), 0)
    callback.on_validation_batch_end(trainer, module, None, SimpleNamespace(case=None), 0)  # counted elsewhere
    callback.on_validation_epoch_end(trainer, module)
    return [call.args[0] for call in tracker.add_picture.call_args_list], callback


def test_best_median_and_worst_are_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "brats_lightning.training.callbacks.case_pictures.draw_case",
        lambda shown: drawn.append((shown.title.split()[0], shown.prediction.shape)) or np.zeros((1, 1, 3), np.uint8),
    )
    cases = [case("a", 0.4), case("b", float("nan")), case("c", 0.1), case("d", 0.7), case("e", 0.6)]
    assert pictures_of(cases)[0] == ["validation/worst", "validation/median", "validation/best"]
    assert drawn == [("c", (2, 3, 4)), ("e", (2, 3, 4)), ("b", (2, 3, 4))]  # nothing to find and nothing found is best
    assert pictures_of(cases[:1])[0] == ["validation/worst"]
    assert pictures_of(cases[:2])[0] == ["validation/worst", "validation/best"]
    tags, callback = pictures_of([])
    assert (tags, callback._cases) == ([], [])


def test_counts_by_probability_and_their_curve():
    mask = np.array([3, 3, 0, 0, IGNORE, 1, 0], np.uint8).reshape(1, 1, 7)
    et = np.array([0.9, 0.2, 0.6, 0.0, 1.0, 0.0, 0.004], np.float32)
    netc = np.array([0.1, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0], np.float32)
    probabilities = np.stack([1 - et - netc, netc, 0 * et, et]).reshape(4, 1, 1, 7)
    counts = count_probabilities(probabilities, mask, BRATS_METS)
    assert counts.sum(axis=(1, 2)).tolist() == [6, 6, 6]  # without the unknown voxel
    outside, inside = counts[0]
    assert np.flatnonzero(inside).tolist() == [20, 90]
    assert {int(step): int(outside[step]) for step in np.flatnonzero(outside)} == {0: 3, 60: 1}
    outside, inside = counts[1]
    assert np.flatnonzero(inside).tolist() == [50, 100]
    assert inside[100] == 2

    tp, fp, tn, fn, precision, recall = curve(*counts[0])
    assert len(tp) == THRESHOLDS
    at = {0.1: 10, 0.3: 30, 0.95: 95}
    assert {t: (tp[i], fp[i], tn[i], fn[i]) for t, i in at.items()} == {
        0.1: (2, 1, 3, 0),
        0.3: (1, 1, 3, 1),
        0.95: (0, 0, 4, 2),
    }
    assert precision[[10, 30, 95]] == pytest.approx([2 / 3, 1 / 2, 0])
    assert recall[[10, 30, 95]] == pytest.approx([1, 1 / 2, 0])

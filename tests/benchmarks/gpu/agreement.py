"""The same training and prediction by the CPU and by the device: losses, masks and scores."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from brats_lightning.config.build import build_data, build_segmentation
from brats_lightning.data.cases import examine
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.metrics.official import headline_scores, score_case
from brats_lightning.metrics.voxel import confusion_matrix, voxel_scores
from brats_lightning.training.module import Segmentation
from tests.benchmarks.gpu.part import Cell, Rows, Size
from tests.benchmarks.workload import config, tiny_cases

STEPS, PATCH = 40, 24
COMPARED = 20  # the first steps, in which rounding has not grown
LEARNING_RATE = 0.05


def compare(size: Size, rows: Rows, scratch: Path) -> None:
    """Train a small network by SGD in 32 bits on both, then predict by the CPU's network on both."""
    # A GPU's convolutions round to 10 bits otherwise.
    torch.backends.cudnn.allow_tf32 = False
    root = tiny_cases(scratch, 10)
    cfg = config(
        *("data=brats_mets", f"data.root={root}", f"paths.cache_dir={scratch}/tiny-cache", "data.workers=0", "seed=0"),
        *("model=resunet", "model.widths=[8,16,24]", "model.deep_supervision=1", "loss=dice_focal"),
        *("augmentation=none", f"sampling.size=[{PATCH},{PATCH},{PATCH}]", "data.val_share=0.2", "data.test_share=0.2"),
        *("data.patches_per_case=100", "trainer=cpu", "inference.window=[24,24,24]"),
    )
    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    torch.manual_seed(0)
    here = build_segmentation(cfg, data)
    there = copy.deepcopy(here).to(size.device)
    batches = [data.on_after_batch_transfer(batch, 0) for batch, _ in zip(data.train_dataloader(), range(STEPS))]  # noqa: B905
    both = [_losses(module, batches) for module in (here, there)]
    difference = np.abs(np.subtract(*both))[:COMPARED].max()
    rows.add(f"loss of the first {COMPARED} steps, SGD, 32 bits", difference=Cell(float(difference), "", 1e-3))
    rows.add("the loss falls", difference=Cell(float(both[1][-5:].mean() / both[1][:5].mean()), "of the first", 0.9))

    model = TrainedModel(
        *(Path("none"), here.network.eval(), data.normaliser, data.cache.preprocessing, here.target, here.inference),
        config={},
    )
    case = data.scored_cases("test")[0]
    found = examine(next(c for c in data.source() if c.id == case.id), data.scheme, None, 0.1)
    wanted = None
    reference = case.reference()
    spacing = case.transform.original.zooms
    for name, device, dtype in (
        ("the CPU", torch.device("cpu"), None),
        ("32 bits", size.device, None),
        ("bfloat16", size.device, torch.bfloat16),
    ):
        ensemble = Ensemble([model], device, dtype)
        probabilities = ensemble(ensemble.prepare(found.images))
        mask = probabilities.transform.restore(probabilities.values.argmax(0).astype(np.uint8))
        pair = torch.from_numpy(reference), torch.from_numpy(mask)
        scores = voxel_scores(confusion_matrix(*pair, data.scheme.num_classes), data.scheme)
        official = score_case(reference, mask, spacing, data.scheme, "brats2026")
        scores |= headline_scores(official, data.scheme, "brats2026")
        if wanted is None:
            wanted = mask, scores
            rows.add("lesions in the CPU's mask: voxels", difference=Cell(float(np.count_nonzero(mask)), ""))
            continue
        most = 1e-3 if dtype is None else 2e-2
        changed = np.count_nonzero(mask != wanted[0]) / max(1, np.count_nonzero(reference))
        rows.add(f"voxels of another class, of the lesions', {name}", difference=Cell(float(changed), "", 10 * most))
        worst = max(abs(scores[key] - wanted[1][key]) for key in scores if np.isfinite(wanted[1][key]))
        rows.add(f"any Dice, IoU or lesion-wise score, {name}", difference=Cell(float(worst), "", 10 * most))


def _losses(module: Segmentation, batches: list) -> np.ndarray:
    """Of each step."""
    module.train()
    optimizer = torch.optim.SGD(module.network.parameters(), lr=LEARNING_RATE, momentum=0.9)
    device = next(module.parameters()).device
    losses = []
    for batch in batches:
        batch = batch.to(device)
        optimizer.zero_grad()
        loss = module.loss(module.network(batch.image), module.target.encode(batch.mask))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu().numpy()

"""Dice + focal loss: time and extra memory of a forward and backward pass."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Goal, Options, Row, close, timed
from tests.benchmarks.workload import config, elsewhere

SHAPE = (2, 4, 128, 128, 128)
OURS, SHIPPED, SAME = "ours", "MONAI DiceFocalLoss", "MONAI DiceLoss + softmax FocalLoss"


def rows(options: Options) -> Iterator[Row]:
    import torch

    logits, target = _batch()
    losses = {name: _loss(name) for name in (OURS, SHIPPED, SAME)}
    buffer = torch.empty_like(logits)

    def check() -> str:
        results = []
        for loss in (losses[OURS], losses[SAME]):
            value = loss(logits, target)
            (gradient,) = torch.autograd.grad(value, logits)
            results.append((value.item(), gradient.numpy()))
        (value, gradient), (other, other_gradient) = results
        largest = float(abs(other_gradient).max())
        relative = close(gradient / largest, other_gradient / largest, 1e-4, "gradient")
        return f"of the softmax sum: {close(value, other, 1e-5, 'loss')}, {relative} of its largest"

    yield Row(
        "loss",
        "dice_focal, forward + backward, 2×4×128³",
        "s",
        {
            **{
                name: timed(lambda loss=loss: torch.autograd.grad(loss(logits, target), logits))
                for name, loss in losses.items()
            },
            "limit: one softmax": timed(lambda: torch.softmax(logits.detach(), 1, out=buffer)),
        },
        goals=[Goal(SHIPPED, at_least=2), Goal(SAME, at_least=2)],
        check=check,
    )
    yield Row(
        "loss memory",
        "dice_focal, forward + backward, extra memory",
        "MB",
        {
            **{name: (lambda name=name: elsewhere(_peak, name, options.threads)) for name in losses},
            "limit: the gradient": lambda: logits.numel() * 4 / 1e6,
        },
        goals=[Goal(SHIPPED, at_least=2), Goal(SAME, at_least=2)],
        repeats=2,
        note="peak resident memory above that of logits and target, in a process of its own",
    )


def _batch() -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SHAPE, generator=generator).requires_grad_()
    target = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), generator=generator, dtype=torch.uint8)
    return logits, target


def _loss(name: str) -> Callable[[Any, Any], Any]:
    """Ours with equal factors; MONAI's as shipped, whose focal part is of sigmoids, and the sum that equals ours."""
    if name == OURS:
        from hydra.utils import instantiate

        loss = instantiate(config("loss=dice_focal", "loss.parts.focal.alpha=1").loss)
        return lambda logits, target: loss(logits, target)["loss"]
    from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss

    if name == SHIPPED:
        shipped = DiceFocalLoss(softmax=True, to_onehot_y=True)
        return lambda logits, target: shipped(logits, target[:, None])
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, smooth_nr=0, smooth_dr=1e-5)
    focal = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)  # a mean over the classes as well
    return lambda logits, target: dice(logits, target[:, None]) + SHAPE[1] * focal(logits, target[:, None])


def _peak(name: str, threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    loss = _loss(name)
    small, labels = (part[..., :8].detach() for part in _batch())
    torch.autograd.grad(loss(small.requires_grad_(), labels), small)  # whatever is loaded or allocated once
    logits, target = _batch()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    torch.autograd.grad(loss(logits, target), logits)
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> int:
    """A line of /proc/self/status in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

"""The device of these tests notices what a GPU would refuse or wait for."""

import pytest
import torch
from torch import nn

from brats_lightning.data.normalisation import Normaliser
from brats_lightning.losses import WeightedDiceLoss
from brats_lightning.models import UNet
from tests.elsewhere import DEVICE, elsewhere


def target(*shape):
    return torch.ones(shape, dtype=torch.uint8)


def forgotten_buffer(there):
    loss = WeightedDiceLoss([1.0, 2.0, 3.0, 4.0])  # not moved
    loss.weights_of = lambda sums: loss.class_weights
    loss(torch.randn(1, 4, 2, 2, 2).to(there), target(1, 2, 2, 2).to(there))


def convolution(there):
    nn.functional.conv3d(torch.randn(1, 2, 3, 3, 3).to(there), torch.randn(2, 2, 1, 1, 1))


def average(there):
    torch._foreach_lerp_([torch.zeros(3)], [torch.ones(3).to(there)], 0.5)


MIXTURES = {
    "a buffer": forgotten_buffer,
    "a convolution's weight": convolution,
    "an average": average,
    "an addition in place": lambda there: torch.zeros(3).to(there).add_(torch.ones(3)),
    "an addition in place, here": lambda there: torch.zeros(3).add_(torch.ones(3).to(there)),
    "a scatter's index": lambda there: torch.zeros(3).to(there).scatter_(0, torch.arange(3), 1.0),
    "a gathered index": lambda there: torch.zeros(9).to(there).index_select(0, torch.arange(3)),
    "a list as an index": lambda there: torch.zeros(3, 3).to(there)[:, [0, 1]],
    "a target": lambda there: WeightedDiceLoss()(torch.randn(1, 4, 2, 2, 2).to(there), target(1, 2, 2, 2)),
    "a network's image": lambda there: UNet(2, 4, (4, 8)).to(there)(torch.randn(1, 2, 4, 4, 4)),
    "a normaliser's numbers": lambda there: Normaliser(["t1n", "t1c"])(
        torch.ones(1, 2, 3, 3, 3, dtype=torch.int16).to(there), torch.ones(1, 2, 4)
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_devices_are_noticed(name):
    MIXTURES[name](torch.device("cpu"))
    with elsewhere(), pytest.raises(RuntimeError, match="elsewhere"):
        MIXTURES[name](DEVICE)


QUESTIONS = {
    "_local_scalar_dense": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "index": lambda x: x[x > 0],
    "to here": lambda x: x.cpu(),
    "to there": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "begun": lambda x: torch.ones(3).to(x.device, non_blocking=True),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_waits_are_noticed(kind):
    with elsewhere() as mode:
        x = torch.arange(3.0).to(DEVICE)
        mode.forget()
        QUESTIONS[kind](x)
        assert mode.waits == {(kind, ""): 1}

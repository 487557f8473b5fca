from functools import partial

import pytest
import torch
from torch import nn

from brats_lightning.models import ResUNet
from brats_lightning.training.footprint import LiveTensors, state_bytes, step_footprint

ADAMW, SGD = partial(torch.optim.AdamW, fused=True), partial(torch.optim.SGD, lr=0.1)


def on_meta(make):
    with torch.device("meta"):
        return make()


def test_live_tensors_are_counted_once_and_forgotten():
    known = torch.zeros(1000)
    with LiveTensors([known]) as live:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1
        assert live.bytes == 800
        view = b.view(10, 10)  # of the same storage
        known += 1  # is no new tensor
        del a
        assert live.bytes == 400
        c = torch.zeros(50)
        assert (live.bytes, live.most) == (600, 800)
        del b
        assert live.bytes == 600  # the view holds it
        del view, c
        assert live.bytes == 0


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [(ADAMW, 8), (SGD, 0), (partial(SGD, momentum=0.9), 4), (partial(torch.optim.Adam, amsgrad=True), 12)],
)
def test_what_optimisers_keep(optimizer, expected):
    assert state_bytes(optimizer) == expected


def test_a_convolution_counted_by_hand():
    network = on_meta(lambda: nn.Conv3d(1, 2, 1, bias=False))
    found = step_footprint(network, (3, 1, 8, 8, 8), "32-true", ADAMW)
    voxels = 3 * 8**3
    assert found.parameters == 2
    assert found.state == 2 * (4 + 4 + 8)
    assert found.batch == voxels * (2 + 4 + 1)  # as read, normalised; the mask
    # The logits, their gradient and that of the weights.
    assert found.features == pytest.approx(2 * voxels * 2 * 4 + 8, abs=64)
    assert found.flop == 2 * (2 * 2 * voxels)  # forward, and backward to the weights

    mixed = step_footprint(on_meta(lambda: nn.Conv3d(1, 2, 1, bias=False)), (3, 1, 8, 8, 8), "bf16-mixed", ADAMW, True)
    assert mixed.state == 2 * (4 + 4 + 8 + 4 + 2)  # the average, and the copy in 16 bits
    assert mixed.batch == voxels * (2 + 4 + 2 + 1)
    assert mixed.features == pytest.approx(found.features / 2, abs=64)


def test_features_grow_with_the_voxels_and_the_patches():
    def features(batch):
        network = on_meta(lambda: ResUNet(4, 4, (8, 16, 32), deep_supervision=1)).train()
        return step_footprint(network, batch, "bf16-mixed", ADAMW).features

    one = features((1, 4, 32, 32, 32))
    assert features((2, 4, 32, 32, 32)) == pytest.approx(2 * one, rel=0.15)
    assert features((1, 4, 64, 32, 32)) == pytest.approx(2 * one, rel=0.05)

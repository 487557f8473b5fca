from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from brats_lightning.config.resolvers import register_resolvers
from brats_lightning.core.labels import BRATS_METS
from brats_lightning.core.targets import make_target
from brats_lightning.losses import CategoricalFocalLoss, CompositeLoss, WeightedDiceLoss

CONF = Path(__file__).parents[2] / "conf" / "loss"


@pytest.fixture
def loss_of(composed):
    return lambda name, *overrides: instantiate(composed(f"loss={name}", *overrides).loss)


def test_configs_hold_the_defaults(loss_of):
    torch.manual_seed(0)
    batch = torch.randn(2, 4, 3, 4, 5), torch.randint(0, 3, (2, 3, 4, 5))
    dice, focal = WeightedDiceLoss()(*batch), CategoricalFocalLoss()(*batch)
    assert loss_of("dice")(*batch) == dice
    assert loss_of("focal")(*batch) == focal
    result = loss_of("dice_focal")(*batch)
    assert isinstance(loss_of("dice_focal"), CompositeLoss)
    assert (result["dice"], result["focal"]) == (dice, focal)
    torch.testing.assert_close(result["loss"], dice + focal)


def test_weights_from_a_config(loss_of):
    loss = loss_of("dice", "loss.class_weights=[1,2,3,4]")
    assert loss.class_weights.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("target", ["classes", "regions"])
def test_monai_loss_from_a_config(target):
    losses = pytest.importorskip("monai.losses")
    register_resolvers()
    config = OmegaConf.create({"target": target, "loss": OmegaConf.load(CONF / "monai_dice_focal.yaml")})
    what = make_target(target, BRATS_METS)
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    logits = torch.randn(2, what.channels, 3, 4, 5, generator=generator).requires_grad_()
    loss = instantiate(config.loss)(logits, what.encode(mask))
    loss.backward()
    assert logits.grad.isfinite().all()
    smooth = {"smooth_nr": 0, "smooth_dr": 1e-5}
    if target == "regions":
        expected = losses.DiceFocalLoss(sigmoid=True, **smooth)(logits, what.encode(mask).float())
    else:
        settings = {"softmax": True, "to_onehot_y": True, "include_background": False}
        expected = losses.DiceFocalLoss(**settings, **smooth)(logits, mask[:, None].long())
    torch.testing.assert_close(loss, expected)

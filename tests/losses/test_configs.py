from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from brats_lightning.losses import CategoricalFocalLoss, CompositeLoss, WeightedDiceLoss

CONF = Path(__file__).parents[2] / "conf" / "loss"


def loss_of(name, **override):
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), override))


def test_configs_hold_the_defaults():
    torch.manual_seed(0)
    batch = torch.randn(2, 4, 3, 4, 5), torch.randint(0, 3, (2, 3, 4, 5))
    dice, focal = WeightedDiceLoss()(*batch), CategoricalFocalLoss()(*batch)
    assert loss_of("dice")(*batch) == dice
    assert loss_of("focal")(*batch) == focal
    result = loss_of("dice_focal")(*batch)
    assert isinstance(loss_of("dice_focal"), CompositeLoss)
    assert (result["dice"], result["focal"]) == (dice, focal)
    torch.testing.assert_close(result["loss"], dice + focal)


def test_weights_from_a_config():
    loss = loss_of("dice", class_weights=[1, 2, 3, 4])
    assert loss.class_weights.tolist() == [1, 2, 3, 4]


def test_monai_loss_from_a_config():
    pytest.importorskip("monai")
    logits = torch.randn(2, 4, 3, 4, 5).requires_grad_()
    loss = loss_of("monai_dice_focal")(logits, torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()

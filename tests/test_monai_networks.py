"""Networks of MONAI by configuration alone: they train, resume and predict."""

import importlib.util

import pytest
import torch
from omegaconf import OmegaConf

from brats_lightning.config.build import build_network
from brats_lightning.config.checkpoint import load_model
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT
from brats_lightning.train import train

monai = pytest.importorskip("monai")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai", "ignore::DeprecationWarning:monai")

SHORT = ["logger=none", "test_on=null", "trainer.val_check_interval=2", "loss=dice_topk", "~callbacks.progress"]
NETWORKS = {
    "mednext": [
        *("model=monai_mednext", "model.init_filters=4", "model.deep_supervision=true"),
        *("model.encoder_expansion_ratio=[1,1]", "model.decoder_expansion_ratio=[1,1]"),
        *("model.blocks_down=[1,1]", "model.blocks_up=[1,1]", "model.blocks_bottleneck=1"),
    ],
    "swin_unetr": [
        *("model=monai_swin_unetr", "model.feature_size=12", "model.depths=[1,1,1,1]", "model.num_heads=[1,1,1,1]"),
        *("model.norm_name=[group,{num_groups:4}]", "model.window_size=2", "target=regions", "inference.stretch=0"),
    ],
    "segresnet_ds": [
        *("model=monai_segresnet_ds", "model.init_filters=8", "model.blocks_down=[1,1,1]", "model.dsdepth=2"),
        *("target=regions", "target_extra=[netc,snfh]"),
    ],
}
HEADS = {"mednext": 3, "swin_unetr": 1, "segresnet_ds": 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_resumes_and_predicts(composed, tmp_path, monkeypatch, name):
    if name == "swin_unetr" and importlib.util.find_spec("einops") is None:
        pytest.skip("einops is not installed")
    from brats_lightning.losses import DeepSupervision

    heads, forward = set(), DeepSupervision.forward

    def counted(self, logits, *reference):
        heads.add(1 if isinstance(logits, torch.Tensor) else len(logits))
        return forward(self, logits, *reference)

    monkeypatch.setattr(DeepSupervision, "forward", counted)
    settings = ["experiment=quick", "sampling.size=[32,32,32]", *SHORT, *NETWORKS[name]]
    results = train(composed(*settings, "trainer.max_steps=2", run="a", plain=True))
    assert results["val/loss"] > 0
    assert heads == {1, HEADS[name]}  # in validation one
    last = tmp_path / "a/checkpoints/last.ckpt"
    train(composed(*settings, "trainer.max_steps=3", f"ckpt_path={last}", run="b", plain=True))
    saved = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3

    model = load_model(tmp_path / "b/checkpoints/last.ckpt")
    with torch.inference_mode():
        logits = model.network(torch.zeros(1, 4, 32, 32, 32))
    assert logits.shape == (1, model.target.channels, 32, 32, 32)
    assert model.target.channels == {"mednext": 4, "swin_unetr": 3, "segresnet_ds": 5}[name]
    assert model.target.probabilities(logits[0].clone()).shape == (
        4,
        32,
        32,
        32,
    )  # background and classes, without shells


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_from_weights_of_other_sequences_and_labels(composed, tmp_path, name):
    if name == "swin_unetr" and importlib.util.find_spec("einops") is None:
        pytest.skip("einops is not installed")
    settings = ["experiment=quick", *NETWORKS[name]]
    cfg = composed(*settings, "data.modalities=[t1c,t2f]", plain=True)
    old, _ = build_network(cfg)
    config = OmegaConf.to_container(cfg)
    weights = {f"network.{key}": value for key, value in old.state_dict().items()}
    torch.save({"state_dict": weights, "config": config, "format": CHECKPOINT_FORMAT}, tmp_path / "old.ckpt")
    more = [f"weights={tmp_path}/old.ckpt", "weights_mode=matching", "data.labels=[netc,snfh,et,rc]"]
    network, start = build_network(composed(*settings, *more, plain=True))
    assert "t1c, t2f by name; t1n, t2w as the mean of t1c, t2f" in start
    assert "by name; rc new" in start
    changed = {key for key, value in network.state_dict().items() if value.shape != old.state_dict()[key].shape}
    assert changed
    for key, value in network.state_dict().items():
        assert key in changed or torch.equal(value, old.state_dict()[key])

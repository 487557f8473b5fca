import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from brats_lightning.config.allow_list import CheckpointError
from brats_lightning.config.build import build_network
from brats_lightning.config.checkpoint import load_model, read_checkpoint
from brats_lightning.config.nnunet import read_nnunet
from brats_lightning.config.weights import trained_before
from brats_lightning.models import ResEncUNet, UNet
from tests.tiny_models import bright_is_et, save_checkpoint

MODALITIES = ["t1n", "t1c", "t2w", "t2f"]
REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]}
WIDTHS, BLOCKS = [4, 8, 8], [1, 2, 1]


def nnunet_weights(network):
    """The state dict of nnU-Net's network with the weights of ours, and what it holds besides them."""
    ours, theirs, last = network.state_dict(), {}, len(network.encoder) - 1

    def put(name, source):
        """A convolution with a norm: prefix and number of ours."""
        prefix, number = source
        for kind, what in (("conv", "weight"), ("norm", "weight"), ("norm", "bias")):
            theirs[f"{name}.{kind}.{what}"] = ours[f"{prefix}.{kind}{number}.{what}"]
        theirs[f"{name}.conv.bias"] = torch.full_like(theirs[f"{name}.norm.bias"], 7.0)  # which the norm undoes
        theirs[f"{name}.all_modules.0.weight"] = theirs[f"{name}.conv.weight"]  # a second name

    put("encoder.stem.convs.0", ("encoder.0.0", 1))
    for stage, level in enumerate(network.encoder):
        for block in range(len(level) - (stage == 0)):
            mine, name = f"encoder.{stage}.{block + (stage == 0)}", f"encoder.stages.{stage}.blocks.{block}"
            put(f"{name}.conv1", (mine, 1))
            put(f"{name}.conv2", (mine, 2))
            if f"{mine}.shortcut.1.weight" in ours:  # behind the average, which is 0
                theirs[f"{name}.skip.1.conv.weight"] = ours[f"{mine}.shortcut.1.weight"]
                for what in ("weight", "bias"):
                    theirs[f"{name}.skip.1.norm.{what}"] = ours[f"{mine}.shortcut.2.{what}"]
    for stage in range(last):
        level = last - 1 - stage
        put(f"decoder.stages.{stage}.convs.0", (f"decoder.{level}.blocks.0", 1))
        first = theirs[f"decoder.stages.{stage}.convs.0.conv.weight"]
        width = first.shape[0]
        theirs[f"decoder.stages.{stage}.convs.0.conv.weight"] = torch.cat([first[:, width:], first[:, :width]], 1)
        for what in ("weight", "bias"):
            theirs[f"decoder.transpconvs.{stage}.{what}"] = ours[f"decoder.{level}.up.{what}"]
            theirs[f"decoder.seg_layers.{stage}.{what}"] = ours[f"heads.{level}.{what}"]
    theirs["decoder.encoder.stem.convs.0.conv.weight"] = theirs["encoder.stem.convs.0.conv.weight"]
    return theirs


def plans(**changes):
    network = {
        "n_stages": 3,
        "features_per_stage": WIDTHS,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
        "n_blocks_per_stage": BLOCKS,
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    } | changes
    kind = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    planned = {"architecture": {"network_class_name": kind, "arch_kwargs": network}, "patch_size": [8, 8, 8]}
    return {"transpose_forward": [0, 1, 2], "configurations": {"base": planned, "mine": {"inherits_from": "base"}}}


def dataset(labels=REGIONS, channels=("T1", "T1ce", "T2", "FLAIR")):
    content = {"channel_names": {str(n): name for n, name in enumerate(channels)}, "labels": labels}
    return content | ({"regions_class_order": [2, 1, 3]} if labels == REGIONS else {})


def write_nnunet(root, network, made_of=None, data=None, beside=True, **more):
    """A trained model as nnU-Net leaves it."""
    made_of, data = made_of or plans(), data or dataset()
    folder = root / "Dataset501_Tiny/nnUNetTrainer__plans__mine"
    (folder / "fold_0").mkdir(parents=True)
    if beside:
        (folder / "plans.json").write_text(json.dumps(made_of))
        (folder / "dataset.json").write_text(json.dumps(data))
    checkpoint = {
        "network_weights": nnunet_weights(network),
        "init_args": {"plans": made_of, "configuration": "mine", "dataset_json": data, "device": torch.device("cpu")},
        "logging": {"ema_fg_dice": [np.float32(0.5)], "train_losses": [np.float64(1.5)]},
        "_best_ema": np.float64(0.5),
        "trainer_name": "nnUNetTrainer",
    }  # fmt: skip
    torch.save(checkpoint | more, folder / "fold_0/checkpoint_final.pth")
    return folder


@pytest.fixture
def source():
    torch.manual_seed(0)
    network = ResEncUNet(4, 3, WIDTHS, blocks=BLOCKS, strides=[2, [1, 2, 2]])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture
def built(composed):
    """The network of a tiny config, and what it says that it starts from."""

    def build(*overrides, **more):
        preset = ["model=resenc", f"model.widths={WIDTHS}", f"model.blocks={BLOCKS}", "model.strides=[2,[1,2,2]]"]
        network, start = build_network(composed(*preset, "target=regions", *overrides, **more))
        return network.eval(), start

    return build


IMAGE = torch.randn(1, 4, 8, 12, 16, generator=torch.Generator().manual_seed(1))
ORDER = [2, 1, 0]  # ET, TC, WT of WT, TC, ET


@pytest.mark.parametrize(("named", "beside"), [("", True), ("fold_0", True), ("fold_0/checkpoint_final.pth", False)])
def test_nnunet_s_weights_give_its_logits_with_channels_by_name(source, built, tmp_path, named, beside):
    folder = write_nnunet(tmp_path, source, beside=beside)
    network, start = built(f"weights={folder / named}", "data.modalities=[t2f,t1n,t1c,t2w]", "model.dropout=0.1")
    assert start == f"all {len(source.state_dict())} of {folder / named}"
    torch.testing.assert_close(network(IMAGE[:, [3, 0, 1, 2]]), source(IMAGE)[:, ORDER])


def test_nnunet_s_classes_and_shells(source, built, tmp_path):
    labels = {"background": 0, "edema": 1, "enhancing tumor": 3, "necrosis": 2}
    classes = ResEncUNet(4, 4, WIDTHS, blocks=BLOCKS, strides=[2, [1, 2, 2]]).eval()
    data = dataset(labels) | {"regions_class_order": None}  # what counts for nnU-Net is a label of several numbers
    folder = write_nnunet(tmp_path / "classes", classes, data=data)
    network, _ = built(f"weights={folder}", "target=classes")
    torch.testing.assert_close(network(IMAGE), classes(IMAGE)[:, [0, 2, 1, 3]])  # ours: netc, snfh, et
    labels = {"background": 0, "wt": [1, 2, 3], "tc": [1, 3], "snfh": [2], "et": [3]}
    data = dataset(labels) | {"regions_class_order": [2, 1, 2, 3]}
    folder = write_nnunet(tmp_path / "shells", classes, data=data)
    network, _ = built(f"weights={folder}", "target_extra=[snfh]")
    torch.testing.assert_close(network(IMAGE), classes(IMAGE)[:, [3, 1, 0, 2]])  # ET, TC, WT, SNFH


def test_another_network_is_told_what_to_type(source, composed, tmp_path):
    folder = write_nnunet(tmp_path, source)
    with pytest.raises(CheckpointError, match=r"they fit one with model=resenc ") as refused:
        build_network(composed(f"weights={folder}", "target=regions"))
    typed = str(refused.value).partition("they fit one with ")[2].replace("'", "").split()
    network, _ = build_network(composed(f"weights={folder}", "target=regions", *typed))
    torch.testing.assert_close(network.eval()(IMAGE), source(IMAGE)[:, ORDER])


def test_every_difference_is_named(source, composed, tmp_path):
    folder = write_nnunet(tmp_path, source)
    preset = ["model=resenc", f"model.widths={WIDTHS}", f"model.blocks={BLOCKS}", "target=regions"]
    with pytest.raises(
        CheckpointError, match=r"they fit one with 'model\.strides=\[2,\[1,2,2\]\]' model\.norm=instance$"
    ):
        build_network(composed(f"weights={folder}", *preset, "model.norm=group"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.modalities=[t1n,t1c,t2w]", "with the modalities t1n, t1c, t2w, t2f, not t1n, t1c, t2w: set"),
        ("data.labels=[netc,snfh,et,rc]", "with the outputs wt, tc, et, not et, tc, wt, rc: set"),
        ("target=classes", "with the outputs wt, tc, et, not background, netc, snfh, et: set"),
    ],
)
def test_other_channels_are_refused_or_matched(source, built, tmp_path, override, message):
    folder = write_nnunet(tmp_path, source)
    with pytest.raises(CheckpointError, match=message):
        built(f"weights={folder}", override)
    _, start = built(f"weights={folder}", override, "weights_mode=matching")
    assert start.startswith(f"{folder}, those that match\n")


MISFITS = {
    "transposed": (plans() | {"transpose_forward": [2, 0, 1]}, "turn images"),
    "old": ({"configurations": {"mine": {"UNet_class_name": "PlainConvUNet"}}}, "before 2.4"),
    "another norm": (plans(norm_op="torch.nn.BatchNorm3d"), "norm_op=torch.nn.BatchNorm3d, not torch.nn.modules"),
    "a circle": ({"configurations": {"mine": {"inherits_from": "mine"}}}, "no checkpoint of nnU-Net v2 with its plans"),
    "no configuration": ({"configurations": {}}, "no checkpoint of nnU-Net v2 with its plans"),
}


@pytest.mark.parametrize(("made_of", "message"), MISFITS.values(), ids=MISFITS)
def test_networks_that_ours_cannot_be(source, built, tmp_path, made_of, message):
    with pytest.raises(CheckpointError, match=message):
        built(f"weights={write_nnunet(tmp_path, source, made_of)}")


def test_channels_of_no_known_name(source, built, tmp_path):
    folder = write_nnunet(tmp_path, source, data=dataset(channels=("T1", "T1ce", "T2", "PET")))
    with pytest.raises(CheckpointError, match="with the modalities t1n, t1c, t2w, pet, not t1n, t1c, t2w, t2f: set"):
        built(f"weights={folder}")
    _, start = built(f"weights={folder}", "weights_mode=matching")
    assert "t1n, t1c, t2w by name; t2f as the mean of t1n, t1c, t2w, pet" in start


def test_a_model_of_another_organ(source, built, tmp_path):
    """Its head has the right shape and the wrong classes."""
    network = ResEncUNet(1, 3, WIDTHS, blocks=BLOCKS, strides=[2, [1, 2, 2]])
    labels = {"background": 0, "tumour of the liver": 2, "liver": 1}
    folder = write_nnunet(tmp_path, network, data=dataset(labels, ["CT"]))
    with pytest.raises(CheckpointError, match="outputs background, liver, tumour of the liver, not et, tc, wt"):
        built(f"weights={folder}")
    loaded, start = built(f"weights={folder}", "weights_mode=matching")
    assert "none by name; t1n, t1c, t2w, t2f as the mean of ct" in start
    assert "output channels" not in start
    first = "encoder.0.0.conv1.weight"
    assert torch.equal(loaded.state_dict()[first], network.state_dict()[first].expand(-1, 4, -1, -1, -1))


def test_weights_that_lack_some(source, built, tmp_path):
    weights = nnunet_weights(source)
    del weights["encoder.stages.1.blocks.0.conv1.conv.weight"]
    folder = write_nnunet(tmp_path, source, network_weights=weights)
    with pytest.raises(CheckpointError, match=r"encoder\.1\.0\.conv1\.weight … are not among them"):
        built(f"weights={folder}")
    weights["classifier.weight"] = torch.zeros(1)
    folder = write_nnunet(tmp_path / "other", source, network_weights=weights)
    with pytest.raises(CheckpointError, match=r"classifier\.weight is no weight of a ResidualEncoderUNet"):
        built(f"weights={folder}")


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


@pytest.mark.parametrize("more", [Harmful(), np.zeros(3), np.datetime64("2020-01-01"), Path("a")], ids=type)
def test_nothing_but_tensors_and_numbers_is_read(source, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    before = set(torch.serialization.get_safe_globals())
    folder = write_nnunet(tmp_path, source, logging=more)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain containers"):
        read_nnunet(folder, ("netc", "snfh", "et"))
    assert set(torch.serialization.get_safe_globals()) == before
    assert not Path("owned").exists()


def test_checkpoints_of_ours_may_hold_no_numpy_numbers(source, tmp_path):
    folder = write_nnunet(tmp_path, source)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_checkpoint(folder / "fold_0/checkpoint_final.pth")


def test_a_folder_must_have_one_fold(source, built, tmp_path):
    folder = write_nnunet(tmp_path, source)
    (folder / "fold_0").rename(folder / "fold_1")
    built(f"weights={folder}")
    (folder / "fold_2").mkdir()
    (folder / "fold_1/checkpoint_final.pth").rename(folder / "fold_2/checkpoint_best.pth")
    with pytest.raises(CheckpointError, match=r"has no fold with checkpoint_final\.pth; name a file: weights="):
        built(f"weights={folder}")
    built(f"weights={folder}/fold_2/checkpoint_best.pth")
    for fold in (0, 1):
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        (folder / f"fold_{fold}/checkpoint_final.pth").touch()
    with pytest.raises(CheckpointError, match="has the folds fold_0, fold_1; name a file"):
        built(f"weights={folder}")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        built(f"weights={tmp_path}/none.pth")


# ---- checkpoints of ours


def ours(path, network=None, **settings):
    network = network or UNet(2, 4, (8, 16, 32))
    return save_checkpoint(path, network, {"_target_": "brats_lightning.models.UNet"}, **settings)


def test_matching_says_what_became_of_each_part(composed, tmp_path):
    torch.manual_seed(0)
    old = UNet(2, 4, (8, 16, 32), decoder_blocks=2)
    path = ours(tmp_path / "a.ckpt", old, modalities=["t1c", "t2f"])
    cfg = composed(
        f"weights={path}", "weights_mode=matching", "data.labels=[netc,snfh,et,rc]", "data.modalities=[t2f,t1c,t1n]"
    )
    network, start = build_network(cfg)
    lines = start.splitlines()
    assert lines[:3] == [
        f"{path}, those that match",
        "input channels, in encoder.0.0.conv1.weight: t2f, t1c by name; t1n as the mean of t1c, t2f",
        "output channels, in heads.0.weight, heads.0.bias, heads.1.weight, heads.1.bias: "
        "background, netc, snfh, et by name; rc new",
    ]
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if re.match("[│┃]", line)]
    assert rows[0] == ["part", "loaded", "adapted", "new", "not used"]
    parts = {name: counts for name, *counts in rows[1:]}
    assert parts["encoder.0"] == ["5", "1", "", ""]
    assert parts["decoder.1"] == ["8", "", "", "6"]  # whose second block has no place
    assert parts["heads.0"] == ["", "2", "", ""]
    state, before = network.state_dict(), old.state_dict()
    assert torch.equal(state["encoder.1.0.conv2.weight"], before["encoder.1.0.conv2.weight"])
    assert torch.equal(state["heads.0.bias"][:4], before["heads.0.bias"])


def test_matching_leaves_what_another_architecture_has(composed, tmp_path):
    path = ours(tmp_path / "a.ckpt", UNet(4, 4, (8, 16, 32)), modalities=MODALITIES)
    network, start = build_network(composed(f"weights={path}", "weights_mode=matching", "model=resunet"))
    assert "input channels" not in start
    assert not any("shortcut" in name for name in UNet(4, 4, (8, 16, 32)).state_dict())
    total = [cell.strip() for cell in re.split("[│┃]", start.splitlines()[-2])[1:-1]]
    shortcuts = sum("shortcut" in name for name in network.state_dict())
    assert total == ["all", str(len(network.state_dict()) - shortcuts), "0", str(shortcuts), "0"]


def test_nothing_that_matches_is_an_error(composed, tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", nn.Sequential(nn.Conv3d(4, 4, 1)), {})
    with pytest.raises(
        CheckpointError, match=r"none \(0\.weight …\) has the name and the shape of one of brats_lightning"
    ):
        build_network(composed(f"weights={path}", "weights_mode=matching"))


def test_all_of_the_same_network(composed, tmp_path):
    path = ours(tmp_path / "a.ckpt", UNet(4, 4, (8, 16, 32)), modalities=MODALITIES)
    for mode in ("strict", "matching"):
        network, _ = build_network(composed(f"weights={path}", f"weights_mode={mode}"))
        assert torch.equal(network.heads[0].weight, torch.load(path)["state_dict"]["network.heads.0.weight"])
    assert build_network(composed(f"weights={path}"))[1] == f"all {len(network.state_dict())} of {path}"
    assert build_network(composed())[1] == ""


def test_what_the_weights_were_trained_on_is_handed_on(composed, tmp_path):
    assert trained_before(composed()) == []
    path = bright_is_et(tmp_path / "a.ckpt")
    assert trained_before(composed(f"weights={path}")) is None  # neither in the file nor beside it
    content = torch.load(path, weights_only=True)
    split = {"train": ["P-00001-000"], "val": ["P-00002-000"], "test": []}
    torch.save(content | {"split": split, "seen": ["P-00003-000"]}, path)
    assert trained_before(composed(f"weights={path}")) == ["P-00001-000", "P-00003-000"]
    model = load_model(path)
    parts = {f"P-{number:05}-001": model.part_of(f"P-{number:05}-001") for number in (1, 2, 3, 4)}  # by patient
    assert list(parts.values()) == ["train", "val", "train", "none"]
    torch.save(content | {"split": split, "seen": None}, path)  # begun from weights of unknown origin
    assert trained_before(composed(f"weights={path}")) is None
    model = load_model(path)
    assert [model.part_of(f"P-{number:05}-000") for number in (1, 2, 4)] == ["train", None, None]


def test_another_mode(composed, tmp_path):
    with pytest.raises(ValueError, match="weights_mode must be strict or matching, got 'loose'"):
        build_network(composed(f"weights={ours(tmp_path / 'a.ckpt')}", "weights_mode=loose"))

import pickle
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from brats_lightning.config.allow_list import SOURCES, CheckpointError, UntrustedTarget, build_saved
from brats_lightning.config.checkpoint import load_model, read_checkpoint, trained_cases
from brats_lightning.data.preprocessing import Preprocessing
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.synthetic.phantom import phantom_cases
from tests.data.tiny_cases import write_case
from tests.tiny_models import bright_is_et, save_checkpoint, voxelwise

CONV = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 4, "kernel_size": 1}


def test_a_model_comes_with_all_it_was_trained_with(tmp_path):
    path = voxelwise(
        tmp_path / "a.ckpt", [[1.0, 2.0]] * 4, [1.0, 2.0, 3.0, 4.0], modalities=["t2f", "t1c-t1n"],
        preprocessing={"spacing": [1, 2, 3], "fit": "none", "size": None}, window=[4, 5, 6],
    )  # fmt: skip
    model = load_model(path)
    assert model.network.weight.flatten().tolist() == [1, 2] * 4
    assert model.network.bias.tolist() == [1, 2, 3, 4]
    assert not model.network.training
    assert model.normaliser.channels == ("t2f", "t1c-t1n")
    assert model.normaliser.sources == ("t1n", "t1c", "t2f")
    assert model.preprocessing == Preprocessing(spacing=(1.0, 2.0, 3.0))
    assert model.scheme.names == ("netc", "snfh", "et")
    assert model.inference == SlidingWindow((4, 5, 6), 0.25)


def test_inference_overrides_replace_what_is_given(tmp_path):
    path = bright_is_et(tmp_path / "a.ckpt")
    model = load_model(path, inference={"overlap": 0.5, "mirror_axes": [2], "window": None})
    assert model.inference == SlidingWindow((8, 8, 8), 0.5, mirror_axes=(2,))


def test_networks_of_ours_torch_and_monai_are_built():
    unet = build_saved({"_target_": "brats_lightning.models.UNet", "in_channels": 1, "out_channels": 2})
    assert type(unet).__name__ == "UNet"
    nested = build_saved({"_target_": "torch.nn.Sequential", "_args_": [CONV, {"_target_": "torch.nn.ReLU"}]})
    assert [type(layer) for layer in nested] == [nn.Conv3d, nn.ReLU]
    pytest.importorskip("monai")
    net = build_saved(
        {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 3, "features": [4] * 6, "_convert_": "all"}
    )
    assert isinstance(net, nn.Module)


def test_it_means_what_hydra_means():
    partial = build_saved({"_target_": "torch.nn.Conv3d", "_partial_": True, "in_channels": 1})
    assert partial(out_channels=2, kernel_size=1).weight.shape == (2, 1, 1, 1, 1)
    partial = build_saved(CONV | {"_partial_": True, "_recursive_": False, "stride": [1, 1, 1], "bias": CONV})
    assert (type(partial.keywords["stride"]), partial.keywords["bias"]) == (list, CONV)
    window = build_saved({"_target_": "brats_lightning.inference.windows.SlidingWindow", "window": [1, 2, 3]})
    assert window == SlidingWindow((1, 2, 3))
    assert build_saved({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}


OS = {"_target_": "os.system", "_args_": ["touch owned"]}
ATTACKS = {
    "plain": OS,
    "in an argument": CONV | {"bias": OS},
    "in a list": {"_target_": "torch.nn.Sequential", "_args_": [CONV, [OS]]},
    "deep": CONV | {"a": {"b": [{"c": OS}]}},
    "partial": OS | {"_partial_": True},
    "partial of an allowed class": CONV | {"_partial_": True, "bias": OS},
    "not recursive": CONV | {"_recursive_": False, "bias": OS},
    "inside what is not built": {"a": [OS]},
    "builtin": {"_target_": "builtins.eval", "_args_": ["1"]},
    "no module": {"_target_": "eval", "_args_": ["1"]},
    "module of a module of ours": {"_target_": "brats_lightning.train.json.loads", "_args_": ["1"]},
    "os of a module of ours": {"_target_": "brats_lightning.predict.os.system", "_args_": ["1"]},
    "imported by a module of ours": {"_target_": "brats_lightning.config.allow_list.attrgetter", "_args_": [OS]},
    "class imported by ours": {"_target_": "brats_lightning.config.build.Path", "_args_": ["x"]},
    "function of ours": {"_target_": "brats_lightning.train.train", "cfg": {}},
    "class of ours that is no network": {"_target_": "brats_lightning.data.cache.store.Cache", "root": "x"},
    "method of ours": {"_target_": "brats_lightning.data.cache.store.Cache.fill"},
    "unknown of ours": {"_target_": "brats_lightning.nothing.Here"},
    "hub": {"_target_": "torch.hub.load", "_args_": ["x", "y"]},
    "loader": {"_target_": "torch.load", "_args_": ["x"]},
    "torch's other classes": {"_target_": "torch.utils.data.DataLoader", "dataset": []},
    "function of torch.nn": {"_target_": "torch.nn.functional.relu", "_args_": [1]},
    "class of torch.nn that is no network": {"_target_": "torch.nn.Parameter"},
    "import seen from torch.nn": {"_target_": "torch.nn.modules.module.functools.partial", "_args_": [1]},
    "class seen from torch.nn": {"_target_": "torch.nn.modules.module.OrderedDict"},
    "a name that begins alike": {"_target_": "torch.nnx.Conv3d"},
    "a package that begins alike": {"_target_": "brats_lightning_evil.Net"},
    "monai's bundles": {"_target_": "monai.bundle.ConfigParser"},
    "not a name": {"_target_": "torch.nn. Conv3d"},
    "relative": {"_target_": ".os.system"},
    "dunder": {"_target_": "torch.nn.Conv3d.__init__.__globals__"},
    "no text": {"_target_": ["os.system"]},
    "nothing": {"_target_": None},
    "target by reference": {"_target_": "${x}", "x": "os.system"},
    "environment": CONV | {"padding_mode": "${oc.env:HOME}"},
    "made by a resolver": CONV | {"bias": "${oc.create:{_target_:os.system}}"},
    "reference in a list": CONV | {"x": ["${oc.env:HOME}"]},
    "an object": CONV | {"x": torch.zeros(1)},
    "an argument whose name is no text": CONV | {1: 2},
    "a key that is neither text nor number": CONV | {"x": {(1,): 2}},
    "beside an allowed one": {"a": CONV, "b": OS},
    "in arguments that are not built": {"_target_": "torch.nn.Sequential", "_recursive_": False, "_args_": [[OS]]},
    "in a directive": CONV | {"_convert_": OS},
    "arguments that are no list": CONV | {"_args_": "abc"},
    "a value that Hydra takes for missing": CONV | {"bias": "???"},
    "a config that resolves references by itself": OmegaConf.create(CONV | {"padding_mode": "${oc.env:HOME}"}),
    "method of an allowed class": {"_target_": "torch.nn.Conv3d.forward", "_partial_": True},
}


@pytest.mark.parametrize("node", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_are_refused_before_anything_is_built(node, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def forbidden(*args, **kwargs):
        raise AssertionError("something was built")

    monkeypatch.setattr(nn.Conv3d, "__init__", forbidden)
    with pytest.raises(
        CheckpointError, match=r"wants to run|cannot be imported|is the reference|is of type|is not text"
    ):
        build_saved(node)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "node",
    [
        {
            "_target_": "monai.networks.nets.DenseNet121",
            "spatial_dims": 2,
            "in_channels": 3,
            "out_channels": 4,
            "pretrained": True,
        },
        {"_target_": "monai.networks.nets.EfficientNetBN", "_args_": ["efficientnet-b0", True]},
        {"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "efficientnet-b0"},  # it is the default
        {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://127.0.0.1:9/weights.pth"},
        {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://127.0.0.1:9/w", "_partial_": True},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "monai.networks.nets.AHNet", "pretrained": True}]},
        {"_target_": "monai.networks.nets.Transchex", "in_channels": 1, "img_size": [8, 8], "patch_size": [2, 2]},
    ],
    ids=["given", "by position", "default", "address", "partial", "nested", "always"],
)
def test_no_weights_are_fetched(node, monkeypatch):
    pytest.importorskip("monai")

    def connect(*args, **kwargs):
        raise AssertionError("it went to the network")

    monkeypatch.setattr("socket.socket.connect", connect)
    with pytest.raises(UntrustedTarget, match=r"would fetch weights from elsewhere.*'trust=\[monai\]'|wants to run"):
        build_saved(node)


def test_the_same_networks_without_weights_are_built():
    pytest.importorskip("monai")
    node = {"_target_": "monai.networks.nets.EfficientNetBN", "_args_": ["efficientnet-b0", False, True, 3, 1, 4]}
    assert isinstance(build_saved(node), nn.Module)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's, which says so when it is imported."""
    folder = tmp_path / "site"
    (folder / "my_networks").mkdir(parents=True)
    (folder / "my_networks/__init__.py").write_text(
        "import os\nfrom pathlib import Path\nfrom torch import nn\nPath(__file__).with_name('imported').touch()\n"
        "class Net(nn.Conv3d):\n    pass\n\ndef make(channels):\n    return nn.Conv3d(channels, 4, 1)\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield folder / "my_networks/imported"
    sys.modules.pop("my_networks", None)


def test_other_packages_are_not_even_imported_until_they_are_trusted(package):
    node = {"_target_": "my_networks.Net", "in_channels": 1, "out_channels": 4, "kernel_size": 1}
    with pytest.raises(UntrustedTarget, match=r"_target_ wants to run 'my_networks\.Net'.*'trust=\[my_networks\]'"):
        build_saved(node)
    with pytest.raises(UntrustedTarget):
        build_saved(node, trust=["my_net", "networks"])
    assert not package.exists()
    assert type(build_saved(node, trust=["my_networks"])).__name__ == "Net"
    assert package.exists()


def test_trust_ends_at_the_package(package):
    trust = ["my_networks"]
    assert isinstance(build_saved({"_target_": "my_networks.make", "channels": 2}, trust), nn.Conv3d)
    for target in ("my_networks.os.system", "my_networks.Path", "os.system"):
        with pytest.raises(CheckpointError):
            build_saved({"_target_": target, "_args_": ["x"]}, trust)
    with pytest.raises(CheckpointError, match="cannot be imported"):
        build_saved({"_target_": "my_networks.Nothing"}, trust)


def test_a_name_leads_hydra_to_what_was_judged(package, monkeypatch):
    folder = package.parent
    (folder / "net.py").write_text("from torch import nn\n\nclass Net(nn.Conv3d):\n    pass\n")
    node = {"_target_": "my_networks.net.Net", "in_channels": 1, "out_channels": 4, "kernel_size": 1}
    assert type(build_saved(node, ["my_networks"])).__name__ == "Net"

    class net:
        @staticmethod
        def Net(**settings):
            raise AssertionError("what has the name of the module was run")

    monkeypatch.setattr(sys.modules["my_networks"], "net", net)
    with pytest.raises(UntrustedTarget, match="wants to run"):
        build_saved(node, ["my_networks"])
    sys.modules.pop("my_networks.net")


def test_what_hydra_never_runs_is_not_run_for_a_trusted_package(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"its config cannot be built: .*os\.removedirs"):
        build_saved({"_target_": "os.removedirs", "name": str(tmp_path / "empty")}, ["os"])
    assert (tmp_path / "empty").exists()


def run_of(path, source):
    return load_model(bright_is_et(path, source=source))


def test_what_lists_cases_is_built_only_where_cases_are_wanted(tmp_path):
    write_case(tmp_path / "in")
    node = {"_target_": "brats_lightning.data.layouts.brats.find_cases", "root": str(tmp_path / "in")}
    assert [case.id for case in trained_cases(run_of(tmp_path / "a.ckpt", node))] == ["BraTS-MET-00001-000"]
    for target in SOURCES:
        with pytest.raises(UntrustedTarget):
            build_saved(node | {"_target_": target})


def test_cases_that_a_run_made_are_read_and_never_made(tmp_path):
    small = {"cases": 2, "shape": [24, 24, 24], "lesions": 1}
    phantoms = {
        "_target_": "brats_lightning.synthetic.phantom.phantom_cases",
        "parent": str(tmp_path / "made"),
        **small,
    }
    made = run_of(tmp_path / "a.ckpt", phantoms)
    with pytest.raises(FileNotFoundError):
        trained_cases(made)
    scans = {"_target_": "brats_lightning.synthetic.implant.implanted_cases", "parent": str(tmp_path / "more")}
    scans |= {"background": str(tmp_path / "in"), "label_map": {4: 3}, "cases": 100}  # label maps have numbers for keys
    write_case(tmp_path / "in")
    with pytest.raises(FileNotFoundError):
        trained_cases(run_of(tmp_path / "b.ckpt", scans))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "in"]
    phantom_cases(tmp_path / "made", **small)
    assert [case.id for case in trained_cases(made)] == ["BraTS-MET-90001-000", "BraTS-MET-90002-000"]


def test_a_refusal_names_the_checkpoint_and_the_place(tmp_path):
    path = save_checkpoint(tmp_path / "a.ckpt", nn.Conv3d(1, 4, 1), CONV | {"padding": [OS]})
    with pytest.raises(UntrustedTarget, match=r"a\.ckpt: model\.padding\[0\]\._target_ wants to run 'os\.system'"):
        load_model(path)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "config": Attack(), "format": CHECKPOINT_FORMAT}, path)
    with pytest.raises(CheckpointError, match="more than tensors and plain containers"):
        load_model(path)
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("number", "said"), [(None, "without a format number"), (99, "of format 99")])
def test_another_format_is_refused_in_one_line(tmp_path, number, said):
    path = bright_is_et(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in (content | {"format": number}).items() if value is not None}, path)
    for read, key in ((load_model, "ckpt"), (lambda file: read_checkpoint(file, "ckpt_path"), "ckpt_path")):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{key}: {path} is {said}; this version reads format {CHECKPOINT_FORMAT}: train again, or use "
            "the version that wrote it"
        )


def test_what_is_no_checkpoint_is_told_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*a\.ckpt"):
        load_model(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="not written by"):
        load_model(tmp_path / "b.ckpt")
    save_checkpoint(tmp_path / "c.ckpt", nn.Conv3d(2, 4, 1), CONV)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        load_model(tmp_path / "c.ckpt")
    save_checkpoint(tmp_path / "d.ckpt", nn.Conv3d(1, 4, 1), CONV | {"no_such_setting": 1})
    with pytest.raises(CheckpointError, match=r"torch\.nn\.Conv3d does not take these settings"):
        load_model(tmp_path / "d.ckpt")
    save_checkpoint(tmp_path / "e.ckpt", nn.Conv3d(1, 4, 1), CONV | {"_partial_": True})
    with pytest.raises(CheckpointError, match="model and inference make"):
        load_model(tmp_path / "e.ckpt")
    save_checkpoint(tmp_path / "f.ckpt", nn.Conv3d(1, 4, 1), CONV, preprocessing={"zoom": 1})
    with pytest.raises(CheckpointError, match="not those of this version"):
        load_model(tmp_path / "f.ckpt")

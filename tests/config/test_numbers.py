"""Every number of every config at 0, 1 and -1: it works, or one line names it.

All parts of a run are built and used for a moment, so that this takes a minute, not a training for each number.
"""

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from brats_lightning.config.build import build_data, build_segmentation, build_trainer
from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.data.datamodule import CaseData
from brats_lightning.evaluate import evaluate
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.preprocess import preprocess
from brats_lightning.train import _check, train
from brats_lightning.tune import _candidates
from tests.data.tiny_cases import LPS
from tests.tiny_models import bright_is_et


def numbers(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all numbers in a plain container."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from numbers(value, (*path, name))
    elif type(node) in (int, float):
        yield path


def changed(container: dict, path: tuple, value: int) -> dict:
    container = copy.deepcopy(container)
    node = container
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return container


def failures(container: dict, use: Callable[[Any, str], Any], known: set | None = None) -> list[str]:
    """What happens to each number that is neither used nor refused in words that name it.

    Args:
        container: a config, not resolved: a changed number reaches all that refers to it.
        use: is called with the resolved config and the number's group.
        known: numbers that need no second look, by class; what is looked at is added.
    """
    known = set() if known is None else known
    found = []
    for path in numbers(container):
        group = container[path[0]]
        where = path, group.get("_target_") if isinstance(group, dict) else None
        if where in known:
            continue
        known.add(where)
        name = next(part for part in reversed(path) if isinstance(part, str))
        for value in (0, 1, -1):
            try:
                use(resolved(OmegaConf.create(changed(container, path, value))), path[0])
            except Exception as error:
                # the key, or another with which it cannot be
                named = re.search(rf"^{path[0]}\b|\b{path[0]}\.\w|\b{name}\b", str(error))
                if not isinstance(error, ValueError) or not named or "Type-check" in str(error):
                    found.append(f"{'.'.join(map(str, path))}={value}: {type(error).__name__}: {str(error)[:200]!r}")
    return found


@pytest.fixture
def raw(tmp_path, shared_outputs):
    """A config that is not resolved, as a plain container."""

    def make(name: str, *overrides: str) -> dict:
        register_resolvers()
        paths = [] if name == "evaluate" else [f"paths.outputs={tmp_path}", f"paths.cache_dir={shared_outputs}/cache"]
        if name in ("train", "preprocess"):
            paths += [f"paths.phantom_dir={shared_outputs}/phantoms", "data=phantom_tiny"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose(name, [*paths, *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(tmp_path / "run")
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg.hydra
        return OmegaConf.to_container(cfg)

    return make


def train_a_little(cfg: Any, group: str, data: CaseData) -> None:
    """Build what the settings of a group make, and use it: a batch, a loss, a volume's labels, an optimiser's steps."""
    _check(cfg)
    if group in ("data", "sampling", "augmentation", "copy_paste", "seed"):
        data = build_data(cfg)
        data.prepare_data()
        data.setup("fit")
        batch = data.on_after_batch_transfer(data.train_dataloader().dataset[0, 0], 0)
        data.augmentation(batch.image, batch.mask, torch.Generator().manual_seed(0), batch.spacing)
        return
    trainer = build_trainer(cfg)
    if group == "callbacks":
        return
    module = build_segmentation(cfg, data)
    if group in ("model", "loss"):
        mask = torch.zeros((1, 16, 16, 16), dtype=torch.uint8)
        mask[0, 4:8, 4:8, 4:8] = 3
        logits = module.network(torch.randn(1, 4, 16, 16, 16))
        module._parts(logits, module.target.encode(mask))["loss"].backward()
    if group in ("inference", "postprocessing"):
        with torch.no_grad():
            logits = module.inference(module.network, torch.ones(4, 18, 18, 18), None, module.target.background)
            module.postprocessing(module.target.probabilities(logits).numpy(), (1.0, 1.0, 1.0), data.scheme)
    if group in ("trainer", "optimizer", "scheduler"):
        trainer.strategy.connect(module)
        trainer._data_connector.attach_data(module, datamodule=data)
        chosen = module.configure_optimizers()
        for _ in range(4):
            chosen["optimizer"].step()
            chosen["lr_scheduler"]["scheduler"].step()


# Every choice of these groups brings numbers of its own, and so do settings that are null.
GROUPS = ("sampling", "augmentation", "copy_paste", "model", "loss", "optimizer", "scheduler", "callbacks")
NULL = [
    "data.preprocessing.spacing=[1.5,1.5,1.5]",
    "data.preprocessing.fit=crop_or_pad data.preprocessing.size=[16,16,16]",
    "data.folds=3 data.fold=0",
    "data.normalisation.method=percentile",
    "postprocessing/step=[hysteresis,core,min_volume]",
    "loss.parts.dice.class_weights=[1.0,1.0,1.0,1.0]",
]
SMALL = {
    "sampling=slices": "sampling.depth=[16,16] sampling.in_plane=[16,16] model.widths=[4,8]",
    "model=monai_segresnet": "sampling.size=[16,16,16]",
}


def choices() -> list[str]:
    """Overrides of each; MONAI's larger networks are left out, whose numbers are arguments of its classes."""
    large = [f"monai_{name}.yaml" for name in ("mednext", "swin_unetr", "segresnet_ds")]
    files = [
        (group, file) for group in GROUPS for file in (config_dir() / group).glob("*.yaml") if file.name not in large
    ]
    return ["", *NULL, *sorted(f"{group}={file.stem}" for group, file in files)]


# torch's, where MONAI builds a network without channels
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_train(raw, tmp_path):
    tiny = ["trainer=cpu", "seed=0", "trainer.max_steps=2", "data.workers=0", "data.cache_workers=1"]
    data: Any = None
    known: set = set()
    found = []
    for choice in choices():
        small = SMALL.get(choice, "sampling.size=[16,16,16] model.widths=[4,8]")
        predictions = [f"sampling.predictions={tmp_path}/masks"] if choice == "sampling=hard" else []
        container = raw("train", *tiny, *choice.split(), *small.split(), *predictions)
        if data is None:
            data = build_data(resolved(OmegaConf.create(container)))
            data.prepare_data()
            data.setup("fit")
            (tmp_path / "masks").mkdir()
            for case in data.source():  # what an earlier network might have predicted
                (tmp_path / "masks" / f"{case.id}.nii.gz").write_bytes(case.mask.read_bytes())
        found += failures(container, partial(train_a_little, data=data), known)
    assert found == []


def test_preprocess(raw):
    assert failures(raw("preprocess", "data.cache_workers=1"), lambda cfg, _: preprocess(cfg)) == []


def test_predict_and_tune(raw, tmp_path):
    ckpt = f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}"
    window = "inference.window=[8,8,8] inference.overlap=0.5 inference.batch_size=1 inference.stretch=0.25"
    told = [ckpt, *window.split(), "inference.mirror_axes=[0]", "affine_tolerance=0.1", "device=cpu"]

    def predict_a_little(cfg: Any, group: str) -> None:
        ensemble = load_ensemble(cfg)
        affine_tolerance(cfg, ensemble)
        if group == "inference":
            model = ensemble.models[0]
            model.inference(model.network, torch.ones(1, 10, 10, 10))
        if group in ("grid", "postprocessing"):
            _candidates(cfg, [Postprocessing()], ensemble.decode)

    assert failures(raw("predict", "input=in", "output=out", *told), predict_a_little) == []
    assert failures(raw("tune", *told), predict_a_little) == []


def test_evaluate(raw, tmp_path):
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:7, 3:7, 3:7] = 3
    for folder in ("predictions", "references"):
        (tmp_path / folder).mkdir()
        nib.Nifti1Image(mask, LPS).to_filename(tmp_path / folder / "BraTS-MET-00001-000.nii.gz")
        mask[4, 4, 4] = 1
    folders = [f"{name}={tmp_path / name}" for name in ("predictions", "references", "output")]
    found = failures(raw("evaluate", *folders, "processes=1", "resamples=20"), lambda cfg, _: evaluate(cfg))
    assert found == []


@pytest.mark.parametrize(
    "setting",
    ["val_check_interval=0", "accumulate_grad_batches=0", "gradient_clip_val=-1", "log_every_n_steps=-1"],
)
def test_what_lightning_would_divide_by(composed, setting):
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=rf"^trainer\.{name} must be .*, got {value}$"):
        build_trainer(composed(f"trainer.{setting}", "logger=none"))


def test_without_a_step_the_weights_are_tested_as_they_are(composed, tmp_path):
    found = []
    for run, options in (("begun", []), ("taken over", [f"weights={tmp_path}/begun/checkpoints/last.ckpt", "seed=1"])):
        found.append(train(composed("trainer.max_steps=0", "callbacks.progress=null", *options, run=run)))
    assert found[0]["test/dice_mean"] == found[1]["test/dice_mean"]
    assert found[0]["test/loss"] == pytest.approx(found[1]["test/loss"])
    saved = torch.load(tmp_path / "taken over/checkpoints/best.ckpt", weights_only=True)
    assert saved["global_step"] == 0

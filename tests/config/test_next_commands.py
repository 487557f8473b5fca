"""The commands printed after a training are those that a user would have to type."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from brats_lightning.config.next_commands import next_commands
from brats_lightning.config.resolvers import config_dir
from brats_lightning.data.splits import Split


def commands_of(cfg, tmp_path, test=("a",)):
    (tmp_path / "run").mkdir()
    Split(("t",), ("v",), test).save(tmp_path / "run/split.json")
    return [shlex.split(command) for _, command in next_commands(cfg)]


def check_composed(command):
    """Hydra accepts it; the composed config, without references."""
    assert command[:2] == ["python", "-m"]
    name, overrides = command[2].removeprefix("brats_lightning."), command[3:]
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(name, overrides)
    HydraConfig.instance().cfg = before
    return cfg


def test_cases_with_the_names_of_brats(composed, tmp_path):
    cfg = composed("data=brats_mets", "data.root=/my cases", "data.labels=[netc,snfh,et,rc]", "data.label_map={5:4}")
    curves, predict, evaluate, tune = commands_of(cfg, tmp_path)
    run = tmp_path / "run"
    assert curves == ["tensorboard", "--logdir", str(run)]
    assert predict[3:] == [
        *(f"ckpt={run}/checkpoints/best.ckpt", "input=/my cases", f"split={run}/split.json", f"output={run}/masks"),
    ]
    assert evaluate[3:] == [
        *(f"predictions={run}/masks", "references=/my cases", "data.labels=[netc,snfh,et,rc]", "data.label_map={5:4}"),
        *(f"split={run}/split.json", f"output={run}/scores"),
    ]
    assert tune[3:] == [f"ckpt={run}/checkpoints/best.ckpt"]
    for command in (predict, evaluate, tune):
        check_composed(command)


def test_synthetic_cases_lie_where_they_were_made(composed, tmp_path, shared_outputs):
    _, predict, evaluate, _ = commands_of(composed(), tmp_path, test=())
    folders = {case.parent for case in (shared_outputs / "phantoms").glob("phantom-*/BraTS-MET-90001-000")}
    (folder,) = {folder for folder in folders if f"input={folder}" in predict}
    assert f"references={folder}" in evaluate
    assert "part=val" in predict
    assert "part=val" in evaluate


@pytest.mark.parametrize("data", ["nnunet", "bids"])
def test_another_layout_is_named_as_in_training(composed, tmp_path, data):
    given = [f"data={data}", "data.root=/cases", "data.label_map={5:4}", "data.batch_size=3"]
    _, predict, evaluate, tune = commands_of(composed(*given), tmp_path)
    assert predict[4:8] == given
    assert evaluate[4:8] == given
    for command in (predict, evaluate, tune):
        check_composed(command)


def test_masks_of_another_folder(composed, tmp_path):
    given = ["data=brats_mets", "data.root=/cases", "data.masks=/masks"]
    _, _, evaluate, _ = commands_of(composed(*given), tmp_path)
    assert evaluate[4:7] == given

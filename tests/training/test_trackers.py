"""A run is followed in each tracker's own form; what it left is read back without a server and without a network."""

import csv
import importlib.util
import json
import math
import socket

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from hydra import compose, initialize_config_dir
from lightning_utilities.core.imports import RequirementCache
from matplotlib.image import imread
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brats_lightning.config.build import build_trainer
from brats_lightning.config.errors import explanation
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.train import train
from brats_lightning.training.trackers import CSV, TensorBoard, draw_precision_recall, followed, trackers
from tests.conftest import TINY

SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "test_on=val"]
SHORT += ["model=resunet", "optimizer.lr=1e-3", "scheduler=constant", "data.label_map={7:3}"]
FINAL = ["best/val/dice_mean", "test/dice_mean", "test/t1c_threshold_dice_mean", "test/brats2024/lesion_dice_mean"]
EXTRAS = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
# MLflow on SQLAlchemy 2.1; Lightning, of a folder in which a run is resumed
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(scope="module")
def offline():
    """No connection to another machine is possible from this process, and none is wanted."""

    def connect(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost"), address
        return connected(self, address)

    connected = socket.socket.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_API_KEY", "")
        yield


@pytest.fixture(scope="module")
def followed_run(tmp_path_factory, shared_outputs, offline):
    """A short run with all trackers that are installed: (results, its config, its folder, how to run it again)."""
    out = tmp_path_factory.mktemp("followed")
    register_resolvers()

    def run(*overrides, trackers="csv,tensorboard"):
        paths = [f"paths.outputs={out}", f"paths.run_dir={out}/run", f"paths.cache_dir={shared_outputs}/cache"]
        paths += [f"paths.phantom_dir={shared_outputs}/phantoms", "name=followed", "trainer=cpu", "seed=0"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = resolved(compose("train", [*TINY, *paths, *SHORT, f"logger=[{trackers}]", *overrides]))
        return train(cfg), OmegaConf.to_container(cfg)

    return *run("logger.csv.version=table", trackers=",".join(["csv", "tensorboard", *EXTRAS])), out / "run", run


def installed(name):
    if name not in EXTRAS:
        pytest.skip(f"the extra {name} is not installed")


# ---- without a package of its own


def test_by_default_there_is_one_and_a_list_makes_several(composed):
    assert [type(logger) for logger in build_trainer(composed()).loggers] == [TensorBoard]
    cfg = composed("logger=[tensorboard,csv]", "logger.csv.version=table")
    assert [type(logger) for logger in build_trainer(cfg).loggers] == [TensorBoard, CSV]
    assert cfg.logger.csv.version == "table"
    assert build_trainer(composed("logger=none")).loggers == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_there_is_named(composed, monkeypatch, name):
    absent = RequirementCache("absent>=1")
    assert not absent
    absent.message = absent.message.replace("absent", name)
    monkeypatch.setattr(f"pytorch_lightning.loggers.{name}._{name.upper()}_AVAILABLE", absent)
    with pytest.raises(ValueError, match=f"logger.{name}: ") as caught:
        build_trainer(composed(f"logger={name}"))
    said = explanation(caught.value, "train", [])
    assert said == f"logger={name} needs the extra {name}: pip install 'brats-lightning[{name}]'"


def test_a_logger_of_lightning_alone_gets_curves_only(tmp_path):
    trainer = pl.Trainer(logger=[TensorBoardLogger(tmp_path), CSV(tmp_path, "", "csv")])
    assert [type(tracker) for tracker in trackers(trainer)] == [CSV]


def test_trackers_are_closed_whatever_happens():
    class Closed(CSV):
        def close(self, failed):
            ends.append(failed)

    ends = []
    trainer = pl.Trainer(logger=[Closed("nowhere"), Closed("nowhere")])
    with followed(trainer):
        pass
    with pytest.raises(SystemExit), followed(trainer):
        raise SystemExit(143)
    assert ends == [False, False, True, True]


def test_curves_of_precision_and_recall_are_drawn_in_the_colours_of_the_regions():
    half = np.array([0.0, 0.5, 1.0])
    empty = draw_precision_recall({})
    drawn = draw_precision_recall({"et": (half, half, half, half, 1 - half, half)})
    assert drawn.shape == empty.shape == (360, 450, 3)
    red = np.array([0xFF, 0x5C, 0x5C])
    assert (drawn == red).all(axis=2).sum() > 200
    assert not (empty == red).all(axis=2).any()


def test_csv_has_scores_settings_pictures_and_checkpoint(followed_run):
    results, config, run, _ = followed_run
    folder = run / "table"
    rows = table(folder)
    last = {name: float(value) for row in rows for name, value in row.items() if value}
    for name in FINAL:
        assert last[name] == pytest.approx(results[name])
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [0, 1, 2, 3]
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert settings.pop("choices")["lr"] == 1e-3
    assert settings.pop("checkpoint") == str(run / "checkpoints/best.ckpt")
    assert settings == config
    pictures = {path.relative_to(folder / "pictures/validation").as_posix() for path in folder.rglob("*.png")}
    assert {f"{name}_{step}.png" for name in ("worst", "precision_recall") for step in (2, 4)} <= pictures
    assert imread(folder / "pictures/validation/worst_4.png").std() > 0.05


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tensorboard_beside_others(followed_run):
    results, _, run, _ = followed_run
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert events.Scalars("best/val/dice_mean")[0].value == pytest.approx(results["best/val/dice_mean"])
    assert "run/checkpoint/text_summary" in events.Tags()["tensors"]


# ---- Weights & Biases


def wandb_records(folder):
    """The records of an offline run's file: after a header of seven bytes LevelDB's log, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("offline-run-*/run-*.wandb")
    content, place, parts = file.read_bytes(), 7, []
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record.WhichOneof("record_type"), record


def wandb_values(folder):
    """The summary, the config and the exit code that an offline run's file holds."""
    import wandb

    wandb.teardown()  # until then W&B's own process may still be writing
    summary, config, code = {}, {}, None
    for kind, record in wandb_records(folder):
        if kind == "history":
            items = record.history.item
        elif kind == "summary":
            items = record.summary.update
        else:
            items = ()
        summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        code = record.exit.exit_code if kind == "exit" else code
    return summary, config, code


def test_wandb_offline_has_scores_pictures_config_and_checkpoint(followed_run):
    installed("wandb")
    results, _, run, _ = followed_run
    summary, config, code = wandb_values(run / "wandb")
    for name in FINAL:
        assert summary[name] == pytest.approx(results[name])
    assert summary["checkpoint"] == str(run / "checkpoints/best.ckpt")
    assert summary["validation/worst/_type"] == "images/separated"
    assert list((run / "wandb").glob("offline-run-*/files/media/images/validation/worst_*.png"))
    assert config["optimizer"]["lr"] == config["choices"]["lr"] == 1e-3
    assert config["data"]["label_map"] == {"7": 3}
    assert code == 0


def test_wandb_ends_a_failed_run_and_goes_on_with_a_resumed_one(composed, tmp_path, offline):
    installed("wandb")
    trainer = build_trainer(composed("logger=wandb", "logger.wandb.tags=[pilot]"))
    (tracker,) = trackers(trainer)
    tracker.add_config({"seed": 0}, "", {}, 0)
    with pytest.raises(KeyError), followed(trainer):
        raise KeyError("anything")
    assert wandb_values(tmp_path / "run/wandb")[2] == 1
    (again,) = build_trainer(composed("logger=wandb")).loggers
    assert again.version == tracker.version == (tmp_path / "run/wandb_id.txt").read_text().strip()


# ---- MLflow


def test_mlflow_has_scores_pictures_config_and_checkpoint(followed_run):
    installed("mlflow")
    results, config, run, _ = followed_run
    _, (found,) = mlflow_runs(run)
    for name, value in results.items():
        if math.isfinite(value):
            assert found.data.metrics[name] == pytest.approx(value), name
    assert found.data.params["optimizer.lr"] == "0.001"
    assert found.data.params["data.label_map.7"] == "3"
    assert (found.data.tags["lr"], found.info.run_name, found.info.status) == ("0.001", "followed", "FINISHED")
    assert found.data.tags["checkpoint"] == str(run / "checkpoints/best.ckpt")
    artifacts = run.parent / "mlflow" / found.info.run_id / "artifacts"
    assert yaml.safe_load((artifacts / "config.yaml").read_text()) == config
    assert imread(artifacts / "pictures/validation/worst_4.png").std() > 0.05


def mlflow_runs(run):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent}/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name("brats_lightning").experiment_id])


def test_a_resumed_run_goes_on_in_the_same_files_and_a_failed_one_is_marked(followed_run, monkeypatch):
    *_, run, train_again = followed_run
    (run / "csv").mkdir()
    (run / "csv/metrics.csv").write_text((run / "table/metrics.csv").read_text())
    monkeypatch.setattr("brats_lightning.train._report", lambda *_: 1 / 0)
    resumed = ["trainer.max_steps=6", f"ckpt_path={run}/checkpoints/last.ckpt", "test_on=null", "~callbacks.pictures"]
    with pytest.raises(ZeroDivisionError):
        train_again(*resumed, trackers=",".join(["csv", *set(EXTRAS) & {"mlflow"}]))
    assert [int(row["step"]) for row in table(run / "csv") if row["train/loss"]] == [0, 1, 2, 3, 4, 5]
    if "mlflow" in EXTRAS:
        client, (found,) = mlflow_runs(run)
        assert {point.step for point in client.get_metric_history(found.info.run_id, "train/loss")} == set(range(6))
        assert (found.data.params["trainer.max_steps"], found.info.status) == ("4", "FAILED")

import json
import logging
import math
import re

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from brats_lightning.runtime.files import make_folder
from brats_lightning.train import _columns, objective_value, train
from tests.conftest import TINY


def curves(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


class CaughtLines(logging.Handler):
    """What is logged within its block."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        logger = logging.getLogger("brats_lightning")
        self._level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self.messages

    def __exit__(self, *_):
        logging.getLogger("brats_lightning").removeHandler(self)
        logging.getLogger("brats_lightning").setLevel(self._level)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """One short run that several tests look at: (results, run folder, config, lines of its log)."""
    from hydra import compose, initialize_config_dir

    from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved

    out = tmp_path_factory.mktemp("trained")
    register_resolvers()
    overrides = [
        *TINY, "trainer=cpu", "seed=0", "trainer.max_steps=7", "trainer.val_check_interval=4",
        "trainer.log_every_n_steps=1", f"paths.outputs={out}", f"paths.run_dir={out}/run", "name=trained",
    ]  # fmt: skip
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = resolved(compose("train", overrides))
    with CaughtLines() as lines:
        return train(cfg), out / "run", cfg, lines


def test_a_run_leaves_what_its_contract_says(trained):
    results, run, cfg, _ = trained
    assert (run / "checkpoints/best.ckpt").is_file()
    assert (run / "checkpoints/last.ckpt").is_file()
    written = json.loads((run / "metrics.json").read_text())
    assert {n: math.nan if v is None else v for n, v in written.items()} == pytest.approx(results, nan_ok=True)
    split = json.loads((run / "split.json").read_text())
    assert set(split) == {"train", "val", "test"}
    assert OmegaConf.load(run / "config.yaml") == cfg


def test_scores_have_their_names_and_counts(trained):
    results, run, *_ = trained
    split = json.loads((run / "split.json").read_text())
    for stage in ("val", "test"):
        for kind in ("dice", "iou"):
            for name in ("et", "tc", "wt", "netc", "snfh", "et_class", "mean"):
                assert f"{stage}/{kind}_{name}" in results
        assert f"{stage}/accuracy" in results
        assert results[f"{stage}/cases_dice_wt"] == len(split[stage])
    assert all("/" in name for name in results)
    assert 0 < results["test/t1c_threshold_dice_mean"] < 1
    assert results["best/val/dice_mean"] >= results["val/dice_mean"]


def test_curves_stand_at_the_optimisers_steps(trained):
    _, run, *_ = trained
    events = curves(run)
    steps = list(range(7))
    for tag in ("train/loss", "train/loss_dice", "train/loss_focal", "lr-AdamW"):
        assert [step for step, _ in points(events, tag)] == steps
    dice, focal, total = (points(events, f"train/loss{part}") for part in ("_dice", "_focal", ""))
    for (_, d), (_, f), (_, t) in zip(dice, focal, total, strict=True):
        assert d + f == pytest.approx(t, rel=1e-3)
    # the interval's validation, and the one a fit ends with
    assert [step for step, _ in points(events, "val/dice_mean")] == [3, 6]
    assert [step for step, _ in points(events, "speed/steps_per_second")] == [*range(1, 8)]
    assert all(0 <= share <= 1 for _, share in points(events, "speed/waiting_for_data"))
    assert "epoch" not in events.Tags()["scalars"]


def test_each_validation_has_pictures_and_curves_of_precision_and_recall(trained):
    _, run, *_ = trained
    events = curves(run)
    assert {tag: len(events.Images(tag)) for tag in events.Tags()["images"]} == {"validation/worst": 2} | (
        {"validation/best": 2} if len(json.loads((run / "split.json").read_text())["val"]) > 1 else {}
    )
    assert {"val/wt", "run/config/text_summary", "run/network/text_summary"} < set(events.Tags()["tensors"])


def test_the_table_of_runs_refers_to_final_scores_that_are_logged_once(trained):
    results, run, cfg, _ = trained
    events = curves(run)
    content = events.PluginTagToContent("hparams")
    metrics = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    names = [metric.name.tag for metric in metrics]
    assert names[:2] == ["best/val/dice_mean", "test/dice_mean"]
    for name in names:
        assert points(events, name) == [(7, pytest.approx(results[name]))]
    columns = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert columns["seed"].number_value == 0
    assert columns["lr"].number_value == pytest.approx(cfg.optimizer.lr)


def test_columns_of_the_table_of_runs(composed):
    cfg = composed("model=resunet", "loss=focal", "loss.gamma=3", "trainer.max_steps=2")
    columns = _columns(cfg)
    assert [columns[name] for name in ("model", "loss", "data", "augmentation", "optimizer")] == [
        *("resunet", "focal", "phantom_tiny", "light", "adamw"),
    ]
    assert (columns["lr"], columns["seed"]) == (cfg.optimizer.lr, 0)
    assert columns["loss.gamma"] == "3"
    assert not [name for name in columns if name.startswith("paths.")]


def test_the_first_and_last_lines_say_what_trains_and_how_good_it_is(trained):
    results, run, _, lines = trained
    for said in (
        f"run folder: {run} · seed 0",
        r"network: brats_lightning.models.UNet, 0.\d+ M parameters, t1n, t1c, t2w, t2f → netc, snfh, et",
        r"hardware: 1 × CPU \(1 thread\), \S+",
        "training: for 7 steps; then a test on the test cases",
        r"step 4 of 7 · .* steps/s · .* patches/s · loss \S+ · val/dice_mean 0\.\d+ · \d+% done · 0:00:\d\d left",
    ):
        assert sum(re.fullmatch(said, line) is not None for line in lines) == 1, said
    worse = results["test/dice_mean"] < results["test/t1c_threshold_dice_mean"]
    assert any("worse than the best single threshold on T1c" in line for line in lines) == worse


def test_checkpoint_is_plain_data_and_carries_the_config(trained):
    _, run, cfg, _ = trained
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["config"] == OmegaConf.to_container(cfg)
    assert checkpoint["format"] == 2
    assert all(name.startswith("network.") for name in checkpoint["state_dict"])


def test_the_seed_fixes_everything(composed):
    short = ["trainer.max_steps=3", "test_on=null", "logger=none", "~callbacks.progress"]
    first = train(composed(*short, run="a"))
    second = train(composed(*short, run="b"))
    other = train(composed(*short, "seed=1", run="c"))
    assert first == pytest.approx(second, nan_ok=True, abs=0)
    assert first["val/loss"] != other["val/loss"]


def test_resuming_continues_steps_rates_and_losses(composed, tmp_path):
    common = ["trainer.log_every_n_steps=1", "trainer.val_check_interval=3", "test_on=null", "scheduler=polynomial"]
    common += ["trainer.precision=32-true"]
    train(composed(*common, "trainer.max_steps=8", run="whole"))

    # The schedule is over all steps, so an interruption must not be a shorter run: stop after five of eight.
    class Interrupted(Exception):
        pass

    from brats_lightning.training.callbacks import ValidateLast

    def interrupt(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ValidateLast, "on_train_batch_end", interrupt)
        train(composed(*common, "trainer.max_steps=8", run="part"))
    last = tmp_path / "part/checkpoints/last.ckpt"
    train(composed(*common, "trainer.max_steps=8", f"ckpt_path={last}", run="rest"))

    whole, rest = curves(tmp_path / "whole"), curves(tmp_path / "rest")
    for tag in ("train/loss", "lr-AdamW"):
        assert [step for step, _ in points(rest, tag)] == [5, 6, 7]
        assert points(rest, tag) == [(s, pytest.approx(v, rel=1e-4)) for s, v in points(whole, tag)[5:]]


def test_unvalidated_run_falls_back_to_the_last_weights(composed, tmp_path, caplog):
    results = train(composed("trainer.max_steps=2", "+trainer.limit_val_batches=0", "logger=none"))
    assert "nothing was validated" in caplog.text
    best, last = (torch.load(tmp_path / f"run/checkpoints/{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["global_step"] == last["global_step"] == 2
    assert "test/dice_mean" in results


def test_starting_from_weights(composed, trained, tmp_path):
    best = trained[1] / "checkpoints/best.ckpt"
    stop = ["trainer.max_steps=1", "optimizer.lr=0", "logger=none", "test_on=null"]
    results = train(composed(*stop, f"weights={best}", f"data.split_file={trained[1]}/split.json"))
    assert results["val/dice_mean"] == pytest.approx(trained[0]["best/val/dice_mean"], abs=1e-6)
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["seen"] == sorted(saved["split"]["train"])  # by the run that the weights are from
    again = [f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt", "trainer.max_steps=2"]
    train(composed(*stop[1:], *again, f"data.split_file={trained[1]}/split.json", run="again"))
    assert torch.load(tmp_path / "again/checkpoints/last.ckpt", weights_only=True)["seen"] == saved["seen"]


def test_starting_from_weights_that_match(composed, trained, tmp_path):
    """Fewer sequences, regions with a shell instead of classes; the first lines say once what was loaded."""
    best = trained[1] / "checkpoints/best.ckpt"
    other = ["data.modalities=[t2f,t1c]", "target=regions", "target_extra=[netc]", "loss=dice_topk"]
    stop = ["trainer.max_steps=1", "optimizer.lr=0", "logger=none", "test_on=null"]
    with CaughtLines() as lines:
        results = train(composed(*stop, *other, f"weights={best}", "weights_mode=matching"))
    (said,) = (line for line in lines if line.startswith("weights: "))
    assert said.splitlines()[0] == f"weights: {best}, those that match"
    assert "t2f, t1c by name" in said
    assert "et, netc by name; tc, wt new" in said
    old, new = (
        torch.load(path, weights_only=True)["state_dict"] for path in (best, tmp_path / "run/checkpoints/last.ckpt")
    )
    first, head = "network.encoder.0.0.conv1.weight", "network.heads.0.weight"
    assert torch.equal(new[first], old[first][:, [3, 1]])
    assert torch.equal(new[head][[0, 3]], old[head][[3, 1]])  # ET and NETC
    assert len(new[head]) == 4
    assert {name for name in results if name.startswith("val/dice_")} >= {"val/dice_et", "val/dice_tc", "val/dice_wt"}


def test_weights_of_another_network_are_refused(composed, trained):
    with pytest.raises(ValueError, match="of another network"):
        train(composed(f"weights={trained[1]}/checkpoints/best.ckpt", "model=resunet", "logger=none"))


def test_a_resumed_run_keeps_the_seed_that_was_drawn(composed, tmp_path):
    short = ["seed=null", "logger=none", "test_on=null", "trainer.val_check_interval=1"]
    train(composed(*short, "trainer.max_steps=1", run="a"))
    train(composed(*short, "trainer.max_steps=2", f"ckpt_path={tmp_path}/a/checkpoints/last.ckpt", run="b"))
    first, second = (OmegaConf.load(tmp_path / run / "config.yaml").seed for run in "ab")
    assert first == second is not None


@pytest.mark.parametrize("where", ["on_validation_start", "on_train_batch_end"])
def test_a_save_between_the_batches_of_a_step_resumes_before_them(composed, tmp_path, where):
    """With three batches a step, after the fourth: its gradients are in no checkpoint."""
    common = ["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=4", "trainer.max_steps=4"]
    common += ["data.patches_per_case=8", "data.batch_size=1", "trainer.precision=32-true", "scheduler=constant"]
    common += ["test_on=null", "logger=none"]
    mid = tmp_path / "mid.ckpt"

    class Save(pl.Callback):
        def save(self, trainer, *_):
            if trainer.fit_loop.total_batch_idx == 3 and not mid.exists():
                assert trainer.global_step == 1
                trainer.save_checkpoint(mid)

    setattr(Save, where, Save.save)
    from brats_lightning.config import build

    with pytest.MonkeyPatch.context() as patch:
        made = build.build_trainer

        def with_save(cfg):
            trainer = made(cfg)
            trainer.callbacks.append(Save())
            return trainer

        patch.setattr(build, "build_trainer", with_save)
        train(composed(*common, run="whole"))
    train(composed(*common, f"ckpt_path={mid}", run="rest"))
    whole, rest = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "rest")
    )
    assert all(torch.equal(rest[name], value) for name, value in whole.items())


@pytest.mark.parametrize("override", ["test_on=none", "objective_mode=maximum", "target=region"])
def test_mistyped_settings_fail_before_training(composed, override):
    with pytest.raises(ValueError, match=override.split("=")[0]):
        train(composed(override))


def test_overfitting_sees_the_same_batches_again(composed, monkeypatch):
    seen = []
    from brats_lightning.data.batches import PatchBatches

    original = PatchBatches.__getitem__
    monkeypatch.setattr(PatchBatches, "__getitem__", lambda self, key: seen.append(key) or original(self, key))
    with pytest.warns(UserWarning, match="overfit"):
        train(
            composed("debug=overfit", "trainer.max_steps=6", "trainer.overfit_batches=2", "test_on=null", "logger=none")
        )
    assert set(seen) == {0, 1}


def test_two_channels_and_four_classes_from_the_command_line_alone(composed):
    few = ["trainer.max_steps=2", "logger=none"]
    results = train(composed(*few, "data.modalities=[t2f,t1c]", run="two"))
    assert "test/dice_et" in results
    four = ["data.labels=[netc,snfh,et,rc]", "+data.source.resection_cavity=0.5"]
    results = train(composed(*few, *four, "data.modalities=[t1c,t1c-t1n]", run="four"))
    assert {"test/dice_rc", "test/dice_rc_class", "test/cases_dice_rc"} <= set(results)


def test_score_on_the_training_cases(composed):
    results = train(composed("trainer.max_steps=1", "logger=none", "test_on=train"))
    assert results["test/cases_dice_wt"] > 2


@pytest.mark.parametrize(
    ("mode", "results", "expected"),
    [
        ("max", {"best/val/dice_mean": 0.4, "val/dice_mean": 0.1}, 0.4),
        ("max", {"val/dice_mean": math.nan}, -math.inf),
        ("min", {"val/dice_mean": math.nan}, math.inf),
        ("max", {}, None),
    ],
)
def test_objective(mode, results, expected):
    cfg = OmegaConf.create({"objective": "val/dice_mean", "objective_mode": mode})
    assert objective_value(cfg, results) == expected


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_finished_run_keeps_its_scores_until_a_further_step(composed, monkeypatch):
    options = ("trainer.max_steps=2", "trainer.val_check_interval=2", "scheduler=constant")
    train(cfg := composed(*options))
    scores = make_folder(cfg.paths.run_dir) / "metrics.json"
    assert scores.is_file()

    def interrupted(*_, **__):
        raise InterruptedError

    monkeypatch.setattr("pytorch_lightning.Trainer.test", interrupted)
    for steps, there in ((2, True), (4, False)):
        again = composed(*options, f"trainer.max_steps={steps}", f"ckpt_path={cfg.paths.run_dir}/checkpoints/last.ckpt")
        with pytest.raises(InterruptedError):
            train(again)
        assert scores.is_file() is there


def test_averaged_weights_are_what_is_validated_tested_saved_and_resumed(composed):
    options = ("callbacks=averaged", "callbacks.average.decay=0.9", "test_on=val", "trainer.val_check_interval=6")
    cfg = composed(*options, "trainer.max_steps=6", "scheduler=constant")
    results = train(cfg)
    file = f"{cfg.paths.run_dir}/checkpoints/last.ckpt"
    saved = torch.load(file, weights_only=True)
    name = "network.head.weight" if "network.head.weight" in saved["state_dict"] else next(iter(saved["state_dict"]))
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])
    # validation during the fit and the test of the saved file see the same weights
    assert results["test/dice_mean"] == pytest.approx(results["val/dice_mean"], abs=1e-6)
    assert results["test/loss"] == pytest.approx(results["val/loss"], rel=1e-4)

    more = composed(*options, "trainer.max_steps=8", "scheduler=constant", f"ckpt_path={file}", run="resumed")
    train(more)
    whole = composed(*options, "trainer.max_steps=8", "scheduler=constant", run="whole")
    train(whole)
    states = [
        torch.load(f"{c.paths.run_dir}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for c in (more, whole)
    ]
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5)


def test_a_time_limit_ends_the_run_and_its_schedule(composed):
    cfg = composed("trainer.max_steps=-1", "trainer.max_time=00:00:00:02", "trainer.val_check_interval=1000")
    train(cfg)
    saved = torch.load(f"{cfg.paths.run_dir}/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] > 0
    (rate,) = saved["lr_schedulers"][0]["_last_lr"]
    assert rate == pytest.approx(cfg.optimizer.lr * cfg.scheduler.final, rel=1e-6)

"""Cross-validation of several arms in one command."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.config.study import Study, StudyError
from tests.conftest import TINY


@pytest.fixture
def command(tmp_path, shared_outputs):
    """Runs a study of two folds with few steps in a process of its own."""
    given = [*TINY, "folds=2", "trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none"]
    given += [f"paths.outputs={tmp_path}", f"paths.cache_dir={shared_outputs}/cache", "name=s", "data.batch_size=1"]
    given += [f"paths.phantom_dir={shared_outputs}/phantoms", "resamples=100", "processes=1", "protocols=[brats2026]"]
    given.append('tune=["grid.hysteresis=null","grid.core=null","grid.min_volume.mm3=[1000000]"]')

    def run(*overrides):
        words = [sys.executable, "-m", "brats_lightning.study", *given, *overrides]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    run.given = given
    return run


def rows_of(file):
    with file.open() as text:
        return list(csv.DictReader(text))


def test_a_study_is_interrupted_and_has_a_failed_arm(command, tmp_path):
    arms = 'arms={plain: [], bad: ["test_on=foo"]}'
    done = command(arms)
    folder = tmp_path / "study/s"
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 of 4 jobs failed" in done.stdout
    assert "Traceback" not in done.stderr
    rows = rows_of(folder / "scores.csv")
    assert len(rows) == 10 * 3  # each case once, by region
    folds = json.loads((folder / "folds.json").read_text())
    for row in rows:
        assert row["case"] in folds[int(row["fold"])]["val"]
        assert row["arm"] == "plain"
    tuned = rows_of(folder / "tuned_scores.csv")
    assert [row["case"] for row in tuned] == [row["case"] for row in rows]
    chosen = yaml.safe_load((folder / "plain/ensemble_postprocessing.yaml").read_text())["chosen"]
    assert set(chosen["steps"]) <= {"min_volume"}
    page = (folder / "report.html").read_text()
    assert "test_on must be" in page
    members = yaml.safe_load((folder / "plain/ensemble.yaml").read_text())["members"]
    assert members == [{"ckpt": f"seed0/fold{i}/checkpoints/last.ckpt", "weight": 1} for i in range(2)]
    assert "data.fold=0" in (folder / "plain/command.txt").read_text()

    # As if it had been killed in the last validation of one training: only that one goes on, to the same result.
    table = (folder / "scores.csv").read_text()
    other, finished = folder / "plain/seed0/fold0", folder / "plain/seed0/fold1/checkpoints/last.ckpt"
    for name in ("metrics.json", "prediction/summary.json"):
        (other / name).unlink()
    before = finished.stat().st_mtime_ns
    done = command("arms={plain: []}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training: 1 of 2 jobs are left" in done.stdout
    assert "resuming at step 2" in (other / "train.log").read_text()
    assert (folder / "scores.csv").read_text() == table
    assert finished.stat().st_mtime_ns == before


# A shell's background commands ignore Ctrl-C, which their children inherit.
STUDY = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
STUDY += "from brats_lightning.study import main; main()"


def test_an_interrupt_of_the_study_alone_ends_its_jobs(command, tmp_path):
    words = [
        sys.executable,
        "-c",
        STUDY,
        *command.given,
        "trainer.max_steps=1000000",
        "trainer.val_check_interval=1000000",
    ]
    study = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    log = tmp_path / "study/s/s/seed0/fold0/train.log"
    try:
        deadline = time.monotonic() + 120
        while not (log.is_file() and "step " in log.read_text()):
            assert study.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        study.send_signal(signal.SIGINT)
        assert study.wait(timeout=60) == 128 + signal.SIGINT
    finally:
        study.kill()
    assert (log.parent / "checkpoints/last.ckpt").is_file()  # from which the same command goes on


@pytest.fixture
def asked(tmp_path, shared_outputs):
    """The study of a command line, with its arms' configs."""

    def make(*overrides):
        register_resolvers()
        given = [*TINY, f"paths.phantom_dir={shared_outputs}/phantoms", "name=s", *overrides]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("study", given, return_hydra_config=True)
            cfg.hydra.runtime.output_dir = str(tmp_path)
            HydraConfig.instance().set_config(cfg)
            OmegaConf.set_struct(cfg, False)
            del cfg.hydra
            study = Study.of(resolved(cfg))
            return study, study.configs()

    return make


def test_arms_replace_what_is_given_for_all(asked):
    study, configs = asked("model=resunet", "loss=dice", 'arms={a: [], b: ["model=attention_unet"]}')

    assert configs["a"].model._target_.endswith("ResUNet")
    assert configs["b"].model._target_.endswith("AttentionUNet")
    assert all("DiceLoss" in str(cfg.loss) for cfg in configs.values())
    assert "model=resunet" not in study.overrides("b")
    assert study.command("b").endswith(" data.folds=5 data.fold=0 seed=0")


def test_no_arms_are_one(asked):
    study, configs = asked("arms=null", "folds=3", "seeds=[4,2]")
    assert list(configs) == ["s"]
    assert [(job.fold, job.seed) for job in study.jobs] == [(f, s) for f in range(3) for s in (4, 2)]
    assert {job.predictions.parent for job in study.jobs} == {study.folder / f"s/seed{seed}" for seed in (2, 4)}


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["folds=1"], ["folds must be a number of at least 2, got 1"]),
        (["seeds=[0,0]"], ["distinct"]),
        (["seeds=3"], ["seeds must be a list"]),
        (["arms=[plain]"], ["arms must be a mapping"]),
        (["arms={a/b: []}"], ["'a/b'"]),
        (["arms={a: resunet}"], [r"arms\.a must be a list"]),
        (['arms={a: ["seed=1"], b: ["data.fold=2"]}'], [r"arms\.a: seed", r"arms\.b: data\.fold"]),
        (["data.fold=1", "data.folds=3"], ["data.fold is", "data.folds is"]),
        (
            ["model=resunet", 'arms={a: [], b: ["model=resunet"], c: ["loss=dice"], d: ["data.workers=3"]}'],
            ["same networks: a and b, a and d, b and d; their overrides change nothing"],
        ),
        (['arms={a: [], b: ["data.labels=[et]"]}'], [r"data\.labels is .* in the arm a and .*'et'.* in b"]),
    ],
)
def test_settings_that_make_no_study(asked, overrides, messages):
    with pytest.raises(StudyError, match="(?s)" + ".*".join(messages)):
        asked(*overrides)


def test_a_changed_study_is_refused_and_says_what_changed(asked):
    study, configs = asked("folds=2", "arms={a: []}")
    study.check(configs)
    study.record(configs)
    more, added = asked("folds=2", 'arms={a: [], b: ["model=resunet"]}', "seeds=[0,1]", "data.workers=1")
    more.check(added)
    more.record(added)
    free, corrected = asked("folds=2", 'arms={b: ["trainer.max_steps=7"]}')
    free.check(corrected)  # an arm of which nothing was trained
    (study.folder / "b/seed0/fold0/checkpoints").mkdir(parents=True)
    (study.folder / "b/seed0/fold0/checkpoints/last.ckpt").touch()
    other, changed = asked("folds=3", 'arms={b: ["model=resunet", "trainer.max_steps=7"]}')
    with pytest.raises(StudyError, match=r"(?s)folds: 2 → 3.*arm b, trainer.max_steps: 40 → 7.*name="):
        other.check(changed)

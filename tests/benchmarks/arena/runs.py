"""One contestant's run: what identifies it, and the process that trains and scores it."""

import hashlib
import json
import logging
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.data.cases import Case

CONF = Path(__file__).parent / "conf"
PROJECT = Path(__file__).parents[3]
# Whose versions may change a result.
PACKAGES = ("torch", "pytorch-lightning", "monai", "numpy", "scipy")
# What only prediction looks at, parts of the config and modules of that name. Contestants that differ in nothing else
# share one training, and so do versions of the program.
PREDICTION = ("inference", "postprocessing")
# Commands of the program that no run of the arena calls.
IDLE = ("evaluate", "export", "preprocess", "submission", "tune")
# Names and places, at the top of a config and in its data: the cases' fingerprint stands for them.
PLACES = ("paths", "seed", "name", "description", "root", "source", "background", "cache_workers")


class ArenaError(ValueError):
    """Cases or contestants that make no duel, or a run that failed."""


@dataclass(frozen=True)
class Run:
    """One contestant with one seed, on given cases.

    Attributes:
        contestant: its name.
        config: resolved, of its training and prediction.
        key: all that its result depends on; a result with the same key need not be computed again.
        folder: where its checkpoint and masks lie.
    """

    contestant: str
    seed: int
    config: DictConfig
    key: dict[str, Any]
    folder: Path

    def carry_out(self) -> dict[str, Any]:
        """Train, predict and score in a process of its own; the result.

        Raises:
            ArenaError: the process failed; its last words and where the others are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_code()
        split = {"train": self.key["train"], "test": self.key["test"]}
        (self.folder / "cases.json").write_text(json.dumps(split, indent=1))
        OmegaConf.save(self.config, self.folder / "run.yaml")
        threads = str(self.key["threads"])
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        log = self.folder / "log.txt"
        with log.open("w") as output:
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(self.folder), threads],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            lines = log.read_text().strip().splitlines()
            last = "\n  ".join(lines[-8:])
            raise ArenaError(f"{self.contestant}, seed {self.seed}, failed; all of it is in {log}:\n  {last}")
        self._check_code()
        outcome = json.loads((self.folder / "outcome.json").read_text())
        return {"contestant": self.contestant, "seed": self.seed, "key": self.key} | outcome

    def _check_code(self) -> None:
        """Refuse to go on, or to keep a result, where the sources are no longer those of the key."""
        if _code() != {part: self.key[part] for part in _code()}:
            raise ArenaError("the program has changed since this arena was planned; start it again")


def make_run(
    name: str,
    contestant: str,
    seed: int,
    overrides: Sequence[str],
    cases: Mapping[str, Sequence[Case]],
    minutes: float,
    threads: int,
    output: Path,
) -> Run:
    """A contestant's run.

    Args:
        name: of the contestant.
        contestant: an experiment, and its overrides after spaces.
        seed: of weights and batches.
        overrides: for all contestants: the data, and the rules.
        cases: that ``train`` and ``test``.
        minutes: of training.
        threads: of the process.
        output: holds the run's folder.
    """
    experiment, *own = shlex.split(contestant)
    register_resolvers()
    fixed = [f"hydra.searchpath=[file://{CONF}]", f"experiment={experiment}", "name=run", f"seed={seed}"]
    GlobalHydra.instance().clear()  # the running command's, whose config is complete
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*fixed, *own, *overrides, "paths.run_dir=."])
    OmegaConf.set_struct(cfg, False)
    cfg.trainer.max_time = str_time(minutes)
    cfg = resolved(cfg)
    plain: Any = OmegaConf.to_container(cfg)
    plain = {part: values for part, values in plain.items() if part not in PLACES}
    plain["data"] = {setting: value for setting, value in plain["data"].items() if setting not in PLACES}
    prediction = {part: plain.pop(part) for part in PREDICTION}
    key = {
        "data": fingerprint([case for part in cases.values() for case in part]),
        **{part: [case.id for case in chosen] for part, chosen in cases.items()},
        "patients": [case.patient for case in cases["test"]],
        "minutes": minutes,
        "training": _hash(plain),
        "prediction": _hash(prediction),
        "seed": seed,
        "threads": threads,
        "processor": _processor(),
        "device": _device(),
        "versions": {package: version(package) for package in PACKAGES if find_spec(package.replace("-", "_"))},
        **_code(),
    }
    training = _hash({part: value for part, value in key.items() if not part.startswith("prediction")})
    stem = re.sub(r"[^\w.=-]+", "_", experiment)
    folder = output.absolute() / "runs" / f"{stem}_seed{seed}_{training}"
    # The cache holds the chosen cases alone, however many others lie beside them.
    chosen = [case.id for part in cases.values() for case in part]
    cfg.data.source = {
        "_target_": f"{__name__}.chosen_cases",
        "source": {**OmegaConf.to_container(cfg.data.source), "_partial_": True},  # type: ignore[dict-item]
        "cases": chosen,
    }
    cfg.data.split_file = str(folder / "cases.json")
    cfg.paths.run_dir = cfg.trainer.default_root_dir = str(folder)
    return Run(name, seed, cfg, key, folder)


def chosen_cases(source: Any, cases: Sequence[str]) -> list[Case]:
    """Those of a source's cases."""
    return [case for case in source() if case.id in set(cases)]


def str_time(minutes: float) -> str:
    """Lightning's DD:HH:MM:SS."""
    seconds = round(minutes * 60)
    if seconds < 1:
        raise ArenaError(f"minutes={minutes}: at least a second must be left to train")
    hours, rest = divmod(seconds, 3600)
    return f"{hours // 24:02d}:{hours % 24:02d}:{rest // 60:02d}:{rest % 60:02d}"


def fingerprint(cases: Sequence[Case]) -> str:
    """Of the cases' files, by name and size: the same wherever they lie."""
    return _hash(sorted((case.id, file, path.stat().st_size) for case in cases for file, path in case.files.items()))


def _code() -> dict[str, str]:
    """Of the program's own sources, which change between versions: those that train, and those that only predict.

    Neither are those of commands that take no part, and of the report.
    """
    package = PROJECT / "brats_lightning"
    predict = {*(package / "inference").rglob("*.py")}
    arena = PROJECT / "tests/benchmarks/arena"
    idle = {*(package / f"{command}.py" for command in IDLE), arena / "report.py"}
    train = {*package.rglob("*.py"), *arena.glob("*.py")} - predict - idle
    return {"code": _hash_files(train), "prediction_code": _hash_files(predict)}


def _hash_files(files: Iterable[Path]) -> str:
    return _hash(sorted((path.relative_to(PROJECT).as_posix(), path.read_text()) for path in files))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _device() -> str:
    """What ``trainer=auto`` will train on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def carry_out_here(folder: Path, threads: int) -> dict[str, Any]:
    """Train unless the checkpoint is there, predict the test cases and score them, in this process."""
    import torch

    from brats_lightning.train import train

    torch.set_num_threads(threads)  # after the imports, some of which set it
    cfg: Any = OmegaConf.load(folder / "run.yaml")
    checkpoint = folder / "checkpoints/best.ckpt"
    if not checkpoint.exists():
        train(cfg)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    prediction = _hash({part: OmegaConf.to_container(cfg[part]) for part in PREDICTION})
    masks = folder / f"masks_{prediction}_{_code()['prediction_code']}"
    return {"steps": saved["global_step"], "scores": score_cases(cfg, checkpoint, masks)}


def score_cases(cfg: DictConfig, checkpoint: Path, masks: Path) -> dict[str, dict[str, float | None]]:
    """Masks of the test cases in their own grids, and the scores of each: case → score → value."""
    from hydra.utils import instantiate

    from brats_lightning.config.checkpoint import load_ensemble
    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.data.cases import CaseError
    from brats_lightning.data.nifti import read_header
    from brats_lightning.evaluation.pairing import Pair
    from brats_lightning.evaluation.scoring import Scoring
    from brats_lightning.inference.prediction import infer, write_mask

    scheme = LabelScheme(tuple(cfg.data.labels))
    wanted = OmegaConf.create(
        {
            "ckpt": str(checkpoint),
            "trust": ["tests.benchmarks.arena"],
            "inference": cfg.inference,
            "device": "auto",
            "precision": "auto",
        }
    )
    ensemble = load_ensemble(wanted)
    postprocess = instantiate(cfg.postprocessing).decoding(ensemble.decode)
    tolerance = cfg.data.affine_tolerance
    label_map = None if cfg.data.label_map is None else dict(cfg.data.label_map)
    scoring = Scoring(scheme, ("brats2024", "brats2026"), label_map=label_map, tolerance=tolerance)
    masks.mkdir(parents=True, exist_ok=True)
    tested = set(json.loads(Path(cfg.data.split_file).read_text())["test"])
    scores = {}
    for case in instantiate(cfg.data.source):
        if case.id not in tested or case.mask is None:
            continue
        found = infer(case, ensemble, tolerance)
        if isinstance(found, list):
            raise CaseError(found)
        labels = postprocess(found.values, found.transform.spacing, scheme)
        file = masks / f"{case.id}.nii.gz"
        write_mask(file, found.transform.restore(labels), read_header(case.images[ensemble.modalities[0]]))
        scores[case.id] = case_scores(scoring.score(Pair(case.id, case.mask, file)), scheme)
    return scores


def case_scores(found: Any, scheme: Any) -> dict[str, float | None]:
    """One case's scores by the names they have in training; ``false_positives`` (lesions) is a mean of the regions."""
    from brats_lightning.metrics.official import headline_scores

    regions = scheme.headline_regions
    scores = {f"dice_{region}": found.voxelwise[region]["dice"] for region in regions}
    scores["dice_mean"] = found.voxelwise["all"]["dice"]
    for protocol, official in found.official.items():
        scores |= headline_scores(official, scheme, protocol)
    alarms = [found.official["brats2026"][region]["all_instance_fp"] for region in regions]
    scores["false_positives"] = sum(alarms) / len(alarms)
    return {score: None if math.isnan(value) else value for score, value in scores.items()}


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    outcome = carry_out_here(folder, threads)
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()

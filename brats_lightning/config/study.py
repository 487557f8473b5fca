"""A study: folds × arms × seeds as jobs of `train` and `predict`, each in a folder that tells how far it is."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import command_text, config_dirs, key_of, quote
from brats_lightning.config.postprocessing import tuned_file
from brats_lightning.config.resolvers import resolved
from brats_lightning.config.study_job import Job
from brats_lightning.config.values import differing, leaves, read_yaml, within, write_yaml
from brats_lightning.data.splits import read_split
from brats_lightning.runtime.files import make_folder, write_text

log = logging.getLogger(__name__)

RECORD = "study.yaml"
FOLDS = "folds.json"

_OWN = ("folds", "arms", "seeds", "dry_run", "tune", "resamples", "processes", "name")  # keys of this command alone
_SET = ("test_on", "data.test_share")  # keys of `train` whose value in this command holds for all jobs
# What tells jobs apart: no arm sets them.
_JOBS = ("seed", "data.fold", "data.folds", "data.split_file", "data.split_from")
# What must be the same in all arms, which are scored on the same references.
_COMMON = (
    *("data.source", "data.root", "data.masks", "data.labels", "data.label_map", "data.ignore_label"),
    *("data.affine_tolerance", "protocols"),
)
# Settings that make no difference to a result: a study may continue with different values of these.
_FREE = (
    *("name", "paths", "logger", "data.description", "data.verify", "data.workers", "data.cache_workers"),
    *("data.on_bad_case", "data.split_from", "data.split_file"),  # the folds are dealt once
    *("data.loader_timeout", "callbacks.progress", "inference.batch_size"),
)


class StudyError(ValueError):
    """A study that cannot be made, or not with these settings."""


@dataclass(frozen=True)
class Study:
    """What is to be done, all of it derived from the config and the command line.

    Attributes:
        folder: of the study.
        folds: how many.
        seeds: of the trainings.
        arms: name → its overrides of `train`.
        given: overrides of `train` from the command line, for all arms.
        flags: of Hydra and of the launcher, for the processes that run jobs.
    """

    folder: Path
    folds: int
    seeds: tuple[int, ...]
    arms: Mapping[str, tuple[str, ...]]
    given: tuple[str, ...]
    flags: tuple[str, ...]

    @classmethod
    def of(cls, cfg: DictConfig) -> "Study":
        """The study that the command line of this process asks for.

        Raises:
            StudyError: folds, seeds or arms that make no sense; it names all faults.
        """
        hydra = HydraConfig.get()
        given = [text for text in hydra.overrides.task if key_of(text) not in (*_OWN, "launcher")]
        given += [
            f"{key}={OmegaConf.select(cfg, key)}".replace("None", "null") for key in _SET if not _sets(given, key)
        ]
        arms: Any = {cfg.name: []} if cfg.arms is None else OmegaConf.to_container(cfg.arms)
        faults = _faults(cfg, arms, given)
        if faults:
            raise StudyError("\n  ".join(["the study:", *faults]))
        flags = [f"--config-dir={path}" for path in config_dirs(hydra)]
        asked = [*hydra.overrides.task, *hydra.overrides.hydra]
        passed = re.compile(r"launcher|hydra[./]launcher.*|hydra\.searchpath").fullmatch
        flags += [text for text in asked if passed(key_of(text))]
        named = {name: tuple(overrides or ()) for name, overrides in arms.items()}
        return cls(Path(cfg.paths.run_dir), cfg.folds, tuple(cfg.seeds), named, tuple(given), tuple(flags))

    def overrides(self, arm: str) -> list[str]:
        """Of `train` for one arm; what the arm sets replaces what is given for all."""
        own = self.arms[arm]
        replaced = {key_of(text) for text in own}
        return [*(text for text in self.given if key_of(text) not in replaced), *own]

    @cached_property
    def shared(self) -> list[str]:
        """The overrides of `train` that no arm replaces; a launcher's resources follow from them."""
        replaced = {key_of(text) for own in self.arms.values() for text in own}
        return [text for text in self.given if key_of(text) not in replaced]

    @cached_property
    def jobs(self) -> list[Job]:
        """All of them, those of the first fold first."""
        return [self._job(arm, seed, fold) for fold in range(self.folds) for seed in self.seeds for arm in self.arms]

    def groups(self) -> dict[tuple[str, int], list[Job]]:
        """(arm, seed) → its jobs, one for each fold."""
        found: dict[tuple[str, int], list[Job]] = {}
        for job in self.jobs:
            found.setdefault((job.arm, job.seed), []).append(job)
        return found

    def _job(self, arm: str, seed: int, fold: int) -> Job:
        shared = set(self.shared)
        own = [text for text in self.overrides(arm) if text not in shared] + [f"seed={seed}"]
        own += [f"data.split_file={quote(str(self.folder / FOLDS))}", f"data.fold={fold}"]
        own += ["data.folds=null", "data.split_from=null"]
        return Job(arm, seed, fold, self.folder / arm / f"seed{seed}" / f"fold{fold}", tuple(own))

    def configs(self) -> dict[str, DictConfig]:
        """Arm → its config of `train`, resolved.

        Raises:
            StudyError: arms that differ in what they are scored on, or in nothing.
        """
        search = [text for text in self.flags if key_of(text) == "hydra.searchpath"]
        found = {arm: resolved(compose("train", [*search, *self.overrides(arm)])) for arm in self.arms}
        plain = {arm: dict(leaves(OmegaConf.to_container(cfg))) for arm, cfg in found.items()}
        first, *others = plain
        for arm in others:
            if fault := next((key for key in differing(plain[first], plain[arm]) if within(key, _COMMON)), None):
                one, other = plain[first].get(fault), plain[arm].get(fault)
                raise StudyError(
                    f"{fault} is {one} in the arm {first} and {other} in {arm}; arms are compared on the same cases by "
                    "the same scores"
                )
        same = [
            f"{one} and {other}"
            for one, other in combinations(plain, 2)
            if all(within(key, _FREE) for key in differing(plain[one], plain[other]))
        ]
        if same:
            raise StudyError(
                f"these arms would train the same networks: {', '.join(same)}; their overrides change nothing, perhaps "
                "since the experiment or the command line sets the same. Correct them, or leave one out"
            )
        return found

    def first_fold(self, cfg: DictConfig) -> dict[str, Any]:
        """Settings of ``data`` that deal the patients into the folds: by their number, or by the user's own file."""
        return {"fold": 0} if cfg.data.split_file else {"fold": 0, "folds": self.folds}

    def check(self, configs: Mapping[str, DictConfig]) -> None:
        """Compare with what the study in this folder began with; arms and seeds may be added or left out.

        Raises:
            StudyError: the folder holds another study; it says in which settings.
        """
        if not (self.folder / RECORD).is_file():
            if any(self.folder.glob("*/seed*")):
                raise StudyError(f"{self.folder} holds runs and no {RECORD}; choose another name=… or hydra.run.dir=…")
            return
        before = read_yaml(self.folder / RECORD)
        changed = [f"folds: {before['folds']} → {self.folds}"] if before["folds"] != self.folds else []
        for arm, cfg in configs.items():
            if arm in before["arms"] and any((self.folder / arm).glob("*/*/checkpoints/*.ckpt")):
                old, new = dict(leaves(before["arms"][arm])), dict(leaves(OmegaConf.to_container(cfg)))
                changed += [
                    f"arm {arm}, {key}: {old.get(key)} → {new.get(key)}"
                    for key in differing(old, new)
                    if not within(key, _FREE)
                ]
        if changed:
            raise StudyError(
                f"{self.folder} holds a study with other settings:\n  "
                + "\n  ".join(changed)
                + "\nUse those, or begin a new study: name=… or hydra.run.dir=…"
            )

    def record(self, configs: Mapping[str, DictConfig]) -> None:
        """Write down what the study does, with the arms of earlier starts."""
        file = self.folder / RECORD
        before = read_yaml(file)["arms"] if file.is_file() else {}
        arms = before | {arm: OmegaConf.to_container(cfg) for arm, cfg in configs.items()}
        write_yaml(file, {"folds": self.folds, "seeds": list(self.seeds), "arms": arms})

    def write_arm(self, arm: str) -> dict[str, Any]:
        """Write an arm's ensemble, of all its finished trainings, and the command of one of them.

        Returns:
            ``overrides``, ``command`` and ``predict`` as they are typed, and ``reports``: pairs of title and link.
        """
        own = [job for job in self.jobs if job.arm == arm and job.trained]
        folder = make_folder(self.folder / arm)
        members = [{"ckpt": str(job.checkpoint.relative_to(folder)), "weight": 1} for job in own]
        ensemble = folder / "ensemble.yaml"
        if members:
            write_text(ensemble, yaml.safe_dump({"members": members}, sort_keys=False))
        rules = ["postprocessing=tuned"] if tuned_file(ensemble).is_file() else []
        command = self.command(arm)
        write_text(folder / "command.txt", command + "\n")
        pages = ((f"seed {seed}", folder / f"seed{seed}/scores/report.html") for seed in self.seeds)
        return {
            "overrides": " ".join(self.arms[arm]),
            "command": command,
            "predict": command_text("predict", f"ckpt={ensemble}", *rules, "input=DIR", "output=MASKS"),
            "reports": [(title, str(page.relative_to(self.folder))) for title, page in pages if page.is_file()],
        }

    def command(self, arm: str) -> str:
        """The command that trains one fold of an arm by itself."""
        search = [flag for flag in self.flags if key_of(flag) in ("--config-dir", "hydra.searchpath")]
        own = [f"data.folds={self.folds}", "data.fold=0", f"seed={self.seeds[0]}"]
        return command_text("train", *search, *self.overrides(arm), *own)


def check_folds(held_out: Sequence[Sequence[str]]) -> None:
    """Refuse folds that hold out a case twice, whose predictions would be of two models.

    Raises:
        StudyError: it names the cases.
    """
    count = Counter(case for names in held_out for case in names)
    if twice := sorted(case for case, number in count.items() if number > 1):
        raise StudyError(
            f"these cases are held out by several folds: {', '.join(twice[:10])}{', …' * (len(twice) > 10)}; a study "
            "deals all patients but those for testing. Leave out a validation part that the data set or "
            "data.split_from states, or give data.split_file with folds that do not overlap"
        )


def check_start(arm: str, cfg: DictConfig, folds: Path, count: int) -> None:
    """Refuse starting weights that were trained on held-out cases; warn where this is not known.

    Raises:
        StudyError: they were.
    """
    from brats_lightning.config.weights import trained_before

    before = trained_before(cfg)
    if before is None:
        log.warning(
            "%s: what weights=%s were trained on is not known; they must not know these cases", arm, cfg.weights
        )
        return
    held_out = {case for fold in range(count) for case in read_split(folds, "folds", fold)["val"]}
    if known := sorted(held_out.intersection(before)):
        raise StudyError(
            f"{arm}: weights={cfg.weights} were trained on {len(known)} of the held-out cases, such as {known[0]}; "
            "scores of these would be no test. Start from weights of other cases, or from none"
        )


def _faults(cfg: DictConfig, arms: Any, given: Sequence[str]) -> list[str]:
    faults = []
    if not isinstance(cfg.folds, int) or cfg.folds < 2:
        faults.append(f"folds must be a number of at least 2, got {cfg.folds}")
    seeds = list(cfg.seeds) if OmegaConf.is_list(cfg.seeds) else []
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) and 0 <= s < 2**32 for s in seeds):
        faults.append(f"seeds must be a list of distinct numbers from 0, such as [0,1], got {cfg.seeds}")
    if not isinstance(arms, dict) or not arms:
        return [*faults, f"arms must be a mapping of name to overrides, such as {{plain: []}}, got {arms}"]
    for name, overrides in arms.items():
        if not re.fullmatch(r"[\w.-]+", str(name)) or str(name).strip(".") == "":
            faults.append(f"an arm's name becomes a folder: letters, digits, '-', '_' and '.', got {name!r}")
        if not isinstance(overrides, list | None) or not all(isinstance(text, str) for text in overrides or ()):
            faults.append(f'arms.{name} must be a list of overrides, such as ["model=resunet"], got {overrides}')
            continue
        faults += [f"arms.{name}: {key} is the study's own" for key in (*_OWN, *_JOBS) if _sets(overrides or (), key)]
    faults += [f"{key} is the study's own; it sets folds and seeds" for key in _JOBS[:3] if _sets(given, key)]
    return faults


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(key_of(text) == key for text in overrides)

"""The arena: contestants trained for the same minutes on the same cases, scored alike on the same unseen cases.

    python -m tests.benchmarks.duel data.root=DIR 'train=[CASE,…]' 'test=[CASE,…]' minutes=12 seed=0

A contestant is an experiment of this framework (``arena/conf/experiment`` or ``conf/experiment``), so all of them have
the same cache, loader, precision and threads; a peer's recipe thereby loses no time that its own program might. Each
run is a process of its own. Its result is added to ``<output>/results.jsonl`` and never computed twice, so a long arena
can be run in pieces. All settings: ``arena/conf/duel.yaml``.
"""

import difflib
import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, ListConfig

from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.resolvers import config_dir
from brats_lightning.data.cases import Case
from tests.benchmarks.arena.report import run_line, write_report
from tests.benchmarks.arena.runs import CONF, ArenaError, Run, make_run

# What the command line may say of the data is said to every contestant.
DATA = ("data=", "data.", "paths.")


def duel(cfg: DictConfig, data: Sequence[str]) -> list[dict[str, Any]]:
    """Carry out the runs that are missing, then write the table and the figure; the results of all of them.

    Args:
        cfg: resolved, as ``duel.yaml`` composes it.
        data: the overrides that chose the data.
    """
    entries = listed(cfg.contestants)
    experiments = [entry.split()[0] for entry in entries]
    # An experiment that competes once needs no overrides in its name.
    contestants = {
        experiment if experiments.count(experiment) == 1 else entry: entry
        for experiment, entry in zip(experiments, entries, strict=True)
    }
    results = [finish(run, Path(cfg.output)) for run in plan(contestants, cfg, data)]
    print(write_report(results, list(contestants), Path(cfg.output), cfg.resamples))
    return results


def plan(contestants: Mapping[str, str], cfg: DictConfig, data: Sequence[str]) -> list[Run]:
    """The runs of all contestants (name → experiment and overrides) and seeds.

    All are composed before the first is trained: what is wrong with the last is known at once.
    """
    from hydra.utils import instantiate

    check_contestants(contestants.values())
    cases = choose_cases(instantiate(cfg.data.source), cfg)
    return [
        make_run(name, contestant, seed, [*data, *cfg.common], cases, cfg.minutes, cfg.threads, Path(cfg.output))
        for seed in listed(cfg.seed)
        for name, contestant in contestants.items()
    ]


def finish(run: Run, output: Path) -> dict[str, Any]:
    """The result of a run, from the results file if it is known."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder / "lock"):  # another piece of the arena may be at the same run, or its training
        result = next((result for result in stored_results(output, run) if result["seed"] == run.seed), None)
        if result is None:
            key = run.key
            cases = f"{len(key['train'])} train, {len(key['test'])} test cases"
            start = f"{time.strftime('%H:%M:%S')} {run.contestant}, seed {run.seed}"
            print(
                f"{start}: {key['minutes']:g} minutes, {key['threads']} threads, {cases}, in {run.folder} …", flush=True
            )
            result = run.carry_out()
            with locked(output / "results.jsonl") as file:
                file.write(json.dumps(result) + "\n")
    print(run_line(result), flush=True)
    return result


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """A file open for appending, that no other process has."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def stored_results(output: Path, run: Run) -> list[dict[str, Any]]:
    """Results of a run, and of others that only differ in the seed, under its present name."""
    file = output / "results.jsonl"
    results = map(json.loads, _lines(file))
    alike = [result for result in results if result["key"] | {"seed": run.seed} == run.key]
    return sorted((result | {"contestant": run.contestant} for result in alike), key=lambda result: result["seed"])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True) if file.is_file() else []


def listed(value: Any) -> list[Any]:
    """A setting that may be one value or a list of them."""
    return list(value) if isinstance(value, ListConfig | list) else [value]


def check_contestants(contestants: Sequence[str]) -> None:
    """Refuse names that are no experiment, and offer those that are near."""
    known = sorted({path.stem for folder in (CONF, config_dir()) for path in (folder / "experiment").glob("*.yaml")})
    for name in (entry.split()[0] for entry in contestants):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ArenaError(f"contestants: there is no experiment {name}{hint} (there are {', '.join(known)})")


def choose_cases(found: Sequence[Case], cfg: DictConfig) -> dict[str, list[Case]]:
    """The cases that train and test.

    Raises:
        ArenaError: a case that does not exist or has no mask, stands in a list twice, or is of a patient of both lists.
    """
    from brats_lightning.data.splits import SplitSettings

    cases = {case.id: case for case in found if case.mask is not None}
    named = {part: None if cfg[part] is None else list(map(str, listed(cfg[part]))) for part in ("train", "test")}
    faults = []
    for part, names in named.items():
        for name in dict.fromkeys(names or []):
            if name not in cases:
                near = difflib.get_close_matches(name, cases, n=3, cutoff=0.4)
                hint = f"; near are {', '.join(near)}" if near else ""
                faults.append(
                    f"{part}: there is no labelled case {name} among the {len(cases)} in {cfg.data.root}{hint}"
                )
            elif (names or []).count(name) > 1:
                faults.append(f"{part}: {name} is listed twice")
        if names == []:
            faults.append(f"{part} is empty; leave it out for a drawn split")
    if faults:
        raise ArenaError("\n  ".join(faults))

    if named["train"] is None and named["test"] is None:
        patient_of = {case.id: case.patient for case in cases.values()}
        split = SplitSettings(0, cfg.data.test_share, seed=cfg.data.split_seed).split(patient_of)
        chosen: dict[str, Sequence[str]] = {"train": split.train, "test": split.test}
    else:
        patients = {part: {cases[name].patient for name in names or []} for part, names in named.items()}
        others = {"train": patients["test"], "test": patients["train"]}
        chosen = {
            part: [case.id for case in cases.values() if case.patient not in others[part]] if names is None else names
            for part, names in named.items()
        }
    by_patient = {cases[name].patient: name for name in chosen["train"]}
    shared = [name for name in chosen["test"] if cases[name].patient in by_patient]
    if shared:
        pairs = ", ".join(f"{name} (trains as {by_patient[cases[name].patient]})" for name in shared)
        raise ArenaError(f"test: these are of patients that also train, their scores would be no test: {pairs}")
    if empty := [part for part, names in chosen.items() if not names]:
        raise ArenaError(f"{' and '.join(empty)}: no case is left of the {len(cases)} in {cfg.data.root}")
    # In the source's order, in which they are scored, whatever order they were named in.
    return {part: [case for case in cases.values() if case.id in names] for part, names in chosen.items()}


def data_overrides() -> list[str]:
    """Of the running command's overrides those of the data, the choice of ``data`` first."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    given = [override for override in hydra.overrides.task if override.lstrip("+~").startswith(DATA)]
    return [f"data={hydra.runtime.choices.data}", *(override for override in given if not override.startswith("data="))]


def command(name: str, function: Any) -> None:
    """Run an entry of ``arena/conf``; errors of the user's settings in one line."""

    def run(cfg: DictConfig) -> None:
        try:
            function(cfg, data_overrides())
        except ArenaError as error:
            raise SystemExit(f"error: {error}") from None

    sys.argv[1:1] = ["--config-dir", str(CONF)]
    entry_point(name, run)


if __name__ == "__main__":
    command("duel", duel)

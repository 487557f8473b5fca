"""What each part of the recipe brings alone, and all together: equal minutes, the same cases, two seeds.

    python -m tests.benchmarks.ablation data=implanted data.background=DIR
    python -m tests.benchmarks.ablation -m part=plain,ema,regions seed=0,1 data=implanted data.background=DIR

The second form is a Hydra sweep of some parts. Either way finished runs are recognised and skipped, and the table of
all that is there is written to ``<output>/ablation.md``. The parts and all settings: ``arena/conf/ablation.yaml``.
"""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from tests.benchmarks.arena.report import Result, case_table, mean_without_nan, number
from tests.benchmarks.arena.runs import ArenaError
from tests.benchmarks.duel import command, finish, listed, plan, stored_results

SCORES = {
    "Dice mean": "dice_mean",
    "lesion Dice": "brats2024/lesion_dice_mean",
    "small F1": "brats2026/small_f1_mean",
    "FP per case": "false_positives",
}


def ablation(cfg: DictConfig, data: Sequence[str]) -> list[Result]:
    """Carry out the chosen parts' runs that are missing, then write the table of all parts; the results there are."""
    contestants = recipes(cfg)
    chosen = list(contestants) if cfg.part is None else listed(cfg.part)
    for part in chosen:
        if part not in contestants:
            near = difflib.get_close_matches(part, contestants, n=1)
            raise ArenaError(f"part: there is no {part}, only {', '.join(near or contestants)}")
    runs = plan(contestants, cfg, data)
    for run in runs:
        if run.contestant in chosen:
            finish(run, Path(cfg.output))
    # A job of a sweep has a single part and seed, and shows what the others have found, too.
    results = [result for run in runs[: len(contestants)] for result in stored_results(Path(cfg.output), run)]
    text = table(results, list(contestants))
    (Path(cfg.output) / "ablation.md").write_text(text)
    print(text)
    return results


def recipes(cfg: DictConfig) -> dict[str, str]:
    """Each part, and ``together``, as an experiment with overrides."""
    (plain,) = cfg.contestants
    parts = {name: list(overrides) for name, overrides in cfg.parts.items()}
    if unknown := set(cfg.together) - set(parts):
        raise ArenaError(f"together: there is no part {', '.join(sorted(unknown))}")
    parts["together"] = [override for name in cfg.together for override in parts[name]]
    return {name: shlex.join([plain, *overrides]) for name, overrides in parts.items()}


def table(results: Sequence[Result], parts: Sequence[str]) -> str:
    """Markdown: for each part its scores, mean and range over seeds, what it brings over ``plain``, and its cost."""
    own = {part: [result for result in results if result["contestant"] == part] for part in parts}
    own = {part: found for part, found in own.items() if found}
    head = [
        "part",
        "seeds",
        *(column for title in SCORES for column in (title, "over plain")),
        "steps",
        "time per step ÷ plain",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for part, found in own.items():
        cells = [part, str(len(found))]
        for score in SCORES.values():
            values = seed_means(found, score)
            cells.append(f"{number(values.mean())} ({number(values.min())} – {number(values.max())})")
            gain = gain_over(own.get("plain", []), found, score)
            cells.append("" if part == "plain" or gain != gain else f"{gain:+.3f}")
        steps = mean_steps(found)
        cells += [f"{steps:.0f}", f"{mean_steps(own['plain']) / steps:.2f}" if "plain" in own else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gain_over(plain: Sequence[Result], results: Sequence[Result], score: str) -> float:
    """Mean difference of the runs that have a plain one of the same seed; NaN if there is none."""
    means = {result["seed"]: float(seed_means([result], score)[0]) for result in plain}
    gains = [
        float(seed_means([result], score)[0]) - means[result["seed"]] for result in results if result["seed"] in means
    ]
    return float(np.mean(gains)) if gains else float("nan")


def seed_means(results: Sequence[Result], score: str) -> np.ndarray:
    """Mean over the cases, for each seed."""
    return mean_without_nan(case_table(results, score), axis=1)


def mean_steps(results: Sequence[Result]) -> float:
    """Steps that the minutes were enough for, mean over seeds."""
    return sum(result["steps"] for result in results) / len(results)


if __name__ == "__main__":
    command("ablation", ablation)

"""Choosing among candidates by the scores of cases, and how much of the gain is left on cases that did not choose."""

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from brats_lightning.data.cases import patient_and_timepoint
from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.runtime.console import show, table_of

log = logging.getLogger(__name__)

_LEVEL = 0.025  # of p: so that a gain is more than noise where the lower end of its 95 % interval is above 0
_TINY = 1e-12  # rounding
_DIGITS = 6  # by which scores differ; of equals the first candidate, the simplest, is chosen

Scores = Float[np.ndarray, "cases candidates"]  # NaN where a case has no score


class Gain(NamedTuple):
    """A mean difference of scores.

    Attributes:
        mean: over the cases.
        low: of its 95 % interval, by a bootstrap over groups of cases.
        high: likewise.
        p_no_gain: probability of such a gain where there is none.
    """

    mean: float
    low: float
    high: float
    p_no_gain: float


class ChoiceGain(NamedTuple):
    """What the best of several candidates gains over the first.

    Attributes:
        gain: on the cases that made the choice, too high for that.
        held_out: the same, but each group of cases is scored by the choice of all others; what is left on new cases.
        low: of the 95 % interval of the gain, lowered by what the best of as many candidates gains by chance.
        high: of the interval, as if nothing had been chosen.
        p_no_gain: probability that the best of these candidates gains so much where none gains anything.
    """

    gain: float
    held_out: float
    low: float
    high: float
    p_no_gain: float

    @property
    def within_noise(self) -> bool:
        """Whether chance explains it well enough, or nothing can be said."""
        return not self.p_no_gain <= _LEVEL


def best(scores: Scores) -> int:
    """The candidate with the highest of the `mean_scores`; of equals, or without any, the first."""
    return int(np.nan_to_num(mean_scores(scores), nan=-np.inf).argmax())


def mean_scores(scores: Scores) -> Float[np.ndarray, " candidates"]:
    """Of each candidate the mean over the cases that have a score, to six digits; NaN if none has."""
    has = ~np.isnan(scores)
    counts = has.sum(axis=0)
    sums = np.where(has, scores, 0).sum(axis=0)
    return np.round(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), _DIGITS)


def best_without(scores: Scores, groups: Sequence[Hashable]) -> dict[Hashable, int]:
    """For each group of cases the candidate that is `best` on the cases of all other groups.

    With folds as groups, that is the choice that a fold may be scored with.

    Args:
        scores: of each case under each candidate.
        groups: that each case belongs to.
    """
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = np.array([place[group] for group in groups])
    return {group: best(scores[numbers != number]) for group, number in place.items()}


def gain_of_best(scores: Scores, groups: Sequence[Hashable], bootstrap: Bootstrap) -> ChoiceGain:
    """What `best` gains over the first candidate, with regard to the others that could have been chosen.

    The best of many looks good on the cases that chose it, by chance alone. So its gain is compared with the largest
    gain of all candidates in a bootstrap in which none has any: White's reality check (2000), without the candidates
    that are clearly worse than the first, as Hansen (2005) proposes.

    Args:
        scores: of each case under each candidate.
        groups: such as the patient of each case; NaN is the result where fewer than two groups have scores.
        bootstrap: of the groups.
    """
    chosen, differences = best(scores), scores - scores[:, :1]
    elsewhere = best_without(scores, groups)
    own = np.array([row[elsewhere[group]] for row, group in zip(differences, groups, strict=True)])
    held_out = float(own[~np.isnan(own)].mean()) if not np.isnan(own).all() else math.nan
    means, resampled, number = _resampled(differences, groups, bootstrap)
    gain = float(means[chosen])
    if number < 2:
        return ChoiceGain(gain, held_out, math.nan, math.nan, math.nan)
    # The bootstrap's spread is too small by this factor, which counts with few patients.
    deviations = (resampled - means) * math.sqrt(number / (number - 1))
    spread = np.nanstd(deviations, axis=0)
    rivals = means >= -spread * math.sqrt(2 * math.log(math.log(max(number, 3))))
    by_chance = np.nanmax(np.where(rivals, deviations, -np.inf), axis=1)
    p = max(float((by_chance >= gain - _TINY).mean()), 0.5**number)  # as in a test of signs: few patients prove little
    low = gain - float(np.percentile(by_chance, 97.5))
    return ChoiceGain(gain, held_out, low, float(np.nanpercentile(resampled[:, chosen], 97.5)), p)


def gains(
    differences: Float[np.ndarray, "cases columns"], groups: Sequence[Hashable], bootstrap: Bootstrap
) -> list[Gain]:
    """The mean of each column by itself, NaN being skipped, with a bootstrap in which whole groups are drawn.

    Args:
        differences: of each case.
        groups: such as the patient of each case, whose cases are not independent.
        bootstrap: of the groups.
    """
    means, resampled, number = _resampled(differences, groups, bootstrap)
    if number < 2:
        return [Gain(float(mean), math.nan, math.nan, math.nan) for mean in means]
    found = []
    for mean, column in zip(means, resampled.T, strict=True):
        drawn = column[~np.isnan(column)]
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (math.nan, math.nan)
        p = float((drawn <= _TINY).mean()) if len(drawn) else math.nan
        found.append(Gain(float(mean), float(low), float(high), p))
    return found


def _resampled(
    differences: Float[np.ndarray, "cases columns"], groups: Sequence[Hashable], bootstrap: Bootstrap
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, "resamples columns"], int]:
    """Mean of each column, its means in resamples of the groups that have any value, and the number of these."""
    has = ~np.isnan(differences)
    scored = has.any(axis=1)  # a resample of the others would have no mean
    groups = [group for group, any_score in zip(groups, scored, strict=True) if any_score]
    sums, counts = np.where(has, differences, 0)[scored], has[scored].astype(np.float64)
    totals = counts.sum(axis=0)
    means = np.where(totals > 0, sums.sum(axis=0) / np.maximum(totals, 1), np.nan)
    drawn = bootstrap.ratios(sums, counts, groups) if groups else np.empty((0, len(totals)))
    return means, drawn, len(set(groups))


@dataclass(frozen=True)
class Tried:
    """Candidates that were scored on the same cases.

    Attributes:
        settings: of each candidate, by name; the first has none, and simpler ones come first.
        scores: case → the scores of each candidate by name; that named ``score`` decides.
        protocol: of the scores.
        components: settings on which the number of components depends.
    """

    settings: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Sequence[Mapping[str, float]]]
    protocol: str
    components: Sequence[str] = ()

    def table(self, name: str = "score") -> Scores:
        """The scores of one name."""
        return np.array([[scores[name] for scores in candidates] for candidates in self.scores.values()], np.float64)

    @property
    def chosen(self) -> int:
        """The candidate that is `best` on all cases."""
        return best(self.table())

    def summary(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """The ``score`` of the choice, that ``without`` any setting, the `gain_of_best` and all that was ``tried``.

        Groups are patients. The candidates are sorted by their score, of equals the simplest first; each has its gain
        over the first candidate, on these cases.
        """
        patients = [patient_and_timepoint(case)[0] for case in self.scores]
        names = list(next(iter(self.scores.values()))[0])
        tables = {name: self.table(name) for name in names}
        by_name = {name: mean_scores(table) for name, table in tables.items()}
        over_none = gains(tables["score"] - tables["score"][:, :1], patients, bootstrap)
        rows: list[dict[str, Any]] = []
        for index, settings in enumerate(self.settings):
            gain = over_none[index]._asdict()
            own = {name: float(mean[index]) for name, mean in by_name.items()}
            rows.append({"steps": dict(settings), **_rounded(own | {"gain": gain.pop("mean")} | gain)})
        order = sorted(range(len(rows)), key=lambda i: 1.0 if rows[i]["score"] is None else -rows[i]["score"])
        choice = gain_of_best(tables["score"], patients, bootstrap)
        return {
            "score": rows[order[0]]["score"],
            "without": rows[0]["score"],
            "gain": _rounded(choice._asdict()) | {"within_noise": choice.within_noise},
            "protocol": self.protocol,
            "cases": list(self.scores),
            "components": list(self.components),
            "tried": [rows[index] for index in order],
        }


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, _DIGITS) for name, value in values.items()}


def report_choice(summary: Mapping[str, Any]) -> None:
    """Show the best candidates of `Tried.summary`, and say what the choice is worth."""
    rows, components = summary["tried"], summary["components"]
    settings = list(dict.fromkeys(name for row in rows for name in row["steps"]))
    scores = [name for name in rows[0] if name not in ("steps", "low", "high")]
    title = f"lesion-wise Dice, {summary['protocol']}, {len(summary['cases'])} cases, best 10 of {len(rows)}"
    cells = []
    for row in rows[:10]:
        interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        shown = row | {"gain": None if row["gain"] is None else f"{row['gain']:.3f}{interval}"}
        cells.append([*map(row["steps"].get, settings), *map(shown.get, scores)])
    shown_rows = (["–" if value is None else value for value in row] for row in cells)
    show(table_of([name + " *" * (name in components) for name in settings] + scores, shown_rows, title))
    if components:
        log.info(
            "* the number of components depends on it: on cases that a network has memorised, false components hardly "
            "occur, so that keeping more looks free; only held-out cases tell"
        )
    log.info("chosen: %s · score %s, without any %s", rows[0]["steps"], summary["score"], summary["without"])
    gain = summary["gain"]
    if gain["p_no_gain"] is None:
        log.warning("too few patients to say what the choice gains on others")
        return
    say = log.warning if gain["within_noise"] else log.info
    *numbers, held_out = (gain[name] for name in ("gain", "low", "high", "p_no_gain", "held_out"))
    told = "this is within noise" if gain["within_noise"] else "this is more than noise"
    text = "gain %.3f [%.3f, %.3f], by chance with P = %.3f: %s; %.3f if each patient is left out of choosing"
    say(text, *numbers, told, held_out)

"""What came of a study's held-out cases: as predicted, and with post-processing chosen for each fold on the others."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_part
from brats_lightning.config.postprocessing import all_recorded, as_config, tuned_file
from brats_lightning.config.study import FOLDS, Study
from brats_lightning.config.values import write_yaml
from brats_lightning.core.labels import LabelScheme, with_ignored
from brats_lightning.data.cases import Case, CaseError
from brats_lightning.data.splits import read_split
from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.choice import best, best_without
from brats_lightning.evaluation.results import ReportSettings, write_results
from brats_lightning.evaluation.scoring import Scoring, prepare_evaluation, score_pairs
from brats_lightning.evaluation.study import HeldOut
from brats_lightning.inference.decoding import SavedCase, decode_case, saved_cases
from brats_lightning.inference.fusion import Fusion
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.inference.postprocessing.grid import candidates, settings_of
from brats_lightning.inference.tuning import RuleScores, score_saved
from brats_lightning.runtime.console import each_shown
from brats_lightning.runtime.files import write_json
from brats_lightning.runtime.workers import each_result

log = logging.getLogger(__name__)

_TUNED = (
    "# Post-processing chosen on the held-out cases of a study; use it with: predict ckpt={} postprocessing=tuned\n"
)


@dataclass(frozen=True)
class Tuning:
    """Rules of post-processing, scored on the held-out cases of one arm and seed.

    Attributes:
        rules: that were tried, no step first.
        scores: case → its scores under each rule.
        chosen: fold → the number of the rule that is best on the cases of the other folds.
    """

    rules: Sequence[Postprocessing]
    scores: Mapping[str, RuleScores]
    chosen: Mapping[int, int]


class HeldOutCases:
    """The held-out cases of a study, to be scored.

    Args:
        study: with its folds dealt.
        cfg: of the command.
        cases: of the data set, with their masks.
        trust: packages of the arms, of which steps of post-processing may be.
        pool: that scores; None does it here.
    """

    def __init__(
        self,
        study: Study,
        cfg: DictConfig,
        cases: Sequence[Case],
        trust: Sequence[str],
        pool: ProcessPoolExecutor | None,
    ) -> None:
        self.study, self.cfg, self.cases, self.trust, self.pool = study, cfg, cases, trust, pool
        self.folds = [read_split(study.folder / FOLDS, "folds", fold)["val"] for fold in range(study.folds)]
        self.fold_of = {case: fold for fold, names in enumerate(self.folds) for case in names}
        scheme = LabelScheme(tuple(cfg.data.labels))
        self.label_map = with_ignored(cfg.data.label_map, cfg.data.ignore_label, scheme)
        protocols, tolerance = list(cfg.protocols), cfg.data.affine_tolerance
        self.scoring = Scoring(scheme, protocols, label_map=self.label_map, tolerance=tolerance)

    def predicted(self) -> dict[tuple[str, int], list[str]]:
        """(arm, seed) → the cases that its finished trainings have predicted."""
        found = {
            group: [case for job in jobs if job.predicted for case in self.folds[job.fold]]
            for group, jobs in self.study.groups().items()
        }
        return {group: chosen for group, chosen in found.items() if chosen}

    def score(self, arm: str, seed: int, chosen: Sequence[str], tuned: bool = False) -> dict[str, HeldOut]:
        """Protocol → the scores of these cases, with a report of them in a folder beside the masks."""
        folder = self.study.folder / arm / f"seed{seed}"
        masks, report = ("tuned", "tuned_scores") if tuned else ("predictions", "scores")
        name = f"{arm}, seed {seed}" + ", tuned" * tuned
        evaluation = prepare_evaluation(
            name, folder / masks, self.study.folder, self.scoring, "score", chosen, self.cases, self.pool
        )
        if evaluation.left_out:
            raise CaseError(evaluation.left_out)
        evaluation = score_pairs(evaluation, self.pool)
        settings = ReportSettings(Bootstrap(self.cfg.resamples, 0), printed=False)
        write_results([evaluation], folder / report, settings, self.pool)
        ids = {case.mask: case.id for case in self.cases}
        scored = list(zip(evaluation.pairs, evaluation.cases, strict=True))
        return {
            protocol: HeldOut(arm, seed, tuned, {ids[pair.reference]: case.official[protocol] for pair, case in scored})
            for protocol in self.scoring.protocols
        }

    def tune(self, arm: str, seed: int, chosen: Sequence[str]) -> Tuning | None:
        """Choose a rule for each fold on the others, and write the masks that it makes.

        None if a single fold is there. The scores of the rules are kept in ``tuning.json`` for the next start.
        """
        folds = [self.fold_of[case] for case in chosen]
        if len(set(folds)) < 2:
            return None
        folder = self.study.folder / arm / f"seed{seed}"
        found, problems = saved_cases([folder / "predictions"])
        saved = {case.id: case for case in found}
        if faults := [problem for problem in problems if problem.case in chosen or problem.case not in saved]:
            raise CaseError(faults)
        settings = compose("tune", list(self.cfg.tune))
        records = [record for case in chosen for record in saved[case].records]
        used, decode = list(all_recorded(records, self.trust).values()), records[0].decode
        steps = Postprocessing(build_part("postprocessing", settings.postprocessing.steps, _convert_="all")).steps
        grid: Any = OmegaConf.to_container(settings.grid)
        rules = candidates(steps, grid, used, decode)
        scores = self._rule_scores(folder / "tuning.json", [saved[case] for case in chosen], rules)
        table = np.array([[each["score"] for each in scores[case]] for case in chosen])
        best_of = best_without(table, folds)
        jobs = {
            case: (saved[case], rules[best_of[fold]], Fusion("mean"), folder / "tuned" / f"{case}.nii.gz")
            for case, fold in zip(chosen, folds, strict=True)
        }
        decoded = self._each("decoding", decode_case, jobs).values()
        if faults := [problem for found in decoded if isinstance(found, list) for problem in found]:
            raise CaseError(faults)
        return Tuning(rules, scores, {int(fold): number for fold, number in best_of.items()})  # type: ignore[call-overload]

    def write_choice(self, arm: str, tunings: Sequence[Tuning]) -> None:
        """Write the rule that is best on all held-out cases and seeds of an arm beside the arm's ensemble.

        Without tunings, or if they tried different rules, an earlier choice is removed.
        """
        ensemble = self.study.folder / arm / "ensemble.yaml"
        tuned_file(ensemble).unlink(missing_ok=True)
        if not tunings:
            return
        rules = tunings[0].rules
        if any(list(map(str, other.rules)) != list(map(str, rules)) for other in tunings[1:]):
            log.warning("%s: the seeds tried different rules; none is chosen for the ensemble", arm)
            return
        rows = [[each["score"] for each in own] for tuning in tunings for own in tuning.scores.values()]
        number = best(np.array(rows))
        content = {"chosen": as_config(rules[number]), "score": float(np.nanmean(np.array(rows)[:, number]))}
        write_yaml(tuned_file(ensemble), content, _TUNED.format(ensemble))

    def _rule_scores(
        self, file: Path, cases: Sequence[SavedCase], rules: Sequence[Postprocessing]
    ) -> dict[str, RuleScores]:
        """Case → the scores of each rule; what an earlier start has found is taken from the file."""
        key = {"rules": list(map(str, rules)), "protocol": self.scoring.protocols[0]}
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        known = before["scores"] if {name: before.get(name) for name in key} == key else {}
        made = {case.id: case.made_by(rules[0], Fusion("mean")) for case in cases}
        found = {
            case: [
                {name: math.nan if value is None else value for name, value in each.items()} for each in known[case][1]
            ]
            for case, by in made.items()
            if case in known and known[case][0] == by
        }
        masks = {case.id: case.mask for case in self.cases}
        tolerance = self.cfg.data.affine_tolerance
        jobs = {
            case.id: (case, masks[case.id], self.label_map, tolerance, rules, self.scoring.protocols[0])
            for case in cases
            if case.id not in found
        }
        for case, (scores, problems) in self._each("tuning", score_saved, jobs).items():
            if problems:
                raise CaseError(problems)
            found[case] = scores
        write_json(file, key | {"scores": {case: [made[case], found[case]] for case in made}})
        return {case: found[case] for case in made}

    def _each(self, what: str, task: Any, jobs: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        return dict(each_shown(what, each_result(self.pool, task, jobs, "processes=1"), len(jobs)))


def settings_text(rules: Postprocessing) -> str:
    """The settings of rules as a page shows them."""
    return ", ".join(f"{name}={value}" for name, value in settings_of(rules).items()) or "no step"

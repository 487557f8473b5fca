"""All that is known of a data set: what became of its cases, its fingerprint, and what looks wrong."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.fingerprint import fingerprint
from brats_lightning.data.inspection import Inspection, inspect_cases
from brats_lightning.data.survey import Survey
from brats_lightning.data.suspicions import Suspicion, find_suspicions


@dataclass(frozen=True)
class Overview:
    """What a person wants to know before training on a data set."""

    survey: Survey
    scheme: LabelScheme
    inspections: list[Inspection]  # of the accepted cases
    suspicions: list[Suspicion]

    @classmethod
    def of(cls, survey: Survey, scheme: LabelScheme, workers: int = 1) -> "Overview":
        """Look at the accepted cases of a survey, by several threads."""
        inspections = inspect_cases(survey.cases, scheme, workers)
        return cls(survey, scheme, inspections, find_suspicions(inspections))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """See `fingerprint`; empty if no case was accepted."""
        return fingerprint(self.inspections, self.survey.sequences, self.scheme) if self.inspections else {}

    @cached_property
    def suspects(self) -> dict[str, list[Suspicion]]:
        """Case → its suspicions."""
        found: dict[str, list[Suspicion]] = {}
        for each in self.suspicions:
            found.setdefault(each.case, []).append(each)
        return found

    def warnings(self, most: int = 10) -> list[str]:
        """What looks wrong, in a line for each of the first cases."""
        lines = [f"{each.case} ({each.file}): {each.found}" for each in self.suspicions[:most]]
        return lines + [f"{len(self.suspicions) - most} more on the page"] * (len(self.suspicions) > most)

    def report(self, description: str) -> dict[str, Any]:
        """The content of ``report.json``."""
        return {
            "data": description,
            "spacing": self.survey.spacing,
            "accepted": len(self.survey.cases),
            "rejected": self.survey.rejected,
            "built": self.survey.built,
            "fingerprint": self.fingerprint,
            "suspicious": [asdict(each) for each in self.suspicions],
            "cases": self.survey.rows(),
        }

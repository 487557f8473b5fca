"""The bootstrap behind every interval: patients are drawn, since their cases and lesions are not independent."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Bootstrap:
    """Draws of as many patients as there are, with replacement, each with all cases.

    Attributes:
        resamples: number of draws.
        seed: of the draws, which are the same for every column.
    """

    resamples: int
    seed: int

    def ratios(
        self,
        sums: Float[np.ndarray, "cases columns"],
        counts: Float[np.ndarray, "cases columns"],
        patients: Sequence[Hashable],
    ) -> Float[np.ndarray, "resamples columns"]:
        """Σ sums / Σ counts of each draw; NaN where the counts are all 0.

        Args:
            sums: of each case; with all ``counts`` 1 the ratio is a mean over cases.
            counts: how many values each sum has.
            patients: of each case.
        """
        sums, counts = by_patient(sums, patients), by_patient(counts, patients)
        n = len(sums)
        draws = np.random.default_rng(self.seed).multinomial(n, np.full(n, 1 / n), size=self.resamples)
        draws = draws.astype(np.float64)
        totals = draws @ counts
        with np.errstate(invalid="ignore"):
            return np.where(totals > 0, draws @ sums / np.where(totals > 0, totals, 1), np.nan)

    def interval(
        self,
        sums: Float[np.ndarray, "cases columns"],
        counts: Float[np.ndarray, "cases columns"],
        patients: Sequence[Hashable],
    ) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
        """The middle 95 % of the `ratios`, without those that are NaN.

        NaN where fewer than two patients have a count.
        """
        ratios = self.ratios(sums, counts, patients)
        low, high = np.full((2, sums.shape[1]), np.nan)
        for column in np.flatnonzero((by_patient(counts, patients) > 0).sum(axis=0) >= 2):
            low[column], high[column] = np.nanpercentile(ratios[:, column], (2.5, 97.5))
        return low, high


def by_patient(
    values: Float[np.ndarray, "cases columns"], patients: Sequence[Hashable]
) -> Float[np.ndarray, "patients columns"]:
    """The sums over the cases of each patient, in the order in which the patients first come.

    Args:
        values: of each case.
        patients: of each case.
    """
    place = {patient: row for row, patient in enumerate(dict.fromkeys(patients))}
    total = np.zeros((len(place), values.shape[1]))
    np.add.at(total, [place[patient] for patient in patients], values)
    return total

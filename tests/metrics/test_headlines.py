import math

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.metrics.official import PROTOCOLS, ScoreError, headline_names, headline_scores, score_case


def pair():
    """One ET lesion found, one missed."""
    reference = np.zeros((40, 40, 40), np.uint8)
    reference[5:10, 5:10, 5:10] = reference[25:30, 25:30, 25:30] = 3
    prediction = reference.copy()
    prediction[25:30, 25:30, 25:30] = 0
    return reference, prediction


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_names_and_scores_match(protocol):
    official = score_case(*pair(), (1, 1, 1), BRATS_METS, protocol)
    found = headline_scores(official, BRATS_METS, protocol)
    assert list(found) == headline_names(BRATS_METS, protocol)
    name = "lesion_dsc" if protocol == "brats2026" else "lesion_dice"
    assert found[f"{protocol}/{name}_et"] == found[f"{protocol}/{name}_mean"] == 0.5


def test_the_mean_leaves_out_undefined_regions_and_the_cavity():
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    columns = {"LesionWise_Score_Dice": 0.2, "LesionWise_Score_HD95": math.nan}
    scores = {region: dict(columns) for region in scheme.regions}
    scores["rc"]["LesionWise_Score_Dice"] = 1.0
    scores["et"]["LesionWise_Score_Dice"] = math.nan
    found = headline_scores(scores, scheme, "brats2024")
    assert found["brats2024/lesion_dice_mean"] == pytest.approx(0.2)
    assert found["brats2024/lesion_dice_rc"] == 1.0
    assert math.isnan(found["brats2024/lesion_hd95_mean"])


def test_unknown_protocol():
    with pytest.raises(ScoreError, match="brats2022"):
        headline_names(BRATS_METS, "brats2022")

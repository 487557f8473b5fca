"""The evaluators agree with a slow, literal version of their rules on hard random pairs."""

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.metrics.official import PROTOCOLS, score_case
from tests.metrics import metric_rules
from tests.metrics.metric_pairs import random_pair


def assert_same(ours, theirs, where):
    assert set(ours) == set(theirs)
    for region, row in theirs.items():
        assert set(ours[region]) == set(row)
        for column, value in row.items():
            got = ours[region][column]
            assert type(got) is float, (region, column, type(got))
            np.testing.assert_allclose(got, value, rtol=0, atol=1e-10, err_msg=f"{where} {region} {column}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_agrees_with_the_literal_rules(protocol):
    rng = np.random.default_rng(7)
    for index in range(30):
        reference, prediction, spacing = random_pair(rng, longest=14)
        if protocol == "brats2026":
            theirs = metric_rules.brats2026(reference, prediction, spacing)
        else:
            theirs = metric_rules.lesion_wise(reference, prediction, spacing, protocol)
        assert_same(score_case(reference, prediction, spacing, BRATS_METS, protocol), theirs, f"pair {index}")

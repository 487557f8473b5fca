import numpy as np
import pytest

from tests.benchmarks.pairs import verdict


def test_a_ratio_is_slower_only_if_its_whole_interval_is():
    twice = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    assert verdict(twice) == "2 → 4, ratio 2.000 [2.000, 2.000], 3 pairs: slower"
    assert verdict(twice[:, ::-1]) == "4 → 2, ratio 0.500 [0.500, 0.500], 3 pairs: not slower"
    uncertain = np.array([[1.0, 1.3], [1.0, 0.9], [1.0, 1.1], [1.0, 1.0]])
    text = verdict(uncertain)
    assert text.endswith("4 pairs: not slower"), text
    assert "ratio 1.050 [0.900, 1.300]" in text, text


@pytest.mark.parametrize("seed", range(3))
def test_equal_sides_are_not_slower(seed):
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.9, 1.1, 16)
    noisy = np.stack([before, before * rng.uniform(0.95, 1.05, 16)], axis=1)
    assert verdict(noisy).endswith("16 pairs: not slower")

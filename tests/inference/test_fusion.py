import numpy as np
import pytest

from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.core.labels import BRATS_METS
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.fusion import Fusion, FusionError, common_box
from brats_lightning.inference.postprocessing import Hysteresis, Postprocessing

WHOLE = GridTransform.whole(Grid((8, 1, 1), np.diag([-1.0, -1.0, 1.0, 1.0])))
ARGMAX = Postprocessing(decode="argmax")


def line(start, *et):
    """ET's probability along x from voxel ``start`` on; the rest is background."""
    p = np.array(et, np.float32)
    values = np.stack([1 - p, np.zeros_like(p), np.zeros_like(p), p])[:, None, None]
    return Probabilities(values, WHOLE.crop((0, 0, start), (1, 1, len(et))))


def fused(fusion, *found, rules=ARGMAX):
    labels, mean = fusion(found, [rules] * len(found), BRATS_METS)
    return labels.reshape(-1).tolist(), mean


def test_a_mean_is_post_processed_on_the_box_around_all():
    labels, mean = fused(Fusion(), line(1, 0.75, 0.75, 0.25), line(2, 0.5, 0.5, 1.0, 1.0))
    # voxels 1 … 5: 0.375, 0.625, 0.375, 0.5, 0.5
    assert mean.transform == WHOLE.crop((0, 0, 1), (1, 1, 5))
    np.testing.assert_allclose(mean.values[3, 0, 0], [0.375, 0.625, 0.375, 0.5, 0.5])
    np.testing.assert_allclose(mean.values.sum(0), 1)
    assert labels == [0, 3, 0, 0, 0]  # of equals the background
    assert fused(Fusion(), line(1, 0.75, 0.75, 0.25), line(1, 0.5, 0.5, 0.0), rules=decoded(0.3))[0] == [3, 3, 0]


def decoded(low):
    return Postprocessing({"hysteresis": Hysteresis(low, 0.6)}, "argmax")


def test_weights_are_a_ratio():
    found = line(0, 0.9, 0.2), line(0, 0.1, 0.6)
    for weights in ([3, 1], [0.75, 0.25]):
        labels, mean = fused(Fusion("weighted", weights), *found)
        np.testing.assert_allclose(mean.values[3, 0, 0], [0.7, 0.3], atol=1e-6)
        assert labels == [3, 0]
    assert fused(Fusion("weighted", [0, 1]), *found)[0] == [0, 3]


def test_a_majority_of_masks_not_of_probabilities():
    found = line(0, 0.6, 1.0, 0.6, 0.0), line(0, 0.6, 0.1, 0.5, 0.9), line(0, 0.1, 0.1, 0.4, 0.0)
    labels, mean = fused(Fusion("majority"), *found)
    assert labels == [3, 0, 0, 0]
    assert mean.values[3, 0, 0, 1] == pytest.approx(0.4)
    # of equals the more probable one
    assert fused(Fusion("majority"), line(0, 0.9, 0.6), line(0, 0.4, 0.1))[0] == [3, 0]
    # each is post-processed by itself: here alone the first has a peak
    found = line(0, 0.5, 0.7), line(0, 0.5, 0.55), line(0, 0.55, 0.7)
    assert fused(Fusion("majority"), *found, rules=decoded(0.4))[0] == [3, 3]
    assert fused(Fusion("majority"), line(1, 1.0), line(3, 1.0), line(0, 0.0, 0.0, 0.0, 1.0))[0] == [0, 0, 0, 3]


def test_staple_recovers_what_most_of_good_readers_saw():
    pytest.importorskip("SimpleITK")
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[1:11, 1:11, 1:8], truth[4:9, 4:9, 4:6], truth[2:4, 2:6, 2:6] = 2, 3, 1
    whole = GridTransform.whole(Grid((12, 12, 12), np.diag([-1.0, -1.0, 1.0, 1.0])))

    def reader(*wrong):
        seen = truth.copy()
        for voxel, label in wrong:
            seen[voxel] = label
        return Probabilities(np.stack([seen == index for index in range(4)]).astype(np.float32), whole)

    found = [reader(((5, 5, 5), 0)), reader(((0, 0, 0), 3), ((2, 2, 2), 2)), reader(((7, 7, 7), 3))]
    assert np.array_equal(Fusion("staple")(found, [ARGMAX] * 3, BRATS_METS)[0], truth)
    # where none has a lesion, nothing can be estimated
    empty = [Probabilities(found[0].values * 0 + np.array([1, 0, 0, 0], np.float32)[:, None, None, None], whole)] * 2
    assert not Fusion("staple")(empty, [ARGMAX] * 2, BRATS_METS)[0].any()


def test_one_prediction_is_as_it_is():
    found = line(1, 0.9, 0.2)
    for method in ("mean", "majority"):
        labels, mean = fused(Fusion(method), found)
        assert (labels, mean is found) == ([3, 0], True)


def test_a_box_around_boxes():
    boxes = [WHOLE.crop((0, 0, 2), (1, 1, 3)), WHOLE.crop((0, 0, 1), (1, 1, 2))]
    assert common_box(boxes) == WHOLE.crop((0, 0, 1), (1, 1, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vote"}, "fusion must be one of mean, weighted, majority, staple, got 'vote'"),
        ({"method": "weighted"}, "weights belong to fusion=weighted"),
        ({"weights": [1, 1]}, "weights belong to fusion=weighted"),
        ({"method": "weighted", "weights": [1, -1]}, "0 or more"),
        ({"method": "weighted", "weights": [0, 0]}, "some of them above 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(FusionError, match=message):
        Fusion(**settings)


def test_what_a_fusion_needs(monkeypatch):
    with pytest.raises(FusionError, match="one for each of 3 predictions"):
        Fusion("weighted", [1, 2]).check(3)
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(FusionError, match=r'pip install "brats-lightning\[fusion\]"'):
        Fusion("staple").check(2)

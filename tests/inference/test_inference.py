import math

import numpy as np
import pytest
import torch
from torch import nn

from brats_lightning.config.checkpoint import load_model
from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.ensemble import Ensemble
from brats_lightning.inference.summary import region_summary
from brats_lightning.inference.windows import SlidingWindow, gaussian_importance, window_starts
from tests.tiny_models import bright_is_et


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (10, 10, 0.5, [0]),
        (11, 10, 0.5, [0, 1]),  # the last window moves back
        (20, 10, 0.5, [0, 5, 10]),
        (20, 8, 0.25, [0, 6, 12]),
        (3, 1, 0.0, [0, 1, 2]),
    ],
)
def test_window_starts(length, window, overlap, expected):
    assert window_starts(length, window, overlap) == expected


def test_importance_is_1_at_the_centre_symmetric_and_never_below_a_thousandth():
    weight = gaussian_importance((5, 7, 9))
    assert weight[2, 3, 4] == 1
    assert torch.equal(weight, weight.flip(0, 1, 2))
    assert gaussian_importance((64, 64, 64)).min() == pytest.approx(1e-3)
    # one σ (an eighth of the window) off the centre
    assert gaussian_importance((1, 1, 17))[0, 0, 8 + 2] == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2))


def test_voxelwise_network_is_reproduced_whatever_the_windows():
    image = torch.randn(2, 13, 9, 21)
    network = nn.Conv3d(2, 3, 1)
    for window in [(4, 4, 4), (13, 9, 21), (20, 5, 30)]:
        with torch.no_grad():
            out = SlidingWindow(window, 0.5, batch_size=3)(network, image)
        torch.testing.assert_close(out, network(image[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "overlap"), [((20, 33, 26), 0.5), ((9, 40, 17), 0.25)])
def test_equals_monai(shape, overlap):
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    image = torch.rand(1, *shape) + 0.1
    with torch.no_grad():
        ours = SlidingWindow((16, 16, 16), overlap, batch_size=2)(network, image)
        theirs = inferers.sliding_window_inference(image[None], (16, 16, 16), 2, network, overlap, mode="gaussian")
    assert (ours - theirs[0]).abs().max() < 1e-4


def test_mirroring_averages_over_all_flips():
    network = nn.Conv3d(1, 1, (1, 1, 3), padding=(0, 0, 1), bias=False)
    network.weight.data = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 1, 1, 3)  # the left neighbour's value
    image = torch.arange(1.0, 6.0).reshape(1, 1, 1, 5)
    with torch.no_grad():
        plain = SlidingWindow((1, 1, 5))(network, image)
        mirrored = SlidingWindow((1, 1, 5), mirror_axes=(2,))(network, image)
    assert plain.flatten().tolist() == [0, 1, 2, 3, 4]
    assert mirrored.flatten().tolist() == [1, 2, 3, 4, 2]  # mean of left and right neighbour, 0 outside


def test_mirroring_over_three_axes_makes_a_symmetric_answer():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1)
    image = torch.rand(1, 6, 6, 6) + 0.1
    symmetric = image + image.flip(1) + image.flip(2) + image.flip(1, 2)
    symmetric = symmetric + symmetric.flip(3)
    with torch.no_grad():
        out = SlidingWindow((6, 6, 6), mirror_axes=(0, 1, 2))(network, symmetric)
    for axis in (1, 2, 3):
        torch.testing.assert_close(out, out.flip(axis), atol=1e-5, rtol=1e-5)


def test_a_stretched_window_spans_an_axis_that_is_little_longer():
    shapes = []

    def network(windows):
        shapes.append(tuple(windows.shape[2:]))
        return torch.cat([windows, -windows], dim=1)

    image = torch.rand(1, 33, 36, 50) + 1
    out = SlidingWindow((32, 32, 32), 0.5, stretch=0.5)(network, image)
    # 33 and 36 voxels fit into 48, one half more; 50 would take 64 and keeps its windows
    assert shapes == [(48, 48, 32)] * 3
    torch.testing.assert_close(out[0], image[0])
    shapes.clear()
    SlidingWindow((32, 32, 32), 0.5, stretch=0.4)(network, image)
    assert set(shapes) == {(32, 32, 32)}


def test_windows_without_brain_are_not_computed():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return torch.ones(len(windows), 3, *windows.shape[2:])

    image = torch.zeros(1, 8, 8, 24)
    image[0, 2, 3, 1] = 5.0  # in the first of three windows
    out = SlidingWindow((8, 8, 8), overlap=0.0)(network, image)
    assert calls == [1]
    assert torch.equal(out[..., :8], torch.ones(3, 8, 8, 8))
    assert out[:, 0, 0, 20].tolist() == [0, -1000, -1000]
    assert (out[..., 8:].argmax(0) == 0).all()


def test_what_no_window_covers_gets_the_targets_background():
    image = torch.zeros(1, 8, 8, 24)
    image[0, 2, 3, 1] = 5.0
    out = SlidingWindow((8, 8, 8), overlap=0.0)(nn.Conv3d(1, 3, 1), image, background=(-1000.0, -7.0, 3.0))
    assert (out[:, :, :, 8:] == torch.tensor([-1000.0, -7.0, 3.0]).reshape(3, 1, 1, 1)).all()
    empty = SlidingWindow((4, 4, 4))(nn.Conv3d(1, 2, 1), torch.zeros(1, 5, 6, 7), background=(-1000.0, -1000.0))
    assert (empty == -1000).all()


def test_an_empty_volume_is_background():
    out = SlidingWindow((4, 4, 4))(nn.Conv3d(1, 3, 1), torch.zeros(1, 5, 6, 7))
    assert out.shape == (3, 5, 6, 7)
    assert (out.argmax(0) == 0).all()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"window": (0, 4, 4)}, "window"),
        ({"window": (4, 4)}, "window"),
        ({"window": (4, 4, 4), "overlap": 1.0}, "overlap"),
        ({"window": (4, 4, 4), "batch_size": 0}, "batch_size"),
        ({"window": (4, 4, 4), "mirror_axes": (3,)}, "mirror_axes"),
        ({"window": (4, 4, 4), "mirror_axes": (0, 2, 0)}, "mirror_axes"),
        ({"window": (4, 4, 4), "stretch": -0.1}, "stretch"),
    ],
)
def test_bad_settings_name_their_key(settings, key):
    with pytest.raises(ValueError, match=rf"inference\.{key}"):
        SlidingWindow(**settings)


def test_quantised_windows_and_progress():
    """Windows keep the image's type, so that they can be normalised one by one."""
    image = torch.ones((2, 9, 8, 8), dtype=torch.int16)
    shares = []

    def network(windows):
        assert windows.dtype == torch.int16
        return windows.to(torch.float32)

    out = SlidingWindow((4, 8, 16), 0.0, mirror_axes=(1,))(network, image, shares.append)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.ones(2, 9, 8, 8))
    assert shares == [1 / 3] * 3


def test_probabilities_lie_on_original_voxels():
    transform = GridTransform.whole(Grid((4, 4, 4), np.eye(4)))
    values = np.zeros((2, 4, 4, 4), np.float32)
    assert Probabilities(values, transform).transform is transform
    with pytest.raises(ValueError, match="original voxels"):
        Probabilities(values, transform.resize((3, 3, 3)))


def test_an_ensemble_has_members():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [0.0, 1.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_each_member_has_a_weight_above_0(tmp_path, weights):
    models = [load_model(bright_is_et(tmp_path / f"{name}.ckpt")) for name in "ab"]
    assert Ensemble(models, weights=[1.0, 3.0]).weights == (0.25, 0.75)
    with pytest.raises(ValueError, match=r"weights=\[.*\] must be a number above 0 for each of 2 models"):
        Ensemble(models, weights=weights)


def test_confidence_of_each_lesion_by_hand():
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1, 1, 1:3], labels[4, 5, 6] = (3, 1), 3
    probabilities = np.zeros((4, 5, 6, 7), np.float32)
    probabilities[1, 1, 1, 1:3], probabilities[3, 1, 1, 1:3] = (0.25, 0.5), (0.5, 0.25)
    probabilities[3, 4, 5, 6] = 0.875
    transform = GridTransform.whole(Grid((7, 6, 5), np.diag([-1.0, -1.0, 2.0, 1.0])))
    single = Probabilities(probabilities, transform)
    found = region_summary(labels, single, LabelScheme(("netc", "snfh", "et")))
    small, large = {"volume_mm3": 2.0, "peak": 0.5, "mean": 0.5}, {"volume_mm3": 4.0, "peak": 0.75, "mean": 0.75}
    sure = {"volume_mm3": 2.0, "peak": 0.875, "mean": 0.875}
    assert found["et"] == {"lesions": 2, "volume_ml": 0.004, "confidence": [small, sure]}
    assert found["tc"] == {"lesions": 2, "volume_ml": 0.006, "confidence": [large, sure]}
    nothing = region_summary(np.zeros_like(labels), single, LabelScheme(("et",)))
    assert nothing == {"et": {"lesions": 0, "volume_ml": 0.0, "confidence": []}}
    spread = np.zeros((5, 6, 7), np.float32)
    spread[1, 1, 1:3], spread[4, 5, 6] = (0.25, 0.5), 0.125
    found = region_summary(labels, Probabilities(probabilities, transform, spread), LabelScheme(("netc", "snfh", "et")))
    assert [lesion["disagreement"] for lesion in found["tc"]["confidence"]] == [0.375, 0.125]

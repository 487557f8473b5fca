import numpy as np
import pytest
import torch

from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.preprocessing import QUANTILE_LEVELS, quantise


def coded(**modalities):
    """A case of volumes (z, y, x): its codes by modality and what decodes them."""
    codes, intensities = {}, {}
    for name, values in modalities.items():
        codes[name] = np.zeros(values.shape, np.uint16)
        intensities[name] = quantise(values, codes[name])
    return codes, intensities


def batch(normaliser, *cases):
    codes = torch.stack([torch.from_numpy(np.stack([codes[m] for m in normaliser.sources])) for codes, _ in cases])
    return codes, torch.from_numpy(np.stack([normaliser.parameters(intensities) for _, intensities in cases]))


def zscore(values):
    brain = values[values != 0].astype(np.float64)
    return np.where(values == 0, 0, (values - brain.mean()) / brain.std())


def noise(seed, low=1):
    values = np.random.default_rng(seed).integers(low, 3000, (4, 5, 6)).astype(np.int16)
    values[0] = 0
    return values


def test_zscore_of_each_case_and_channel_order():
    cases = [{"t1n": noise(i), "t1c": noise(i + 1), "t2f": noise(i + 2, -500)} for i in (0, 3)]
    normaliser = Normaliser(("t2f", "t1n"))
    assert normaliser.sources == ("t1n", "t2f")
    image = normaliser(*batch(normaliser, *(coded(**case) for case in cases)))
    assert image.dtype == torch.float32
    for got, case in zip(image, cases, strict=True):
        np.testing.assert_allclose(got[0], zscore(case["t2f"]), atol=1e-4)
        np.testing.assert_allclose(got[1], zscore(case["t1n"]), atol=1e-4)


def test_inside_the_brain_mean_zero_and_unit_variance():
    normaliser = Normaliser(["t1n"])
    image = normaliser(*batch(normaliser, coded(t1n=noise(0))))[0, 0, 1:]
    assert image.mean().item() == pytest.approx(0, abs=1e-5)
    assert image.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_difference_is_of_standardised_modalities():
    case = {"t1n": noise(0), "t1c": noise(1)}
    normaliser = Normaliser(("t1c", "t1c-t1n", "t1n"))
    codes, parameters = batch(normaliser, coded(**case))
    before = codes.clone()
    (image,) = normaliser(codes, parameters)
    t1n, t1c = zscore(case["t1n"]), zscore(case["t1c"])
    np.testing.assert_allclose(image, np.stack([t1c, t1c - t1n, t1n]), atol=1e-4)
    assert torch.equal(codes, before)


def test_a_difference_alone_reads_both():
    normaliser = Normaliser(("t1c-t1n",))
    assert normaliser.sources == ("t1n", "t1c")
    assert normaliser(*batch(normaliser, coded(t1n=noise(0), t1c=noise(0)))).abs().max() == 0


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_bounded_methods(method):
    values = noise(0)
    normaliser = Normaliser(["t1n"], method, low=5, high=95)
    image = normaliser(*batch(normaliser, coded(t1n=values)))[0, 0].numpy()
    brain = values[values != 0].astype(np.float64)
    low, high = (brain.min(), brain.max()) if method == "minmax" else np.percentile(brain, (5, 95))
    expected = np.where(values == 0, 0, np.clip((values - low) / (high - low), 0, 1))
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert image.max() == 1


def test_monai_agrees():
    monai = pytest.importorskip("monai.transforms")
    values = noise(7)
    normaliser = Normaliser(["t1n"])
    image = normaliser(*batch(normaliser, coded(t1n=values)))[0]
    expected = monai.NormalizeIntensity(nonzero=True)(values[None].astype(np.float32))
    np.testing.assert_allclose(image, expected, atol=1e-4)


def test_padding_and_an_absent_brain_are_zero():
    normaliser = Normaliser(["t1n", "t1c"])
    codes, parameters = batch(normaliser, coded(t1n=noise(0, -900), t1c=np.zeros((4, 5, 6), np.int16)))
    padded = torch.zeros(1, 2, 6, 5, 6, dtype=torch.uint16)
    padded[:, :, 1:5] = codes
    image = normaliser(padded, parameters)
    assert image[:, :, [0, 5]].abs().max() == 0
    assert image[:, 1].abs().max() == 0
    assert torch.isfinite(image).all()


def test_chunks_make_no_difference(monkeypatch):
    normaliser = Normaliser(["t1c", "t1c-t1n"], "percentile")
    codes, parameters = batch(normaliser, coded(t1n=noise(0), t1c=noise(1)))
    whole = normaliser(codes, parameters)
    monkeypatch.setattr("brats_lightning.data.normalisation.chunk_size", lambda _: 1)
    assert torch.equal(normaliser(codes, parameters), whole)


def test_errors_name_the_channel_and_the_modality():
    with pytest.raises(ValueError, match="'t1x' is not a channel"):
        Normaliser(["t1x"])
    assert len(QUANTILE_LEVELS) == len(coded(t1n=noise(0))[1]["t1n"].quantiles)


def lacking(normaliser, codes, intensities):
    """A batch of a case that lacks a modality: any codes stand in its place."""
    image = torch.from_numpy(np.stack([codes.get(name, codes["t1n"]) for name in normaliser.sources]))[None]
    return normaliser(image, torch.from_numpy(normaliser.parameters(intensities))[None])[0]


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile"])
def test_a_missing_modality_is_0_and_the_others_are_as_ever(method):
    case = coded(t1n=noise(0), t1c=noise(1))
    image = lacking(Normaliser(("t1n", "t1c", "t2w"), method, optional=("t2w",)), *case)
    assert torch.equal(image[2], torch.zeros(4, 5, 6))
    assert torch.equal(
        image[:2], Normaliser(("t1n", "t1c"), method)(*batch(Normaliser(("t1n", "t1c"), method), case))[0]
    )


@pytest.mark.parametrize("channel", ["t1n-t2w", "t2w-t1n"])
def test_a_difference_with_a_missing_modality_is_0(channel):
    case = coded(t1n=noise(0))
    image = lacking(Normaliser((channel, "t1n"), optional=("t2w",)), *case)
    assert not image[0].any()
    np.testing.assert_allclose(image[1], zscore(noise(0)), atol=1e-4)


def test_presence_is_1_in_the_brain_of_a_case_with_the_modality():
    normaliser = Normaliser(("t1n", "t2w", "has-t2w", "has-t1n"), optional=("t2w",))
    assert normaliser.sources == ("t1n", "t2w")
    case = coded(t1n=noise(0), t2w=noise(1))
    (image,) = normaliser(*batch(normaliser, case))
    brain = torch.from_numpy(noise(0) != 0).float()
    assert torch.equal(image[2], brain)
    assert torch.equal(image[3], brain)
    image = lacking(normaliser, *coded(t1n=noise(0)))
    assert not image[1:3].any()
    assert torch.equal(image[3], brain)


def test_a_required_modality_must_be_there():
    normaliser = Normaliser(("t1n", "t2w"), optional=("t2w",))
    with pytest.raises(KeyError, match="t1n"):
        normaliser.parameters(coded(t2w=noise(0))[1])


@pytest.mark.parametrize("optional", [("t2f",), ("t1n", "t2w")])
def test_optional_modalities_are_some_of_the_channels_but_not_all(optional):
    with pytest.raises(ValueError, match=r"data.optional must be some of the modalities t1n, t2w, not all, got \["):
        Normaliser(("t1n", "t2w"), optional=optional)

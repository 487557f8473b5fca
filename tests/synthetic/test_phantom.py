import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brats_lightning.core.components import label_components
from brats_lightning.core.labels import MODALITIES
from brats_lightning.runtime import console
from brats_lightning.runtime.locks import alone
from brats_lightning.synthetic import case_set as phantom_set
from brats_lightning.synthetic import phantom
from brats_lightning.synthetic.anatomy import Frame, capsules, make_brain, ramp, smooth_field, stamp
from brats_lightning.synthetic.case_set import PhantomError
from brats_lightning.synthetic.lesions import ET, FIELD_MEAN, lesion_count, lesion_volumes
from brats_lightning.synthetic.phantom import (
    PhantomSettings,
    make_case,
    make_phantoms,
    phantom_folder,
)

SMALL = PhantomSettings(cases=3, shape=(32, 40, 28), seed=3, lesions=2)
MEDIUM = PhantomSettings(shape=(72, 84, 60), seed=5)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# --- building blocks


def test_ramp_is_half_at_the_boundary():
    np.testing.assert_allclose(ramp(np.array([-2.0, -0.5, -0.25, 0.0, 0.5, 3.0])), [0, 0, 0.25, 0.5, 1, 1])


def test_smooth_field_has_unit_variance_and_its_wavelength():
    frame = Frame((60, 64, 68), (1.0, 1.0, 1.0))
    field = smooth_field(np.random.default_rng(0), frame, 8.0)
    assert field.shape == frame.shape
    assert field.std() == pytest.approx(1, abs=0.1)
    neighbours = np.corrcoef(field[1:].ravel(), field[:-1].ravel())[0, 1]
    distant = np.corrcoef(field[16:].ravel(), field[:-16].ravel())[0, 1]
    assert neighbours > 0.9
    assert abs(distant) < 0.1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.8, 0.8)])
def test_stamped_balls_and_capsules_have_their_volume(spacing):
    frame = Frame((44, 60, 60), spacing)
    voxel = math.prod(spacing)
    ball = np.zeros(frame.shape, np.float32)
    stamp(ball, frame, np.array([[0.3, -0.2, 0.1]]), np.array([5.0]))
    assert ball.sum() * voxel == pytest.approx(4 / 3 * np.pi * 125, rel=0.04)
    assert np.array(ndimage.center_of_mass(ball)) == pytest.approx(
        (np.array(frame.shape) - 1) / 2 + np.array([0.3, -0.2, 0.1]) / spacing, abs=0.05
    )
    tube = np.zeros(frame.shape, np.float32)
    half = frame.semi_axes[1] / 2
    capsules(tube, frame, [(0.0, -0.5, 0.0, 4.0), (0.0, 0.5, 0.0, 4.0)], 1.0, 1 / frame.scale)
    assert tube.sum() * voxel == pytest.approx(np.pi * 16 * 2 * half + 4 / 3 * np.pi * 64, rel=0.04)


def test_stamping_at_the_border_stays_inside():
    frame = Frame((10, 10, 10), (1.0, 1.0, 1.0))
    volume = np.zeros(frame.shape, np.float32)
    stamp(volume, frame, np.array([[-4.5, -4.5, -4.5], [40.0, 0.0, 0.0]]), np.array([3.0, 3.0]))
    assert volume[0, 0, 0] == 1
    assert volume[5:, 5:, 5:].sum() == 0
    stamp(volume, frame, np.zeros((0, 3)), np.zeros(0))


# --- how many lesions, how large


@pytest.mark.parametrize(("u", "count"), [(0.0, 0), (0.035, 0), (0.036, 1), (0.24, 1), (0.25, 2), (0.9999, 60)])
def test_lesion_count_of_the_field(u, count):
    assert lesion_count(u, None) == count


def test_lesion_count_keeps_its_mean():
    grid = (np.arange(4000) + 0.5) / 4000
    assert np.mean([lesion_count(u, None) for u in grid]) == pytest.approx(FIELD_MEAN, rel=0.02)
    assert np.mean([lesion_count(u, 4.0) for u in grid]) == pytest.approx(4, rel=0.02)
    assert {lesion_count(u, 4.0) for u in grid} == set(range(1, 8))
    assert {lesion_count(u, 1.0) for u in grid} == {1}


@pytest.mark.parametrize("seed", [0, 1, 12])
@pytest.mark.parametrize(("cases", "rel"), [(12, 0.25), (200, 0.08)])
def test_volumes_follow_the_field_even_in_small_sets(seed, cases, rel):
    volumes = np.concatenate([lesion_volumes(seed, case, None) for case in range(cases)])
    assert len(volumes) / cases == pytest.approx(FIELD_MEAN, rel=rel / 2)
    assert np.median(volumes) == pytest.approx(39.7, rel=rel / 2)
    assert volumes.mean() == pytest.approx(569, rel=rel)
    assert (volumes < 27).mean() == pytest.approx(0.41, rel=rel / 2)
    assert (volumes > 275).mean() == pytest.approx(0.19, rel=rel)


def test_each_case_has_a_larger_lesion_and_they_are_sorted():
    for case in range(30):
        volumes = lesion_volumes(4, case, 3.0)
        assert volumes == sorted(volumes, reverse=True)
        assert volumes[0] > 70  # the 60 % quantile
    assert len(lesion_volumes(4, 0, 1.0)) == 1


# --- one case


def test_brain_knows_front_from_back_and_has_two_sides():
    brain = make_brain(np.random.default_rng(1), Frame((60, 84, 72), (1.0, 1.0, 1.0)))
    width = brain.inside.any(0).sum(1)  # per y
    assert width[:20].sum() < 0.93 * width[-20:].sum()  # the forehead (low y) is narrower
    assert all(layer.min() >= 0 and layer.max() <= 1 for layer in brain.layers.values())
    assert not (brain.room & ~brain.inside).any()
    csf = brain.layers["csf"] * brain.inside
    assert 0.02 < csf.sum() / brain.inside.sum() < 0.4
    assert not np.array_equal(csf, csf[:, :, ::-1])


def test_case_has_tissue_contrasts_and_an_empty_background():
    images, labels = make_case(MEDIUM, 10)
    assert list(images) == list(MODALITIES)
    assert labels.shape == (60, 84, 72)
    assert labels.dtype == np.uint8
    inside = images["t1n"] > 0
    for image in images.values():
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image > 0, inside)
    assert not inside[0].any() | inside[:, 0].any() | inside[:, :, 0].any()
    assert 0.3 < inside.mean() < 0.6
    assert not labels[~inside].any()
    level = {name: {c: np.median(image[labels == c]) for c in (1, 2, 3)} for name, image in images.items()}
    typical = {name: np.median(image[inside & (labels == 0)]) for name, image in images.items()}
    assert level["t1c"][3] > 1.4 * typical["t1c"]  # ET takes up contrast,
    assert level["t1n"][3] < 1.1 * typical["t1n"]  # and is not bright without it
    assert level["t1c"][1] < 0.8 * level["t1c"][3]  # NETC does not, as far as the scanner's blur lets see
    assert level["t2f"][2] > 1.2 * typical["t2f"]  # SNFH is what FLAIR shows
    assert level["t2w"][2] > 1.2 * typical["t2w"]
    assert level["t1n"][2] < typical["t1n"]


@pytest.mark.parametrize("case", range(4))
def test_lesions_are_separate_and_of_the_volume_asked_for(case):
    settings = PhantomSettings(shape=(96, 104, 88), seed=5, modalities=(), spacing=(1.0, 1.0, 1.2))
    images, labels = make_case(settings, case)
    assert images == {}
    components, n = label_components(labels == 3)
    measured = sorted(np.bincount(components.ravel())[1:] * 1.2, reverse=True)
    cap = phantom.make_brain(np.random.default_rng(0), Frame((88, 104, 96), (1.2, 1.0, 1.0))).inside.sum() * 1.2 * 0.025
    wanted = [v for v in lesion_volumes(5, case, None) if v < 0.8 * cap]
    assert n == len(lesion_volumes(5, case, None))
    assert measured[n - len(wanted) :] == pytest.approx(wanted, abs=1.9, rel=0.001)  # voxels: at least two


def test_no_dilation_joins_two_lesions():
    """The official protocols dilate by a voxel; in a crowded brain, too, three voxels lie between lesions."""
    for case in range(4):
        labels = make_case(PhantomSettings(shape=(56, 64, 48), lesions=20, seed=1, modalities=()), case)[1]
        core = np.isin(labels, (1, 3))
        n = label_components(core)[1]
        assert n >= 3
        assert label_components(ndimage.binary_dilation(core, np.ones((3, 3, 3))))[1] == n


def test_netc_lies_inside_et():
    labels = make_case(PhantomSettings(shape=(96, 104, 88), seed=5, modalities=()), 2)[1]
    assert (labels == 1).sum() > 20
    around = ndimage.binary_dilation(labels == 1, np.ones((3, 3, 3))) & (labels != 1)
    assert (labels[around] == 3).mean() > 0.85  # a thin rim has a gap here and there
    filled = ndimage.binary_fill_holes(np.isin(labels, (1, 3)))
    assert (labels[filled] > 0).all()


def test_resection_cavities_are_as_frequent_as_asked_for():
    def cavities(share: float) -> list[bool]:
        cases = (make_case(PhantomSettings(shape=(48, 56, 40), resection_cavity=share), k) for k in range(8))
        found = []
        for images, labels in cases:
            cavity = labels == 4
            found.append(bool(cavity.any()))
            if cavity.any():
                assert label_components(cavity)[1] == 1
                core = ndimage.binary_erosion(cavity)
                assert np.median(images["t2w"][core]) > 1.8 * np.median(images["t2w"][images["t2w"] > 0])
                assert np.median(images["t1n"][core]) < 0.7 * np.median(images["t1n"][images["t1n"] > 0])
        return found

    assert not any(cavities(0))
    assert 3 <= sum(cavities(0.5)) <= 5
    assert all(cavities(1))


def test_a_threshold_is_not_enough():
    """The best global threshold of T1c, chosen on the very cases, stays far below what a network learns."""
    cases = [make_case(PhantomSettings(modalities=("t1c",)), k) for k in range(6)]

    def dice(threshold: float) -> float:
        values = []
        for images, labels in cases:
            t1c = images["t1c"].astype(float)
            brain = t1c > 0
            predicted = (t1c - t1c[brain].mean()) / t1c[brain].std() > threshold
            for classes in ((3,), (1, 3), (1, 2, 3)):
                region = np.isin(labels, classes) & brain
                predicted &= brain
                if region.any():
                    values.append(2 * (predicted & region).sum() / (predicted.sum() + region.sum()))
        return float(np.mean(values))

    assert 0.02 < max(dice(t) for t in np.arange(1, 5, 0.5)) <= 0.30


def test_small_lesions_are_no_brighter_than_vessels_and_hardly_than_noise():
    """What makes them easy to miss, or to mistake a vessel for."""
    settings = PhantomSettings(modalities=("t1c",))
    small, large, dots = [], [], []
    for case in range(8):
        images, labels = make_case(settings, case)
        t1c, inside = images["t1c"].astype(float), images["t1c"] > 0
        tissue = inside & (labels == 0)
        fine = (t1c - ndimage.gaussian_filter(t1c, 1.0))[tissue]
        noise, typical = 1.4826 * np.median(np.abs(fine)), np.median(t1c[tissue])
        components, n = label_components(labels == 3)
        for k, voxels in enumerate(np.bincount(components.ravel(), minlength=n + 1)[1:], 1):
            contrast = (t1c[components == k].mean() - typical) / noise
            if voxels < 27:
                small.append(contrast)
            elif voxels > 275:
                large.append(contrast)
        bright = tissue & (t1c > typical + 3 * noise)
        spots, n = label_components(bright)
        sizes = np.bincount(spots.ravel(), minlength=n + 1)
        means = ndimage.mean(t1c, spots, range(n + 1))
        dots += ((means - typical) / noise)[(sizes >= 2) & (sizes < 27)].tolist()
    assert len(small) > 10 < len(large)
    assert 2 < np.median(small) < 0.6 * np.median(large)
    assert np.mean(np.array(small) < 4) > 0.15  # hardly above the noise
    assert len(dots) > 10 * len(small)  # spots of their size that are none,
    assert np.mean(np.array(small)[:, None] < np.array(dots)) > 0.4  # many of them brighter


# --- a set on disk


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "small", SMALL, workers=0)


def test_layout(small):
    names = ["BraTS-MET-90001-000", "BraTS-MET-90002-000", "BraTS-MET-90003-000"]
    assert sorted(p.name for p in small.iterdir()) == [*names, "phantom.json"]
    for name in names:
        suffixes = sorted((*MODALITIES, "seg"))
        assert sorted(p.name for p in (small / name).iterdir()) == [f"{name}-{s}.nii.gz" for s in suffixes]
        for suffix in suffixes:
            image = nib.load(small / name / f"{name}-{suffix}.nii.gz")
            assert image.shape == (32, 40, 28)
            assert image.get_data_dtype() == (np.uint8 if suffix == "seg" else np.int16)
            assert image.header["scl_slope"] in (1, 0) or np.isnan(image.header["scl_slope"])


def test_every_fourth_case_is_a_follow_up_with_the_same_brain():
    names = [phantom.case_name(k) for k in range(9)]
    assert names[2:5] == ["BraTS-MET-90003-000", "BraTS-MET-90003-001", "BraTS-MET-90004-000"]
    assert names[6:8] == ["BraTS-MET-90006-000", "BraTS-MET-90006-001"]
    assert len(set(names)) == 9
    first, second, other = (make_case(SMALL, k)[0]["t1n"] > 0 for k in (2, 3, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_both_affine_conventions_show_the_same_anatomy(small):
    for case, sign in ((0, -1), (1, -1), (2, 1)):
        name = phantom.case_name(case)
        images, labels = make_case(SMALL, case)
        for suffix, expected in (*images.items(), ("seg", labels)):
            image = nib.load(small / name / f"{name}-{suffix}.nii.gz")
            np.testing.assert_array_equal(image.affine, [[sign, 0, 0, 0], [0, sign, 0, 39], [0, 0, 1, 0], [0, 0, 0, 1]])
            canonical = np.asarray(nib.as_closest_canonical(image).dataobj)  # RAS, (x, y, z)
            np.testing.assert_array_equal(canonical[::-1, ::-1].T, expected)


def test_anisotropic_spacing_is_written(tmp_path):
    root = make_phantoms(
        tmp_path / "p", cases=1, shape=(40, 40, 24), spacing=(0.9, 0.8, 2.5), modalities=["t1c"], workers=0
    )
    (path,) = root.rglob("*-t1c.nii.gz")
    image = nib.load(path)
    assert image.header.get_zooms() == pytest.approx((0.9, 0.8, 2.5))
    assert image.affine[1, 3] == pytest.approx(39 * 0.8)


def test_same_seed_same_bytes_whatever_the_number_of_cases_and_workers(tmp_path, small):
    fewer = files(make_phantoms(tmp_path / "fewer", SMALL, cases=2, workers=2))
    whole = files(small)
    del fewer["phantom.json"]
    assert len(fewer) == 10
    assert all(whole[name] == content for name, content in fewer.items())
    other = files(make_phantoms(tmp_path / "other", SMALL, cases=1, seed=4, workers=0))
    name = "BraTS-MET-90001-000/BraTS-MET-90001-000-t1c.nii.gz"
    assert other[name] != whole[name]


def test_an_image_does_not_depend_on_which_others_are_written():
    alone, _ = make_case(PhantomSettings(shape=(32, 40, 28), modalities=("t2f",)), 0)
    together, _ = make_case(PhantomSettings(shape=(32, 40, 28)), 0)
    np.testing.assert_array_equal(alone["t2f"], together["t2f"])


def test_made_once(small, monkeypatch):
    monkeypatch.setattr(phantom_set, "_write_all", lambda *_: pytest.fail("made again"))
    assert make_phantoms(small, SMALL) == small
    assert make_phantoms(str(small), cases=3, shape=[32, 40, 28], seed=3, lesions=2) == small


def test_other_settings_or_other_files_are_an_error(small, tmp_path):
    with pytest.raises(PhantomError, match=r"seed 3 instead of 4.*another folder"):
        make_phantoms(small, SMALL, seed=4)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PhantomError, match="holds no phantoms"):
        make_phantoms(tmp_path, SMALL)
    with pytest.raises(PhantomError, match="holds no phantoms"):
        make_phantoms(tmp_path / "notes.txt", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_may_be_filled(tmp_path):
    make_phantoms(tmp_path, cases=1, shape=(32, 40, 28), modalities=(), workers=0)
    assert (tmp_path / "phantom.json").is_file()


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    write = phantom._write_case

    def fail_at_second(folder, case, settings):
        write(folder, case, settings)
        if case == 1:
            raise RuntimeError("disk full")

    monkeypatch.setattr(phantom, "_write_case", fail_at_second)
    with pytest.raises(RuntimeError, match="disk full"):
        make_phantoms(tmp_path / "set", SMALL, workers=0)
    assert [p.name for p in tmp_path.iterdir()] == [".set.lock"]


@pytest.mark.parametrize("same", [True, False])
def test_another_process_may_finish_first(tmp_path, small, monkeypatch, same):
    root = tmp_path / "set"

    def slow(folder, *_):
        (folder / "BraTS-MET-90001-000").mkdir()
        shutil.copytree(small, root)
        if not same:
            (root / "phantom.json").write_text(json.dumps({"version": 0}))

    monkeypatch.setattr(phantom_set, "_write_all", slow)
    if same:
        assert make_phantoms(root, SMALL) == root
        assert files(root) == files(small)
    else:
        with pytest.raises(PhantomError, match="other settings"):
            make_phantoms(root, SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.lock", "set"]


MAKE = """
import sys
from pathlib import Path
from brats_lightning.synthetic import case_set as phantom_set
def write(folder, job):
    with (folder.parent / "jobs").open("a") as file:
        print(job, file=file)
    (folder / str(job)).touch()
phantom_set.make_once(Path(sys.argv[1]), {}, 3, write, workers=0)
"""


def test_of_several_processes_one_makes_the_set(tmp_path):
    command = [sys.executable, "-c", MAKE, str(tmp_path / "set")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (tmp_path / "jobs").read_text().split() == ["0", "1", "2"]


def test_who_waited_makes_the_set_if_the_maker_did_not(tmp_path, caplog):
    caplog.set_level("INFO")
    root = tmp_path / "set"
    lock, waiting = threading.Event(), []

    def other():
        waiting.append(make_phantoms(root, cases=1, shape=(24, 24, 24), modalities=(), workers=0))

    thread = threading.Thread(target=other)
    with alone(tmp_path / ".set.lock", "makes set"):  # a maker that fails in the end
        thread.start()
        while not caplog.messages:
            lock.wait(0.01)
        assert not waiting
    thread.join()
    assert caplog.messages == [f"waiting for another process that makes set (it holds {tmp_path / '.set.lock'})"]
    assert waiting == [root]
    assert (root / "phantom.json").is_file()


def test_what_a_killed_maker_left_goes_in_time(tmp_path):
    old, young = tmp_path / ".set-abc", tmp_path / ".set-xyz"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1, 1))
    make_phantoms(tmp_path / "set", cases=1, shape=(24, 24, 24), modalities=(), workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set-xyz", ".set.lock", "set"]


def test_progress_and_folder_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    bar = console.progress_bar()
    monkeypatch.setattr(console, "progress_bar", lambda: bar)
    settings = PhantomSettings(cases=2, shape=(24, 24, 24), modalities=())
    folder = phantom_folder(tmp_path, settings)
    assert folder.parent == tmp_path
    assert folder == phantom_folder(tmp_path, PhantomSettings(cases=2, shape=[24, 24, 24], modalities=[]))
    assert folder != phantom_folder(tmp_path, PhantomSettings(cases=2, shape=(24, 24, 24)))
    make_phantoms(folder, settings, workers=0)
    make_phantoms(tmp_path / "b", settings, workers=2)
    assert [(task.completed, task.total) for task in bar.tasks] == [(2, 2), (2, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cases": 0},
        {"shape": (16, 40, 40)},
        {"shape": (40, 40)},
        {"spacing": (1, 0, 1)},
        {"seed": -1},
        {"lesions": 0.5},
        {"resection_cavity": 1.5},
        {"modalities": ("flair",)},
        {"spacings": ()},
        {"spacings": ((1, 1),)},
        {"spacings": ((1, 0, 1),)},
        {"without_t2w": -0.1},
        {"unlabelled": 2},
        {"empty": 1.1},
    ],
)
def test_bad_settings_are_named(wrong):
    (name,) = wrong
    with pytest.raises(PhantomError, match=f"phantom {name} must be"):
        PhantomSettings(**wrong)


def test_kinds_of_cases_exclude_each_other():
    with pytest.raises(PhantomError, match="phantom empty must be a fraction that leaves room for unlabelled"):
        PhantomSettings(empty=0.5, unlabelled=0.3, resection_cavity=0.3)
    with pytest.raises(PhantomError, match="at least 24 voxels"):
        PhantomSettings(shape=(30, 30, 30), spacings=[[1, 1, 1], [1, 1, 1.5]])


# --- what BraTS-METS has had since 2025

MIXED = PhantomSettings(
    cases=40, shape=(28, 30, 36), lesions=2, resection_cavity=0.13, without_t2w=0.2, unlabelled=0.13, empty=0.1,
    spacings=((1, 1, 1), (0.859, 0.859, 1.5), (0.5, 0.5, 1)),
)  # fmt: skip


def test_sets_without_it_keep_their_folder():
    assert phantom_folder("", PhantomSettings()).name == "phantom-d9fc5eb480"
    assert phantom_folder("", PhantomSettings(cases=10, shape=(40, 48, 32))).name == "phantom-53bffe7ccb"
    assert phantom_folder("", PhantomSettings(empty=0.1)).name != "phantom-d9fc5eb480"
    assert MIXED.to_dict() == json.loads(json.dumps(MIXED.to_dict()))


def test_kinds_are_as_frequent_as_asked_for():
    kinds = [MIXED.kind(case) for case in range(40)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"plain": 26, "cavity": 5, "unlabelled": 5, "empty": 4}
    bare = [case for case in range(40) if "t2w" not in MIXED.modalities_of(case)]
    assert len(bare) == 8
    assert len({kinds[case] for case in bare}) == 4  # spread over all kinds
    assert [kind == "cavity" for kind in kinds] == [
        replace(MIXED, empty=0, unlabelled=0).kind(case) == "cavity" for case in range(40)
    ]


def test_brains_keep_their_extent_on_every_grid():
    grids = {MIXED.grid(case) for case in range(40)}
    assert {spacing: shape for shape, spacing in grids} == {
        (1, 1, 1): (28, 30, 36),
        (0.859, 0.859, 1.5): (33, 35, 24),
        (0.5, 0.5, 1): (56, 60, 36),
    }
    assert MIXED.grid(2) == MIXED.grid(3)  # of one patient
    middle = np.median([MIXED.grid(case)[1] for case in range(40)], axis=0)
    assert middle.tolist() == [0.859, 0.859, 1]


def test_files_are_those_of_each_kind(tmp_path):
    settings = replace(MIXED, cases=10, modalities=("t1c", "t2w"))
    root = make_phantoms(tmp_path / "p", settings, workers=0)
    for case in range(10):
        name = phantom.case_name(case)
        there = {path.name.removeprefix(f"{name}-").removesuffix(".nii.gz") for path in (root / name).iterdir()}
        kind = settings.kind(case)
        assert there == {*settings.modalities_of(case), *(() if kind == "unlabelled" else ("seg",))}
        image = nib.load(root / name / f"{name}-t1c.nii.gz")
        shape, spacing = settings.grid(case)
        assert image.shape == shape
        assert image.header.get_zooms() == pytest.approx(spacing)
        images, labels = make_case(settings, case)
        assert labels.any() == (kind != "empty")
        assert (labels == 4).any() == (kind == "cavity")
        assert images["t1c"].shape == labels.shape


# --- the set as a whole


def test_default_set_has_the_fields_lesions(tmp_path):
    """BraTS-METS 2025 training: 10,119 ET lesions in 1,296 cases, median 39.7 mm³, 41 % under 27 mm³."""
    masks = make_phantoms(tmp_path / "masks", modalities=()).rglob("*-seg.nii.gz")
    labels = [label_components(np.asanyarray(nib.load(path).dataobj) == ET)[0] for path in masks]  # voxels of 1 mm³
    counts, volumes = [int(case.max()) for case in labels], np.concatenate([np.bincount(c.flat)[1:] for c in labels])
    assert len(counts) == 48
    assert np.mean(counts) == pytest.approx(7.8, rel=0.2)
    assert np.median(volumes) == pytest.approx(39.7, rel=0.2)
    assert (volumes < 27).mean() == pytest.approx(0.41, rel=0.2)
    assert (volumes > 275).mean() == pytest.approx(0.19, rel=0.2)
    assert volumes.mean() == pytest.approx(569, rel=0.25)
    assert counts.count(0) == 1
    assert max(counts) > 25

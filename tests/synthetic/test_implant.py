"""Metastases in scans: what they change, what they leave, and whose they are. The scans here are phantoms."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hydra.utils import instantiate
from scipy import ndimage

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.core.labels import MODALITIES, OLDER_NAMES
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.synthetic import implant as module
from brats_lightning.synthetic.anatomy import Brain, Frame
from brats_lightning.synthetic.case_set import PhantomError
from brats_lightning.synthetic.implant import ImplantSettings, implant, implanted_cases, version_names
from brats_lightning.synthetic.lesions import place_lesions
from brats_lightning.synthetic.painting import paint
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms
from brats_lightning.synthetic.scan import Scan, read_scan

SCANS = PhantomSettings(cases=3, shape=(72, 84, 64), seed=2, lesions=1)
OLD = {new: old for old, new in OLDER_NAMES.items()} | {"seg": "seg"}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """So that what the functions are given is checked, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        yield


def volume(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def stamps(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A scan in the newer naming, one in the older with label 4 for ET, and one without a mask."""
    made = make_phantoms(tmp_path_factory.mktemp("made") / "set", SCANS, workers=0)
    root = tmp_path_factory.mktemp("scans")
    for case, name in zip(
        find_cases(made), ("BraTS-MET-00007-001", "BraTS2021_00042", "BraTS-MET-00008-000"), strict=True
    ):
        (root / name).mkdir()
        for kind, path in case.files.items():
            target = root / name / (f"{name}_{OLD[kind]}.nii.gz" if "_" in name else f"{name}-{kind}.nii.gz")
            shutil.copy(path, target)
            if kind == "seg" and "_" in name:
                image = nib.load(path)
                mask = np.asanyarray(image.dataobj)
                nib.save(nib.Nifti1Image(np.where(mask == 3, 4, mask).astype(np.uint8), image.affine), target)
    (root / "BraTS-MET-00008-000/BraTS-MET-00008-000-seg.nii.gz").unlink()
    return root


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory):
    """(background case, its version) of every implanted case."""
    before = stamps(scans)
    cases = implanted_cases(tmp_path_factory.mktemp("p"), background=scans, label_map={4: 3}, cases=2, lesions=4)
    assert stamps(scans) == before
    background = {case.patient: case for case in find_cases(scans)}
    return [(background[case.patient], case) for case in cases]


def own_and_new(scan, case):
    own = volume(scan.mask)
    own = np.where(own == 4, 3, own)
    labels = volume(case.mask)
    return own, np.where(own == 0, labels, 0), labels


def test_versions_are_their_scans_patients(made):
    assert [(scan.id, case.id, case.patient) for scan, case in made] == [
        ("BraTS-MET-00007-001", "BraTS-MET-00007-100", "BraTS-MET-00007"),
        ("BraTS-MET-00007-001", "BraTS-MET-00007-101", "BraTS-MET-00007"),
        ("BraTS2021_00042", "BraTS2021-00042-100", "BraTS2021_00042"),
        ("BraTS2021_00042", "BraTS2021-00042-101", "BraTS2021_00042"),
    ]
    by_name = find_cases(made[0][1].mask.parents[1])  # as any BraTS folder is read
    assert [case.patient for case in by_name] == ["BraTS-MET-00007"] * 2 + ["BraTS2021-00042"] * 2


def test_files_lie_as_the_scans(made):
    for scan, case in made:
        assert tuple(case.images) == MODALITIES
        for kind, path in case.files.items():
            old, new = nib.load(scan.files[kind]), nib.load(path)
            np.testing.assert_array_equal(new.affine, old.affine)
            assert new.shape == old.shape
            assert new.get_data_dtype() == (np.uint8 if kind == "seg" else old.get_data_dtype())


def test_own_tumour_keeps_its_labels_and_new_ones_are_added(made):
    for scan, case in made:
        own, new, labels = own_and_new(scan, case)
        assert (own > 0).any()
        np.testing.assert_array_equal(labels[own > 0], own[own > 0])
        assert (new == 3).any()
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        assert ndimage.distance_transform_edt(own == 0)[new > 0].min() > 7  # room for both
    versions = [own_and_new(scan, case)[1] for scan, case in made[:2]]
    assert (versions[0] != versions[1]).any()


def test_far_from_implants_nothing_changes(made):
    for scan, case in made:
        _, new, _ = own_and_new(scan, case)
        far = ndimage.distance_transform_edt(new == 0) > 7
        assert far.mean() > 0.1
        for modality in MODALITIES:
            before, after = volume(scan.images[modality]), volume(case.images[modality])
            np.testing.assert_array_equal(after[far], before[far])
            assert (after[new == 3] != before[new == 3]).mean() > 0.8
            np.testing.assert_array_equal(after == 0, before == 0)


def test_lesions_lie_in_tissue(made):
    for scan, case in made:
        _, new, _ = own_and_new(scan, case)
        inside = np.logical_and.reduce([volume(path) != 0 for path in scan.images.values()])
        assert inside[new > 0].all()
        assert ndimage.distance_transform_edt(inside)[new > 0].min() > 1.4


def test_lesions_have_the_contrasts_of_metastases(made):
    """Relative to the healthy tissue 3 … 9 mm around."""
    found = {(modality, label): [] for modality in MODALITIES for label in (2, 3)}
    for scan, case in made:
        own, new, _ = own_and_new(scan, case)
        for component in range(1, label_components(new > 0)[1] + 1):
            lesion = label_components(new > 0)[0] == component
            distance = ndimage.distance_transform_edt(~lesion)
            inside = volume(scan.images["t1c"]) > 0
            around = (distance > 3) & (distance < 9) & inside & (own == 0) & (new == 0)
            for modality in MODALITIES:
                image = volume(case.images[modality]).astype(float)
                for label in (2, 3):
                    if (lesion & (new == label)).sum() > 100:
                        found[modality, label].append(
                            np.median(image[lesion & (new == label)]) / np.median(image[around])
                        )
    mean = {key: np.mean(values) for key, values in found.items()}
    assert mean["t1c", 3] > 1.4
    assert min(found["t1c", 3]) > 1.15
    assert 0.75 < mean["t1n", 3] < 1.05
    assert mean["t1c", 2] < 1.1
    assert mean["t2f", 2] > 1.2
    assert mean["t2w", 2] > 1.1


def test_same_seed_same_bytes(made, scans, tmp_path):
    settings = {"background": scans, "label_map": {4: 3}, "cases": 2, "lesions": 4}
    whole = {p.name: p.read_bytes() for p in made[0][1].mask.parents[1].rglob("*.nii.gz")}
    again = implanted_cases(tmp_path, **settings)
    assert {p.name: p.read_bytes() for case in again for p in case.files.values()} == whole
    other = ImplantSettings(**settings, seed=1)
    scan = read_scan(find_cases(scans)[0], None)
    assert not np.array_equal(implant(scan, other, 0)[1], implant(scan, replace(other, seed=0), 0)[1])


def test_made_once_and_anew_after_a_scan_changed(made, scans, tmp_path, monkeypatch):
    shutil.copytree(scans, tmp_path / "scans")
    calls = []
    monkeypatch.setattr(
        module,
        "make_once",
        lambda folder, *_: (
            calls.append(folder) or shutil.copytree(made[0][1].mask.parents[1], folder, dirs_exist_ok=True)
        ),
    )
    settings = {"background": tmp_path / "scans", "label_map": {4: 3}, "cases": 2}
    implanted_cases(tmp_path / "p", **settings)
    implanted_cases(tmp_path / "p", **settings)
    os.utime(tmp_path / "scans/BraTS-MET-00007-001/BraTS-MET-00007-001-t1c.nii.gz", (1, 1))
    implanted_cases(tmp_path / "p", **settings)
    assert calls[0] == calls[1] != calls[2]


def test_unlabelled_scans_are_skipped_or_their_tumours_kept_off(scans):
    """The scan has a large lesion that no mask tells of."""
    settings = ImplantSettings(scans, {4: 3}, unlabelled="include", lesions=4)
    assert [case.id for case in settings.scans()] == ["BraTS-MET-00007-001", "BraTS-MET-00008-000", "BraTS2021_00042"]
    assert [case.id for case in ImplantSettings(scans, {4: 3}).scans()] == ["BraTS-MET-00007-001", "BraTS2021_00042"]
    labelled = next(case for case in find_cases(scans) if case.id == "BraTS2021_00042")
    known = read_scan(labelled, {4: 3})
    blind = read_scan(replace(labelled, mask=None), None)
    assert not blind.labels.any()
    core = np.isin(known.labels, (1, 3))
    assert (blind.brain.room & core).sum() < 0.02 * core.sum()
    assert blind.brain.room.sum() > 0.3 * known.brain.room.sum()


# --- painting, on a flat scan


def flat_scan(noise: float) -> Scan:
    frame = Frame((56, 56, 56), (1.0, 1.0, 1.0))
    inside = np.zeros(frame.shape, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    depth = ndimage.distance_transform_edt(inside).astype(np.float32)
    brain = Brain(frame, inside, depth > 2, depth, {"csf": np.zeros(frame.shape, np.float32)})
    fine = (noise * np.random.default_rng(1).standard_normal(frame.shape)).astype(np.float32)
    image = np.where(inside, 1000 + fine, 0).astype(np.int16)
    return Scan(
        transform=GridTransform.whole(Grid(frame.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))),
        images=dict.fromkeys(MODALITIES, image),
        labels=np.zeros(frame.shape, np.uint8),
        brain=brain,
        tissue=dict.fromkeys(MODALITIES, np.full(frame.shape, 1000, np.float32)),
        detail=dict.fromkeys(MODALITIES, fine),
    )


@pytest.mark.parametrize("modality", MODALITIES)
def test_edges_are_blended(modality):
    """Between neighbouring voxels a pasted patch jumps by all of its contrast."""
    scan = flat_scan(0.0)
    _, lesions, _ = place_lesions(np.random.default_rng(0), np.random.default_rng(0), scan.brain, [2500.0], False)
    image = paint(scan, lesions, modality, np.random.default_rng(0)).astype(float)
    jumps = [np.abs(np.diff(image[4:-4, 4:-4, 4:-4], axis=axis)).max() for axis in range(3)]
    assert 30 < max(jumps) < 0.62 * np.ptp(image[4:-4, 4:-4, 4:-4])


def test_noise_goes_on_inside_lesions():
    """Voxel for voxel what it was: a lesion changes the level alone."""
    noisy, clean = flat_scan(20.0), flat_scan(0.0)
    labels, lesions, _ = place_lesions(np.random.default_rng(0), np.random.default_rng(0), clean.brain, [2500.0], False)
    for modality in MODALITIES:
        a, b = (paint(scan, lesions, modality, np.random.default_rng(0)).astype(float) for scan in (noisy, clean))
        np.testing.assert_allclose((a - b)[labels > 0], noisy.detail[modality][labels > 0], atol=1.01)


@pytest.mark.parametrize("noise", [150.0, 1e5])
def test_what_no_reader_could_see_is_made_brighter(noise):
    """Up to 5 standard deviations of a mean over its voxels, or as far as tumours enhance."""
    scan = flat_scan(0.0)
    labels, lesions, _ = place_lesions(np.random.default_rng(0), np.random.default_rng(0), scan.brain, [20.0], False)
    (lesion,) = lesions
    rough = np.random.default_rng(2).normal(0, noise, scan.brain.frame.shape)
    images = {name: (image + rough).astype(np.float32) for name, image in scan.images.items()}

    def added(lesion, images):
        painted = paint(replace(scan, images=images), [lesion], "t1c", np.random.default_rng(0))
        return (painted - images["t1c"])[labels == 3].astype(float).mean()

    faint, strongest = added(replace(lesion, enhancement=0.01), images), added(replace(lesion, enhancement=1.3), images)
    if noise == 150.0:
        assert added(replace(lesion, enhancement=0.01), scan.images) < 0.2 * faint  # where nothing fluctuates
        np.testing.assert_allclose(faint, 5 * noise / np.sqrt((labels == 3).sum()), rtol=0.1)
        assert faint < strongest
    else:
        np.testing.assert_allclose(faint, strongest)


def test_unsigned_files_do_not_wrap_around():
    scan = flat_scan(0.0)
    image = np.where(scan.brain.inside, 250, 0).astype(np.uint8)
    scan = replace(scan, images=dict.fromkeys(MODALITIES, image))
    labels, lesions, _ = place_lesions(np.random.default_rng(0), np.random.default_rng(0), scan.brain, [2500.0], False)
    painted = paint(scan, lesions, "t1c", np.random.default_rng(0))
    assert painted.dtype == np.uint8
    assert np.median(painted[labels == 3]) == 255


# --- settings and faults


def test_names_of_versions(scans):
    found = find_cases(scans)
    again = replace(found[0], id="BraTS-MET-00007-002", timepoint="002")
    odd = replace(found[2], id="patient", patient="patient")
    assert version_names([found[0], again, odd], 2) == [
        ["BraTS-MET-00007-100", "BraTS-MET-00007-101"],
        ["BraTS-MET-00007-102", "BraTS-MET-00007-103"],
        ["patient-0-100", "patient-0-101"],
    ]
    with pytest.raises(PhantomError, match=r"over 900.*data\.source\.cases"):
        version_names([found[0], again], 500)


@pytest.mark.parametrize(
    "wrong", [{"cases": 0}, {"cases": 901}, {"unlabelled": "ignore"}, {"lesions": 0.5}, {"seed": -1}]
)
def test_bad_settings_are_named(wrong, tmp_path):
    (name,) = wrong
    with pytest.raises(PhantomError, match=f"implant {name} must be"):
        ImplantSettings(tmp_path, **wrong)


def test_faulty_scans(scans, tmp_path):
    case = find_cases(scans)[0]
    shutil.copytree(scans / case.id, tmp_path / case.id)
    (tmp_path / case.id / f"{case.id}-seg.nii.gz").unlink()
    with pytest.raises(PhantomError, match=r"none of the 1 cases.*data\.unlabelled"):
        implanted_cases(tmp_path / "p", background=tmp_path)
    with pytest.raises(CaseError, match="t2f"):
        read_scan(replace(case, images={k: v for k, v in case.images.items() if k != "t2f"}), None)
    image = nib.load(case.images["t1n"])
    negative = tmp_path / "n/x-t1n.nii.gz"
    negative.parent.mkdir()
    nib.save(nib.Nifti1Image(-np.asanyarray(image.dataobj), image.affine), negative)
    with pytest.raises(PhantomError, match="positive intensities in t1n"):
        read_scan(replace(case, images=case.images | {"t1n": negative}), None)
    full = tmp_path / "n/x-seg.nii.gz"
    nib.save(nib.Nifti1Image((np.asanyarray(image.dataobj) > 0).astype(np.uint8), image.affine), full)
    with pytest.raises(PhantomError, match="no healthy tissue"):
        read_scan(replace(case, mask=full), None)


def test_as_a_data_set(composed, scans):
    cfg = composed(
        "data=implanted", f"data.background={scans}", "data.background_label_map={4:3}", "data.source.cases=1",
        "data.source.lesions=1",
    )  # fmt: skip
    cases = instantiate(cfg.data.source)
    assert [case.id for case in cases] == ["BraTS-MET-00007-100", "BraTS2021-00042-100"]
    assert cases[0].mask.is_relative_to(Path(cfg.paths.phantom_dir))


# Real data, where there is some


@pytest.mark.skipif("BRATS_REAL_CASES" not in os.environ, reason="BRATS_REAL_CASES=DIR names no folder of real cases")
def test_real_scans():
    voxels = []
    settings = ImplantSettings(os.environ["BRATS_REAL_CASES"], {4: 3}, cases=2)
    cases = settings.scans()[:3]
    for number, case in enumerate(cases):
        scan = read_scan(case, settings.label_map)
        for version in range(settings.cases):
            images, labels = implant(scan, settings, number * settings.cases + version)
            new = np.where(scan.labels == 0, labels, 0)
            np.testing.assert_array_equal(labels[scan.labels > 0], scan.labels[scan.labels > 0])
            far = ndimage.distance_transform_edt(new == 0) > 8
            for name, image in images.items():
                np.testing.assert_array_equal(image[far], scan.images[name][far])
            assert scan.brain.inside[new > 0].all()
            if (new == 3).any():
                assert np.median(images["t1c"][new == 3] / scan.tissue["t1c"][new == 3]) > 1.15
            voxels.append(np.bincount(label_components(new == 3)[0].flat)[1:])
    volumes = np.concatenate(voxels)  # voxels of 1 mm³
    assert len(volumes) / len(voxels) == pytest.approx(7.8, rel=0.4)
    assert (volumes < 27).mean() == pytest.approx(0.41, abs=0.12)
    assert (volumes > 275).mean() == pytest.approx(0.19, abs=0.12)

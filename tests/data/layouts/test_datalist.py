import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.cases import CaseError, check_files, examine
from brats_lightning.data.layouts.datalist import datalist_cases, datalist_file, entry_id
from brats_lightning.data.splits import SplitError, SplitSettings
from tests.data.layouts.same_cases import write_json
from tests.data.tiny_cases import LPS, brain, lesions, save

MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
FOUR = ["a/X-t2f.nii.gz", "a/X-t1n.nii.gz", "./a/X-t1c.nii.gz", "a/X-t2w.nii.gz"]


def found(tmp_path, *entries, channels=None, **content):
    path = write_json(tmp_path / "list.json", {"modality": MODALITY, "training": entries} | content)
    return datalist_cases(path, channels)


def test_images_in_the_order_of_the_channels(tmp_path):
    (case,) = found(tmp_path, {"image": FOUR, "label": "labels/X.nii.gz"})
    assert case.images == {m: tmp_path / f"a/X-{m}.nii.gz" for m in ("t1n", "t1c", "t2w", "t2f")}
    assert (case.id, case.mask, case.mask_name) == ("X", tmp_path / "labels/X.nii.gz", "labels/X.nii.gz")
    assert case.volumes == {}
    (case,) = found(tmp_path, {"image": FOUR}, channels={0: "t2w", 3: None})
    assert {m: path.name for m, path in case.images.items()} == {
        "t1n": "X-t1n.nii.gz",
        "t1c": "X-t1c.nii.gz",
        "t2w": "X-t2f.nii.gz",
    }
    assert case.mask is None


@pytest.mark.parametrize(
    "entry",
    [
        {"image": {"T1w": "p.nii", "T1 Gd": "q.nii", "pet": "r.nii"}, "id": 7},
        {"t1": "p.nii", "t1ce": "q.nii", "case": "7"},
    ],
)
def test_images_by_name(tmp_path, entry):
    (case,) = found(tmp_path, entry, channels={"pet": None}, modality={})
    assert (case.id, case.images) == ("7", {"t1n": tmp_path / "p.nii", "t1c": tmp_path / "q.nii"})
    assert case.mask_name == "7.nii.gz"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"image": FOUR}, "X"),
        ({"image": [f"BraTS-MET-00001-000-{m}.nii.gz" for m in ("t1n", "t1c")]}, "BraTS-MET-00001-000"),
        ({"image": [f"i/C_01_{n:04d}.nii.gz" for n in range(4)]}, "C_01"),
        ({"image": ["C1.nii.gz", "C1_flair.nii.gz"]}, "C1"),
        ({"image": ["p/C1/t1.nii.gz", "p/C1/flair.nii.gz"]}, "C1"),
        ({"image": "imagesTr/BRATS_001.nii.gz"}, "BRATS_001"),
        ({"image": ["C1-t1c.nii.gz"]}, "C1"),
        ({"image": "C1_0000.nii.gz"}, "C1"),
        ({"image": "C1/t1c.nii.gz"}, "C1"),
        ({"image": FOUR, "subject": "S"}, "S"),
        ({"image": FOUR, "subject": "S", "id": "S-1"}, "S-1"),
        ({"t1c": "C2_T1post.nii.gz", "label": "x.nii"}, "C2"),
    ],
)
def test_the_id_of_an_entry(entry, name):
    assert entry_id(entry) == name


def test_patients_and_parts(tmp_path):
    entry = {"image": FOUR}
    lists = {
        "validation": [entry | {"id": "b"}],
        "test": [entry | {"id": "c", "patient": "P"}],
        "testing": ["d.nii.gz"],
    }
    cases = found(tmp_path, entry | {"id": "a-1-000", "label": "/elsewhere/a.nii"}, **lists)
    assert [(case.id, case.part) for case in cases] == [("a-1-000", None), ("b", "val"), ("c", "test"), ("d", "test")]
    assert [case.patient for case in cases] == ["a-1", "b", "P", "d"]
    assert cases[0].mask_name == "a-1-000.nii.gz"  # its own name is no place below another folder


def test_faulty_entries(tmp_path):
    short, unknown, first, twice = found(
        tmp_path,
        {"image": FOUR[:3], "id": "short"},
        {"image": {"t1c": "a.nii", "pet": "b.nii"}, "id": "unknown"},
        {"image": FOUR, "id": "x"},
        {"image": FOUR, "id": "y"},
        {"image": FOUR, "id": "y"},
    )
    assert [p.found for p in check_files(short, ("t1c",), False)] == ["3 images"]
    (problem,) = check_files(unknown, ("t1c",), False)
    assert problem.found == "an image 'pet'"
    assert "'data.channels={pet:null}'" in problem.remedy
    assert check_files(first, ("t1c",), False) == []
    assert "several entries of this name" in check_files(twice, ("t1c",), False)[0].found


def test_faulty_files(tmp_path):
    with pytest.raises(CaseError, match="no channel_names and no modality"):
        found(tmp_path, {"image": FOUR}, modality={})
    with pytest.raises(CaseError, match=r"training\[1\] is 5"):
        found(tmp_path, {"image": FOUR}, 5)
    with pytest.raises(CaseError, match="the keys modality, images"):
        datalist_cases(write_json(tmp_path / "list.json", {"modality": MODALITY, "images": []}))
    with pytest.raises(ValueError, match=r"no case in data.root=.*list.json; expected a JSON file with"):
        found(tmp_path)
    assert datalist_file(tmp_path) == tmp_path / "list.json"
    write_json(tmp_path / "more.json", {})
    with pytest.raises(FileNotFoundError, match=r"holds list.json, more.json; name the datalist itself"):
        datalist_file(tmp_path)
    assert datalist_file(write_json(tmp_path / "dataset.json", {}).parent) == tmp_path / "dataset.json"
    with pytest.raises(FileNotFoundError, match="has no JSON file"):
        datalist_file(tmp_path / "nowhere")


def test_a_4d_file_of_all_sequences(tmp_path):
    images = [brain(seed) for seed in range(4)]
    save(tmp_path / "B_1.nii.gz", np.stack(images, axis=-1), LPS)
    save(tmp_path / "l/B_1.nii.gz", lesions(), LPS)
    entry = {"image": "B_1.nii.gz", "label": "l/B_1.nii.gz"}
    (case,) = found(tmp_path, entry)
    assert case.volumes == {"t2f": 0, "t1n": 1, "t1c": 2, "t2w": 3}
    for number, modality in enumerate(("t2f", "t1n", "t1c", "t2w")):
        save(tmp_path / f"apart/B_1-{modality}.nii.gz", images[number], LPS)
    apart = [f"apart/B_1-{modality}.nii.gz" for modality in ("t2f", "t1n", "t1c", "t2w")]
    (same,) = found(tmp_path, entry | {"image": apart})
    cache = Cache(tmp_path / "cache")
    (whole,) = cache.fill([case]).cases
    pixels = np.array(whole.image())
    assert cache.fill([case]).built == []
    (single,) = cache.fill([same]).cases
    assert np.array_equal(single.image(), pixels)
    # other channels of the same file
    (swapped,) = found(tmp_path, entry, channels={1: "t1c", 2: "t1n"})
    assert cache.fill([swapped]).built == ["B_1"]
    assert np.array_equal(cache.read(swapped).image(), pixels[[1, 0, 2, 3]])


def test_a_file_of_too_few_volumes(tmp_path):
    save(tmp_path / "B_1.nii.gz", np.stack([brain(seed) for seed in range(3)], axis=-1), LPS)
    (case,) = found(tmp_path, {"image": "B_1.nii.gz"})
    (problem,) = examine(case, BRATS_METS, None, 0.1).problems
    assert (problem.file, problem.expected) == ("t2w", "a 4-D file with 4 or more volumes")
    save(tmp_path / "B_1.nii.gz", brain(), LPS)
    assert [p.file for p in examine(case, BRATS_METS, None, 0.1).problems] == ["t1n", "t1c", "t2w"]


def test_a_prediction_of_a_4d_file_lies_on_the_grid_of_its_volumes(tmp_path, composed):
    from brats_lightning.predict import predict
    from tests.tiny_models import bright_is_et

    image = np.stack([brain(0), brain(1)], axis=-1)
    image[4, 5, 6] = (0, 2000)
    save(tmp_path / "in/B_1.nii.gz", image, LPS)
    path = write_json(tmp_path / "in/list.json", {"modality": {"0": "T1", "1": "T1c"}, "test": ["B_1.nii.gz"]})
    ckpt = bright_is_et(tmp_path / "et.ckpt", 0.75)
    settings = [
        f"ckpt={ckpt}",
        f"output={tmp_path}/out",
        "device=cpu",
        "precision=32",
        "data=datalist",
        f"data.root={path}",
    ]
    predict(composed(*settings, name="predict"))
    mask = nib.load(tmp_path / "out/B_1.nii.gz")
    assert mask.shape == image.shape[:3]
    assert np.array_equal(mask.affine, LPS)
    assert np.argwhere(np.asanyarray(mask.dataobj) == 3).tolist() == [[4, 5, 6]]


LABELLED = {"image": FOUR, "label": "x.nii"}
PATIENTS = {name: name for name in "abcdef"}


def test_folds_of_a_datalist(tmp_path):
    entries = [LABELLED | {"id": name, "fold": fold} for name, fold in zip("abcd", (0, 0, 1, 2), strict=True)]
    entries.append({"image": FOUR, "id": "unlabelled", "fold": 0})
    lists = {"training": entries, "test": [LABELLED | {"id": "e"}, "f.nii.gz"]}
    path = str(write_json(tmp_path / "list.json", lists))
    split = SplitSettings(file=path, fold=0).split(PATIENTS)
    assert (split.train, split.val, split.test) == (("c", "d"), ("a", "b"), ("e",))
    assert SplitSettings(file=path, fold=2).split(PATIENTS).val == ("d",)
    for fold in (None, 3):
        with pytest.raises(SplitError, match="has the folds 0, 1, 2; choose one"):
            SplitSettings(file=path, fold=fold).split(PATIENTS)


def test_the_lists_of_a_datalist_are_a_split(tmp_path):
    lists = {"training": [LABELLED | {"id": "a"}], "validation": [LABELLED | {"id": "b"}]}
    path = str(write_json(tmp_path / "list.json", lists))
    split = SplitSettings(file=path).split(PATIENTS)
    assert (split.train, split.val, split.test) == (("a",), ("b",), ())
    with pytest.raises(SplitError, match="has no folds"):
        SplitSettings(file=path, fold=0).split(PATIENTS)


def test_an_empty_list_of_labels_is_no_mask(tmp_path):
    (case,) = found(tmp_path, {"image": FOUR, "label": []})
    assert (case.mask, case.faults) == (None, ())

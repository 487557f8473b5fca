"""Cases that lack a modality, from the cache to the network's input."""

from types import SimpleNamespace

import pytest
import torch

from brats_lightning.config.build import build_data
from brats_lightning.data.cases import CaseError, used_modalities
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.preprocess import preprocess
from tests.data.tiny_cases import brain, lesions, write_case

BARE = "BraTS-MET-00001-000"  # lacks T2w


@pytest.fixture
def root(tmp_path):
    for patient in range(4):
        missing = {"t2w": None} if patient == 1 else {}
        write_case(tmp_path / "raw", f"BraTS-MET-{patient:05d}-000", **missing)
    return tmp_path / "raw"


@pytest.fixture
def build(composed, root, tmp_path):
    def make(*overrides, optional="[t2w]"):
        common = ["data=brats_mets", f"data.root={root}", f"paths.cache_dir={tmp_path}/cache", "sampling.size=[4,6,6]"]
        common += ["data.val_share=0", "data.test_share=0", "data.batch_size=4", "data.patches_per_case=8"]
        data = build_data(composed(*common, f"data.optional={optional}", *overrides))
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def lacks_t2w(data, batch):
    """Of each patch of a batch that is ready for the network, whether the T2w channel is empty."""
    image = data.normaliser(batch.image, batch.normalisation)
    assert image[:, [0, 1, 3]].flatten(1).any(1).all()
    return [not channel.any() for channel in image[:, 2]]


def test_a_case_without_an_optional_modality_is_kept_and_counted(build):
    assert build().summary() == "cases: 4 train, 0 val, 0 test; 1 without t2w"


def test_it_is_a_fault_where_nothing_is_optional(build):
    with pytest.raises(CaseError, match=rf"(?s){BARE}.*t2w.*missing"):
        build(optional="[]")


def test_a_broken_file_of_an_optional_modality_is_still_a_fault(build, root):
    file = root / "BraTS-MET-00002-000/BraTS-MET-00002-000-t2w.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CaseError, match="BraTS-MET-00002-000"):
        build()


def test_a_cache_filled_without_the_broken_modality_does_not_hide_it(build, root):
    file = root / "BraTS-MET-00002-000/BraTS-MET-00002-000-t2w.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    build("data.modalities=[t1n,t1c]", optional="[]")  # T2w is not used, so the case is sound
    with pytest.raises(CaseError, match="BraTS-MET-00002-000"):
        build()


def test_the_cache_is_the_same_whatever_is_optional(build):
    assert build().cache.directory == build("data.modalities=[t1n,t1c]", optional="[]").cache.directory


def test_only_patches_of_the_bare_case_lack_it(build):
    data = build()
    batches = data.train_dataloader().dataset
    for index in range(len(batches)):
        batch = batches[0, index]
        assert lacks_t2w(data, batch) == [case == BARE for case in batch.cases]


def test_whole_cases_too(build):
    data = build("data.val_share=0.5")
    data.trainer = None
    seen = 0
    for batch in data.val_dataloader():
        image = data.on_after_batch_transfer(batch, 0).image
        assert image.shape == (4, *batch.case.shape)
        assert bool(image[2].any()) == (batch.case.id != BARE)
        seen += 1
    assert seen == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_dropout_takes_optional_modalities_at_its_rate_and_changes_nothing_else(build, workers):
    plain = build("data.patches_per_case=100").train_dataloader().dataset
    data = build("data.patches_per_case=100", "augmentation.sequence_dropout=0.3", f"data.workers={workers}")
    dropped, counted = 0, 0
    for index, batch in enumerate(data.train_dataloader()):
        before = plain[0, index]
        assert torch.equal(batch.image, before.image)
        assert torch.equal(batch.mask, before.mask)
        assert batch.cases == before.cases
        assert torch.equal(batch.normalisation[:, [0, 1, 3]], before.normalisation[:, [0, 1, 3]])
        for case, lacking in zip(batch.cases, lacks_t2w(data, batch), strict=True):
            counted += case != BARE
            dropped += lacking and case != BARE
            assert lacking or case != BARE
    assert counted == 300
    assert 60 < dropped < 120  # 90 ± 4 standard deviations


def test_each_optional_modality_is_dropped_by_itself(build):
    data = build("augmentation.sequence_dropout=0.5", "data.patches_per_case=40", optional="[t2w,t2f]")
    batches = data.train_dataloader().dataset
    kinds = [tuple(row) for i in range(len(batches)) for row in (batches[0, i].normalisation[:, 2:, 2] != 0).tolist()]
    assert {(False, False), (False, True), (True, False), (True, True)} == set(kinds)


def test_dropping_is_certain_at_1_and_never_touches_what_is_required(build):
    data = build("augmentation.sequence_dropout=1", "data.modalities=[t1c,t2w,t1c-t2w]")
    batch = data.train_dataloader().dataset[0, 0]
    image = data.normaliser(batch.image, batch.normalisation)
    assert not image[:, 1:].any()
    assert image[:, 0].flatten(1).any(1).all()


def test_copy_paste_gives_a_case_lesions_in_the_modalities_it_has(build, root):
    shape = (32, 34, 30)
    for number in range(4):
        images = {name: brain(4 * number + i, shape) for i, name in enumerate(("t1n", "t1c", "t2w", "t2f"))}
        if number == 1:
            images["t2w"] = None
        write_case(root, f"BraTS-MET-{number:05d}-000", seg=lesions(shape), **images)
    settings = ["sampling.size=[24,24,24]", "copy_paste=lesions", "data.batch_size=1"]
    data = build(*settings, "copy_paste.probability=1")
    plain = build(*settings, "copy_paste.probability=0").train_dataloader().dataset
    pasted = dict.fromkeys((True, False), 0)
    batches = data.train_dataloader().dataset
    for index in range(len(batches)):
        batch, before = batches[0, index], plain[0, index]
        new = (batch.mask != before.mask)[0]
        if not new.any():
            continue
        pasted[batch.cases == [BARE]] += 1
        assert (batch.image[0, :2].to(torch.int32) != before.image[0, :2].to(torch.int32))[:, new].any()
        if batch.cases == [BARE]:
            assert not data.normaliser(batch.image, batch.normalisation)[0, 2].any()
    assert min(pasted.values()) > 0, pasted


def test_an_all_zero_channel_stays_so_through_every_augmentation(build):
    data = build("augmentation=strong", "augmentation.sequence_dropout=1")
    for name, change in data.augmentation.intensity.items():
        change.p = change.p_channel = 1.0
        assert name
    image = torch.zeros((2, 4, 6, 8, 8))
    image[:, [0, 1, 3]] = torch.randn((2, 3, 6, 8, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros((2, 6, 8, 8), dtype=torch.uint8)
    image, _ = data.augmentation(image, mask, torch.Generator().manual_seed(0))
    assert not image[:, 2].any()
    assert image.isfinite().all()


def test_preprocess_lists_the_sequences_of_each_case(composed, root, tmp_path):
    settings = ["data=brats_mets", f"data.root={root}", f"paths.cache_dir={tmp_path}/cache", "data.optional=[t2w]"]
    report = preprocess(composed(*settings, name="preprocess"))
    found = {row["case"]: list(row["modalities"]) for row in report["cases"]}
    assert found[BARE] == ["t1n", "t1c", "t2f"]
    assert found["BraTS-MET-00000-000"] == ["t1n", "t1c", "t2w", "t2f"]


def test_what_is_used_of_a_case(root):
    bare = next(case for case in find_cases(root) if case.id == BARE)
    assert used_modalities(bare, ("t1n", "t2w", "t2f"), ("t2w", "t2f")) == ["t1n", "t2f"]
    assert used_modalities(bare, ("t1n", "t2w")) == ["t1n", "t2w"]


def test_presence_is_one_or_nothing_after_augmentation(build):
    data = build("augmentation=strong", "data.modalities=[t1n,t1c,t2w,t2f,has-t2w]")
    batch = data.train_dataloader().dataset[0, 0]
    data.trainer = SimpleNamespace(training=True)
    image = data.on_after_batch_transfer(batch, 0).image
    assert image[:, 4].unique().tolist() in ([0, 1], [1])
    assert len(image[:, 0].unique()) > 100

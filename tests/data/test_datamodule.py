from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from brats_lightning.config.build import build_data
from brats_lightning.data.batches import PatchBatches, WholeCases
from brats_lightning.data.cache import entry
from brats_lightning.data.cases import CaseError
from brats_lightning.data.loading import BatchKeys, LoaderError, LoaderSettings
from brats_lightning.data.sampling.patches import SliceBlocks
from tests.data.tiny_cases import brain, lesions, save, write_case


@pytest.fixture
def root(tmp_path):
    for patient in range(6):
        write_case(tmp_path / "raw", f"BraTS-MET-{patient:05d}-000")
    write_case(tmp_path / "raw", "BraTS-MET-00099-000", seg=None)
    return tmp_path / "raw"


@pytest.fixture
def build(composed, root, tmp_path):
    def make(*overrides):
        cfg = composed(
            "data=brats_mets",
            f"data.root={root}",
            f"paths.cache_dir={tmp_path}/cache",
            "sampling.size=[4,6,6]",
            *overrides,
        )
        data = build_data(cfg)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def test_cases_are_split_and_counted(build):
    data = build("data.val_share=0.3", "data.test_share=0.15")
    assert data.summary() == "cases: 3 train, 2 val, 1 test; left out: 1 without mask: BraTS-MET-00099-000"
    assert {case.id for case in data.scored_cases("test")} == set(data.split.test)
    data.test_on = "train"
    assert [case.id for case in data.scored_cases("test")] == list(data.split.train)


def test_faulty_cases_stop_or_are_skipped(build, root):
    write_case(root, "BraTS-MET-00050-000", t2w=None)
    with pytest.raises(CaseError, match="BraTS-MET-00050-000"):
        build()
    data = build("data.on_bad_case=skip")
    assert "1 faulty (skipped)" in data.summary()
    assert "BraTS-MET-00050-000" not in data.cases


def test_unknown_policy_for_faulty_cases(build):
    with pytest.raises(ValueError, match="error or skip"):
        build("data.on_bad_case=ignore")


def test_batches_depend_on_their_key_alone(build):
    data = build()
    batches = data.train_dataloader().dataset
    first, again, other = batches[0, 1], batches[0, 1], batches[0, 0]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert first.seeds == again.seeds != other.seeds
    assert first.image.dtype == torch.uint16
    assert first.image.shape == (2, 4, 4, 6, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(build, workers):
    data = build(f"data.workers={workers}")
    loader = data.train_dataloader()
    found = [batch.image.to(torch.int64).sum().item() for batch in loader]
    expected = [loader.dataset[0, i].image.to(torch.int64).sum().item() for i in range(len(loader))]
    assert found == expected


def test_copy_paste_adds_lesions_of_training_cases_to_the_same_patches(build, root):
    shape = (32, 34, 30)  # room enough for a lesion and its surroundings
    for number in range(6):
        images = {name: brain(4 * number + i, shape) for i, name in enumerate(("t1n", "t1c", "t2w", "t2f"))}
        write_case(root, f"BraTS-MET-{number:05d}-000", seg=lesions(shape), **images)
    settings = ["data.val_share=0.3", "data.test_share=0.3", "sampling.size=[24,24,24]", "data.patches_per_case=8"]
    plain = build(*settings).train_dataloader().dataset
    never = build(*settings, "copy_paste=lesions", "copy_paste.probability=0").train_dataloader().dataset
    data = build(*settings, "copy_paste=lesions", "copy_paste.probability=1", "data.workers=2")
    loader = data.train_dataloader()
    donors = {case.id for group in data.copy_paste.donors.values() for case, _ in group.lesions}
    assert donors == set(data.split.train)
    assert data.split.test
    changed = 0
    for number, batch in enumerate(loader):
        before = plain[0, number]
        assert torch.equal(never[0, number].image, before.image)
        assert torch.equal(never[0, number].mask, before.mask)
        again = loader.dataset[0, number]  # read in this process
        assert torch.equal(again.image, batch.image)
        assert torch.equal(again.mask, batch.mask)
        own = before.mask > 0
        assert torch.equal(batch.mask[own], before.mask[own])
        changed += not torch.equal(batch.mask, before.mask)
    assert changed


def test_an_epoch_goes_evenly_through_the_cases(build):
    data = build("data.val_share=0", "data.test_share=0", "data.patches_per_case=4", "data.batch_size=3")
    batches = data.train_dataloader().dataset
    assert len(batches) == 6 * 4 // 3
    order = batches._cases_of(0)
    assert np.bincount(order).tolist() == [4] * 6
    assert order.tolist() != batches._cases_of(1).tolist()


def test_lesion_weights_steer_which_case_is_drawn(build):
    data = build("sampling.across_cases=true", "data.patches_per_case=50", "data.val_share=0", "data.test_share=0")
    batches = data.train_dataloader().dataset
    weights = np.array([0.5, 0.5, 0, 0, 0, 0])
    batches.sampler.case_weights = lambda cases: weights
    counts = np.bincount(batches._cases_of(0), minlength=6)
    assert counts[2:].sum() == 0
    assert abs(counts[0] - 150) < 40


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_a_single_one(build, root, processes):
    shape = (32, 34, 30)
    for number in range(5):
        images = {name: brain(4 * number + i, shape) for i, name in enumerate(("t1n", "t1c", "t2w", "t2f"))}
        write_case(root, f"BraTS-MET-{number:05d}-000", seg=lesions(shape), **images)
    data = build(
        *("data.val_share=0", "data.test_share=0", "data.patches_per_case=3", "copy_paste=lesions"),
        *("augmentation=strong", "augmentation.sequence_dropout=0.5", "data.optional=[t2w,t2f]", "data.workers=0"),
    )
    cases = [data.cases[name] for name in data.split.train]
    sampler = SliceBlocks([8, 24], [24, 24], multiple_of=4, lesion_ratio=0.5)

    def read(batch_size, *process):
        loader = LoaderSettings(batch_size, 3, 0)
        parts = cases, sampler, data.normaliser, loader, 7, *process
        return PatchBatches(*parts, copy_paste=data.copy_paste, sequence_dropout=0.5)

    def on_device(batch):
        data.trainer = SimpleNamespace(training=True)
        return data.on_after_batch_transfer(batch, 0)

    alone, shared = read(6), [read(6 // processes, rank, processes) for rank in range(processes)]
    assert {len(part) for part in (alone, *shared)} == {3}
    sizes = set()
    for key in [(0, 0), (0, 2), (1, 1)]:
        whole, parts = on_device(alone[key]), [on_device(part[key]) for part in shared]
        assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
        assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)
        assert [name for part in parts for name in part.cases] == whole.cases
        assert len({image.sum().item() for image in whole.image}) == 6  # all different
        sizes.add(whole.mask.shape)
    assert len(sizes) > 1


def test_keys_go_on_where_training_stopped():
    keys = BatchKeys(steps=4, done=lambda: 6)
    assert list(keys) == [(1, 2), (1, 3)]
    assert list(BatchKeys(4, lambda: 8)) == [(2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize(("cases", "processes"), [(3, 2), (1, 2), (4, 3), (5, 1)])
def test_each_whole_case_is_counted_once_and_all_processes_take_equal_steps(build, cases, processes):
    data = build("data.val_share=0", "data.test_share=0")
    chosen = list(data.cases.values())[:cases]
    parts = [WholeCases(chosen, data.normaliser, rank, processes) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1
    counted = [part[i].case.id for part in parts for i in range(len(part)) if part[i].counted]
    assert sorted(counted) == [case.id for case in chosen]


def test_batches_become_standardised_network_input(build):
    data = build("data.val_share=0", "data.test_share=0", "data.modalities=[t1c,t1n,t1c-t1n]")
    case = next(iter(data.cases.values()))
    volume = data.on_after_batch_transfer(WholeCases([case], data.normaliser)[0], 0)
    raw = brain(sum(case.id.encode()) + 1)  # t1c
    values = raw[raw > 0]
    z = (values - values.mean()) / values.std()
    assert volume.image.shape[0] == 3
    inside = volume.image[0][volume.image[0] != 0]
    assert sorted(inside.tolist()) == pytest.approx(sorted(z[z != 0].tolist()), abs=1e-4)
    torch.testing.assert_close(volume.image[2], volume.image[0] - volume.image[1])
    assert np.array_equal(np.sort(volume.mask.numpy().ravel())[-5:], np.sort(lesions().ravel())[-5:])


def test_balanced_weights_favour_rare_classes(build):
    data = build("data.val_share=0", "data.test_share=0")
    weights = data.balanced_class_weights()
    voxels = np.sum([case.class_voxels for case in data.cases.values()], axis=0)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(voxels[0] / voxels[1]))


def test_without_a_sampler_it_cannot_train(composed, root, tmp_path):
    cfg = composed("data=brats_mets", f"data.root={root}", f"paths.cache_dir={tmp_path}/cache", name="preprocess")
    with pytest.raises(ValueError, match="without a sampler"):
        build_data(cfg).train_dataloader()


def test_nothing_to_train_on(composed, tmp_path):
    write_case(tmp_path / "bare", seg=None)
    cfg = composed("data=brats_mets", f"data.root={tmp_path}/bare", f"paths.cache_dir={tmp_path}/c", name="preprocess")
    data = build_data(cfg)
    data.prepare_data()
    with pytest.raises(ValueError, match=r"nothing to train on; 1 without mask: BraTS-MET-00001-000; .*data.masks=DIR"):
        data.setup("fit")


def test_other_source_settings_are_another_cache(composed, root):
    def directory(*overrides):
        cfg = composed("data=brats_mets", f"data.root={root}", *overrides, name="preprocess")
        return build_data(cfg).cache.directory

    assert directory() == directory()
    assert directory() != directory("+data.source.site=UCSD")
    assert directory() != directory("data.label_map={4:3}")
    assert OmegaConf.is_config(composed(name="preprocess").data)


def test_a_root_has_one_cache_however_it_is_spelled(composed, root, monkeypatch):
    monkeypatch.chdir(root.parent)

    def key(spelled, *overrides):
        return build_data(composed("data=brats_mets", f"data.root={spelled}", *overrides, name="preprocess")).cache.key

    assert key(root) == key(root.name) == key(f"./else/../{root.name}/")
    assert key(root) != key(root.parent)


@pytest.mark.parametrize("settings", [(0, 8, 2), (2, 0, 2), (2, 8, -1)])
def test_bad_loader_settings(settings):
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        LoaderSettings(*settings)


def test_masks_of_their_own_folder_and_cases_without(build, root, tmp_path):
    for name in ("BraTS-MET-00001-000", "BraTS-MET-00099-000"):
        save(tmp_path / f"corrected/{name}.nii.gz", lesions())
    odd = write_case(root, "BraTS-MET-00098-000", seg=None) / "W39_Segm.nii.gz"
    odd.touch()
    data = build("data.val_share=0.3", "data.test_share=0.15", f"data.masks={tmp_path}/corrected")
    assert data.summary() == (
        f"cases: 4 train, 2 val, 1 test; masks: 2 from {tmp_path}/corrected; "
        f"left out: 1 without mask: BraTS-MET-00098-000 ({odd} may be it)"
    )
    own = build("data.val_share=0.3", "data.test_share=0.15")
    assert own.cache.directory != data.cache.directory
    assert own.summary().count("masks:") == 0


def test_a_damaged_entry_is_built_again_before_training_and_named_during_it(build, caplog, monkeypatch):
    monkeypatch.setattr(entry, "_SOUND", set())
    case = build().cases["BraTS-MET-00001-000"]
    path, offset = case.directory / case.arrays["image"].file, case.arrays["image"].offset
    whole = path.read_bytes()

    def spoil():
        path.write_bytes(whole[: offset + 9] + b"\xff" + whole[offset + 10 :])

    spoil()
    data = build("data.workers=2", "data.val_share=0", "data.test_share=0")
    assert f"{path}: its bytes are not those that were written; it is built again" in caplog.text
    assert np.array_equal(data.cases[case.id].image(), np.memmap(path, np.uint16, "r", offset, case.image().shape))
    spoil()
    with pytest.raises(LoaderError) as caught:
        list(data.train_dataloader())
    assert str(caught.value) == (
        f"the cache entry of {case.id} is damaged: {path}: its bytes are not those that were written; "
        "build it anew: python -m brats_lightning.preprocess with the data settings of this run"
    )


def test_an_unusual_background_is_told_before_training(build, root, caplog):
    odd = brain(dtype=np.float32)
    odd[odd == 0] = -1
    write_case(root, "BraTS-MET-00001-000", t2f=odd)
    build()
    assert "BraTS-MET-00001-000: t2f: all corners are -1" in caplog.text

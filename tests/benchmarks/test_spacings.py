import nibabel as nib
import pytest

from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.synthetic.phantom import make_phantoms
from tests.benchmarks.spacings import ARMS, GRIDS, as_label_map, make_mix, table


def test_train_cases_take_the_grids_in_turn_and_test_cases_have_all(tmp_path):
    root = make_phantoms(tmp_path / "phantoms", cases=8, shape=(24, 26, 28), lesions=2, modalities=("t1c",), workers=0)
    split = make_mix(find_cases(root), tmp_path / "mix", 0.3, None)
    made = {case.id: case for case in find_cases(tmp_path / "mix")}
    assert set(made) == {name for part in split.values() for name in part}
    assert not {case.rpartition("-")[0] for case in split["train"]} & {c.rpartition("-")[0] for c in split["test"]}
    assert len(split["test"]) % 3 == 0
    grids = [int(name[-3:]) % 3 for name in split["train"]]
    assert grids == [number % 3 for number in range(len(grids))]
    for name, case in made.items():
        image, mask = nib.load(case.images["t1c"]), nib.load(case.mask)
        z, y, x = GRIDS[int(name[-3:]) % 3]
        assert image.header.get_zooms() == pytest.approx((x, y, z))
        assert image.shape == mask.shape
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mix").rglob("*.nii.gz")}
    assert make_mix(find_cases(root), tmp_path / "mix", 0.3, None) == split
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ValueError, match="at least two are needed"):
        make_mix(find_cases(root)[:1], tmp_path / "other", 0.3, None)


def test_the_table_pairs_the_arms_on_each_grid():
    def scores(dice):
        cases = {f"MIX-{patient:05d}-{grid:03d}": dice[grid] for patient in range(4) for grid in range(3)}
        return {case: {"dice_mean": d, "brats2024/lesion_dice_mean": None} for case, d in cases.items()}

    first, second = ARMS
    results = [{"contestant": first, "seed": seed, "scores": scores((0.5, 0.4, 0.3))} for seed in (0, 1)]
    results += [{"contestant": second, "seed": seed, "scores": scores((0.5, 0.5, 0.6))} for seed in (0, 1)]
    lines = table(results).splitlines()
    assert lines[2] == "| 1 × 1 × 1 | 4 | 0.500 | 0.500 | +0.000 [+0.000, +0.000] |"
    assert lines[3] == "| 1.5 × 0.859 × 0.859 | 4 | 0.400 | 0.500 | +0.100 [+0.100, +0.100] |"
    assert lines[5] == "| all | 12 | 0.400 | 0.533 | +0.133 [+0.133, +0.133] |"
    assert "2 seed(s), averaged first" in lines[-1]


def test_label_maps_are_read_from_the_command_line():
    assert as_label_map("4:3,5:0") == {4: 3, 5: 0}

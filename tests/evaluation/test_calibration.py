import numpy as np
import pytest

from brats_lightning.core.geometry import GridTransform
from brats_lightning.core.labels import BRATS_METS, IGNORE, LabelScheme
from brats_lightning.data.cases import CaseError
from brats_lightning.data.nifti import read_header
from brats_lightning.data.probabilities import Probabilities, Record, write_probabilities
from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.calibration import BINS, check_probabilities, reliability
from brats_lightning.evaluation.summary import reliability_curve
from tests.data.tiny_cases import LPS, lesions, save
from tests.evaluation.evaluating import run


def save_probabilities(path, **classes):
    """A file of the default classes, ``et=array`` …; the others are 0 and the background the rest."""
    shape = next(iter(classes.values())).shape
    path.parent.mkdir(parents=True, exist_ok=True)
    header = read_header(save(path.parent.parent / "scan.nii", np.zeros(shape, np.uint8)))
    whole = GridTransform.whole(header.grid)
    values = [classes.get(name, np.zeros(shape)) for name in BRATS_METS.names]
    values = np.stack([whole.apply(p).astype(np.float32) for p in (1 - sum(values), *values)])
    values = Probabilities(values, whole.crop((0, 0, 0), whole.shape))
    write_probabilities(path, values.rounded(), Record("a", BRATS_METS.names, "argmax", header, (), None, "made"))
    return path


def test_counts_by_hand(tmp_path):
    et, netc = np.zeros((2, 4, 3, 2))
    et[0, 0] = 0.25, 0.25
    et[1, 0] = 0.75, 1.0
    netc[0, 0, 0] = 0.5
    netc[2, 0, 0] = 0.75
    reference = np.zeros((4, 3, 2), np.uint8)
    reference[0, 0, 0] = reference[1, 0, 1] = 3
    reference[2, 0, 0] = IGNORE
    found = reliability(save_probabilities(tmp_path / "p.nii", et=et, netc=netc), reference, BRATS_METS)
    empty = (0, 0.0, 0)
    assert found["et"] == [empty, empty, (2, 0.5, 1), *[empty] * 4, (1, 0.75, 0), empty, (1, 1.0, 1)]
    # TC adds NETC: 0.75 in a voxel of ET; the other one of NETC is not labelled.
    assert found["tc"] == [empty, empty, (1, 0.25, 0), *[empty] * 4, (2, 1.5, 1), empty, (1, 1.0, 1)]


def test_the_curve_pools_voxels_over_cases():
    empty = [(0, 0.0, 0)] * (BINS - 1)
    first, second = [(4, 0.2, 1), *empty], [(6, 0.4, 0), *empty]
    (point,) = reliability_curve([first, second], ["a", "b"], Bootstrap(200, 0))
    assert point["voxels"] == 10
    assert (point["probability"], point["fraction"]) == (pytest.approx(0.06), 0.1)
    assert (point["low"], point["high"]) == (0, 0.25)  # the second case alone, and the first alone
    assert reliability_curve([], [], Bootstrap(200, 0)) == []


def test_files_that_do_not_fit(tmp_path):
    path = save_probabilities(tmp_path / "p.nii", et=np.zeros((4, 3, 2)))
    grid = read_header(save(tmp_path / "r.nii", np.zeros((4, 3, 2), np.uint8))).grid
    assert check_probabilities(path, BRATS_METS, grid, 0.1) is None
    wide = LabelScheme(("netc", "snfh", "et", "rc"))
    assert "the classes netc, snfh, et; expected netc, snfh, et, rc" in str(check_probabilities(path, wide, grid, 0.1))
    affine = LPS.copy()
    affine[0, 3] = 50
    moved = read_header(save(tmp_path / "m.nii", np.zeros((4, 3, 2), np.uint8), affine)).grid
    assert "its reference" in str(check_probabilities(path, BRATS_METS, moved, 0.1))


def test_the_report_has_a_curve_where_probabilities_lie_beside_the_masks(tmp_path):
    for case in ("00001-000", "00002-000"):
        save(tmp_path / f"ref/{case}.nii.gz", lesions())
        save(tmp_path / f"pred/{case}.nii.gz", lesions())
        save_probabilities(tmp_path / f"pred/{case}_probabilities.nii.gz", et=np.where(lesions() == 3, 0.875, 0.125))
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    summary = run(*folders, f"figures={tmp_path}/figures")
    low, high = summary["lesions"]["et"]["reliability"]
    assert (low["probability"], low["fraction"], high["probability"], high["fraction"]) == (0.125, 0, 0.875, 1)
    assert high["voxels"] == 2 * 8
    assert "Reliability of the probabilities" in (tmp_path / "out/report.html").read_text()
    assert (
        (tmp_path / "figures/reliability.csv").read_text().startswith("region,probability,fraction,low,high,voxels\n")
    )
    (tmp_path / "pred/00002-000_probabilities.nii.gz").write_text("no NIfTI")
    with pytest.raises(CaseError, match=r"00002-000.*00002-000_probabilities.nii.gz"):
        run(*folders)
    for file in (tmp_path / "pred").glob("*_probabilities.nii.gz"):
        file.unlink()
    assert run(*folders)["lesions"]["et"]["reliability"] == []
    assert "Reliability" not in (tmp_path / "out/report.html").read_text()

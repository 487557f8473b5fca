"""NIfTI in: the values as they are stored, oriented to LPS, without the empty margin."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_lightning.geometry import Grid, Ints, Placement, nonzero_box

_decompress = zlib.decompress
_CORRUPT: tuple[type[Exception], ...] = (zlib.error, EOFError, OSError)
try:  # the "codecs" extra inflates in two thirds of zlib's time
    from isal import igzip_lib, isal_zlib

    _decompress = isal_zlib.decompress
    _CORRUPT = (*_CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub says instance
except ImportError:
    pass


class UnreadableFile(ValueError):
    """A file that is no readable 3-D NIfTI volume; ``expected`` and ``remedy`` complete the message."""

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found}; expected {expected}; {remedy}")
        self.found, self.expected, self.remedy = found, expected, remedy


@dataclass(frozen=True)
class Volume:
    """The non-zero box of one image in (z, y, x) LPS order; everything outside it is 0.

    Attributes:
        grid: the file's own voxel grid.
        values: the box: the stored integers or floats, or float32 if the header scales them.
        start: first voxel (z, y, x) of the box in the oriented image.
    """

    grid: Grid
    values: np.ndarray
    start: Ints


def read_volume(path: Path) -> Volume:
    """Read ``.nii`` or ``.nii.gz``; no copy of the volume is made in floating point.

    Raises:
        UnreadableFile: missing, corrupted, not 3-D, not real numbers, or without an invertible affine.
    """
    again = "copy or download the file again"
    try:
        stored = path.read_bytes()
        data = _inflate(stored) if stored[:2] == b"\x1f\x8b" else stored
    except _CORRUPT as error:
        raise UnreadableFile(f"cannot be read: {error}", "an intact .nii or .nii.gz file", again) from error
    header = _header(data)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) != 3 or 0 in shape:
        raise UnreadableFile(f"an array of shape {shape}", "one 3-D volume", "export a single 3-D volume")
    if dtype.kind not in "iuf":
        raise UnreadableFile(f"voxels of type {dtype}", "integers or floats", "export the image in grey values")
    offset = int(header.get_data_offset())
    if len(data) - offset < math.prod(shape) * dtype.itemsize:
        found = f"{len(data) - offset} bytes of voxels"
        raise UnreadableFile(f"truncated: {found}", f"{math.prod(shape) * dtype.itemsize}", again)
    try:
        grid = Grid(shape, header.get_best_affine())
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise UnreadableFile(str(error), "an invertible affine", "repair the header's sform or qform") from error

    voxels = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    if slope not in (None, 1) or inter not in (None, 0):
        voxels = (voxels * np.float64(slope) + np.float64(inter)).astype(np.float32)
    oriented = Placement.whole(grid).orient(voxels)
    box = nonzero_box(oriented)
    values = oriented[box].astype(voxels.dtype.newbyteorder("="))
    start = (box[0].start, box[1].start, box[2].start)
    return Volume(grid, values, start)


def _inflate(stored: bytes) -> bytes:
    # gzip's last four bytes promise the inflated size; a cut file promises nonsense, so it is bounded.
    promised = int.from_bytes(stored[-4:], "little")
    data = _decompress(stored, 31, max(1, min(promised, 64 * len(stored))))
    # Only a file of several gzip members inflates to something else than promised.
    return data if len(data) % 2**32 == promised else gzip.decompress(stored)


def _header(data: bytes) -> nib.Nifti1Header:
    kind = nib.Nifti2Header if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    try:
        return kind(binaryblock=data[: kind.sizeof_hdr])
    except Exception as error:  # nibabel has no common base class for what a broken header raises
        raise UnreadableFile(f"no NIfTI header: {error}", "a NIfTI-1 or NIfTI-2 file", "convert the image") from error

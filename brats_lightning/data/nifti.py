"""Reading NIfTI: the values as stored, oriented to LPS, without the empty margin. And writing it."""

import gzip
import logging
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from brats_lightning.core.geometry import Grid, GridTransform, Ints, nonzero_box
from brats_lightning.runtime.files import write_bytes

_decompress = zlib.decompress
_CORRUPT: tuple[type[Exception], ...] = (zlib.error, EOFError, OSError)
try:  # the "codecs" extra inflates in two thirds of zlib's time
    from isal import igzip_lib, isal_zlib

    _decompress = isal_zlib.decompress
    _CORRUPT = (*_CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub says instance
except ImportError:
    pass

_GZIP = b"\x1f\x8b"  # decides, not the name: files are renamed, and browsers unpack them
_OTHERS = {
    _GZIP: "compressed twice",
    b"PK\3\4": "a zip archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
}
_COMMENT = 6  # NIfTI's code of an extension that is plain text
_SMALLEST, _LARGEST = 0.005, 100  # voxel size in mm; others are in another unit, and resampling would fill the memory
_SILENT = logging.Logger(__name__)  # of what nibabel corrects in headers, without a file's name: see `Grid.zooms`
_SILENT.addHandler(logging.NullHandler())
_AGAIN = "copy or download the file again"


class UnreadableFile(ValueError):
    """A file that is not a readable 3-D NIfTI volume; ``expected`` and ``remedy`` complete the message."""

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found}; expected {expected}; {remedy}")
        self.found, self.expected, self.remedy = found, expected, remedy

    def __reduce__(self) -> tuple[type["UnreadableFile"], tuple[str, str, str]]:
        return UnreadableFile, (self.found, self.expected, self.remedy)


@dataclass(frozen=True)
class Header:
    """What a file's header says of its voxels, checked."""

    nifti: nib.Nifti1Header  # nibabel's view of it, NIfTI-1 or NIfTI-2
    compressed: bool  # gzipped, whatever its name
    grid: Grid  # trailing axes of one voxel are left out
    dtype: np.dtype  # of the stored voxels
    offset: int  # where they begin, in bytes
    scaling: tuple[float, float] | None  # (slope, intercept) from stored to real values

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the file's array, with the trailing axes that ``grid`` leaves out."""
        return tuple(self.nifti.get_data_shape())


@dataclass(frozen=True)
class Volume:
    """The non-zero box of one image in (z, y, x) LPS order; everything outside it is 0."""

    grid: Grid  # the file's own
    values: np.ndarray  # the box: the stored integers or floats, or float32 if the header scales them
    start: Ints  # first voxel (z, y, x) of the box in the oriented image
    remark: str = ""  # what is unusual about the background of an image

    def whole(self) -> Shaped[np.ndarray, "i j k"]:
        """The whole volume in its file's axis order, by which the official programs number lesions."""
        return GridTransform.whole(self.grid).crop(self.start, self.values.shape).restore(self.values)

    def on(self, grid: Grid) -> "Volume":
        """The voxels of this file's array, taken to lie on another grid of equal shape."""
        own, other = GridTransform.whole(self.grid), GridTransform.whole(grid)
        if (own.axes, own.flips) == (other.axes, other.flips):
            return replace(self, grid=grid)
        return Volume(grid, np.empty(0), (0, 0, 0), self.remark).trimmed(other.orient(self.whole()))

    def trimmed(self, values: Shaped[np.ndarray, "z y x"]) -> "Volume":
        """The non-zero box of other values in the place of these."""
        box = nonzero_box(values)
        z, y, x = (first + part.start for first, part in zip(self.start, box, strict=True))
        return replace(self, values=values[box], start=(z, y, x))


def read_volume(path: Path, volume: int | None = None) -> Volume:
    """Read ``.nii`` or ``.nii.gz``, of a 4-D file the given ``volume``; no copy is made in floating point.

    Integers that the header scales are rounded, so that a saved 0 may come back slightly off: whatever lies within
    half a step of 0 is 0.

    Raises:
        UnreadableFile: missing, corrupted, not 3-D, not real numbers, or without an invertible affine.
    """
    data, compressed = _content(path)
    header = _header(data, compressed, volume)
    shape, count = header.grid.shape, math.prod(header.grid.shape)
    _check_length(data, header, count)
    voxels = np.frombuffer(data, header.dtype, count, header.offset).reshape(shape, order="F")
    remark = ""
    if header.scaling:
        voxels, background = _scaled(voxels, *header.scaling)
        if background:
            remark = f"the header's scaling gives the background {background:.2g}, taken as 0"
    oriented = GridTransform.whole(header.grid).orient(voxels)
    box = nonzero_box(oriented)
    values = oriented[box].astype(voxels.dtype.newbyteorder("="))
    if values.shape == oriented.shape:
        corners = np.unique(values[np.ix_((0, -1), (0, -1), (0, -1))])
        if len(corners) == 1 and corners[0]:
            remark = f"all corners are {corners[0]:.4g}, not 0 as outside the brain: the whole volume counts as brain"
    return Volume(header.grid, values, (box[0].start, box[1].start, box[2].start), remark)


def read_header(path: Path, volume: int | None = None) -> Header:
    """The header alone, of a 4-D file that of the given ``volume``; voxels are neither read nor checked.

    Raises:
        UnreadableFile: as `read_volume`.
    """
    return _header(*_beginning(path), volume)


def read_description(path: Path) -> str:
    """The text in the header of a NIfTI file of any shape.

    Raises:
        UnreadableFile: missing, corrupted, or no NIfTI file.
    """
    return _nifti(_beginning(path)[0])["descrip"].item().decode("latin-1")


def read_comment(path: Path) -> str | None:
    """The first comment among a header's extensions; None if there is none.

    Raises:
        UnreadableFile: missing, corrupted, or no NIfTI file.
    """
    nifti = _nifti(_beginning(path)[0])
    data, _ = _beginning(path, int(nifti.get_data_offset()))
    place, order = nifti.sizeof_hdr + 4, nifti.endianness
    while place + 8 <= len(data) and data[nifti.sizeof_hdr]:
        size, code = struct.unpack(f"{order}ii", data[place : place + 8])
        if code == _COMMENT:
            return data[place + 8 : place + size].rstrip(b"\0").decode(errors="replace")
        place += max(size, 16)
    return None


def read_volumes(path: Path) -> Shaped[np.ndarray, "t k j i"]:
    """All volumes of a 4-D file as they are stored, the file's axes in reverse order.

    Raises:
        UnreadableFile: missing, corrupted, or not 4-D.
    """
    data, compressed = _content(path)
    header = _header(data, compressed, 0)
    shape = tuple(_nifti(data).get_data_shape())
    _check_length(data, header, math.prod(shape))
    return np.frombuffer(data, header.dtype, math.prod(shape), header.offset).reshape(shape[::-1])


def header_of(stored: bytes) -> Header:
    """The header in the bytes of a file's beginning.

    Raises:
        UnreadableFile: as `read_header`.
    """
    return _header(stored, False, None)


def _content(path: Path) -> tuple[bytes, bool]:
    """A file's inflated content, and whether it is compressed."""
    try:
        stored = path.read_bytes()
        compressed = stored[:2] == _GZIP
        return (_inflate(stored) if compressed else stored), compressed
    except _CORRUPT as error:
        raise _unreadable(path, error) from error


def _beginning(path: Path, size: int = nib.Nifti2Header.sizeof_hdr) -> tuple[bytes, bool]:
    """The first bytes of a file, as many as a header takes, and whether the file is compressed."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if compressed else raw
            return file.read(size), compressed
    except _CORRUPT as error:
        raise _unreadable(path, error) from error


def image_like(header: Header, values: np.ndarray, slope: float = 1.0, description: str = "") -> nib.Nifti1Image:
    """An image in the geometry of another: its affine, codes and units, nothing else of its header.

    Args:
        header: of the other.
        values: voxels, of the type to be stored.
        slope: that readers multiply them by.
        description: of at most 80 bytes, instead of the other's.
    """
    nifti = header.nifti.copy()
    nifti.set_data_dtype(values.dtype)
    nifti["cal_min"] = nifti["cal_max"] = 0
    nifti["descrip"] = description
    kind = nib.Nifti2Image if isinstance(nifti, nib.Nifti2Header) else nib.Nifti1Image
    # Without an affine of its own the image keeps the header's sform, qform and their codes as they are.
    image = kind(values, None, nifti)
    image.header.set_slope_inter(slope, 0)
    return image


def volumes_like(
    header: Header,
    values: Shaped[np.ndarray, "t z y x"],
    affine: np.ndarray,
    slope: float,
    description: str,
    comment: str,
) -> nib.Nifti1Image:
    """A 4-D image with an affine of its own, in the world and the units of another.

    Args:
        header: of the other.
        values: volumes, of the type to be stored.
        affine: from (x, y, z) to mm in the other's world.
        slope: that readers multiply them by.
        description: of at most 80 bytes.
        comment: a text that the header is extended by.
    """
    nifti = header.nifti
    kind = nib.Nifti2Image if isinstance(nifti, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(values.T, affine)  # whose order in memory is the file's
    image.set_sform(affine, int(nifti["sform_code"]) or int(nifti["qform_code"]) or "aligned")
    image.header["xyzt_units"], image.header["descrip"] = nifti["xyzt_units"], description
    image.header.set_slope_inter(slope, 0)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    return image


def write_nifti(path: Path, image: nib.Nifti1Image, level: int = 6) -> None:
    """Write ``.nii.gz`` whole or not at all, compressed at ``level`` 1 … 9, to the same bytes every time.

    Raises:
        UnwritableFile: for want of space or permission.
    """
    write_bytes(path, gzip.compress(image.to_bytes(), level, mtime=0))


def _check_length(data: bytes, header: Header, count: int) -> None:
    there, wanted = max(0, len(data) - header.offset), count * header.dtype.itemsize
    if there < wanted:
        raise UnreadableFile(f"truncated: {there} bytes of voxels", f"{wanted}", _AGAIN)


def _unreadable(path: Path, error: Exception) -> UnreadableFile:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        found = f"a link to {path.readlink()}, where there is no file"
        return UnreadableFile(found, "an intact .nii or .nii.gz file", "download what it links to, or correct the link")
    remedy = "allow it to be read" if isinstance(error, PermissionError) else _AGAIN
    return UnreadableFile(f"cannot be read: {error}", "an intact .nii or .nii.gz file", remedy)


def _inflate(stored: bytes) -> bytes:
    # gzip's last four bytes give the inflated size; those of a truncated file are noise, so it is bounded.
    promised = int.from_bytes(stored[-4:], "little")
    data = _decompress(stored, 31, max(1, min(promised, 64 * len(stored))))
    # Only a file of several gzip members inflates to another size than promised.
    return data if len(data) % 2**32 == promised else gzip.decompress(stored)


def _nifti(data: bytes) -> nib.Nifti1Header:
    kind = nib.Nifti2Header if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    try:
        nifti = kind(binaryblock=data[: kind.sizeof_hdr], check=False)
        nifti.check_fix(logger=_SILENT)
        nifti.get_data_dtype(), nifti.get_data_offset()
    except Exception as error:  # nibabel has no common base class for what a broken header raises
        found = f"no NIfTI header: {_what_it_is(data) or error}"
        raise UnreadableFile(found, "a NIfTI-1 or NIfTI-2 file", "convert the image, or download it again") from error
    return nifti


def _what_it_is(data: bytes) -> str:
    """What a file that is no NIfTI seems to be, in words; "" if nothing is known of it."""
    if not data:
        return "the file is empty"
    if kind := next((name for magic, name in _OTHERS.items() if data.startswith(magic)), ""):
        return f"the file is {kind}"
    start = data[:40].split(b"\n")[0].decode("latin-1")
    return f"the file is text, {start!r}" if len(start) > 5 and start.isascii() and start.isprintable() else ""


def _header(data: bytes, compressed: bool, volume: int | None) -> Header:
    nifti = _nifti(data)
    shape, dtype, offset = nifti.get_data_shape(), nifti.get_data_dtype(), int(nifti.get_data_offset())
    if volume is not None:
        there = shape[3] if len(shape) == 4 else 1
        if len(shape) not in (3, 4) or volume >= there:
            expected = f"a 4-D file with {volume + 1} or more volumes"
            raise UnreadableFile(f"an array of shape {shape}", expected, "correct the file, or the list of channels")
        offset += volume * math.prod(shape[:3]) * dtype.itemsize  # the fourth axis is the slowest
        shape = shape[:3]
        nifti.set_data_shape(shape)
    # Some programs write a fourth axis of one volume.
    if len(shape) < 3 or min(shape) < 1 or max(shape[3:], default=1) > 1:
        raise UnreadableFile(f"an array of shape {shape}", "one 3-D volume", "export a single 3-D volume")
    if dtype.kind not in "iuf":
        raise UnreadableFile(f"voxels of type {dtype}", "integers or floats", "export the image in grey values")
    try:
        x, y, z = (float(size) for size in nifti.get_zooms()[:3])
        grid = Grid(shape[:3], nifti.get_best_affine(), (x, y, z))
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise UnreadableFile(str(error), "an invertible affine", "repair the header's sform or qform") from error
    try:
        slope, inter = nifti.get_slope_inter()  # None for a slope of 0 or none at all, which mean no scaling
    except nib.spatialimages.HeaderDataError as error:
        found, expected = f"scl_inter {float(nifti['scl_inter'])} in the header", "a finite one, 0 for no scaling"
        raise UnreadableFile(found, expected, "repair the header's scl_slope and scl_inter") from error
    if not all(_SMALLEST <= size <= _LARGEST for size in grid.spacing):
        found = f"voxels of {' × '.join(f'{size:.4g}' for size in grid.spacing)} mm"
        expected = f"{_SMALLEST:g} … {_LARGEST:g} mm along each axis"
        raise UnreadableFile(found, expected, "repair the header's sform or qform, whose unit is the millimetre")
    scaling = None if slope is None or (slope, inter) == (1, 0) else (float(slope), float(inter))
    return Header(nifti, compressed, grid, dtype, offset, scaling)


def _scaled(
    voxels: Shaped[np.ndarray, "i j k"], slope: float, inter: float
) -> tuple[Shaped[np.ndarray, "i j k"], float]:
    """Real values in 32 bits, and the largest that should have been 0; 0.0 if none was off."""
    values = voxels * np.float64(slope) + np.float64(inter)
    background = 0.0
    if voxels.dtype.kind in "iu":
        # Half a step, and the rounding of the two numbers to the header's 32 bits.
        zero = np.abs(values) <= abs(slope) / 2 + abs(inter) * np.finfo(np.float32).eps
        near = values[zero]
        background = float(near[np.abs(near).argmax()]) if near.size else 0.0
        values[zero] = 0
    with np.errstate(over="ignore"):  # to infinity, which is reported
        return values.astype(np.float32), background

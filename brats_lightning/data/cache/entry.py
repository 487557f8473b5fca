"""One cached case on disk: atomic write, memory-mapped read.

A case is ``<case>.tif`` (OME-TIFF, CZYX, uint16, uncompressed), ``<case>_seg.tif`` (ZYX, uint8 class indices),
``<case>_positions.npy`` (where its classes are), ``<case>_reference.tif`` (only if resampling or cropping cost mask
voxels) and ``<case>.json``, written last, which says what the raw files were and where the voxels lie in the files. It
has a checksum of each file and of itself: a process checks each file when it first opens it.
"""

import json
import math
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Int16, UInt8, UInt16

from brats_lightning.core.components import lesion_components
from brats_lightning.core.geometry import GridTransform, Ints, Triple, nonzero_box
from brats_lightning.core.labels import LabelScheme, known_classes
from brats_lightning.data.cases import Case, Examination
from brats_lightning.data.preprocessing import Intensities, Prepared
from brats_lightning.runtime.files import replace_file, write_text

FORMAT = 7  # raise it whenever the content of the files would differ
POSITIONS_PER_CLASS = 1000  # stored of each class in each lesion

# Files that this process, or the one that forked it, has checked, and the state they were in.
_SOUND: set[tuple[str, int, int, int, int]] = set()


class DamagedEntry(ValueError):
    """A file of a cached case is not what was written."""


@dataclass(frozen=True)
class Lesion:
    """A lesion of the working mask: its size, and its rows ``start`` … ``stop - 1`` of the positions."""

    volume_mm3: float
    voxels: int
    start: int
    stop: int


@dataclass(frozen=True)
class StoredArray:
    """Where one array lies on disk; ``size``, in bytes, and ``crc32`` are of the whole file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case: what its small sidecar says. Arrays are memory-mapped, read-only, whenever asked for."""

    id: str
    patient: str
    directory: Path  # that holds the files
    modalities: tuple[str, ...]  # stored, in canonical order: the channels of `image`
    transform: GridTransform  # of the working arrays in the original grid
    brain: GridTransform  # of the box of the brain and the whole mask, voxel for voxel
    intensities: dict[str, Intensities]  # by modality
    class_voxels: tuple[int, ...]  # of each class index, known voxels only, in the working mask; empty without mask
    lesions: tuple[Lesion, ...]  # as `lesion_components` finds them; ``lesions[i]`` is lesion i + 1 of the positions
    arrays: dict[str, StoredArray]
    distance: float  # mm by which its files lie apart, see `Examination`
    remarks: tuple[str, ...]  # what is unusual about its images

    @property
    def shape(self) -> Ints:
        """(z, y, x) of the working arrays."""
        return self.transform.shape

    @property
    def spacing(self) -> Triple:
        """(z, y, x) in mm."""
        return self.transform.spacing

    @property
    def has_mask(self) -> bool:
        """Whether there is a reference segmentation."""
        return "mask" in self.arrays

    @property
    def partly_labelled(self) -> bool:
        """Whether voxels of the working mask are of unknown class."""
        return self.has_mask and sum(self.class_voxels) < math.prod(self.shape)

    def channels(self, modalities: Sequence[str]) -> list[int]:
        """Channels of `image` that hold these modalities; any for one that is missing, which the normaliser makes 0."""
        return [self.modalities.index(name) if name in self.modalities else 0 for name in modalities]

    def image(self) -> UInt16[np.ndarray, "c z y x"]:
        """Quantised intensities, see `Intensities`."""
        return self._map("image")

    def mask(self) -> UInt8[np.ndarray, "z y x"]:
        """Class indices on the working grid, `IGNORE` where the class is unknown."""
        return self._map("mask")

    def reference(self) -> UInt8[np.ndarray, "i j k"]:
        """Class indices on the original grid: exactly the raw mask's after the label map."""
        if "reference" in self.arrays:
            return self.brain.restore(self._map("reference"))
        return self.transform.restore(self.mask())

    def positions(self) -> Int16[np.ndarray, "n 5"]:
        """Rows (lesion, class, z, y, x) sorted by lesion, at most `POSITIONS_PER_CLASS` per lesion and class.

        Lesion 0, which comes first and is not among `lesions`, is the oedema around cores, which belongs to none.
        """
        if not self.has_mask:
            return np.zeros((0, 5), np.int16)
        return self._map("positions")

    def _map(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise ValueError(f"case {self.id} has no {name}; only a case with a mask has one")
        array = self.arrays[name]
        path = self.directory / array.file
        try:
            status = path.stat()
            state = (str(path), array.crc32, status.st_ino, status.st_size, status.st_mtime_ns)
            if state not in _SOUND:  # to check it for each patch would only cost time
                if _checksum(path) != array.crc32:
                    raise ValueError("its bytes are not those that were written")
                _SOUND.add(state)
            if 0 in array.shape:  # which mmap refuses
                return np.zeros(array.shape, array.dtype)
            return np.memmap(path, array.dtype, "r", array.offset, array.shape)
        except (OSError, ValueError) as error:
            raise DamagedEntry(
                f"the cache entry of {self.id} is damaged: {path}: {error}; "
                "build it anew: python -m brats_lightning.preprocess with the data settings of this run"
            ) from error

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            DamagedEntry: one is not what was written, or not there.
        """
        for name in self.arrays:
            self._map(name)


def find_positions(
    mask: UInt8[np.ndarray, "z y x"], scheme: LabelScheme, spacing: Triple, seed: int
) -> tuple[Int16[np.ndarray, "n 5"], tuple[Lesion, ...]]:
    """Voxels of each class in each lesion, drawn at random, and the table of lesions; see `CachedCase.positions`."""
    box = nonzero_box(mask)
    part = known_classes(np.ascontiguousarray(mask[box]))
    labels, n = lesion_components(part, scheme)
    index = np.random.default_rng(seed).permutation(np.flatnonzero(part))
    group = labels.reshape(-1)[index] * scheme.num_classes + part.reshape(-1)[index]
    order = np.argsort(group, kind="stable")
    group, index = group[order], index[order]
    ends = np.cumsum(np.bincount(group))
    kept = np.arange(len(group)) < np.concatenate([[0], ends])[group] + POSITIONS_PER_CLASS
    lesion, label = np.divmod(group[kept], scheme.num_classes)
    zyx = np.unravel_index(index[kept], part.shape)
    shown = np.minimum(lesion, np.iinfo(np.int16).max)  # more lesions than that is noise; the table stays right
    columns = [shown, label, *(v + s.start for v, s in zip(zyx, box, strict=True))]
    rows = np.stack(columns, axis=1).astype(np.int16)

    voxels = np.bincount(labels.reshape(-1), minlength=n + 1)[1:]
    bounds = np.searchsorted(lesion, np.arange(1, n + 2))
    table = zip(voxels.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return rows, tuple(Lesion(v * math.prod(spacing), v, start, stop) for v, start, stop in table)


def write_entry(
    directory: Path,
    case: Case,
    examination: Examination,
    prepared: Prepared,
    scheme: LabelScheme,
    stamps: dict[str, dict[str, Any]],  # identity of each raw file
) -> None:
    """Write all files of a case, the sidecar last; a reader never sees half a file.

    Raises:
        UnwritableFile: for want of space or permission.
    """
    arrays: dict[str, StoredArray] = {}

    def tif(name: str, suffix: str, array: np.ndarray, transform: GridTransform, channels: Sequence[str] = ()) -> None:
        arrays[name] = _write_tif(directory / f"{case.id}{suffix}", array, transform.spacing, channels)

    tif("image", ".tif", prepared.image, prepared.transform, prepared.modalities)
    lesions: tuple[Lesion, ...] = ()
    class_voxels: list[int] = []
    if prepared.mask is not None:
        tif("mask", "_seg.tif", prepared.mask, prepared.transform)
        counts = np.bincount(prepared.mask.reshape(-1), minlength=scheme.num_classes)
        class_voxels = counts[: scheme.num_classes].tolist()
        seed = zlib.crc32(prepared.mask.tobytes())  # of the same mask the same, whatever the case is called
        rows, lesions = find_positions(prepared.mask, scheme, prepared.transform.spacing, seed)
        arrays["positions"] = _write_npy(directory / f"{case.id}_positions.npy", rows)
    if prepared.reference is not None:
        tif("reference", "_reference.tif", prepared.reference, prepared.brain)
    sidecar = {
        "format": FORMAT,
        "id": case.id,
        "patient": case.patient,
        "files": stamps,
        "modalities": prepared.modalities,
        "transform": asdict(prepared.transform),
        "brain": asdict(prepared.brain),
        "intensities": {name: asdict(values) for name, values in prepared.intensities.items()},
        "class_voxels": class_voxels,
        "lesions": [astuple(lesion) for lesion in lesions],
        "arrays": {name: asdict(array) for name, array in arrays.items()},
        "distance": examination.distance,
        "remarks": examination.remarks,
    }
    sidecar["crc32"] = zlib.crc32(_as_json(sidecar).encode())
    write_text(directory / f"{case.id}.json", _as_json(sidecar))


def read_sidecar(directory: Path, case_id: str) -> tuple[CachedCase, dict[str, dict[str, Any]]]:
    """A cached case and the identities of its raw files.

    Raises:
        OSError, ValueError, KeyError, TypeError: the entry is missing, broken or of another format.
    """
    values = json.loads((directory / f"{case_id}.json").read_bytes())
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']}, expected {FORMAT}")
    if values.pop("crc32") != zlib.crc32(_as_json(values).encode()):  # however they are spaced in the file
        raise ValueError(f"{case_id}.json is not what was written")
    arrays = {name: StoredArray(**array | {"shape": tuple(array["shape"])}) for name, array in values["arrays"].items()}
    for array in arrays.values():
        if (directory / array.file).stat().st_size != array.size:
            raise ValueError(f"{array.file} is not whole")
    cached = CachedCase(
        id=values["id"],
        patient=values["patient"],
        directory=directory,
        modalities=tuple(values["modalities"]),
        transform=GridTransform.from_dict(values["transform"]),
        brain=GridTransform.from_dict(values["brain"]),
        intensities={
            name: Intensities(**statistics | {"quantiles": tuple(statistics["quantiles"])})
            for name, statistics in values["intensities"].items()
        },
        class_voxels=tuple(values["class_voxels"]),
        lesions=tuple(Lesion(*lesion) for lesion in values["lesions"]),
        arrays=arrays,
        distance=values["distance"],
        remarks=tuple(values["remarks"]),
    )
    return cached, values["files"]


def _checksum(path: Path) -> int:
    """CRC-32 of a file: enough against accidents, and several times as fast as a cryptographic hash."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return value


def _as_json(sidecar: dict[str, Any]) -> str:
    return json.dumps(sidecar, default=np.ndarray.tolist)


def _write_tif(path: Path, array: np.ndarray, spacing: Triple, channels: Sequence[str]) -> StoredArray:
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
    sizes = dict(zip(("PhysicalSizeZ", "PhysicalSizeY", "PhysicalSizeX"), spacing, strict=True))
    metadata: dict[str, Any] = {"axes": "CZYX" if channels else "ZYX", **sizes}
    metadata |= {f"{name}Unit": "mm" for name in sizes}
    # Not a new one each time: an entry that is built again must be the same to whoever has read its sidecar.
    metadata["UUID"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, path.name)}"
    if channels:
        metadata["Channel"] = {"Name": list(channels)}
    placed: tuple[int, int] | None = None

    def write(temporary: Path) -> None:
        nonlocal placed
        placed = tifffile.imwrite(
            temporary, array, ome=True, byteorder="<", photometric="minisblack", metadata=metadata, returnoffset=True
        )

    size = replace_file(path, write)
    if placed is None:
        raise RuntimeError(f"{path.name} cannot be memory-mapped as tifffile {tifffile.__version__} wrote it")
    return StoredArray(path.name, array.dtype.str, array.shape, placed[0], size, _checksum(path))


def _write_npy(path: Path, array: np.ndarray) -> StoredArray:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    size = replace_file(path, write)
    return StoredArray(path.name, array.dtype.str, array.shape, size - array.nbytes, size, _checksum(path))

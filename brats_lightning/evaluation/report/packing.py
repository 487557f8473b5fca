"""The volumes of a case as the report's viewer unpacks them: cropped to the brain, 8-bit, compressed."""

import base64
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from matplotlib.image import imsave

from brats_lightning.core.geometry import Grid, GridTransform, Ints
from brats_lightning.core.labels import IGNORE
from brats_lightning.data.nifti import UnreadableFile, Volume, read_volume
from brats_lightning.evaluation.pairing import Pair, find_images
from brats_lightning.evaluation.report.selection import kind_of_lesion, worst_lesions
from brats_lightning.evaluation.report.wording import sequence_title
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase, Scoring, over_cases
from brats_lightning.runtime.files import make_folder, write_text

_ORDER = ("t1c", "t2f", "t1n", "t2w")  # of the sequences; the first is shown first
# Of WebP, lossy: 20 cases of 240 × 240 × 155 voxels with four sequences take 23 MB in one page. Losslessly they would
# take 130 MB, and as JPEG of equal error 33 MB.
QUALITY = {"file": 70, "folder": 80}
_ROWS = 4096  # of a picture: more pixels than 4096² are too many for the canvas of a phone


def pack_cases(
    evaluation: Evaluation, cases: Sequence[ScoredCase], folder: Path | None, pool: ProcessPoolExecutor | None
) -> list[str]:
    """JSON of `pack_case` for each of the cases; or, in a ``folder``, scripts ``0.js`` … with it, and empty texts.

    A page that is opened as a file may load scripts from beside it, but no other files. An earlier evaluation's are
    removed.
    """
    pairs = {pair.case: pair for pair in evaluation.pairs}
    if folder:
        make_folder(folder)
        for script in set(folder.glob("*.js")) - {folder / f"{number}.js" for number in range(len(cases))}:
            script.unlink()
    scripts = [folder / f"{number}.js" if folder else None for number in range(len(cases))]
    task = partial(_pack, evaluation.scoring)
    return over_cases(task, [pairs[case.case] for case in cases], pool, "pictures", cases, scripts)


def _pack(scoring: Scoring, pair: Pair, case: ScoredCase, script: Path | None) -> str:
    packed = pack_case(pair, case, scoring, QUALITY["folder" if script else "file"])
    text = json.dumps(packed, separators=(",", ":")).replace("<", "\\u003c")  # it stands in a script element
    if script is None:
        return text
    write_text(script, f"(window.packed ??= {{}})[{script.stem}] = {text};\n")
    return ""


def pack_case(pair: Pair, case: ScoredCase, scoring: Scoring, quality: int) -> dict[str, Any]:
    """What the viewer needs of a case, for JSON. All arrays are in (z, y, x) LPS order.

    Returns:
        ``case``, its name. ``shape`` and ``spacing`` (mm) of the box that is shown. ``sequences``: for each its
        ``name``, the ``window`` (from, to) in which it is shown first, and ``strips``, the slices one below the other
        in as many WebP pictures as needed. ``masks``: the classes of the reference, `IGNORE` where it is not labelled,
        then those of the prediction, deflated. ``lesions``: for each region the worst ones, with ``at``, a voxel of
        the box.

    Raises:
        ValueError: its masks have changed since they were scored.
    """
    reference, _ = scoring.read_mask(pair.reference, predicted=False)
    prediction, _ = scoring.read_mask(pair.prediction, predicted=True) if pair.prediction else (None, [])
    if reference is None or (prediction is None and pair.prediction):
        raise ValueError(f"{pair.case}: its masks have changed since they were scored")
    prediction = prediction and prediction.on(reference.grid)  # as it was scored, whatever its header says of axes
    images = dict(_sound_images(pair, reference.grid))
    whole = GridTransform.whole(reference.grid)
    shown = [reference, *([prediction] if prediction else []), *images.values()]
    box = whole.crop(*_common_box(shown)) if images else whole

    def crop(volume: Volume) -> Shaped[np.ndarray, "z y x"]:
        return box.sample(volume.values, volume.start)

    classes = crop(reference)
    predicted = crop(prediction) if prediction else np.zeros_like(classes)
    predicted = np.where(classes == IGNORE, 0, predicted)  # what was scored
    return {
        "case": case.case,
        "shape": box.shape,
        "spacing": [round(step, 6) for step in box.spacing],
        "sequences": [
            {"name": sequence_title(name)} | pack_sequence(crop(image), quality) for name, image in images.items()
        ],
        "masks": _base64(zlib.compress(classes.tobytes() + predicted.tobytes(), 9)),
        "lesions": {region: _lesions(case, region, box) for region in scoring.scheme.regions},
    }


def pack_sequence(values: Shaped[np.ndarray, "z y x"], quality: int) -> dict[str, Any]:
    """``window`` and ``strips`` of a sequence, see `pack_case`."""
    grey, window = as_bytes(values)
    slices = max(1, _ROWS // grey.shape[1])
    strips = []
    for first in range(0, len(grey), slices):
        rows = grey[first : first + slices].reshape(-1, grey.shape[2])
        file = io.BytesIO()
        options = {"quality": quality, "method": 2}
        imsave(file, np.repeat(rows[..., None], 3, axis=2), format="webp", pil_kwargs=options)
        strips.append(_base64(file.getvalue()))
    return {"window": window, "strips": strips}


def as_bytes(values: Shaped[np.ndarray, "z y x"]) -> tuple[UInt8[np.ndarray, "z y x"], tuple[int, int]]:
    """Intensities as 1 … 255 from the 0.1th to the 99.9th percentile of the non-zero voxels, which stay 0 elsewhere.

    Returns:
        The bytes, and those of the 1st and the 99.5th percentile.
    """
    values = np.nan_to_num(values.astype(np.float32))
    inside = values[values != 0]
    low, first, last, high = np.percentile(inside, (0.1, 1, 99.5, 99.9)).tolist() if len(inside) else (0, 0, 1, 1)

    def scaled(value: Any) -> Any:
        return np.clip(np.rint((value - low) / max(high - low, 1e-6) * 254) + 1, 1, 255)

    grey = np.where(values == 0, 0, scaled(values)).astype(np.uint8)
    return grey, (int(scaled(first)), max(int(scaled(last)), int(scaled(first)) + 1))


def _sound_images(pair: Pair, grid: Grid) -> Iterator[tuple[str, Volume]]:
    """Sequence → image, of those that can be read and lie on the reference's grid; the viewer does without others."""
    found: Mapping[str, Path] = find_images(pair.reference) if pair.images is None else pair.images
    for name in (each for each in _ORDER if each in found):
        try:
            volume = read_volume(found[name])
        except UnreadableFile:
            continue
        if volume.grid.shape == grid.shape and volume.grid.distance(grid) < 1:
            yield name, volume


def _common_box(volumes: Sequence[Volume]) -> tuple[Ints, Ints]:
    """First voxel and shape of the smallest box with all that isn't 0, at least a voxel."""
    filled = [volume for volume in volumes if volume.values.size] or list(volumes[:1])
    start = np.min([volume.start for volume in filled], axis=0)
    stop = np.max([np.add(volume.start, volume.values.shape) for volume in filled], axis=0)
    (z, y, x), (depth, height, width) = start.tolist(), np.maximum(stop - start, 1).tolist()
    return (z, y, x), (depth, height, width)


def _lesions(case: ScoredCase, region: str, box: GridTransform) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{'f' if row.false_positive else ''}{row.lesion}",
            "kind": kind_of_lesion(row),
            "volume": round(row.volume, 3),
            "dice": round(row.dice, 4),
            "at": box.place(row.centre),
        }
        for _, row in worst_lesions([case], region, found=True)
    ]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

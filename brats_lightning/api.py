"""For notebooks and other programs: predict, score and look at single cases.

    import brats_lightning

    model = brats_lightning.load("outputs/mine/checkpoints/best.ckpt")
    mask = model.predict(t1n="t1.nii.gz", t1c="t1c.nii.gz", t2w="t2.nii.gz", t2f="flair.nii.gz")
    mask.to_filename("mask.nii.gz")

Images and masks are paths, nibabel images, or arrays (x, y, z) with ``affine``, nibabel's 4 × 4 matrix from voxels to
mm. What comes back lies on the grid of the input. Importing this module loads neither torch nor nibabel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
    from PIL.Image import Image

    from brats_lightning.data.nifti import Header
    from brats_lightning.data.probabilities import Probabilities
    from brats_lightning.inference.ensemble import Ensemble
    from brats_lightning.inference.postprocessing import Postprocessing

    Scan = Union[str, Path, nib.Nifti1Image, np.ndarray]  # noqa: UP007  # strings inside

LABELS = ("netc", "snfh", "et")


@dataclass(frozen=True)
class Model:
    """A trained network or an ensemble, see `load`."""

    ensemble: "Ensemble"
    postprocessing: "Postprocessing"
    affine_tolerance: float  # mm by which the images of a case may disagree on the position of a voxel

    @property
    def sequences(self) -> tuple[str, ...]:
        """What a case needs: some of ``t1n``, ``t1c``, ``t2w`` and ``t2f``; it may lack those in ``optional``."""
        return tuple(self.ensemble.modalities)

    @property
    def optional(self) -> tuple[str, ...]:
        """The sequences that a case may lack."""
        return self.ensemble.optional

    @property
    def labels(self) -> dict[int, str]:
        """Label in a predicted mask → class."""
        return dict(enumerate(self.ensemble.scheme.class_names))

    def predict(self, *, affine: "np.ndarray | None" = None, **images: "Scan") -> "nib.Nifti1Image":
        """Labels on the grid of the first image, post-processed as ``python -m brats_lightning.predict`` does.

        Args:
            affine: of images that are arrays.
            images: of the ``sequences``, by name, registered to each other and without the skull.

        Raises:
            CaseError: images that are missing, unreadable or on different grids.
        """
        with _files(images, affine) as files:
            found, header = self._infer(files)
        labels = self.postprocessing(found.values, found.transform.spacing, self.ensemble.scheme)
        return _image(header, found.transform.restore(labels).reshape(header.shape))

    def probabilities(self, *, affine: "np.ndarray | None" = None, **images: "Scan") -> "nib.Nifti1Image":
        """Class probabilities (x, y, z, class) in 32 bits on the grid of the first image, the background first.

        Arguments and errors are those of `predict`.
        """
        with _files(images, affine) as files:
            found, header = self._infer(files)
        return _image(header, found.whole())

    def _infer(self, files: Mapping[str, Path]) -> "tuple[Probabilities, Header]":
        from brats_lightning.data.cases import Case, CaseError, check_files, used_modalities
        from brats_lightning.data.nifti import read_header
        from brats_lightning.inference.prediction import infer

        if unknown := sorted(files.keys() - set(self.sequences)):
            raise TypeError(f"no sequence of this model: {', '.join(unknown)}; it takes {', '.join(self.sequences)}")
        case = Case("case", "case", None, dict(files))
        used = used_modalities(case, self.ensemble.modalities, self.ensemble.optional)
        found: Any = check_files(case, used, need_mask=False) or infer(case, self.ensemble, self.affine_tolerance)
        if isinstance(found, list):
            raise CaseError(found)
        return found, read_header(files[used[0]])


def load(
    ckpt: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    precision: str | int = "auto",
    tuned: bool = False,
    trust: Sequence[str] = (),
) -> Model:
    """A trained network, or an ensemble of several.

    Args:
        ckpt: checkpoint of a run of this program, from any source; or a list of them, whose probabilities are averaged.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``bf16``, 16 or 32.
        tuned: post-process as ``python -m brats_lightning.tune`` chose, instead of as in training.
        trust: packages whose code a checkpoint may run, besides networks of this program, torch and MONAI.

    Raises:
        CheckpointError: no such file, or not a checkpoint of this program.
        PostprocessingError: members with different post-processing, or ``tuned`` without a tuned one.
    """
    from omegaconf import OmegaConf

    from brats_lightning.config import postprocessing
    from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble

    paths = [str(path) for path in ([ckpt] if isinstance(ckpt, str | Path) else ckpt)]
    settings = {"device": device, "precision": precision, "trust": list(trust)}
    cfg = OmegaConf.create({"ckpt": paths, "inference": {}, "affine_tolerance": None, **settings})
    ensemble = load_ensemble(cfg)
    if tuned:
        rules = postprocessing.tuned(paths, tuple(trust))
    else:
        rules = postprocessing.trained_postprocessing(ensemble.models, tuple(trust))
    return Model(ensemble, rules.decoding(ensemble.decode), affine_tolerance(cfg, ensemble))


def evaluate(
    prediction: "Scan",
    reference: "Scan",
    *,
    affine: "np.ndarray | None" = None,
    protocols: Sequence[str] = ("brats2024",),
    labels: Sequence[str] = LABELS,
    label_map: Mapping[int, int] | None = None,
) -> dict[str, float]:
    """Scores of one mask by the names of ``metrics.json``: ``dice_et``, ``brats2024/lesion_dice_et``, …

    Args:
        prediction: a mask.
        reference: a mask on the same grid.
        affine: of masks that are arrays.
        protocols: the challenge's evaluators: ``brats2023`` to ``brats2026``.
        labels: classes, in the order of their label values.
        label_map: label in the reference → label, e.g. ``{4: 3}``.

    Raises:
        UnreadableFile: a mask that cannot be read, or with other labels.
        ValueError: masks on different grids.
    """
    from brats_lightning.core.labels import LabelScheme, as_label_map
    from brats_lightning.data.cases import read_mask
    from brats_lightning.metrics.voxel import score_masks

    scheme = LabelScheme(tuple(labels))
    with _files({"prediction": prediction, "reference": reference}, affine) as files:
        predicted = read_mask(files["prediction"], scheme, None)
        referred = read_mask(files["reference"], scheme, as_label_map("label_map", label_map))
    if difference := predicted.grid.mismatch(referred.grid, 0.1, "the reference"):
        raise ValueError(f"the prediction: {'; expected '.join(difference)}")
    return score_masks(referred.whole(), predicted.whole(), referred.grid.zooms, scheme, protocols)


def show(
    image: "Scan",
    mask: "Scan",
    reference: "Scan | None" = None,
    *,
    affine: "np.ndarray | None" = None,
    title: str = "",
    labels: Sequence[str] = LABELS,
) -> "Image":
    """A picture that a notebook displays: the largest lesion and the smallest one of a mask, over an image.

    With a reference it shows the slice with the largest error and the smallest lesion of the reference.

    Args:
        image: of any sequence.
        mask: on the same grid.
        reference: on the same grid; None: the mask alone is drawn.
        affine: of what is given as arrays.
        title: above the picture.
        labels: classes, in the order of their label values.

    Raises:
        UnreadableFile: a file that cannot be read.
        ValueError: different grids.
    """
    from PIL import Image as images

    from brats_lightning.core.geometry import GridTransform
    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.data.cases import read_mask
    from brats_lightning.data.nifti import read_volume
    from brats_lightning.evaluation.slices import Shown, draw_case

    scheme = LabelScheme(tuple(labels))
    given = {"image": image, "mask": mask} | ({} if reference is None else {"reference": reference})
    with _files(given, affine) as files:
        volumes = {
            name: read_volume(path) if name == "image" else read_mask(path, scheme, None)
            for name, path in files.items()
        }
    grid = volumes["image"].grid
    for name, volume in volumes.items():
        if difference := volume.grid.mismatch(grid, 0.1, "the image"):
            raise ValueError(f"the {name}: {'; expected '.join(difference)}")
    whole = GridTransform.whole(grid)
    arrays = {name: whole.sample(volume.values, volume.start) for name, volume in volumes.items()}
    shown = Shown(title, "", arrays["image"], arrays.get("reference"), arrays["mask"], whole.spacing, scheme)
    return images.fromarray(draw_case(shown))


def _image(header: "Header", values: "np.ndarray") -> "nib.Nifti1Image":
    """An image as it would be read from a file: with an affine, which `image_like` leaves to the header."""
    from brats_lightning.data.nifti import image_like

    image = image_like(header, values)
    return type(image).from_bytes(image.to_bytes())


@contextmanager
def _files(given: "Mapping[str, Scan]", affine: "np.ndarray | None") -> "Iterator[dict[str, Path]]":
    """Everything as files, which are what the program reads and checks; arrays and images are written for a moment."""
    import nibabel as nib
    import numpy as np

    with TemporaryDirectory() as folder:
        paths = {}
        for name, item in given.items():
            if isinstance(item, str | Path):
                paths[name] = Path(item).expanduser()
                continue
            if isinstance(item, np.ndarray):
                if affine is None:
                    raise TypeError(f"{name} is an array: give its affine, too, nibabel's matrix from voxels to mm")
                # What NIfTI has, and other programs read.
                item = nib.Nifti1Image(item.astype(np.float32 if item.dtype.kind == "f" else np.int32), affine)
            elif not isinstance(item, nib.Nifti1Image):
                raise TypeError(f"{name} must be a path, a nibabel image or an array, got {type(item).__name__}")
            paths[name] = Path(folder, f"{name}.nii")
            # A copy: nibabel would let the image itself belong to the new file.
            type(item)(item.dataobj, item.affine, item.header).to_filename(paths[name])
        yield paths

"""A trained network as an ONNX file, which other programs run without torch; its metadata say how it is applied."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brats_lightning.inference.ensemble import TrainedModel
from brats_lightning.runtime.device import on_host
from brats_lightning.runtime.files import write_bytes

INPUT, OUTPUT = "image", "logits"
METADATA = "brats_lightning"  # the key of the metadata, a JSON object
_LARGEST = 2**31 - 2**20  # bytes of a file, which protobuf limits; a graph takes less than the difference


class ExportError(ValueError):
    """A network that cannot be exported, or an export that does not compute the same."""


@dataclass(frozen=True)
class Export:
    """What an export left.

    Attributes:
        bytes: of the file.
        difference: the largest of any logit between torch and onnxruntime, on random input; in parts of the largest
            logit if that is above 1.
        metadata: as in the file.
    """

    bytes: int
    difference: float
    metadata: dict[str, Any]


def export_onnx(model: TrainedModel, path: Path, tolerance: float | int = 1e-4) -> Export:
    """Write a model's network for windows of its size, in batches of any size, once it is seen to compute the same.

    Its input ``image`` is (batch, channel, z, y, x), normalised as `describe` says; its output ``logits`` has the same
    size. Both are float32.

    Args:
        model: on the CPU.
        path: of the file to make or to replace; its folder must exist.
        tolerance: largest allowed `Export.difference`.

    Raises:
        ExportError: packages are missing, the network has an operation that ONNX lacks or handles one size of batch
            only, or the results differ. Nothing is written then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch needs
    except ImportError as error:
        raise ExportError(f"export needs the extra export: pip install 'brats-lightning[export]' ({error})") from None
    size = sum(value.nbytes for value in model.network.state_dict().values())
    if size > _LARGEST:
        raise ExportError(f"{model.path}: the weights take {size / 2**30:.1f} GiB; an ONNX file holds less than 2 GiB")
    metadata = describe(model)
    shape = (2, len(model.normaliser.channels), *model.inference.window)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with _quiet():
        try:
            # Traced here: torch.onnx would make do with a network that takes a single size of batch.
            traced = torch.export.export(model.network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            program = torch.onnx.export(
                traced,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
            )
            assert program is not None  # with dynamo
            program.model.metadata_props[METADATA] = json.dumps(metadata)
            content = program.model_proto.SerializeToString()
        except Exception as error:  # whatever a network raises while it is traced
            raise ExportError(f"{model.path}: {_reason(error, model.network)}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    difference = max(_difference(session, model.network, batch) for batch in (image[:1], image))
    if not difference <= tolerance:
        raise ExportError(
            f"{model.path}: the logits of the exported network differ from torch's by up to {difference:.2g} of the "
            f"largest, by more than tolerance={tolerance:g}; nothing was written"
        )
    return Export(write_bytes(path, content), difference, metadata)


def describe(model: TrainedModel) -> dict[str, Any]:
    """How to apply a model's network to a case, as a JSON object.

    ``channels`` are modalities normalised over the brain (voxels that are not 0, which stay 0), their differences
    (``t1c-t1n``) or presences (``has-t2w``). ``outputs`` are the classes of a softmax or, with the target ``regions``,
    the regions of sigmoids. ``window`` is (z, y, x) in voxels; logits of voxels in no window are ``background``.
    """
    data, scheme, sliding = model.config["data"], model.scheme, model.inference
    regions = model.target.decode == "regions"
    return {
        "program": f"brats_lightning {_own_version()}",
        "checkpoint": {"file": model.path.name, "sha256": _sha256(model.path)},
        "labels": dict(enumerate(scheme.class_names)),
        "regions": {name: list(classes) for name, classes in scheme.regions.items()},
        "target": model.config["target"],
        "outputs": list(scheme.regions if regions else scheme.class_names),
        "decode": model.target.decode,
        "channels": list(model.normaliser.channels),
        "modalities": list(model.normaliser.sources),
        "optional": list(model.normaliser.optional),
        "orientation": "LPS",
        "axes": ["batch", "channel", "z", "y", "x"],
        "preprocessing": {"crop": "brain", **data["preprocessing"]},
        "normalisation": dict(data["normalisation"]),
        "window": list(sliding.window),
        "overlap": sliding.overlap,
        "mirror_axes": list(sliding.mirror_axes),
        "background": list(model.target.background),
    }


def _difference(session: Any, network: nn.Module, image: torch.Tensor) -> float:
    (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
    with torch.inference_mode():
        wanted = on_host(network(image))
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def _reason(error: BaseException, network: nn.Module) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"the network {type(network).__name__} cannot be exported to ONNX, which lacks some of torch's operations; nor "
        f"may it decide by values of the image or the size of the batch: {type(error).__name__}: {first}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on packages that it could have used, and its prints of graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_version() -> str:
    try:
        return version("brats-lightning")
    except PackageNotFoundError:  # in a folder on the path
        return "of unknown version"

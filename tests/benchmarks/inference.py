"""A whole volume through a network that sees windows: ours over the brain, MONAI's over the volume and the brain."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from brats_lightning.config.checkpoint import load_model
from brats_lightning.core.labels import in_classes
from brats_lightning.data.cases import Case, examine
from brats_lightning.data.preprocessing import Prepared, prepare
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.inference.windows import window_starts
from tests.benchmarks.measure import Goal, Options, Row, timed
from tests.benchmarks.start import environment
from tests.benchmarks.workload import labelled_cases

WINDOW, OVERLAP, FILTERS = (128, 128, 128), 0.5, 8
PATCH, STEPS = (96, 96, 96), 600  # of the training: without norms over the window, its size may differ
WHOLE_32, WHOLE_16, CROP_16 = "MONAI, whole volume, fp32", "MONAI, whole volume, bf16", "MONAI, brain crop, bf16"
EQUAL = "ours, windows like MONAI's"
REFERENCE = "the mask"
LIMIT = "limit: the windows' forward passes"


def rows(options: Options) -> Iterator[Row]:
    cases = labelled_cases(options)
    model = load_model(_trained(options, cases[:-1]))
    ours = Ensemble([model], dtype=torch.bfloat16)
    equal = Ensemble([replace(model, inference=replace(model.inference, stretch=0))], dtype=torch.bfloat16)
    torch.set_num_threads(options.threads)  # for the choice of layouts

    scheme, tolerance = model.target.scheme, model.config["data"]["affine_tolerance"]
    found = examine(cases[-1], scheme, None, tolerance)
    prepared = prepare(found.images, found.mask, model.preprocessing)
    crop = _standardised(model, prepared)
    starts, size = [int(n) for n in prepared.transform.origin], prepared.transform.oriented_shape
    box = tuple(slice(start, start + n) for start, n in zip(starts, prepared.transform.shape, strict=True))
    whole = torch.zeros((1, crop.shape[1], *size))
    whole[(..., *box)] = crop

    labels = {REFERENCE: prepared.mask}  # on the whole volume or, where it alone was predicted, the brain's box

    def keep(name: str, infer: Callable[[], np.ndarray]) -> Callable[[], float]:
        def work() -> None:
            labels[name] = infer()

        return timed(work)

    def dice(name: str, classes: Sequence[int], reference: str = WHOLE_32) -> float:
        one, other = in_classes(labels[name], classes), in_classes(labels[reference], classes)
        boxes = [array[box] if array.shape == tuple(size) else array for array in (one, other)]
        total = int(one.sum()) + int(other.sum())
        return 2 * int((boxes[0] & boxes[1]).sum()) / total if total else 1.0

    monai_32, monai_16 = Monai(model.network, None), Monai(model.network, torch.bfloat16)
    windows = math.prod(len(window_starts(max(n, w), w, OVERLAP)) for n, w in zip(crop.shape[2:], WINDOW, strict=True))
    yield Row(
        "inference",
        f"whole volume {'×'.join(map(str, size))}, SegResNet({FILTERS}, batch norm), windows 128³, overlap 0.5",
        "s",
        {
            "ours": keep("ours", lambda: ours([prepared]).values.argmax(0)),
            EQUAL: keep(EQUAL, lambda: equal([prepared]).values.argmax(0)),
            WHOLE_32: keep(WHOLE_32, lambda: monai_32(whole)),
            WHOLE_16: keep(WHOLE_16, lambda: monai_16(whole)),
            CROP_16: keep(CROP_16, lambda: monai_16(crop)),
            LIMIT: timed(lambda: [monai_16.window() for _ in range(windows)]),
        },
        goals=[Goal(WHOLE_32, at_least=4), Goal(WHOLE_16, at_least=1.5), Goal(CROP_16, at_least=1)],
        check=lambda: f"{windows} windows in the crop {'×'.join(map(str, crop.shape[2:]))}; labels: next row",
        note="from memory to class indices: ours from 16-bit codes, bf16 autocast; MONAI from the normalised image, "
        "its network in the faster of both layouts; a window at a time",
    )
    yield Row(
        "inference labels",
        "labels against those of MONAI, whole volume, fp32; least similar region",
        "1 - Dice",
        {
            name: lambda name=name: 1 - min(dice(name, classes) for classes in scheme.regions.values())
            for name in ("ours", EQUAL, CROP_16, WHOLE_16)
        },
        goals=[Goal(at_most=0.01)],
        check=lambda: "; ".join(
            f"{name} {dice('ours', c):.4f}, Dice with the mask {dice('ours', c, REFERENCE):.3f}, of {WHOLE_32} "
            f"{dice(WHOLE_32, c, REFERENCE):.3f}"
            for name, c in scheme.regions.items()
        ),
        repeats=1,
        note=f"network trained for {STEPS} steps on patches of 96³ in other cases; beside: Dice of our labels",
    )


def _trained(options: Options, cases: Sequence[Case]) -> Path:
    """A checkpoint of MONAI's network, trained by our program on some cases; made once."""
    folder = options.scratch / f"segresnet{FILTERS}-{STEPS}"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if checkpoint.is_file():
        return checkpoint
    split = options.scratch / "inference_split.json"
    split.write_text(json.dumps({"train": [case.id for case in cases]}))
    command = [
        sys.executable,
        "-m",
        "brats_lightning.train",
        "data=brats_mets",
        f"data.root={options.scratch / 'cases'}",
    ]
    command += [f"paths.cache_dir={options.scratch / 'cache'}", f"hydra.run.dir={folder}", f"data.split_file={split}"]
    command += [
        "model=monai_segresnet",
        f"model.init_filters={FILTERS}",
        # Norms over the window (instance, group) make other labels of the brain's box than of the whole volume, whose
        # windows hold more background; it is the speed of inference that is asked here.
        "+model.norm=BATCH",
        f"sampling.size={list(PATCH)}".replace(" ", ""),
        f"inference.window={list(WINDOW)}".replace(" ", ""),
    ]
    command += [f"inference.overlap={OVERLAP}", "data.batch_size=1", f"trainer.max_steps={STEPS}", "seed=0"]
    command += ["callbacks=averaged", "callbacks.average.decay=0.98"]
    command += ["trainer.accelerator=cpu", "trainer.precision=auto", "logger=none", "test_on=null"]
    subprocess.run(command, cwd=options.scratch, env=environment(), check=True)
    return checkpoint


def _standardised(model: TrainedModel, prepared: Prepared) -> Tensor:
    """The network's input (1, c, z, y, x) on the case's working grid."""
    normaliser = model.normaliser
    channels = [prepared.modalities.index(modality) for modality in normaliser.sources]
    parameters = torch.from_numpy(normaliser.parameters(prepared.intensities))
    return normaliser(torch.from_numpy(prepared.image[channels])[None], parameters[None])


class Monai:
    """MONAI's sliding window with a copy of a network, in the faster of both layouts."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        seconds = {}
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            self.layout = layout
            self.network = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
            self.image = torch.randn(1, 4, *WINDOW).contiguous(memory_format=layout)
            work = timed(self.window)
            seconds[layout] = min(work() for _ in range(3))
        if seconds[torch.contiguous_format] < seconds[torch.channels_last_3d]:
            self.layout = torch.contiguous_format
            self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
            self.image = self.image.contiguous(memory_format=self.layout)

    @torch.inference_mode()
    def window(self) -> Tensor:
        """Logits of one window."""
        return self._logits(self.image)

    def _logits(self, windows: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            return self.network(windows.contiguous(memory_format=self.layout))

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> np.ndarray:
        """Class indices (z, y, x)."""
        from monai.inferers import sliding_window_inference

        logits = sliding_window_inference(image, WINDOW, 1, self._logits, overlap=OVERLAP, mode="gaussian")
        return logits.argmax(1)[0].numpy()

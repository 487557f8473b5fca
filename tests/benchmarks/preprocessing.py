"""From NIfTI files to a cache of preprocessed cases, and what a case takes there."""

import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tests.benchmarks.measure import Goal, Options, Row, close, timed
from tests.benchmarks.peers import Monai, NnUnet
from tests.benchmarks.workload import bytes_below, case_data, labelled_cases

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case
    from brats_lightning.data.datamodule import CaseData


@dataclass(frozen=True)
class Ours:
    """Filling our cache, in the peers' two words."""

    data: "CaseData"
    cases: "Sequence[Case]"

    def clear(self) -> None:
        shutil.rmtree(self.data.cache.root, ignore_errors=True)

    def fill(self) -> None:
        filled = self.data.cache.fill(self.cases, workers=0)
        assert len(filled.built) == len(self.cases)


def rows(options: Options) -> Iterator[Row]:
    cases = labelled_cases(options)
    ours = case_data(options.scratch / "cases", options.scratch / "cache")
    ours_fill = Ours(ours, cases)
    monai, nnunet = Monai(options, cases), NnUnet(options, cases)
    n = len(cases)

    def check() -> str:
        """nnU-Net normalises over the union of the brains of all modalities, so only up to brightness and contrast."""
        for side in (ours_fill, monai, nnunet):
            side.clear()
            side.fill()
        dataset, worst, least = monai.dataset(), 0.0, 1.0
        for i, case in enumerate(cases):
            entry = ours.cache.read(case)
            codes, parameters = torch.from_numpy(np.array(entry.image())), ours.normaliser.parameters(entry.intensities)
            image = ours.normaliser(codes[None], torch.from_numpy(parameters)[None])[0].numpy()
            theirs, labels = (dataset[i][key].numpy().transpose(0, 3, 2, 1) for key in ("image", "mask"))
            data, seg = (array[:] for array in nnunet.load(case))
            close(entry.mask(), labels[0], 0, "masks")
            close(entry.mask(), np.maximum(seg[0], 0), 0, "masks")
            worst = max(worst, float(np.abs(image - theirs).max()))
            for a, b in zip(image, data, strict=True):
                least = min(least, float(np.corrcoef(a[a != 0], b[a != 0])[0, 1]))
        assert worst < 1e-3, f"normalised images differ from MONAI's by {worst}"
        assert least > 0.9999, f"normalised images correlate with nnU-Net's by {least}"
        return f"masks equal; images: MONAI within {worst:.0e}, nnU-Net r ≥ {least:.6f}"

    stored = {path: path.read_bytes() for case in cases for path in case.files.values()}
    floors = {f"limit: {name} inflate": inflate for name, inflate in _inflaters().items()}
    yield Row(
        "preprocessing",
        "NIfTI → cache, one process",
        "s/case",
        {
            "ours": timed(ours_fill.fill, n, before=ours_fill.clear),
            "MONAI PersistentDataset": timed(monai.fill, n, before=monai.clear),
            "nnU-Net v2": timed(nnunet.fill, n, before=nnunet.clear),
            **{name: timed(lambda f=f: [f(data) for data in stored.values()], n) for name, f in floors.items()},
        },
        goals=[
            Goal("MONAI PersistentDataset", at_least=4),
            Goal("nnU-Net v2", at_least=5),
            Goal("limit: zlib inflate", at_most=2.5),
        ],
        check=check,
        threads=1,
        note="raw files in the page cache; nnU-Net's fingerprint and plan not counted",
    )
    folders = {"ours": ours.cache.directory, "MONAI PersistentDataset": monai.folder, "nnU-Net v2": nnunet.folder}
    yield Row(
        "cache",
        "size of the cache",
        "MB/case",
        {name: (lambda folder=folder: bytes_below(folder) / n / 1e6) for name, folder in folders.items()},
        goals=[Goal(at_most=32)],
        repeats=1,
        note="ours 16-bit, without loss; MONAI float32, with the volume that the crop is a view of; nnU-Net compressed",
    )


def _inflaters() -> dict[str, Callable[[bytes], bytes]]:
    """What gunzips whole files, in the memory of this process."""
    found: dict[str, Callable[[bytes], bytes]] = {"zlib": lambda data: zlib.decompress(data, 31)}
    try:
        from isal import isal_zlib

        found["isal"] = lambda data: isal_zlib.decompress(data, 31)
    except ImportError:
        pass
    return found

"""The peers' own ways from NIfTI files to batches of patches, as their documentation and default trainers have them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case
from tests.benchmarks.measure import Options

NAME = "Dataset501_Bench"


class NnUnet:
    """nnU-Net v2 on the cases; fingerprint and plan are made once and not part of any timing."""

    def __init__(self, options: Options, cases: Sequence[Case]) -> None:
        self.root = options.scratch / "nnunet"
        for variable in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{variable}"] = str(self.root / variable)
        from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.plans = self.root / "preprocessed" / NAME / "nnUNetPlans.json"
        if not self.plans.is_file():
            self._convert(cases)
            extract_fingerprints([501], num_processes=1, show_progress_bar=False, verbose=False)
            plan_experiments([501])
            shutil.copy(self.root / "raw" / NAME / "dataset.json", self.plans.parent)
        self.manager = PlansManager(str(self.plans))
        self.configuration = self.manager.get_configuration("3d_fullres")
        self.folder = self.plans.parent / self.configuration.data_identifier
        self.dataset = self.root / "raw" / NAME / "dataset.json"
        self.cases = list(cases)

    def _convert(self, cases: Sequence[Case]) -> None:
        raw = self.root / "raw" / NAME
        shutil.rmtree(raw, ignore_errors=True)
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True)
        for case in cases:
            for channel, modality in enumerate(MODALITIES):
                (raw / "imagesTr" / f"{case.id}_{channel:04d}.nii.gz").symlink_to(case.images[modality].resolve())
            (raw / "labelsTr" / f"{case.id}.nii.gz").symlink_to(Path(case.files["seg"]).resolve())
        from batchgenerators.utilities.file_and_folder_operations import save_json

        values = {
            "channel_names": {str(i): name for i, name in enumerate(MODALITIES)},
            "labels": {"background": 0, "netc": 1, "snfh": 2, "et": 3},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        save_json(values, str(raw / "dataset.json"))

    def clear(self) -> None:
        """Remove what `fill` makes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def fill(self) -> None:
        """Preprocess the cases one after the other in this process, with nnU-Net's own function for a case."""
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

        self.folder.mkdir(parents=True, exist_ok=True)
        preprocessor = DefaultPreprocessor(verbose=False)
        raw = self.root / "raw" / NAME
        for case in self.cases:
            if not (self.folder / f"{case.id}.pkl").is_file():
                images = [str(raw / "imagesTr" / f"{case.id}_{channel:04d}.nii.gz") for channel in range(4)]
                label = str(raw / "labelsTr" / f"{case.id}.nii.gz")
                target = str(self.folder / case.id)
                preprocessor.run_case_save(target, images, label, self.manager, self.configuration, str(self.dataset))

    def load(self, case: Case) -> Any:
        """(image, mask) of a preprocessed case as its dataset gives them."""
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        return nnUNetDatasetBlosc2(str(self.folder)).load_case(case.id)[:2]

    def loader(self, patch: int, batch: int, augment: bool) -> Any:
        """The default trainer's data loader, with or without its training transforms; ``next`` of it is a batch."""
        import numpy as np
        from batchgenerators.utilities.file_and_folder_operations import load_json
        from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        size, read, transforms = [patch] * 3, [patch] * 3, None
        if augment:
            angle = (-30 / 360 * 2 * np.pi, 30 / 360 * 2 * np.pi)
            read = get_patch_size(size, angle, angle, angle, (0.85, 1.25))
            masks = self.configuration.use_mask_for_norm
            transforms = nnUNetTrainer.get_training_transforms(
                size, angle, None, (0, 1, 2), False, use_mask_for_norm=masks, foreground_labels=[1, 2, 3]
            )
        return nnUNetDataLoader(
            nnUNetDatasetBlosc2(str(self.folder)),
            batch,
            read,
            size,
            self.manager.get_label_manager(load_json(str(self.dataset))),
            oversample_foreground_percent=0.33,
            transforms=transforms,
        )


class Monai:
    """MONAI's PersistentDataset on the cases."""

    def __init__(self, options: Options, cases: Sequence[Case]) -> None:
        self.folder = options.scratch / "monai"
        self.items = [{"image": [str(c.images[m]) for m in MODALITIES], "mask": str(c.files["seg"])} for c in cases]

    @staticmethod
    def stored() -> list[Any]:
        """The deterministic transforms, whose result is kept on disk."""
        from monai import transforms as t

        both = ("image", "mask")
        return [
            t.LoadImaged(both),
            t.EnsureChannelFirstd(both),
            t.Orientationd(both, axcodes="LPS", labels=None),
            t.CropForegroundd(both, source_key="image"),
            t.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]

    @staticmethod
    def crop(patch: int) -> list[Any]:
        """One patch around a foreground voxel in a third of the cases, elsewhere otherwise."""
        from monai import transforms as t

        size = (patch,) * 3
        both = ("image", "mask")
        return [
            t.SpatialPadd(both, size),
            t.RandCropByPosNegLabeld(both, label_key="mask", spatial_size=size, pos=1, neg=2, num_samples=1),
        ]

    @staticmethod
    def augmentation() -> list[Any]:
        """nnU-Net's list: where MONAI draws for all channels at once, the probability is that of a channel.

        Rotation and scaling are one resampling, drawn with the probability of either.
        """
        from monai import transforms as t

        both, angle = ("image", "mask"), 0.5236
        modes, p = ("bilinear", "nearest"), 1 - 0.8 * 0.8
        return [
            t.RandAffined(
                both,
                prob=p,
                rotate_range=(angle,) * 3,
                scale_range=((-0.3, 0.4),) * 3,
                mode=modes,
                padding_mode="zeros",
            ),
            t.RandGaussianNoised("image", prob=0.1, std=0.1),
            t.RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2 * 0.5),
            t.RandScaleIntensityd("image", factors=0.25, prob=0.15, channel_wise=True),
            t.RandScaleIntensityFixedMeand("image", factors=0.25, prob=0.15, fixed_mean=True, preserve_range=True),
            t.RandSimulateLowResolutiond("image", prob=0.25 * 0.5, zoom_range=(0.5, 1.0)),
            t.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            t.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]

    def dataset(self, *random: Any) -> Any:
        """The cases, with random transforms behind the stored ones."""
        from monai.data import PersistentDataset
        from monai.transforms import Compose

        return PersistentDataset(self.items, Compose([*self.stored(), *random]), cache_dir=self.folder)

    def clear(self) -> None:
        """Remove what `fill` makes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def fill(self) -> None:
        """Ask for each case once."""
        dataset = self.dataset()
        for i in range(len(dataset)):
            dataset[i]

    def loader(self, patch: int, batch: int, augment: bool) -> Any:
        """Batches of patches, each of another case."""
        from monai.data import DataLoader

        random = self.crop(patch) + (self.augmentation() if augment else [])
        return DataLoader(self.dataset(*random), batch_size=batch, shuffle=True, drop_last=True, num_workers=0)

"""One training of a study with the prediction of the cases that it held out, and how far both are."""

import json
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import quote
from brats_lightning.config.outcomes import Outcome, outcome_of
from brats_lightning.config.resume import ResumeError, newest_checkpoint
from brats_lightning.config.values import leaves
from brats_lightning.runtime.locks import claimed


@dataclass(frozen=True)
class Job:
    """One training, and the prediction of the cases that it held out.

    Attributes:
        folder: of the run.
        overrides: of `train`, without those that are common to all jobs.
    """

    arm: str
    seed: int
    fold: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def subfolder(self) -> str:
        """The override that names its folder within the study's."""
        return f"hydra.sweep.subdir={quote('/'.join(self.folder.parts[-3:]))}"

    @property
    def predictions(self) -> Path:
        """Folder of the masks and probabilities of all held-out cases of this arm and seed."""
        return self.folder.parent / "predictions"

    @property
    def prediction_folder(self) -> Path:
        """Of the prediction as a job of its own, so that it leaves the record of the training alone."""
        return self.folder / "prediction"

    @property
    def summary(self) -> Path:
        """Of the prediction, written at its end."""
        return self.prediction_folder / "summary.json"

    @property
    def predicted(self) -> bool:
        """Whether all held-out cases are predicted."""
        return self.summary.is_file() and not json.loads(self.summary.read_text(encoding="utf-8"))["problems"]

    @property
    def checkpoint(self) -> Path:
        """The last one, which was not chosen on the held-out cases."""
        return self.folder / "checkpoints/last.ckpt"

    @property
    def outcome(self) -> Outcome | None:
        """Of the training; None if it has not ended."""
        return outcome_of(self.folder)

    @property
    def trained(self) -> bool:
        """Whether the training is complete."""
        return self.outcome is not None and self.outcome.ending is None

    @property
    def state(self) -> str:
        """In words."""
        if self.predicted:
            return "finished"
        if (outcome := self.outcome) is None:
            return "killed, or never started; see train.log"
        if outcome.ending is not None:
            return outcome.reason
        prediction = outcome_of(self.prediction_folder)
        return "not predicted: " + (prediction.reason if prediction and prediction.ending else "see predict.log")

    def check_free(self) -> None:
        """Refuse a job that another process works at.

        Raises:
            InUse: an earlier start of the study has left it to a cluster.
        """
        if self.folder.is_dir():
            with claimed(self.folder / ".lock", f"{self}: cancel that job or wait until it has ended. {self.folder}"):
                pass

    def training(self) -> list[str]:
        """Overrides of `train` for its start, or for going on from its newest checkpoint."""
        try:
            newest = newest_checkpoint(self.folder)
        except ResumeError:  # there is none yet
            return [*self.overrides, self.subfolder]
        resumed = [f"ckpt_path={quote(str(newest))}", f"resume={quote(str(self.folder))}", "hydra.output_subdir=null"]
        return [*self.overrides, self.subfolder, *resumed]

    def prediction(self, cfg: DictConfig) -> list[str]:
        """Overrides of `predict` for the held-out cases of this training of a config."""
        files = {"ckpt": self.checkpoint, "split": self.folder / "split.json", "output": self.predictions}
        files["summary"] = self.summary
        device = "cpu" if cfg.trainer.accelerator == "cpu" else "auto"
        settings = ["input=null", "part=val", "probabilities=true", f"device={device}"]
        settings.append(f"trust=[{','.join(packages(cfg))}]")  # which have just been trained with
        own = f"hydra.sweep.subdir={quote('/'.join(self.prediction_folder.parts[-4:]))}"
        return [*(f"{key}={quote(str(file))}" for key, file in files.items()), *settings, own]

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, fold {self.fold}"


def packages(cfg: DictConfig) -> tuple[str, ...]:
    """The packages whose code a config of `train` names."""
    targets = (value for key, value in leaves(OmegaConf.to_container(cfg)) if key.endswith("._target_"))
    return tuple(sorted({str(target).split(".")[0] for target in targets}))

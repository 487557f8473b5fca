"""Where a run can be followed: TensorBoard, CSV files, W&B and MLflow, over Lightning's loggers.

Curves reach every logger through Lightning. What else a run shows goes through the methods of `Tracker`, which each
class fills in its own form; a logger that is no `Tracker` gets the curves alone.
"""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import yaml
from jaxtyping import UInt8
from lightning_fabric.utilities.logger import _flatten_dict
from matplotlib.figure import Figure
from matplotlib.image import imsave
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from brats_lightning.evaluation.report.drawing import as_pixels, region_colour
from brats_lightning.runtime.files import make_folder, replace_file, write_text

Layout = dict[str, dict[str, list[Any]]]  # of curves: category → title → kind and tags
Curve = tuple[np.ndarray, ...]  # tp, fp, tn, fn, precision and recall at each threshold


class Tracker:
    """What a logger shows besides curves. The first process alone calls these methods."""

    def add_config(self, config: Mapping[str, Any], network: str, layout: Layout, step: int) -> None:
        """Describe the run at its start.

        Args:
            config: resolved, in plain containers.
            network: its parts as a Markdown table.
            layout: which curves are read together.
            step: at which training begins.
        """

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Show a picture, such as ``validation/worst``."""

    def add_precision_recall(self, curves: Mapping[str, Curve], step: int) -> None:
        """Show the curve of each region; as a picture where there is nothing better."""
        self.add_picture("validation/precision_recall", draw_precision_recall(curves), step)

    def add_outcome(self, choices: Mapping[str, Any], scores: Mapping[str, float], checkpoint: str) -> None:
        """Describe the run at its end.

        Args:
            choices: what tells it from other runs, by column of a table of runs.
            scores: name → value of the main scores, which have been logged.
            checkpoint: the best one's path.
        """

    def close(self, failed: bool) -> None:
        """The run has ended, or has failed."""


def trackers(trainer: pl.Trainer) -> list[Tracker]:
    """Those of a trainer's loggers that show more than curves; the same in all processes."""
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]


@contextmanager
def followed(trainer: pl.Trainer) -> Iterator[None]:
    """Close the trackers after the block; the next job of a sweep runs in the same process."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for tracker in trackers(trainer) if trainer.is_global_zero else []:
            tracker.close(failed)


class TensorBoard(Tracker, TensorBoardLogger):
    """Lightning's logger, without its curve of the epoch and with an own table of hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def add_config(self, config: Mapping[str, Any], network: str, layout: Layout, step: int) -> None:
        """Arrange the curves, and add config and network as text."""
        self.experiment.add_custom_scalars(layout)
        self.experiment.add_text("run/config", f"```yaml\n{_as_yaml(config)}```", step)
        self.experiment.add_text("run/network", network, step)

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Add an image."""
        self.experiment.add_image(name, picture, step, dataformats="HWC")

    def add_precision_recall(self, curves: Mapping[str, Curve], step: int) -> None:
        """Add curves to the tab *PR curves*."""
        for region, curve in curves.items():
            self.experiment.add_pr_curve_raw(f"val/{region}", *curve, step, num_thresholds=len(curve[0]))

    def add_outcome(self, choices: Mapping[str, Any], scores: Mapping[str, float], checkpoint: str) -> None:
        """Add the row of this run to the HParams tab; Lightning would log each score a second time."""
        self.experiment.add_text("run/checkpoint", checkpoint)
        for summary in hparams(dict(choices), dict(scores)):
            self.experiment._get_file_writer().add_summary(summary)

    def close(self, failed: bool) -> None:  # noqa: ARG002
        """Write what is still in memory."""
        self.save()


class _Rows(ExperimentWriter):
    """Lightning's writer, which goes on in the file of a run that is resumed instead of deleting it."""

    def _check_log_dir_exists(self) -> None:
        if (file := Path(self.metrics_file_path)).is_file():
            with file.open(newline="", encoding="utf-8") as rows:
                self.metrics_keys = next(csv.reader(rows), [])


class CSV(Tracker, CSVLogger):
    """Files alone: ``metrics.csv`` with a row for each logged step, ``hparams.yaml``, and pictures as PNG."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of ``metrics.csv``."""
        if self._experiment is None:
            make_folder(self.root_dir)
            self._experiment = _Rows(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    def add_config(self, config: Mapping[str, Any], network: str, layout: Layout, step: int) -> None:  # noqa: ARG002
        """Write the config."""
        self.log_hyperparams(dict(config))

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Write a PNG."""
        file = Path(self.log_dir, "pictures", f"{name}_{step}.png")
        make_folder(file.parent)
        replace_file(file, lambda temporary: imsave(temporary, picture, format="png"))

    def add_outcome(self, choices: Mapping[str, Any], scores: Mapping[str, float], checkpoint: str) -> None:  # noqa: ARG002
        """Add choices and checkpoint to the config."""
        self.log_hyperparams({"choices": dict(choices), "checkpoint": checkpoint})

    def close(self, failed: bool) -> None:  # noqa: ARG002
        """Write what is still in memory."""
        if self._experiment is not None:
            self.save()


class WandB(Tracker, WandbLogger):
    """Weights & Biases; a resumed run goes on in the run whose id is in ``wandb_id.txt``.

    Args:
        save_dir: the run folder.
        settings: further arguments of Lightning's logger and of ``wandb.init``.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:
        self._id_file = Path(save_dir, "wandb_id.txt")
        super().__init__(save_dir=save_dir, id=_known_id(self._id_file), **settings)
        self._wandb_init.pop("anonymous", None)  # Lightning always gives it, and W&B warns of it

    def add_config(self, config: Mapping[str, Any], network: str, layout: Layout, step: int) -> None:  # noqa: ARG002
        """Fill the run's config."""
        self.log_hyperparams(dict(config))
        write_text(self._id_file, f"{self.version}\n")

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Add to the run's media."""
        self.log_image(name, [picture], step)

    def add_outcome(self, choices: Mapping[str, Any], scores: Mapping[str, float], checkpoint: str) -> None:
        """Fill the run's config and summary, by which runs are compared."""
        self.log_hyperparams({"choices": dict(choices)})
        self.experiment.summary.update({**scores, "checkpoint": checkpoint})

    def close(self, failed: bool) -> None:
        """End the run: W&B would give it to the next job of this process."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))


class MLflow(Tracker, MLFlowLogger):
    """MLflow; a resumed run goes on in the run whose id is in ``mlflow_id.txt``.

    Args:
        save_dir: the run folder.
        tracking_uri: a store as MLflow names it, such as ``sqlite:///outputs/mlflow.db`` or the address of a server.
        artifact_location: of a new experiment; None lets a server choose, and is a folder beside an SQLite file.
        settings: further arguments of Lightning's logger.
    """

    def __init__(self, save_dir: str, tracking_uri: str, artifact_location: str | None = None, **settings: Any) -> None:
        self._id_file = Path(save_dir, "mlflow_id.txt")
        if tracking_uri.startswith("sqlite:///"):
            database = Path(tracking_uri.removeprefix("sqlite:///")).absolute()
            make_folder(database.parent)
            artifact_location = artifact_location or str(database.with_suffix(""))
        settings |= {"tracking_uri": tracking_uri, "artifact_location": artifact_location}
        super().__init__(run_id=_known_id(self._id_file), **settings)

    def add_config(self, config: Mapping[str, Any], network: str, layout: Layout, step: int) -> None:  # noqa: ARG002
        """Add the config as parameters, which MLflow never changes, and with the network as artifacts."""
        client, run = self.experiment, str(self.run_id)
        write_text(self._id_file, f"{run}\n")
        known = client.get_run(run).data.params
        flat = _flatten_dict(dict(config), ".")
        self.log_hyperparams({name: value for name, value in flat.items() if name not in known})
        client.log_text(run, _as_yaml(config), "config.yaml")
        client.log_text(run, network, "network.md")

    def add_picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Add an artifact."""
        self.experiment.log_image(str(self.run_id), picture, artifact_file=f"pictures/{name}_{step}.png")

    def add_outcome(self, choices: Mapping[str, Any], scores: Mapping[str, float], checkpoint: str) -> None:  # noqa: ARG002
        """Tag the run."""
        for name, value in {**choices, "checkpoint": checkpoint}.items():
            self.experiment.set_tag(str(self.run_id), name, value)

    def close(self, failed: bool) -> None:
        """Set the run's status; without a failure Lightning has done so."""
        if failed:
            self.finalize("failed")


def draw_precision_recall(curves: Mapping[str, Curve]) -> UInt8[np.ndarray, "h w 3"]:
    """Precision over recall, a line for each region."""
    figure = Figure(figsize=(5, 4), dpi=90, layout="constrained")
    axes = figure.subplots()
    for region, (*_, precision, recall) in curves.items():
        axes.plot(recall, precision, color=region_colour(region), label=region.upper())
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if curves:
        axes.legend(loc="lower left", frameon=False)
    return as_pixels(figure)


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _known_id(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None

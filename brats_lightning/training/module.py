"""The LightningModule: network, loss, scores and optimiser."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from brats_lightning.core.targets import Target
from brats_lightning.data.batches import DROPOUT, PatchBatch, WholeCase
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT, transfer
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.losses import DeepSupervision
from brats_lightning.metrics.official import headline_names
from brats_lightning.metrics.voxel import CaseScores, confusion_matrix, score_masks, voxel_scores
from brats_lightning.runtime import signals
from brats_lightning.runtime.collective import mean_over_processes, sum_over_processes
from brats_lightning.runtime.device import on_host


class Segmentation(pl.LightningModule):
    """A network that is trained on patches and scored on whole volumes.

    Args:
        network: (b, c, z, y, x) → logits (b, k, z, y, x); in training it may return a list, full resolution first.
        loss: of logits at one or several resolutions and the mask as the target encodes it.
        optimizer: parameters → optimiser.
        scheduler: (optimiser, step → fraction of the run completed before it) → learning-rate schedule, stepped after
            every optimiser step.
        inference: how whole volumes are predicted.
        postprocessing: probabilities to labels.
        target: what the logits mean.
        protocols: of the challenge's evaluators, whose lesion-wise scores are computed beside the voxel scores.
        config: the run's resolved config in plain containers; each checkpoint contains it, so that it holds everything
            that prediction needs.
        seen: cases that the network's weights were trained on before this run; None if they are not known.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: DeepSupervision,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer, Callable[[int], float]], LRScheduler],
        inference: SlidingWindow,
        postprocessing: Postprocessing,
        target: Target,
        protocols: Sequence[str],
        config: Mapping[str, Any],
        seen: Sequence[str] | None = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.inference, self.postprocessing = inference, postprocessing
        self.target, self.scheme, self.protocols = target, target.scheme, tuple(protocols)
        self.lesion_names = [name for protocol in self.protocols for name in headline_names(self.scheme, protocol)]
        self.config, self.seen = config, seen
        self.case_scores: dict[str, CaseScores] = {}

    def forward(self, image: Float[Tensor, "b c z y x"]) -> Any:
        """Logits of a batch of patches."""
        return self.network(image)

    # ---- training: patches

    def training_step(self, batch: PatchBatch, batch_index: int) -> Tensor:  # noqa: ARG002
        """Loss of one batch; every ``log_every_n_steps`` steps also its scores are logged."""
        torch.manual_seed(batch.seed_for(DROPOUT))  # dropout depends on the batch alone, not on earlier random numbers
        target = self.target.encode(batch.mask)
        lesions = self.loss.find_lesions(target)  # on the CPU, while the network runs
        logits = self.network(batch.image)
        parts = self._parts(logits, target, lesions)
        losses = {part: value.detach() for part, value in parts.items()}
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = bool(every) and (self.global_step + 1) % every == 0
        if logged:  # of the patches of all processes
            means = mean_over_processes(torch.stack(list(losses.values())))
            losses = dict(zip(losses, means, strict=True))
        self.log_dict({f"train/{_loss_name(part)}": value for part, value in losses.items()})
        self.log("loss", losses["loss"], prog_bar=True, logger=False)
        # Counting voxels makes the host wait for a GPU, so only for the steps that are logged.
        if logged:
            full = logits[0] if isinstance(logits, list | tuple) else logits
            confusion = confusion_matrix(batch.mask, self.target.decide(full.detach()), self.scheme.num_classes)
            scores = voxel_scores(sum_over_processes(confusion), self.scheme)
            names = ["accuracy", *(name for name in scores if name.startswith("dice_"))]
            self.log_dict({f"train/patch_{name}": scores[name] for name in names if scores[name] == scores[name]})
        return parts["loss"]

    def _parts(self, logits: Any, *reference: Any) -> dict[str, Tensor]:
        """The loss, and the parts whose sum it is."""
        loss = self.loss(logits, *reference)
        return loss if isinstance(loss, dict) else {"loss": loss}

    # ---- validation and test: whole volumes

    @property
    def _stage(self) -> str:
        return "test" if self.trainer.testing else "val"

    def on_validation_epoch_start(self) -> None:
        """Begin a table of all cases of the stage, ``val`` or ``test``."""
        cases = [case.id for case in self.trainer.datamodule.scored_cases(self._stage)]  # type: ignore[attr-defined]
        self.case_scores[self._stage] = CaseScores(cases, self.score_names).to(self.device)

    on_test_epoch_start = on_validation_epoch_start

    @property
    def score_names(self) -> list[str]:
        """The scores of each whole case: of voxels, of lesions, and the loss."""
        empty = torch.zeros((self.scheme.num_classes,) * 2, dtype=torch.int64)
        # The loss names its parts only when it is called; a few voxels are enough.
        logits = torch.zeros((1, self.target.channels, 8, 8, 8), device=self.device)
        mask = torch.zeros((1, 8, 8, 8), dtype=torch.uint8, device=self.device)
        training = self.loss.training
        self.loss.eval()  # in training, it could wait for processes that do not ask for the names
        parts = self._parts(logits, self.target.encode(mask))
        self.loss.train(training)
        return [*voxel_scores(empty, self.scheme), *self.lesion_names, *map(_loss_name, parts)]

    def validation_step(self, batch: WholeCase, batch_index: int) -> dict[str, Any] | None:  # noqa: ARG002
        """Score a case on its original grid.

        Callbacks get the class of each working voxel before post-processing, and the class probabilities, on the host.
        """
        case = batch.case
        if not batch.counted:  # a repetition, so that all processes take equally many steps
            self.case_scores[self._stage].update(case.id, None)
            return None
        logits = self.inference(self.network, batch.image, lambda _: signals.check(), self.target.background)
        parts = self._parts(logits[None], self.target.encode(batch.mask[None]))
        decided = self.target.decide(logits[None])[0]
        transform = case.transform
        working = probabilities = on_host(self.target.probabilities(logits))
        if not transform.exact:  # decoded on original voxels, as in prediction
            probabilities = transfer(probabilities, transform, case.brain)
            transform = case.brain
        found = Probabilities(probabilities, transform).rounded()  # as `predict` does, whose masks are then the same
        labels = self.postprocessing(found.values, found.transform.spacing, self.scheme)
        reference, prediction = case.reference(), found.transform.restore(labels)
        scores = score_masks(reference, prediction, transform.original.zooms, self.scheme, self.protocols)
        scores |= {_loss_name(part): value.item() for part, value in parts.items()}
        self.case_scores[self._stage].update(case.id, scores)
        return {"labels": decided, "probabilities": working}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the means over the cases."""
        stage, table = self._stage, self.case_scores[self._stage]
        counts = table.counts()
        scores = {f"{stage}/{name}": value for name, value in table.means().items()}
        scores |= {f"{stage}/cases_dice_{name}": float(counts[f"dice_{name}"]) for name in self.scheme.regions}
        # The table is already the same on every process, but without sync_dist Lightning would warn.
        self.log_dict(scores, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    # ---- optimiser and checkpoint

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser and its schedule over the whole run."""
        optimizer = self.make_optimizer(self.network.parameters())
        schedule = self.make_scheduler(optimizer, self._progress())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _progress(self) -> Callable[[int], float]:
        """Step → completed fraction of the run before it, by steps or by time, whichever is more."""
        steps = self.trainer.estimated_stepping_batches
        timers = [c for c in self.trainer.callbacks if isinstance(c, Timer) and c.time_remaining() is not None]  # type: ignore[attr-defined]
        if steps == float("inf") and not timers:
            raise ValueError(
                "a learning-rate schedule needs an end: set trainer.max_steps, trainer.max_epochs or trainer.max_time"
            )

        def progress(step: int) -> float:
            fractions = [step / max(1, steps)]
            for timer in timers:
                elapsed, remaining = timer.time_elapsed(), timer.time_remaining() or 0.0
                fractions.append(elapsed / (elapsed + max(0.0, remaining)) if elapsed else 0.0)
            fraction = min(1.0, max(fractions))
            # All processes use the same clock, since they must take the same step.
            return self.trainer.strategy.broadcast(fraction) if timers else fraction

        return progress

    def on_train_start(self) -> None:
        """Use the configured learning rate, where the resumed state has another one."""
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            optimizer = schedule.optimizer
            base = optimizer.defaults["lr"]
            before = getattr(schedule, "base_lrs", [base])
            if any(rate != base for rate in before):
                schedule.base_lrs = [base] * len(before)
                for group, rate in zip(optimizer.param_groups, before, strict=True):
                    group["initial_lr"] = base
                    group["lr"] = group["lr"] / rate * base if rate else base

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, but also with a fused optimiser unless there is a loss scaler."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip(self.network.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's config and, if it has one, its split, in plain containers; and what came before the run."""
        checkpoint |= {"format": CHECKPOINT_FORMAT, "config": dict(self.config)}
        checkpoint["seen"] = None if self.seen is None else list(self.seen)
        if (data := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            checkpoint["split"] = {part: list(names) for part, names in asdict(data.split).items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run has the past of the one that it continues."""
        self.seen = checkpoint.get("seen", ())


def _loss_name(part: str) -> str:
    return "loss" if part == "loss" else f"loss_{part}"

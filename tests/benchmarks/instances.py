"""What the losses that know lesions add to a training step."""

from collections.abc import Callable, Iterator, Sequence

import torch

from brats_lightning.config.build import build_segmentation
from brats_lightning.core.components import lesion_components
from brats_lightning.data.batches import PatchBatch
from brats_lightning.data.datamodule import CaseData
from brats_lightning.runtime.memory import keep_freed_memory
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder
from tests.benchmarks.measure import Goal, Options, Row, timed
from tests.benchmarks.workload import case_data, config

SIDE, BATCHES = 96, 4
PLAIN = "dice_focal"
LOSSES = ("cc_dice_focal", "blob", "lesion_focal")
NETWORKS = {
    "UNet 16–256": [],
    "experiment=cpu_small": ["experiment=cpu_small"],
}


def rows(options: Options) -> Iterator[Row]:
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    settings = PhantomSettings(cases=4)  # real cases may have a single lesion
    root = make_phantoms(phantom_folder(options.scratch, settings), settings)
    for title, overrides in NETWORKS.items():
        overrides = [*overrides, f"sampling.size=[{SIDE},{SIDE},{SIDE}]", "data.batch_size=1", "seed=0"]
        data = case_data(root, options.scratch / "cache", *overrides, "data.val_share=0", "data.test_share=0")
        data.prepare_data()
        data.setup("fit")
        trainer, data.trainer = data.trainer, None  # a loader for a single process
        loader = iter(data.train_dataloader())
        data.trainer = trainer
        batches = [data.on_after_batch_transfer(next(loader), 0) for _ in range(BATCHES)]
        lesions = [lesion_components(batch.mask[0].numpy(), data.scheme)[1] for batch in batches]
        steps = {
            loss: _steps(data, batches, f"loss={loss}", *overrides, f"data.root={root}") for loss in (PLAIN, *LOSSES)
        }
        for loss in LOSSES:
            yield Row(
                f"{loss} {title}",
                f"training step with loss={loss}, 96³, {title}",
                "s",
                {"ours": timed(steps[loss], BATCHES), PLAIN: timed(steps[PLAIN], BATCHES)},
                goals=[Goal(PLAIN, at_most=1.1)],
                check=lambda lesions=lesions: f"{', '.join(map(str, lesions))} lesions in the patches",
                repeats=2 * options.repeats,
                note="components beside the network's forward pass; phantoms; clipping and optimiser included",
            )


def _steps(data: CaseData, batches: Sequence[PatchBatch], *overrides: str) -> Callable[[], None]:
    """A training step on each batch."""
    module = build_segmentation(config("data=brats_mets", *overrides), data)
    network = module.network.to(memory_format=torch.channels_last_3d).train()
    optimizer = module.make_optimizer(network.parameters())

    def work() -> None:
        for batch in batches:
            target = module.target.encode(batch.mask)
            lesions = module.loss.find_lesions(target)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(batch.image)
            module.loss(logits, target, lesions)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return work

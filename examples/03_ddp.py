"""The same on several devices: prune for a zoo, then let it vote, each under DDP.

    python examples/03_ddp.py --devices 2 --accelerator cpu
    torchrun --standalone --nproc-per-node 2 examples/03_ddp.py --devices 2 --folder SOME-FOLDER

Takes under a minute on two cores. Every process runs this whole script; Lightning starts the others at the first fit.
"""

import argparse
import os
import tempfile
from pathlib import Path

import lightning as L
import rich
import torch

from lightning_mvp import MetaVoteModule, MVPCallback, TaskDataModule, TaskModule, load_data, split_tasks
from lightning_mvp.backbones.create import create_backbone

RECIPE = {
    "model": "resnet18",
    "arguments": {"layers": [1, 1, 1], "channels": [16, 32, 64], "stem_type": "deep", "stem_width": 8},
    "replace": {
        "conv1": ["Conv2d", {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "padding": 1, "bias": False}],
        "maxpool": ["Identity", {}],
        "layer4": ["Identity", {}],
    },
    "input_size": 32,
    "in_chans": 3,
}
BATCH_SIZE = 32  # of each device


def train(
    options: argparse.Namespace, module: L.LightningModule, data: TaskDataModule, steps: int, *callbacks: L.Callback
) -> L.Trainer:
    """`steps` are optimizer steps, whatever the number of devices: one step is made from one global batch."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        enable_progress_bar=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def from_all_ranks(trainer: L.Trainer, value: str) -> list[str]:
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def main(options: argparse.Namespace, folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    characters = load_data("glyphs", per_class_train=30, per_class_val=4, per_class_test=25)
    tasks = split_tasks(characters.classes, classes_per_task=5, sources=3, targets=1)

    # The loader splits an epoch's images among the ranks, so an epoch has fewer steps on more devices. The same
    # learning rate is safe; more devices learn as much per image only if it grows with the global batch. These rates
    # were chosen for batches of 64.
    global_batch = options.devices * BATCH_SIZE
    scale = global_batch / 64

    everything = TaskDataModule(characters, tasks.seen, "pretrain", batch_size=BATCH_SIZE, augment="none")
    pretraining = TaskModule.for_task(create_backbone(RECIPE), everything.facts, learning_rate=0.2 * scale)
    train(options, pretraining, everything, 100)
    # Batch-norm statistics differ between ranks; every fit below starts from rank 0's, because DDP copies them.
    theta0 = pretraining.backbone.state_dict()

    for task in tasks.source:
        data = TaskDataModule(characters, task.classes, task.name, batch_size=BATCH_SIZE)
        backbone = create_backbone(RECIPE)
        backbone.load_state_dict(theta0)
        module = TaskModule.for_task(backbone, data.facts, learning_rate=0.05 * scale)
        module.initialise_head(data)
        pruning = MVPCallback(pruning_ratio=0.6, rounds=4, head="head", task=data.facts, zoo=folder / "zoo")
        trainer = train(options, module, data, 30, pruning)
        fingerprints = from_all_ranks(trainer, pruning.masks.fingerprint)
        assert len(set(fingerprints)) == 1, "ranks pruned differently"
        if trainer.is_global_zero:
            removed, masks = f"{pruning.masks.pruning_ratio:.0%}", fingerprints[0][:12]
            rich.print(f"{task.name}: {removed} of units removed; masks {masks} on all {len(fingerprints)} rank(s).")

    new = tasks.target[0]
    data = TaskDataModule(characters, new.classes, new.name, batch_size=BATCH_SIZE)
    # Rank 0 opens the zoo, votes and says so. The others wait: `module.backbone` exists there once fit has started.
    module = MetaVoteModule.from_zoo(folder / "zoo", data, neighbours=2, learning_rate=0.05 * scale)
    trainer = train(options, module, data, 30)
    if trainer.is_global_zero:
        accuracy, report = module.accuracy_on(*data.test_images()), module.report
        rich.print(
            f"{new.name}: {accuracy:.1%} after 30 steps; {report['parameters']:,} of {report['dense_parameters']:,} "
            f"parameters, {report['macs']:,} of {report['dense_macs']:,} MACs."
        )
        rich.print(
            f"Global batch {global_batch} = {options.devices} device(s) × {BATCH_SIZE} images; learning rates were "
            f"scaled by {scale:g}."
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--accelerator", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--folder", type=Path, help="of the zoo, the same for all processes; default: a temporary one")
    arguments = parser.parse_args()
    # Processes that Lightning starts inherit the environment of the first, and so its folder.
    given = arguments.folder or os.environ.get("EXAMPLE_FOLDER")
    if given is not None:
        main(arguments, Path(given))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["EXAMPLE_FOLDER"] = temporary
            main(arguments, Path(temporary))

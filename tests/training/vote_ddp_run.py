"""What test_vote_ddp.py and test_resume.py run in two processes: ``vote_ddp_run <folder> <scene> <strategy>``.

Each process writes what it saw to ``<folder>/<moment>-<global rank>.json``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_mvp import MetaVoteModule, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.fitting.fit import make_trainer

from ..callbacks.user import RECIPE
from .conftest import CLASSES, TARGET, ImageData, part

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}


def weights(module: L.LightningModule) -> str:
    return fingerprint(module.state_dict())


def parameters(module: L.LightningModule) -> str:
    """Without batch-norm statistics: DDP gives rank 0's to all before a forward, in which each rank changes its own."""
    return fingerprint(dict(module.named_parameters()))


def datamodule() -> TaskDataModule:
    data = ImageData("colours", CLASSES, part(16, 0), part(4, 1), part(8, 2))
    return TaskDataModule(data, tuple(TARGET), "target", batch_size=6, augment="crop")


class Watched(MetaVoteModule):
    """Writes what each rank has once the model is configured (before DDP wraps it), and after fit."""

    folder: Path

    def write(self, moment: str, **more: Any) -> None:
        said = {
            "weights": weights(self),
            "parameters": parameters(self),
            "hparams": dict(self.hparams),
            "initial": dict(self.hparams_initial),
            "report": self.report,
            "classes": self.facts.classes,
            "teacher": self.teacher and fingerprint(self.teacher.backbone.state_dict()),
            "features": self.teacher and self.teacher.kept is not None and self.teacher.kept.tolist(),
            "frozen": [name for name, parameter in self.named_parameters() if not parameter.requires_grad],
            "strides": [parameter.stride() for parameter in self.parameters()],
            **more,
        }
        (self.folder / f"{moment}-{self.global_rank}.json").write_text(json.dumps(said))

    def configure_model(self) -> None:
        waited, state = self.waits, torch.get_rng_state()
        super().configure_model()
        moment = "again" if (self.folder / f"configured-{self.global_rank}.json").exists() else "configured"
        self.write(moment, waited=waited, drew=not torch.equal(state, torch.get_rng_state()))

    def on_fit_end(self) -> None:
        self.write("fitted", steps=self.trainer.global_step)


def vote(folder: Path, strategy: str) -> None:
    """Rank 0 votes, the others can't: their zoo doesn't exist."""
    rank, data = rank_zero_only.rank, datamodule()
    zoo = folder / ("zoo" if rank == 0 else "nowhere")
    module = Watched.from_zoo(zoo, data, neighbours=2, learning_rate=0.02, mimic=2)
    module.folder = folder
    if rank == 0:
        module.head.bias.requires_grad_(False)
        (folder / "eager.json").write_text(json.dumps([module.accuracy_on(*data.test_images()), weights(module)]))
    trainer = make_trainer(4, devices=2, strategy=strategy, **QUIET)
    trainer.fit(module, datamodule=data)
    if strategy != "ddp_spawn":
        trainer.validate(module, datamodule=data, verbose=False)


def touch(folder: Path, strategy: str) -> None:
    """A person forgets that only rank 0 has voted."""
    module = MetaVoteModule.from_zoo(folder / "zoo", datamodule(), neighbours=2)
    trainer = make_trainer(4, devices=2, strategy=strategy, **QUIET)
    module.accuracy_on(*datamodule().test_images())
    trainer.fit(module, datamodule=datamodule())


def unaware(folder: Path, strategy: str) -> None:
    """Nothing in the environment says which rank this is, as under MPI: each votes, rank 1 for other widths."""
    rank, rank_zero_only.rank = rank_zero_only.rank, 0
    module = Watched.from_zoo(folder / "zoo", datamodule(), neighbours=2, pruning_ratio=0.75 if rank else 0.5)
    module.folder = folder
    pruning = MVPCallback(pruning_ratio=0.5, rounds=1, steps_per_round=2, head="head")
    make_trainer(4, [pruning], devices=2, strategy=strategy, **QUIET).fit(module, datamodule=datamodule())
    kept = {group: int(mask.sum()) for group, mask in pruning.masks.items()}
    (folder / f"pruned-{module.global_rank}.json").write_text(json.dumps([pruning.groups.sizes, kept]))


def nobody(folder: Path, strategy: str) -> None:
    """Every process takes itself for rank 1."""
    rank_zero_only.rank = 1
    module = MetaVoteModule.from_zoo(folder / "zoo", datamodule(), neighbours=2)
    make_trainer(4, devices=2, strategy=strategy, **QUIET).fit(module, datamodule=datamodule())


def slow(folder: Path, strategy: str) -> None:
    """Rank 0 takes longer to vote than the others would wait for it, before there is a process group, and once more."""
    initialise = MetaVoteModule.initialise_head

    def late(*arguments: Any, **options: Any) -> None:
        time.sleep(3)
        initialise(*arguments, **options)

    MetaVoteModule.initialise_head = late  # type: ignore[method-assign]
    impatient = DDPStrategy(timeout=timedelta(seconds=2))
    trainer = make_trainer(1, devices=2, strategy=impatient, **QUIET)
    for _ in range(2):
        module = MetaVoteModule.from_zoo(folder / "zoo", datamodule(), neighbours=2)
        trainer.test(module, datamodule=datamodule(), verbose=False)


class SaveAt(L.Callback):
    """Writes a checkpoint once so many steps are done."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def resume(folder: Path, strategy: str) -> None:
    """A whole run, then runs from the checkpoint of its middle with modules of other widths."""
    options = {"devices": 2, "strategy": strategy, **QUIET}
    module = MetaVoteModule.from_zoo(folder / "zoo", datamodule(), neighbours=2)
    trainer = make_trainer(10, [SaveAt(6, folder / "six.ckpt")], **options)
    trainer.fit(module, datamodule=datamodule())
    said = {"whole": weights(module), "parameters": parameters(module)}
    others: dict[str, Callable[[], TaskModule]] = {
        "voted": lambda: MetaVoteModule.from_zoo(folder / "zoo", datamodule(), neighbours=3, pruning_ratio=0.75),
        "dense": lambda: TaskModule.for_task(create_backbone(RECIPE), datamodule().facts),
    }
    for name, make in others.items():
        torch.manual_seed(len(said))
        again = make()
        make_trainer(10, **options).fit(
            again, datamodule=datamodule(), ckpt_path=folder / "six.ckpt", weights_only=True
        )
        said[name] = weights(again)
        assert again.hparams["recipe"] == module.hparams["recipe"]
    (folder / f"resumed-{trainer.global_rank}.json").write_text(json.dumps(said))


SCENES = {scene.__name__: scene for scene in (vote, touch, unaware, nobody, slow, resume)}


def main(folder: str, scene: str, strategy: str = "ddp") -> None:
    SCENES[scene](Path(folder), strategy)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

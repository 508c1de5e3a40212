"""What test_ddp.py runs in two processes: ``ddp_run <folder> <case>[,<case>] [strategy]``; the cases are in CASES."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mvp import create_backbone
from tests.callbacks.kill_run import Trace
from tests.callbacks.user import FACTS, VIT_RECIPE, UserModule, callback, loader, make_trainer


class Failing(UserModule):
    """One rank can't go on in the fourth step; the file ``failed`` says when that was."""

    def __init__(self, failing: int, folder: Path) -> None:
        super().__init__()
        self.failing, self.folder = failing, folder

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 3 and self.global_rank == self.failing:
            (self.folder / "failed").touch()
            raise RuntimeError(f"rank {self.failing} met a bad image")
        return super().training_step(batch, batch_idx)


class OwnGradients(UserModule):
    """Rank 1 gets gradients of its own after DDP has averaged them."""

    def on_after_backward(self) -> None:
        if self.global_rank == 1:
            for parameter in self.net.parameters():
                parameter.grad = torch.randn_like(parameter)


class FullDisk(L.Callback):
    """Once training is over, rank 0 can write no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        def fsync(_: Any) -> NoReturn:
            (self.folder / "failed").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if trainer.is_global_zero:
            os.fsync = fsync  # type: ignore[assignment]


def agree(folder: Path, strategy: str) -> None:
    """Uneven batches and accumulated gradients: 25 images a rank make 5 batches, the last of one, and 3 steps."""
    mvp = callback(head="classifier", task=FACTS, zoo=folder / "zoo")
    trainer = make_trainer(
        mvp, Trace(folder, mvp), max_steps=8, devices=2, strategy=strategy, accumulate_grad_batches=2
    )
    trainer.fit(UserModule(), DataLoader(loader(batches=5, batch_size=10).dataset, 6))


def fail(folder: Path, strategy: str, module: Callable[[], UserModule], *callbacks: L.Callback) -> None:
    mvp = callback(head="classifier", task=FACTS, zoo=folder / "zoo", seed=1)
    make_trainer(mvp, *callbacks, max_steps=8, devices=2, strategy=strategy).fit(module(), loader(batches=16))


def one_decision(folder: Path, devices: int, strategy: str) -> None:
    """From the gradients of the same 12 images, in float64, without batch norm."""
    mvp = callback(head="classifier", rounds=1, steps_per_round=1, example_input=None)
    trainer = make_trainer(mvp, max_steps=1, devices=devices, strategy=strategy, precision="64-true")
    torch.manual_seed(0)
    module = UserModule(create_backbone(VIT_RECIPE))
    trainer.fit(module, DataLoader(loader(batches=1, batch_size=12).dataset, 12 // devices))
    (folder / f"masks{devices}-{trainer.global_rank}").write_text(mvp.masks.fingerprint)


def decide(folder: Path, strategy: str) -> None:
    one_decision(folder, 2, strategy)


CASES: dict[str, Callable[[Path, str], None]] = {
    "agree": agree,
    "decide": decide,
    "own-gradients": lambda folder, strategy: fail(folder, strategy, OwnGradients),
    "rank-0": lambda folder, strategy: fail(folder, strategy, lambda: Failing(0, folder)),
    "rank-1": lambda folder, strategy: fail(folder, strategy, lambda: Failing(1, folder)),
    "full-disk": lambda folder, strategy: fail(folder, strategy, UserModule, FullDisk(folder)),
}


def main(folder: str, cases: str, strategy: str = "ddp") -> None:
    for name in cases.split(","):
        CASES[name](Path(folder), strategy)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

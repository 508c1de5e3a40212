"""What test_kills.py runs: a training that is killed again and again, and goes on each time from its checkpoints.

``main(folder, "NAME=BACKBONE*DEVICES[,STEP:HOW ...]", ...)``, in the nursery: each run in a folder of its name, with
the kills in their order, for example ``whole=resnet*1 killed=resnet*1,3:round``.

``HOW`` is ``step`` (the optimizer has stepped, no callback has seen it), ``round`` (MVPCallback is done with the step,
nothing is saved), ``saved`` (before the next step), in the writing of a checkpoint: ``half`` (of its bytes are there),
``move`` (all are there, under another name), ``torn`` (the move is a copy across file systems, half done), each also
with ``last-`` before it (not of the first checkpoint of this step, but of ``last.ckpt``), or ``entry`` (of the zoo).
``ctrl-c-step``, ``ctrl-c-round`` and ``ctrl-c-saved`` are the same moments, interrupted as from a keyboard.
Every life is a fork of a process that has only imported, so it knows nothing but the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_mvp import ImageData, MVPCallback, TaskDataModule, TaskModule, create_backbone

from ..nursery import fork, ranks_of, wait
from .user import RECIPE, VIT_RECIPE

# Dropout of all kinds: what is drawn depends on torch's generator, and on which process draws.
DROPOUT = {
    "resnet": {"drop_path_rate": 0.1},
    "vit": {"drop_path_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1},
}
RECIPES = {
    name: {**recipe, "arguments": {**recipe["arguments"], **DROPOUT[name]}}
    for name, recipe in (("resnet", RECIPE), ("vit", VIT_RECIPE))
}
STEPS, STEPS_PER_ROUND, ROUNDS = 14, 3, 3  # rounds after steps 3, 6 and 9; an epoch has 5 steps
SAVE_EVERY = 2


def digest(tensors: Mapping[str, Tensor]) -> str:
    """One hash of tensors: equal only if all are, bit for bit."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, and its rates."""
    state = optimizer.state_dict()
    tensors = {f"{key}.{name}": value for key, each in state["state"].items() for name, value in each.items()}
    tensors |= {f"rate {index}": group["lr"] for index, group in enumerate(state["param_groups"])}
    return {name: torch.as_tensor(value) for name, value in tensors.items() if value is not None}


class Trace(L.Callback):
    """Writes down after every step what must be the same in a run that was killed; one line a step, one file a rank."""

    def __init__(self, folder: Path, mvp: MVPCallback) -> None:
        self.folder, self.mvp = folder, mvp

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pruner = self.mvp.pruner
        line = {
            "step": trainer.global_step,
            "mvp step": self.mvp.step,
            "masks": self.mvp.masks.fingerprint,
            "parameters": digest(dict(pl_module.named_parameters())),
            "state": digest(pl_module.state_dict()),
            "optimizer": digest(optimizer_tensors(trainer.optimizers[0])),
            "sums": digest({**pruner.criterion.sums, "count": torch.as_tensor(pruner.criterion.count)}),
            "importance": digest(pruner.importance),
        }
        with (self.folder / f"trace{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def die(*_: Any) -> NoReturn:
    """Die as by ``kill -9``: no handler, no flush, no ``finally``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def die_while_saving(how: str) -> None:
    """Let this process die in one of the checkpoints that it is about to write."""
    how, last = how.removeprefix("last-"), how.startswith("last-")
    write, commit, files = LocalFileOpener.write, LocalFileOpener.commit, count()

    def half_write(file: LocalFileOpener, data: bytes) -> int:
        if next(files) < last:
            return write(file, data)
        write(file, data[: len(data) // 2])
        file.flush()
        die()

    def no_move(file: LocalFileOpener) -> None:
        if next(files) < last:
            return commit(file)
        file.f.close()
        if how == "torn":
            Path(file.path).write_bytes(Path(file.temp).read_bytes()[:-1000])
        die()

    if how == "half":
        LocalFileOpener.write = half_write
    else:
        LocalFileOpener.commit = no_move


class Kill(L.Callback):
    """Ends the process at its moment of the step; two are in the Trainer, before and after MVPCallback."""

    def __init__(self, step: int, how: str, before_pruning: bool) -> None:
        self.step, self.how, self.before_pruning = step, how.removeprefix("ctrl-c-"), before_pruning
        self.signal = signal.SIGINT if how.startswith("ctrl-c-") else signal.SIGKILL

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.how == "saved" and self.before_pruning and trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self.step or self.before_pruning != (self.how == "step"):
            return
        if self.how in ("step", "round"):
            os.kill(os.getpid(), self.signal)
        elif self.how not in ("saved", "entry") and trainer.is_global_zero:
            die_while_saving(self.how)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.how == "entry" and trainer.is_global_zero:
            os.link = die  # type: ignore[assignment]  # how an entry gets its name


def colours() -> ImageData:
    """Coloured noise in six classes: the data of the modules' tests."""
    from ..training.conftest import CLASSES, part

    return ImageData("colours", CLASSES, part(16, 0), part(4, 1), part(8, 2))


def newest_checkpoint(folder: Path) -> Path | None:
    """What a person would resume from: the newest checkpoint that can be read."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError):  # a copy across file systems was interrupted
            path.rename(path.with_suffix(".torn"))
        else:
            return path
    return None


def train(folder: Path, backbone: str, devices: int, kill: tuple[int, str] | None) -> L.Trainer:
    """One life of the run: it goes on from the folder's newest checkpoint, and ends or dies."""
    torch.set_num_threads(1)
    checkpoint, rank = newest_checkpoint(folder / "checkpoints"), int(os.environ.get("LOCAL_RANK", 0))
    # What a resumed run draws or starts with must come from its checkpoint, so the seed is another.
    L.seed_everything(rank if checkpoint is None else 1000 * os.getpid(), verbose=False)
    data = TaskDataModule(colours(), tuple("acd"), "kills", batch_size=10 // devices, augment="crop")
    module = TaskModule.for_task(
        create_backbone(RECIPES[backbone]), data.facts, optimizer="sgd" if backbone == "resnet" else "adamw"
    )
    mvp = MVPCallback(
        pruning_ratio=0.5,
        rounds=ROUNDS,
        steps_per_round=STEPS_PER_ROUND,
        head="head",
        task=data.facts,
        zoo=folder / "zoo",
    )
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=SAVE_EVERY)
    callbacks = [mvp, Trace(folder, mvp), saving]
    if kill is not None:
        callbacks = [Kill(*kill, before_pruning=True), *callbacks[:2], Kill(*kill, before_pruning=False), saving]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        deterministic=True,
        max_steps=STEPS,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def start(folder: Path, backbone: str, devices: int, kill: tuple[int, str] | None) -> list[int]:
    """Start one process per device, as a launcher would; their ids."""
    return [
        fork(lambda: train(folder, backbone, devices, kill), folder / f"rank{rank}.log", told)
        for rank, told in enumerate(ranks_of(devices))
    ]


def main(folder: str, *runs: str) -> None:
    for run in runs:
        name, _, plan = run.partition("=")
        model, *kills = plan.split(",")
        backbone, devices = model.split("*")
        (Path(folder) / name).mkdir(parents=True)
        for kill in [*kills, None]:
            when = None if kill is None else (int(kill.split(":")[0]), kill.split(":")[1])
            ends = wait(start(Path(folder) / name, backbone, int(devices), when))
            entries = len(list((Path(folder) / name / "zoo" / "tasks").glob("*.safetensors")))
            print(json.dumps({"run": name, "kill": kill, "ends": ends, "entries": entries}), flush=True)

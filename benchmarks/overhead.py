"""What a training step costs with MVPCallback, next to Lightning's ModelPruning and to Torch-Pruning.

    python benchmarks/overhead.py --backbone all --json overhead.json

One module, one Trainer configuration, the same batches; only the callback differs. A repetition trains each variant for
two epochs: the first ends with a round; in the second steps are timed, while masks are active and scores are taken for
the next round. Each variant has a Trainer in a thread of its own, and they take turns step by step, in random order, so
that every step has a plain step beside it, whatever else the machine does. `plain, again` shows what is left of noise.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import platform
import random
import statistics
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch_pruning as tp
from lightning.pytorch.callbacks import ModelPruning
from omegaconf import OmegaConf
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_mvp import MVPCallback, create_backbone, find_groups

BATCH_SIZES = {"resnet_mini": 128, "vit_tiny": 32}
VARIANTS = ("plain", "plain, again", "MVPCallback", "ModelPruning", "Torch-Pruning")
CLASSES = 10
WARMUP_STEPS = 2  # of the timed epoch
PRUNING_RATIO = 0.5  # in two rounds: the timed steps lie between them
FIRST_ROUND = 1 - math.sqrt(1 - PRUNING_RATIO)
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
TRAINER: Any = {"accelerator": "cpu", "max_epochs": 2, **QUIET}

# The work that is the same for all ------------------------------------------------------------------------------------


class Classifier(L.LightningModule):
    """A backbone, a head and a cross-entropy: an ordinary module that knows nothing of pruning."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = create_backbone(recipe)
        self.head = nn.Linear(int(self.backbone.num_features), CLASSES)  # type: ignore[arg-type]
        self.example_input_array: Any = torch.zeros(2, 3, recipe["input_size"], recipe["input_size"])
        self.convolutional = "resnet" in recipe["model"]
        if self.convolutional:
            self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.convolutional:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def ready_batches(count: int, batch_size: int, size: int, channels_last: bool) -> DataLoader:
    """Batches made beforehand, up to four that take turns: fetching one costs next to nothing."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    labels = torch.arange(batch_size) % CLASSES
    images = [torch.randn(batch_size, 3, size, size).to(memory_format=layout) for _ in range(min(4, count))]
    return DataLoader([(images[i % len(images)], labels) for i in range(count)], batch_size=None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Work:
    """What every variant trains, and which part of it is pruned."""

    recipe: dict[str, Any]
    weights: list[str]  # names of the layers whose outputs are MVPCallback's units
    ignored: list[str]  # layers whose outputs it leaves alone: the head, and a ViT's residual stream under LayerNorm
    attention: list[str]  # modules whose heads are units
    groups: int  # how many it scores


def work_of(backbone: str) -> Work:
    """The shipped recipe and what MVPCallback prunes in it; a ViT's images have 64 pixels instead of 224."""
    path = files("lightning_mvp.conf").joinpath("backbone", f"{backbone}.yaml")
    config = OmegaConf.create(path.read_text(encoding="utf-8")).recipe
    if backbone == "vit_tiny":
        config.input_size = config.arguments.img_size = 64
    recipe: Any = OmegaConf.to_container(config)
    module = Classifier(recipe)
    groups = find_groups(module.backbone, module.example_input_array)
    producers = [f"backbone.{m.tensor}" for group in groups for m in group.members if m.role == "producer"]
    return Work(
        recipe=recipe,
        weights=[name.removesuffix(".weight") for name in producers if name.endswith(".weight")],
        ignored=["head"] if module.convolutional else ["head", "backbone.patch_embed.proj"],
        attention=[f"backbone.{group.name.removesuffix('.heads')}" for group in groups if group.kind == "heads"],
        groups=len(groups),
    )


# The variants ---------------------------------------------------------------------------------------------------------


class TimedMVP(MVPCallback):
    """MVPCallback that notes how long its round takes: scores averaged, units chosen, masks applied and hashed."""

    round_seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        start = time.perf_counter()
        super().on_train_batch_end(trainer, *arguments, **more)
        if trainer.is_last_batch and trainer.current_epoch == 0:
            assert self.masks.fingerprint  # a single process doesn't compare it with other ranks, but they would
            self.round_seconds = time.perf_counter() - start


class TimedModelPruning(ModelPruning):
    """Lightning's callback: norms of rows, a mask for each weight, and weight = original × mask in each forward."""

    round_seconds = 0.0

    def apply_pruning(self, amount: int | float) -> None:
        start = time.perf_counter()
        super().apply_pruning(amount)
        self.round_seconds = self.round_seconds or time.perf_counter() - start


class TorchPruning(L.Callback):
    """Torch-Pruning at MVPCallback's work: Taylor scores of each step's gradients, added up over the steps.

    It has no masks to apply. Its round is one `pruner.step()` on a copy, which scores once more and cuts the copy.
    """

    round_seconds = 0.0

    def __init__(self, work: Work) -> None:
        self.work = work

    def _pruner(self, module: Any) -> tp.pruner.BasePruner:
        # Not the LightningModule itself: Torch-Pruning would follow its reference to the Trainer.
        model = nn.Sequential(module.backbone, module.head)
        attention: list[Any] = [module.get_submodule(name) for name in self.work.attention]
        pruner = tp.pruner.BasePruner(
            model,
            (module.example_input_array.clone().requires_grad_(),),  # a bare batch would be taken apart
            tp.importance.GroupTaylorImportance(),
            pruning_ratio=FIRST_ROUND,
            ignored_layers=[module.get_submodule(name) for name in self.work.ignored],
            num_heads={layer.qkv: layer.num_heads for layer in attention},
            in_channel_groups={},  # these two default to dictionaries that all pruners would share and fill
            out_channel_groups={},
            prune_num_heads=bool(attention),
            prune_head_dims=False,
            head_pruning_ratio=FIRST_ROUND,
        )
        model.train()  # building the graph leaves it in eval mode
        return pruner

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pruner = self._pruner(pl_module)
        groups = self.pruner.DG.get_all_groups(self.pruner.ignored_layers, self.pruner.root_module_types)
        # Attention is read from its projection, as the pruner does in its own step.
        self.groups = [self.pruner._downstream_node_as_root_if_attention(group) or group for group in groups]
        assert len(self.groups) == self.work.groups, "Torch-Pruning would do other work"
        self.sums: list[Tensor | float] = [0.0] * len(self.groups)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.sums = [
            total + self.pruner.estimate_importance(group) for total, group in zip(self.sums, self.groups, strict=True)
        ]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch > 0:
            return
        copy = Classifier(self.work.recipe)
        copy.load_state_dict(pl_module.state_dict())
        for parameter, other in zip(copy.parameters(), pl_module.parameters(), strict=True):
            parameter.grad = other.grad
        pruner = self._pruner(copy)
        start = time.perf_counter()
        pruner.step()
        self.round_seconds = time.perf_counter() - start


def callbacks_of(variant: str, module: Classifier, work: Work, epoch_steps: int) -> list[L.Callback]:
    """What a variant adds to the Trainer; its first round falls at the end of the first epoch."""
    if variant == "MVPCallback":
        return [TimedMVP(pruning_ratio=PRUNING_RATIO, rounds=2, steps_per_round=epoch_steps, head="head")]
    if variant == "ModelPruning":
        return [
            TimedModelPruning(
                "ln_structured",
                [(module.get_submodule(name), "weight") for name in work.weights],
                use_global_unstructured=False,
                amount=FIRST_ROUND,
                use_lottery_ticket_hypothesis=False,
                pruning_dim=0,
                pruning_norm=2,
            )
        ]
    return [TorchPruning(work)] if variant == "Torch-Pruning" else []


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """What one variant took in one repetition."""

    variant: str
    repetition: int
    wall_ms: list[float] = field(default_factory=list)  # of each timed step, by the clock on the wall
    cpu_ms: list[float] = field(default_factory=list)  # the same by the process's time on its CPUs
    setup_seconds: float = 0.0  # from calling `fit` to the first batch
    round_ms: float = 0.0  # of the first round
    zeros: float = 0.0  # share of the pruned layers' weights that were zero in the timed steps


class Runner(L.Callback):
    """Trains one variant in a thread, one step at a time, and times steps.

    A step lasts from the start of one batch to the start of the next: hooks, optimizer and data are all inside.
    """

    def __init__(self, block: Block, work: Work, batch_size: int, options: argparse.Namespace) -> None:
        self.block, self.work, self.batch_size, self.options = block, work, batch_size, options
        self.epoch_steps = WARMUP_STEPS + options.steps + 1  # the last step of an epoch is not timed: a round is in it
        self.wall = self.cpu = 0.0  # when the step began
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        threading.Thread(target=self._train, daemon=True).start()

    def turn(self) -> None:
        """Set up, or do one step, while the others wait; a training that fails raises here."""
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            raise RuntimeError(f"Training {self.block.variant!r} failed.") from self.error

    def _train(self) -> None:
        self.go.acquire()
        try:
            torch.set_num_threads(self.options.threads)  # holds for the thread that says so
            L.seed_everything(self.options.seed, verbose=False)
            module, size = Classifier(self.work.recipe), self.work.recipe["input_size"]
            loader = ready_batches(self.epoch_steps, self.batch_size, size, module.convolutional)
            callbacks = callbacks_of(self.block.variant, module, self.work, self.epoch_steps)
            trainer = L.Trainer(precision=self.options.precision, callbacks=[self, *callbacks], **TRAINER)
            self.wall = time.perf_counter()
            trainer.fit(module, loader)
            self.block.round_ms = sum(getattr(callback, "round_seconds", 0.0) for callback in callbacks) * 1e3
        except BaseException as error:
            self.error = error
        finally:
            self.done.release()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        if trainer.global_step == 0:
            self.block.setup_seconds = wall
        elif trainer.current_epoch == 1 and index > WARMUP_STEPS:
            self.block.wall_ms.append(wall * 1e3)
            self.block.cpu_ms.append(cpu * 1e3)
        elif trainer.current_epoch == 1 and index == WARMUP_STEPS:
            pruned: list[Any] = [pl_module.get_submodule(name).weight for name in self.work.weights]
            zeros = sum(int((weight == 0).sum()) for weight in pruned)
            self.block.zeros = zeros / sum(weight.numel() for weight in pruned)
        self.done.release()
        self.go.acquire()
        self.wall, self.cpu = time.perf_counter(), time.process_time()


def run_repetition(repetition: int, work: Work, batch_size: int, options: argparse.Namespace) -> list[Block]:
    """Train all variants, step by step in turns."""
    order = random.Random(1000 * options.seed + repetition)
    runners = [Runner(Block(variant, repetition), work, batch_size, options) for variant in VARIANTS]
    for _ in range(1 + 2 * runners[0].epoch_steps):
        for runner in order.sample(runners, len(runners)):
            runner.turn()
    gc.collect()  # Trainers and modules refer to each other
    return [runner.block for runner in runners]


def run(backbone: str, batch_size: int, options: argparse.Namespace) -> list[Block]:
    """All repetitions, each with new Trainers: where things lie in memory is drawn anew."""
    work = work_of(backbone)
    repetitions = track(range(options.repetitions), backbone, console=Console(stderr=True))
    return [block for i in repetitions for block in run_repetition(i, work, batch_size, options)]


# Reporting ------------------------------------------------------------------------------------------------------------


def ratios(blocks: Sequence[Block], variant: str, clock: str) -> list[float]:
    """For each repetition the median of step over plain step of the same turn; ``clock`` is "wall_ms" or "cpu_ms"."""
    times = {(block.variant, block.repetition): np.asarray(getattr(block, clock)) for block in blocks}
    return [float(np.median(times[variant, i] / times["plain", i])) for i in sorted({i for _, i in times})]


def bootstrap_interval(values: Sequence[float], seed: int, samples: int = 10_000) -> tuple[float, float]:
    """95 % interval of the median over resampled repetitions."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values), (samples, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def summarise(blocks: Sequence[Block], seed: int) -> dict[str, dict[str, Any]]:
    """Medians over repetitions for each variant; ratios are to plain, with their 95 % intervals."""
    summary: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        own = [block for block in blocks if block.variant == variant]
        row = summary[variant] = {"step_ms": statistics.median(statistics.median(block.wall_ms) for block in own)}
        for clock in ("wall", "cpu"):
            values = ratios(blocks, variant, f"{clock}_ms")
            low, high = bootstrap_interval(values, seed)
            row[clock] = {"ratio": statistics.median(values), "low": low, "high": high}
        for what in ("setup_seconds", "round_ms", "zeros"):
            row[what] = statistics.median(getattr(block, what) for block in own)
    return summary


def show(summary: dict[str, dict[str, Any]]) -> None:
    """Print what a step costs, then what setting up and one round cost."""
    steps = Table("variant", "ms a step", "time / plain", "CPU time / plain", "weights at zero", box=MARKDOWN)
    once = Table("variant", "setting up, s", "a round, ms", box=MARKDOWN)
    for variant, row in summary.items():
        wall, cpu = ("{ratio:.3f} [{low:.3f}, {high:.3f}]".format_map(row[clock]) for clock in ("wall", "cpu"))
        steps.add_row(variant, f"{row['step_ms']:.1f}", wall, cpu, f"{row['zeros']:.0%}")
        once.add_row(variant, f"{row['setup_seconds']:.2f}", f"{row['round_ms']:.1f}" if row["round_ms"] else "")
    Console(width=100, highlight=False).print(steps, once, markup=False)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", choices=[*BATCH_SIZES, "all"], default="all")
    parser.add_argument("--repetitions", type=int, default=20, help="blocks of each variant (default: 20)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps in a block (default: 6)")
    parser.add_argument("--batch-size", type=int, help="default: 128 for resnet_mini, 32 for vit_tiny")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data, order and bootstrap (default: 0)")
    parser.add_argument("--json", type=Path, help="write settings, versions and every measurement here")
    parser.add_argument("--smoke", action="store_true", help="half a minute; its figures mean nothing")
    options = parser.parse_args(arguments)
    for name in ("repetitions", "steps", "threads", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"Expected --{name.replace('_', '-')} to be an integer of at least 1, but got {value}.")
    if options.smoke:
        options.repetitions, options.steps, options.batch_size = 2, 1, 4
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    results = {}
    for backbone in BATCH_SIZES if options.backbone == "all" else (options.backbone,):
        batch_size = options.batch_size or BATCH_SIZES[backbone]
        blocks = run(backbone, batch_size, options)
        summary = summarise(blocks, options.seed)
        plain = [block for block in blocks if block.variant == "plain"]
        busy = sum(sum(block.wall_ms) for block in plain) / sum(sum(block.cpu_ms) for block in plain)
        print(f"{backbone}, batch {batch_size}, {options.precision}, {options.threads} thread(s)")
        print(f"wall time over CPU time of the plain steps (1.0: nobody else on the machine): {busy:.2f}")
        show(summary)
        measured = [asdict(block) for block in blocks]
        results[backbone] = {"batch_size": batch_size, "busy": busy, "summary": summary, "blocks": measured}
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "batch_size")}
        versions = {name: version(name) for name in ("lightning-mvp", "lightning", "torch", "torch-pruning", "timm")}
        report = {"settings": settings, "versions": versions, "python": platform.python_version(), "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

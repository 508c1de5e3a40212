"""A run in one picture: the units that are left, and accuracy, over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure
from typing_extensions import override

from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.pictures import LINES, MOST_SERIES, PALETTE, QUIET, VOTE, label_ends, page, save_beside, styled


class RunPicture(L.Callback):
    """Draws what an `MVPCallback` did when fit ends; nothing is decided by it, and no step is slower.

    Metrics whose names contain ``acc`` are drawn as they are logged: those that begin with ``train`` when an epoch
    ends, all others when validation ends.

    Args:
        path: the PNG file; what is there is replaced. None: ``pruning.png`` in the Trainer's ``default_root_dir``.

    Example:
        >>> from lightning_mvp import MVPCallback, RunPicture
        >>> trainer = L.Trainer(callbacks=[MVPCallback(pruning_ratio=0.5), RunPicture("run.png")], logger=False)
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path
        # Step, round and fraction of units left after each round; name → step and value of each metric.
        self.kept: list[tuple[int, int, float]] = [(0, 0, 1.0)]
        self.accuracy: dict[str, list[tuple[int, float]]] = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        accuracy = {name: [list(point) for point in points] for name, points in self.accuracy.items()}
        return {"kept": [list(point) for point in self.kept], "accuracy": accuracy}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = [(int(step), int(round_), float(kept)) for step, round_, kept in state_dict["kept"]]
        self.accuracy = {
            name: [(int(step), float(value)) for step, value in points]
            for name, points in state_dict["accuracy"].items()
        }

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        PruningState.beside(self, trainer)  # refused without one, before any step
        if trainer.global_step == 0:  # a second fit is drawn by itself, a resumed one goes on
            self.kept, self.accuracy = [(0, 0, 1.0)], {}

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        pruning = PruningState.beside(self, trainer)
        if pruning.rounds_done > self.kept[-1][1]:
            self.kept.append((trainer.global_step, pruning.rounds_done, pruning.pruner.kept["units"]))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record(trainer, while_training=True)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, while_training=False)

    def _record(self, trainer: L.Trainer, while_training: bool) -> None:
        for name, value in trainer.callback_metrics.items():
            if "acc" in name.lower() and name.startswith("train") == while_training:
                points = self.accuracy.setdefault(name, [])
                if not points or points[-1][0] < trainer.global_step:
                    points.append((trainer.global_step, float(value)))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, "pruning.png") if self.path is None else Path(self.path)
            save_beside(path, lambda: draw_run(self.kept, self.accuracy, trainer.global_step))


@styled
def draw_run(
    kept: Sequence[tuple[int, int, float]], accuracy: Mapping[str, Sequence[tuple[int, float]]], steps: int
) -> Figure:
    """Units that are left, a mark for each round, above accuracies over the same steps.

    Args:
        kept: step, round and fraction of units left, after each round; the first is round 0.
        accuracy: name → step and value in [0, 1] of each measurement; at most six are drawn.
        steps: of the whole run.
    """
    about = f"{kept[-1][1]} rounds in {steps:,} optimizer steps; {100 * kept[-1][2]:.0f} % of units left."
    figure = page(4.4 if accuracy else 2.6, "Pruning, round by round", about)
    panels = figure.subplots(1 + bool(accuracy), 1, sharex=True, squeeze=False)[:, 0]
    units, marks = panels[0], kept[1:]
    at, left = [step for step, *_ in kept] + [steps], [100 * share for *_, share in kept]
    units.step(at, [*left, left[-1]], where="post", color=VOTE)
    units.set(ylabel="units left, %", ylim=(0, 108))
    for step, round_, share in marks:
        for axes in panels:
            axes.axvline(step, color=LINES, lw=0.8, ls=":", zorder=1)
        units.plot(step, 100 * share, "o", color=VOTE, ms=4)
        units.annotate(str(round_), (step, 100 * share), (5, 4), textcoords="offset points", color=QUIET)
    names = list(accuracy)[:MOST_SERIES]
    for name, colour in zip(names, PALETTE, strict=False):
        x, y = zip(*accuracy[name], strict=True)
        panels[-1].plot(x, [100 * value for value in y], color=colour, marker="o", ms=4)
    panels[-1].set_xlabel("optimizer steps; numbers: rounds")
    panels[-1].set_xlim(0, 1.01 * steps)
    if names:
        panels[-1].set_ylabel("accuracy, %")
        panels[-1].margins(y=0.15)
        ends = [
            (*accuracy[name][-1], name.replace("_", " "), colour) for name, colour in zip(names, PALETTE, strict=False)
        ]
        label_ends(panels[-1], [(x, 100 * y, name, colour) for x, y, name, colour in ends])
    return figure

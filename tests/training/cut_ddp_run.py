"""What test_rounds.py runs in two processes: each rank writes what it saw to ``<folder>/<rank>.json``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_mvp import MVPCallback, TaskModule, create_backbone
from lightning_mvp.backbones.passes import Place
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.training.filling import prune_into_zoo
from lightning_mvp.training.rounds import Moments, OwnCutter, endless, make_fabric
from lightning_mvp.voting.class_means import task_means
from lightning_mvp.zoo.new_entry import ZooTarget

from ..callbacks.user import RECIPE
from .test_rounds import cut_by_ours
from .vote_ddp_run import datamodule

STEPS = 8


class Contrary(OwnCutter):
    """Removes on rank 1 what rank 0 keeps."""

    rank = 0

    def cut(self, module: TaskModule, moments: Moments, kept_fraction: float) -> TaskModule:
        if self.rank:
            self.criterion._total = -self.criterion._total  # type: ignore
        return super().cut(module, moments, kept_fraction)


def made(place: Place | None = None) -> TaskModule:
    torch.manual_seed(0)
    module = TaskModule.for_task(create_backbone(RECIPE), datamodule().facts, learning_rate=0.01)
    module.initialise_head(datamodule(), device=place)
    return module


def main(path: str) -> None:
    folder = Path(path)
    fabric = make_fabric(devices=2, strategy="ddp", precision="32-true")
    fabric.launch()
    data, place = datamodule(), Place.of(fabric)
    shared = made(place)
    settings = PruningSettings(pruning_ratio=0.5, rounds=2, steps_per_round=2)
    cut = prune_into_zoo(made(), data, ZooTarget(folder / "zoo", data.facts), settings, STEPS, fabric, clip=1.0)
    said = {
        "world_size": fabric.world_size,
        "masks": cut.masks.fingerprint,
        "parameters": fingerprint(dict(cut.module.named_parameters())),
        "head": shared.head.weight.tolist(),
        "accuracies": [shared.accuracy_in(data, part, device=place) for part in ("val", "test")],
        "prototypes": task_means(shared.backbone, data, data.facts, place).means().tolist(),  # type: ignore[union-attr]
        "batches": fingerprint({"images": next(endless(data, fabric.global_rank, 2))[0]}),
    }
    zeroing = MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=2, head="head")
    options = {"devices": 2, "strategy": "ddp", "precision": "32-true", "gradient_clip_val": 1.0}
    fit_quietly(made(), datamodule(), STEPS, [zeroing], **options)
    said["zeroed"] = zeroing.masks.fingerprint
    Contrary.rank = fabric.global_rank
    settings = PruningSettings(pruning_ratio=0.5, rounds=2, steps_per_round=2)
    try:
        cut_by_ours(made(), datamodule(), settings, STEPS, fabric=fabric, cutter_class=Contrary)
    except RuntimeError as error:
        said["problem"] = str(error)
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(said))

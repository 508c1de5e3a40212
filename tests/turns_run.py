"""What test_turns.py runs in two processes: ``turns_run:main <folder> <scene>``, rank 0 slow or failing on purpose.

Collectives give up after two seconds; rank 0 takes three. Each rank sees a folder of its own, ``<folder>/<rank>``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lightning_mvp import ModelZoo

from .callbacks.user import FACTS, UserModule, callback, loader, make_trainer

SLOW = 3.0


def strategy() -> DDPStrategy:
    return DDPStrategy(timeout=timedelta(seconds=2))


def slowly(act: Callable[..., Any]) -> Callable[..., Any]:
    def late(*arguments: Any, **options: Any) -> Any:
        time.sleep(SLOW)
        return act(*arguments, **options)

    return late


def fit_into(zoo: Path, **options: Any) -> None:
    mvp = callback(head="classifier", task=FACTS, zoo=zoo, **options)
    trainer = make_trainer(mvp, max_steps=6, devices=2, strategy=strategy())
    trainer.fit(UserModule(), loader(batches=12))
    held = mvp.zoo and (mvp.zoo._theta0, mvp.zoo._zoo and mvp.zoo._zoo.theta0_fingerprint)
    assert held == (None, mvp.zoo.theta0_fingerprint if trainer.is_global_zero else None)  # type: ignore[union-attr]


def prune(folder: Path) -> None:
    """Rank 0 is slow to open the zoo and to write into it; the other rank's file system has none."""
    ModelZoo.create = slowly(ModelZoo.create)  # type: ignore[method-assign]
    ModelZoo.add = slowly(ModelZoo.add)  # type: ignore[method-assign]
    fit_into(folder / "zoo")


def again(folder: Path) -> None:
    """Rank 0's zoo has the entry already; the other rank sees none."""
    fit_into(folder / "zoo")


def main(folder: str, scene: str) -> None:
    globals()[scene](Path(folder, os.environ["LOCAL_RANK"]))

"""What is said at Ctrl-C stays to be read."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_module

from .user import UserModule, callback, loader, make_trainer


def test_a_live_progress_bar_has_ended_when_the_way_to_go_on_is_told(tmp_path: Path):
    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Interrupted: " in record.getMessage():
                said.append((record.getMessage(), bar.progress.live.is_started))

    class Bar(RichProgressBar):
        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            assert self.progress.live.is_started

    said: list[tuple[str, bool]] = []
    terminal = {"file": io.StringIO(), "force_terminal": True}
    bar, handler = Bar(console_kwargs=terminal), Heard()
    trainer = make_trainer(
        callback(head="classifier"), bar, enable_progress_bar=True, enable_checkpointing=True, default_root_dir=tmp_path
    )
    rank_zero_module.log.addHandler(handler)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(UserModule(interrupt_at=5), loader())
    finally:
        rank_zero_module.log.removeHandler(handler)
    ((text, live),) = said
    assert "5 steps and 2 of 3 pruning rounds are done" in text
    assert not live

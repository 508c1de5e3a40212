"""What a run that prunes says while it runs: its plan, each round, the entry, and the round in the bar."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.rank_zero import rank_zero_module

from .test_resume import SaveAt, Stop
from .user import FACTS, UserModule, callback, fit, loader, make_trainer


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Our messages, from Lightning's logger."""

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "lightning_mvp" in record.pathname:
                lines.append(record.getMessage())

    lines: list[str] = []
    handler = Heard()
    rank_zero_module.log.addHandler(handler)
    yield lines
    rank_zero_module.log.removeHandler(handler)


def test_the_plan_each_round_and_the_entry_are_a_line_each(said: list[str], zoo: Path):
    mvp = callback(task=FACTS, zoo=zoo, exclude="layer1.*", warmup_steps=1)  # without head the output stays
    fit(UserModule(), mvp)
    (name,) = (path.stem for path in (zoo / "tasks").iterdir())
    plan, *rounds, entry = said
    assert plan.startswith("colours: pruning removes 50 % of units in 3 rounds, after steps 3, 5, 7 of 12. Of 6 groups")
    assert "layer3.residual stays whole (the backbone's output, no `head`)" in plan
    assert re.search(r"layer1\.residual.* stay whole \(`exclude`\)", plan)
    kept = mvp.pruner.kept
    left = f"{100 * kept['units']:.0f} % of units, {100 * kept['macs']:.0f} % of MACs left"
    assert [line.partition(" %")[0] for line in rounds[:2]] == [
        "colours: round 1 of 3 at step 3: 82",
        "colours: round 2 of 3 at step 5: 65",
    ]
    assert rounds[2:] == [f"colours: round 3 of 3 at step 7: {left}"]
    assert entry == f"wrote {name} to the zoo {zoo}, which has 1 entry now"


def rich_bar(terminal: io.StringIO) -> RichProgressBar:
    return RichProgressBar(console_kwargs={"file": terminal, "force_terminal": True, "width": 150})


def tqdm_bar(terminal: io.StringIO) -> TQDMProgressBar:
    class Bar(TQDMProgressBar):
        def init_train_tqdm(self) -> Any:
            return Tqdm(file=terminal)

    return Bar()


@pytest.mark.parametrize("kind", [rich_bar, tqdm_bar])
def test_the_bar_tells_the_round_also_after_a_resume_and_no_epoch_that_is_none(
    kind: Callable[[io.StringIO], RichProgressBar | TQDMProgressBar], tmp_path: Path
):
    class Look(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if isinstance(bar, RichProgressBar) and bar.train_progress_bar_id is None:
                return  # a resumed run has it after its first batch
            name = getattr(bar.train_progress_bar, "description", None) or bar.train_progress_bar.desc
            names.append(re.sub(r"\[.*\]|: ", "", name))

    path, terminal, names = tmp_path / "some.ckpt", io.StringIO(), []
    bar = kind(terminal)
    trainer = make_trainer(callback(head="classifier"), SaveAt(5, path), Stop(5), bar, Look(), enable_progress_bar=True)
    trainer.fit(UserModule(), loader())
    assert names == [f"Epoch 0, round {round_}/3" for round_ in (0, 0, 1, 1, 2)]
    trainer = make_trainer(callback(head="classifier"), bar, Look(), enable_progress_bar=True)
    trainer.fit(UserModule(), loader(), ckpt_path=path)
    assert names[5:][-7:] == [f"Epoch 0, round {round_}/3" for round_ in (2, 3, 3, 3, 3, 3, 3)][-len(names[5:]) :]
    assert "/-2" not in terminal.getvalue()
    assert "mvp/round" not in terminal.getvalue()
    assert "_get_train_description" not in vars(bar)  # it is as it was

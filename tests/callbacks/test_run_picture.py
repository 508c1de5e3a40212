"""A run's picture marks each round and draws the accuracies that were logged."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from lightning_mvp.callbacks.run_picture import RunPicture, draw_run

from .user import UserModule, callback, fit


def test_a_run_is_drawn_with_a_mark_for_each_round(tmp_path: Path) -> None:
    picture, pruning = RunPicture(tmp_path / "run.png"), callback()
    fit(UserModule(), pruning, picture)
    assert [round_ for _, round_, _ in picture.kept] == list(range(pruning.settings.rounds + 1))
    assert picture.kept[-1][2] == pytest.approx(pruning.pruner.kept["units"])
    steps = [step for step, *_ in picture.kept]
    assert steps == sorted(set(steps)), "each round at a step of its own"
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    again = RunPicture()
    again.load_state_dict(picture.state_dict())
    assert again.kept == picture.kept


def test_units_fall_in_steps_and_metrics_are_named_at_their_ends() -> None:
    units, accuracy = draw_run(
        [(0, 0, 1.0), (10, 1, 0.75), (20, 2, 0.5)], {"val_accuracy": [(15, 0.6), (30, 0.7)]}, 30
    ).axes
    assert [list(map(float, axis)) for axis in units.lines[0].get_data()] == [[0, 10, 20, 30], [100, 75, 50, 50]]
    assert [text.get_text() for text in units.texts] == ["1", "2"]
    assert [text.get_text() for text in accuracy.texts] == ["val accuracy"]
    assert list(accuracy.lines[-1].get_ydata()) == pytest.approx([60, 70])


def test_without_pruning_there_is_nothing_to_draw() -> None:
    picture = RunPicture()
    trainer = L.Trainer(callbacks=[picture], logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ValueError, match="Expected an MVPCallback beside RunPicture"):
        picture.on_fit_start(trainer, UserModule())

"""What loggers are given of pruning: its settings, and pictures where they take some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lightning_mvp.callbacks.told_loggers import takes_figure

from .user import UserModule, callback, fit


class Drawing(CSVLogger):
    """Takes figures as TensorBoard's logger does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="run", version="0")
        self.taken: list[tuple[str, int, Figure]] = []

    @property
    def experiment(self) -> Any:
        own, take = super().experiment, lambda name, figure, step: self.taken.append((name, step, figure))
        shown = ("log_hparams", "log_metrics", "save", "metrics")
        return SimpleNamespace(**{name: getattr(own, name) for name in shown}, add_figure=take)


def test_loggers_are_given_the_settings_and_figures_where_they_take_some(tmp_path: Path):
    logger, mvp = Drawing(tmp_path), callback(head="classifier", exclude="layer1.*", log_figures=True)
    fit(UserModule(), mvp, logger=logger)
    told = yaml.safe_load((tmp_path / "run" / "0" / "hparams.yaml").read_text())
    assert (told["mvp/pruning_ratio"], told["mvp/criterion"], told["mvp/rounds"]) == (0.5, "taylor", 3)
    assert (told["mvp/steps_per_round"], told["mvp/groups_left_whole"]) == (2, "layer1.residual, layer1.0.conv1")
    assert [(name, step) for name, step, _ in logger.taken] == [
        (f"mvp/{name}", step) for step in (1, 3, 5) for name in ("kept_by_group", "masks")
    ]
    chart, masks = (figure for _, _, figure in logger.taken[-2:])
    (bars,) = chart.axes[0].containers
    shares = [100 * kept / mvp.groups[name].size for name, kept in mvp.masks.kept.items()]
    assert [bar.get_width() for bar in bars] == shares
    (image,) = masks.axes[0].images
    for row, mask in zip(image.get_array(), mvp.masks.values(), strict=True):
        assert row.mean() == pytest.approx(float(mask.float().mean()), abs=0.1)


def test_mlflow_is_given_a_file_for_each_step():
    taken: list[tuple[Any, ...]] = []
    logger = SimpleNamespace(experiment=SimpleNamespace(log_figure=lambda *given: taken.append(given)), run_id="7")
    figure = Figure()
    takes_figure(logger)("mvp/masks", figure, 30)
    assert taken == [("7", figure, "mvp/masks/step-000030.png")]


def test_without_a_logger_that_takes_figures_this_is_said(tmp_path: Path):
    with pytest.warns(UserWarning, match="no logger of the Trainer takes figures"):
        fit(UserModule(), callback(head="classifier", log_figures=True), logger=CSVLogger(tmp_path))

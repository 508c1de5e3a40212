"""A criterion of a user's own: one class, by object or `_target_`, zeroed in a Trainer, cut, and at once."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_mvp import ImageData, ModelZoo, MVPCallback, TaskModule, create_backbone, prune_once
from lightning_mvp.fitting.fit import fit_quietly
from lightning_mvp.pruning import Candidates, Criterion, Magnitude, Taylor, magnitude_importance
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.training.rounds import OwnCutter, prune_and_cut

from ..apps.test_config import compose_for
from ..callbacks.user import FACTS, RECIPE, UserModule, callback, fit, loader, make_trainer
from ..training.conftest import CLASSES, part, task

PAGE = (
    (Path(__file__).parents[2] / "docs" / "extend.md").read_text().partition("## A criterion")[2].partition("\n## ")[0]
)


class GradientNorm(Criterion):
    """Roots of Taylor scores. What it has seen is in its state, whose key ``round`` the engine has, too."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def begin(self, groups: Any) -> None:
        self.taylor, self.seen = Taylor(), 0
        self.taylor.begin(groups)

    def observe(self, parameters: Any, gradients: Any) -> None:
        self.seen += 1
        self.taylor.observe(parameters, gradients)

    def scores(self, candidates: Candidates) -> dict[str, Tensor]:
        return {name: self.scale * score.sqrt() for name, score in self.taylor.scores().items()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.taylor.state_dict(), "round": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["round"]
        self.taylor.load_state_dict(state)


TARGET = {"_target_": f"{__name__}.GradientNorm", "scale": 2.0}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("colours", CLASSES, part(8, 0), part(4, 1), part(4, 2))


def test_zeroing_cutting_and_pruning_at_once_ask_the_same_criterion(data: ImageData) -> None:
    options: dict[str, Any] = {"criterion": GradientNorm(), "pruning_ratio": 0.5, "rounds": 2, "steps_per_round": 2}
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(TaskModule.for_task(create_backbone(RECIPE), task(data, "abc", "one").facts, learning_rate=0.01))
        modules[-1].initialise_head(task(data, "abc", "one"))
    zeroing = MVPCallback(**options, head="head")
    fit_quietly(modules[0], task(data, "abc", "one"), 5, [zeroing], precision="32-true")
    settings = PruningSettings(**options)
    found = find_prunable(modules[1].backbone, (modules[1].example,), settings)
    cutter = OwnCutter(found.groups, found.cost, settings)
    prune_and_cut(modules[1], task(data, "abc", "one"), cutter, settings, 5, precision="32-true")
    assert zeroing.masks == cutter.masks
    assert not hasattr(options["criterion"], "taylor"), "each run has a copy"
    backbone, target = create_backbone(RECIPE), task(data, "abc", "one")
    ours, taylor = (prune_once(backbone, target, 0.5, criterion=each, images=0) for each in (GradientNorm(), "taylor"))
    assert ours.masks == taylor.masks, "roots have the same order"


class SaveAfterTwoSteps(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def test_a_run_goes_on_with_what_its_criterion_had_seen_and_refuses_another(tmp_path: Path) -> None:
    def pruning(criterion: Any) -> MVPCallback:
        return callback(criterion=criterion, head="classifier", rounds=1, steps_per_round=4)

    saved, whole, again = tmp_path / "half.ckpt", pruning(GradientNorm(2.0)), pruning(TARGET)
    fit(UserModule(), whole, SaveAfterTwoSteps(saved), max_steps=5)
    state = next(iter(torch.load(saved, weights_only=True)["callbacks"].values()))
    assert state["settings"]["criterion"] == TARGET
    assert (state["pruner"]["round"], state["pruner"]["criterion"]["round"]) == (0, 2)

    class Resumed(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            assert again.pruner.criterion.seen == 2  # type: ignore[attr-defined]

    make_trainer(again, Resumed(), max_steps=5).fit(UserModule(), loader(), ckpt_path=saved, weights_only=True)
    assert again.finished
    with pytest.raises(ValueError, match=r"it had criterion=\{'_target_': .*'scale': 2\.0\}, not 'taylor'"):
        make_trainer(pruning("taylor")).fit(UserModule(), loader(), ckpt_path=saved, weights_only=True)


def test_a_criterion_that_cannot_be_stored_is_refused_where_there_is_a_zoo_or_a_checkpoint(tmp_path: Path) -> None:
    class Local(Magnitude):
        """Of a class that no other process can import."""

    mvp = callback(criterion=Local(), head="classifier")
    fit(UserModule(), mvp)
    assert mvp.finished
    for zoo, checkpoints in ((None, True), (tmp_path / "zoo", False)):
        mvp = callback(criterion=Local(), head="classifier", zoo=zoo, task=FACTS)
        with pytest.raises(ValueError, match=r"argument `criterion` to be of a class that any process can import"):
            fit(UserModule(), mvp, enable_checkpointing=checkpoints, default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (lambda candidates: {}, "got none"),
        (lambda candidates: {group.name: torch.ones(1) for group in candidates.groups}, r"got tensor\(\[1\.\]\)"),
        (lambda candidates: {group.name: torch.ones(group.size) / 0 for group in candidates.groups}, "inf"),
    ],
)
def test_scores_that_are_not_one_number_for_each_unit_are_refused_and_change_nothing(scores: Any, got: str) -> None:
    class Bad(Criterion):
        def scores(self, candidates: Candidates) -> dict[str, Tensor]:
            return scores(candidates)  # type: ignore[no-any-return]

    mvp = callback(criterion=Bad(), head="classifier")
    with pytest.raises(RuntimeError, match=rf"Expected Bad\.scores to return a finite tensor of shape .*{got}"):
        fit(UserModule(), mvp)
    assert mvp.masks.pruning_ratio == mvp.rounds_done == 0


def test_the_weights_that_candidates_show_are_those_of_the_cut_backbone(data: ImageData) -> None:
    """Where removed units are zeroed, what reads them counts for no other unit."""
    seen: list[dict[str, Tensor]] = []

    class Note(Criterion):
        def scores(self, candidates: Candidates) -> dict[str, Tensor]:
            seen.append(magnitude_importance(candidates.weights(), candidates.groups))
            return {name: score.flip(0) for name, score in seen[-1].items()}

    fit(UserModule(), callback(criterion=Note(), head="classifier", rounds=2))
    first, second = seen
    removed = {name: score == 0 for name, score in second.items()}
    assert all(gone.any() and (second[name] <= first[name] * 2).all() for name, gone in removed.items())


def test_the_page_about_a_criterion_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file, use, command = re.findall(r"^```\w+\n(.*?)^```", PAGE, re.M | re.S)
    assert len(file.splitlines()) <= 30
    Path("my_criterion.py").write_text(file)
    names: dict[str, Any] = {}
    exec(use, names)
    mvp: MVPCallback = names["callback"]
    configured = compose_for("prune", *shlex.split(command)[1:])["pruning"]["criterion"]
    settings = [PruningSettings(criterion=configured).to_dict(), mvp.settings.to_dict()]
    assert [each["criterion"] for each in settings] == [{"_target_": "my_criterion.BatchNormScale", "power": 2.0}] * 2
    pruned = callback(criterion=names["BatchNormScale"](), head="classifier", rounds=1, zoo="zoo", task=FACTS)
    module = UserModule()
    with torch.no_grad():
        module.net.layer1[0].bn1.weight.copy_(torch.arange(8.0) + 1)
    fit(module, pruned)
    assert pruned.masks["layer1.0.conv1"].tolist() == [False] * 4 + [True] * 4
    (name,) = ModelZoo("zoo")
    assert ModelZoo("zoo")[name].config["criterion"] == {"_target_": "my_criterion.BatchNormScale", "power": 1.0}

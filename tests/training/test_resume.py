"""A run goes on from its checkpoint, whatever widths the module had that resumes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_mvp import MetaVoteModule, ModelZoo, MVPCallback, TaskDataModule, TaskModule, create_backbone
from lightning_mvp.fitting.fit import make_trainer

from ..callbacks.user import FACTS, RECIPE
from ..nursery import Nursery
from .conftest import task
from .two_ranks import run
from .vote_ddp_run import QUIET, SaveAt, datamodule

ZooOf = Callable[[str], ModelZoo]
Make = Callable[[ModelZoo, TaskDataModule], TaskModule]


def dense(zoo: ModelZoo, data: TaskDataModule) -> TaskModule:
    return TaskModule.for_task(create_backbone(zoo.recipe), data.facts, optimizer="sgd")


def narrower(zoo: ModelZoo, data: TaskDataModule) -> TaskModule:
    return MetaVoteModule.from_zoo(zoo, data, neighbours=3, pruning_ratio=0.75, optimizer="sgd")


def same(zoo: ModelZoo, data: TaskDataModule) -> TaskModule:
    return MetaVoteModule.from_zoo(zoo, data, neighbours=2, optimizer="adamw")


def fit(module: TaskModule, *callbacks: Any, steps: int = 10, **options: Any) -> None:
    trainer = make_trainer(steps, callbacks, **QUIET)
    trainer.fit(module, datamodule=datamodule(), weights_only=True, **options)


@pytest.fixture(scope="module")
def run_of(zoo_of: ZooOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TaskModule, Path]]:
    """A whole run of ten steps and its checkpoint after the sixth, in the middle of an epoch of eight."""
    made: dict[str, tuple[TaskModule, Path]] = {}

    def run_of(kind: str) -> tuple[TaskModule, Path]:
        if kind not in made:
            path = tmp_path_factory.mktemp(kind) / "six.ckpt"
            module = same(zoo_of(kind), datamodule())
            fit(module, SaveAt(6, path))
            made[kind] = module, path
        return made[kind]

    return run_of


@pytest.mark.parametrize("make", [dense, narrower, same])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_resumed_run_ends_like_the_uninterrupted_one(make: Make, kind: str, zoo_of: ZooOf, run_of: Any):
    whole, path = run_of(kind)
    again = make(zoo_of(kind), datamodule())
    state = torch.get_rng_state()
    fit(again, ckpt_path=path)
    assert torch.equal(torch.get_rng_state(), state), "rebuilding drew random numbers"
    assert again.trainer.global_step == 10
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert {name: again.hparams.get(name) for name in again.own_hparams} == {
        name: whole.hparams.get(name) for name in again.own_hparams
    }
    assert dict(again.hparams_initial) == dict(again.hparams)
    assert again.facts == whole.facts
    if isinstance(again, MetaVoteModule):
        assert again.report == whole.report


@pytest.mark.slow
def test_two_processes_resume_as_exactly(nursery: Nursery, zoo_of: ZooOf, tmp_path: Path):
    shutil.copytree(zoo_of("resnet").path, tmp_path / "zoo")
    result = run(nursery, tmp_path, "resume")
    assert result.well, result.text[-3000:]
    prints = [json.loads((tmp_path / f"resumed-{rank}.json").read_text()) for rank in (0, 1)]
    assert prints[0]["parameters"] == prints[1]["parameters"]
    for of_rank in prints:
        assert of_rank["whole"] == of_rank["voted"] == of_rank["dense"]


def test_a_resumed_run_is_saved_at_its_own_widths(zoo_of: ZooOf, run_of: Any, tmp_path: Path):
    whole, path = run_of("resnet")
    fit(dense(zoo_of("resnet"), datamodule()), SaveAt(8, tmp_path / "eight.ckpt"), ckpt_path=path)
    loaded = TaskModule.load_from_checkpoint(tmp_path / "eight.ckpt", weights_only=True)
    assert loaded.hparams["recipe"]["kept"] == whole.hparams["recipe"]["kept"]


def test_testing_a_checkpoint_rebuilds_too(zoo_of: ZooOf, run_of: Any, tmp_path: Path):
    _, path = run_of("resnet")
    module = dense(zoo_of("resnet"), datamodule())
    make_trainer(1, **QUIET).test(module, datamodule=datamodule(), ckpt_path=path, weights_only=True, verbose=False)
    loaded = MetaVoteModule.load_from_checkpoint(path, weights_only=True)
    images, labels = datamodule().test_images()
    assert module.accuracy_on(images, labels) == loaded.accuracy_on(images, labels)


def test_frozen_parameters_stay_frozen(zoo_of: ZooOf, run_of: Any):
    _, path = run_of("resnet")
    module = dense(zoo_of("resnet"), datamodule())
    module.head.bias.requires_grad_(False)
    module.on_load_checkpoint(torch.load(path, weights_only=True))
    assert [name for name, parameter in module.named_parameters() if not parameter.requires_grad] == ["head.bias"]


@pytest.mark.parametrize("make", [dense, narrower])
def test_a_vote_that_a_callback_prunes_further_resumes_as_exactly(make: Make, zoo_of: ZooOf, tmp_path: Path):
    def pruning() -> MVPCallback:
        return MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=3, head="head")

    before, after = pruning(), pruning()
    whole, again = same(zoo_of("resnet"), datamodule()), make(zoo_of("resnet"), datamodule())
    fit(whole, before, SaveAt(4, tmp_path / "four.ckpt"))
    fit(again, after, ckpt_path=tmp_path / "four.ckpt")
    assert after.masks == before.masks
    assert after.groups.sizes == whole.report["widths"]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_a_module_that_a_callback_pruned_keeps_its_size_and_its_backbone(target: TaskDataModule, tmp_path: Path):
    def pruning() -> MVPCallback:
        return MVPCallback(pruning_ratio=0.5, rounds=2, steps_per_round=3, head="head")

    whole = TaskModule(RECIPE, target.facts.to_dict())
    fit(whole, pruning(), SaveAt(4, tmp_path / "four.ckpt"))
    # The same recipe with the defaults written out, as a backbone's own has them.
    again = TaskModule.for_task(create_backbone(RECIPE), target.facts)
    backbone = again.backbone
    fit(again, pruning(), ckpt_path=tmp_path / "four.ckpt")
    assert again.backbone is backbone
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("recipe", "classes", "message"),
    [
        ({**RECIPE, "model": "resnet34"}, "acd", r"recipes differ in `model`: the module has 'resnet34'.*'resnet18'"),
        ({**RECIPE, "in_chans": 3, "arguments": {**RECIPE["arguments"], "channels": [8, 12, 24]}}, "acd", "`argument"),
        (RECIPE, "abd", "classes, 'a', 'b', 'd', but it was trained on 'a', 'c', 'd'. Resume with the task"),
        (RECIPE, "cad", "trained on 'a', 'c', 'd' in another order"),
    ],
)
def test_another_model_or_task_is_refused(recipe: Any, classes: str, message: str, data: Any, run_of: Any):
    _, path = run_of("resnet")
    other = task(data, classes, "target")
    module = TaskModule(recipe, other.facts.to_dict())
    with pytest.raises(ValueError, match=message):
        make_trainer(10, **QUIET).fit(module, datamodule=other, ckpt_path=path, weights_only=True)


def test_a_vote_does_not_resume_a_checkpoint_that_no_vote_made(zoo_of: ZooOf, tmp_path: Path):
    fit(dense(zoo_of("resnet"), datamodule()), SaveAt(1, tmp_path / "one.ckpt"), steps=1)
    with pytest.raises(ValueError, match="Expected a checkpoint of a MetaVoteModule"):
        fit(same(zoo_of("resnet"), datamodule()), ckpt_path=tmp_path / "one.ckpt")


class Late(SingleDeviceStrategy):
    restore_checkpoint_after_setup = True


@pytest.mark.parametrize(("late", "why"), [(True, "optimizers exist already"), (False, "spawned processes")])
@pytest.mark.parametrize(("make", "refused"), [(same, False), (dense, True)])
def test_where_widths_cannot_change_they_must_be_the_checkpoints(
    late: bool, why: str, make: Make, refused: bool, zoo_of: ZooOf, run_of: Any
):
    module = make(zoo_of("resnet"), datamodule())
    options = {"strategy": Late(torch.device("cpu"))} if late else {"strategy": "ddp_spawn", "devices": 2}
    module.trainer = make_trainer(7, **options, **QUIET)
    module.trainer.training = True
    with pytest.raises(ValueError, match=rf"own widths.*{why}") if refused else nullcontext():
        module.on_load_checkpoint(torch.load(run_of("resnet")[1], weights_only=True))


def test_rebuilding_is_on_the_cpu_in_float32_whatever_the_trainers_defaults(run_of: Any):
    """As under ``precision="bf16-true"`` on a GPU."""
    module = TaskModule(RECIPE, datamodule().facts.to_dict())
    checkpoint = torch.load(run_of("resnet")[1], weights_only=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            module.on_load_checkpoint(checkpoint)
        assert torch.get_default_dtype() is torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert {(parameter.device.type, parameter.dtype) for parameter in module.parameters()} == {("cpu", torch.float32)}


def test_facts_are_the_checkpoints(run_of: Any):
    _, path = run_of("resnet")
    checkpoint = torch.load(path, weights_only=True)
    facts = {**FACTS.to_dict(), "name": "another name", "classes": ["a", "c", "d"]}
    module = TaskModule(RECIPE, facts)
    module.on_load_checkpoint(checkpoint)
    assert module.facts.name == "target"

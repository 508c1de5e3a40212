"""What runs on a GPU is walked without one, on fake "cuda" tensors: they have shapes and devices, but no values.

A tensor that stays on the CPU, or an operation on two devices, fails here as on a GPU; so does a step that waits for
the device, as there is no value to wait for. What decides (scores, masks, the ridge head) is taken from the same run on
the CPU. Not walked, for they need values or a device:

- backward passes (autograd asks CUDA for a context): gradients are made up, of the parameters' shapes and devices;
- the Trainer itself, Fabric's setup, DDP, gradient scalers and the optimizers' fused steps;
- `check_head`, `LossWatch.check`, `Taylor.ready`, `Taylor.scores`, `accuracy_on`, `leep`, `masks_from_zeros` and
  `merge`, which look at values, and zoo files, which are written from them;
- `find_groups` and its self-check, which work on a CPU copy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from lightning_mvp import ImageData, MVPCallback, TaskDataModule, TaskModule, create_backbone, find_groups, shrink
from lightning_mvp.backbones import Groups, apply_masks, random_masks, ridge
from lightning_mvp.backbones.cost import CostModel
from lightning_mvp.backbones.features import features_of, reestimate_batch_norm
from lightning_mvp.backbones.passes import Place, features_over, pass_over, reestimate_over
from lightning_mvp.callbacks.fit_prototypes import FitPrototypes
from lightning_mvp.pruning.criteria import Taylor, taylor_importance
from lightning_mvp.pruning.engine import Pruner
from lightning_mvp.pruning.importance import magnitude_importance, random_importance
from lightning_mvp.pruning.loss_watch import LossWatch
from lightning_mvp.pruning.prunable import find_prunable
from lightning_mvp.pruning.settings import PruningSettings
from lightning_mvp.training import classifier
from lightning_mvp.training.optimizer import OptimizerName
from lightning_mvp.training.rounds import OwnCutter, prune_and_cut
from lightning_mvp.voting.class_means import task_means
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.voting.target import reestimation_batches
from lightning_mvp.voting.target_images import PartImages
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.new_entry import ZooTarget, as_stored
from lightning_mvp.zoo.rebuild import refill

from .callbacks.user import FACTS, RECIPE, VIT_RECIPE
from .training.conftest import part

RECIPES = {"cnn": RECIPE, "vit": VIT_RECIPE}
CUDA = torch.device("cuda", 0)
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class FakeGPU(FakeTensorMode):
    """Fakes what is on the GPU or comes from there; what never left the CPU is real."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        if any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """As nn.Module's, which would swap fake parameters, and can't where they are remembered."""
    for module in self.children():
        module._apply(fn)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is not None and (moved := fn(parameter)) is not parameter:
                self._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        self._buffers |= {name: fn(buffer) for name, buffer in self._buffers.items() if buffer is not None}
    return self


@contextmanager
def fake_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, FakeGPU():
        patch.setattr(nn.Module, "_apply", _apply)
        yield


@pytest.fixture
def gpu() -> Iterator[None]:
    with fake_gpu():
        yield


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**RECIPES[request.param], "arguments": {**RECIPES[request.param]["arguments"], "num_classes": 0}}


@pytest.fixture
def backbone(recipe: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(recipe)


@pytest.fixture
def groups(backbone: nn.Module) -> Groups:
    return find_groups(backbone, IMAGES)


@pytest.fixture
def data() -> TaskDataModule:
    images = ImageData("colours", tuple("abcdef"), part(4, 0), part(1, 1), part(1, 2))
    return TaskDataModule(images, classes=("a", "b", "c"), name="abc", batch_size=4, augment="none")


def on_gpu(module: nn.Module) -> nn.Module:
    moved = copy.deepcopy(module).to(CUDA)
    require_there(moved.state_dict())
    return moved


def require_there(tensors: dict[str, Tensor]) -> None:
    assert tensors
    assert {name: tensor.device for name, tensor in tensors.items() if tensor.device != CUDA} == {}


def with_gradients(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    return module


def test_a_fake_device_tells_a_tensor_that_is_left_behind(backbone: nn.Module, gpu: None) -> None:
    with pytest.raises(RuntimeError, match="on the same device"):
        on_gpu(backbone)(IMAGES)


def test_a_step_and_a_round_of_the_callback(backbone: nn.Module, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PruningSettings(pruning_ratio=0.5, rounds=2)
    pruner = Pruner(find_prunable(backbone, (IMAGES,), settings), (IMAGES,), settings)
    scores = random_importance(pruner.groups, 0)
    monkeypatch.setattr(Taylor, "scores", lambda self, candidates: scores)
    there = on_gpu(backbone)
    optimizer, watch = torch.optim.SGD(there.parameters(), lr=0.1, momentum=0.9), LossWatch()
    for round_ in (1, 2):
        with_gradients(there)  # as in on_before_optimizer_step and on_train_batch_end
        pruner.observe(there)
        pruner.zero_gradients(there)
        optimizer.step()
        watch.see(there(IMAGES.to(CUDA)).square().mean(), round_)
        pruner.zero_removed(there)
        assert isinstance(pruner.criterion, Taylor)
        require_there(pruner.criterion.sums)
        assert pruner.criterion.count.device == CUDA
        pruner.prune(there, round_, 1 - 0.25 * round_)
        pruner.zero_optimizer_state(there, optimizer)
        watch.after_round(round_, round_)
        assert {mask.device.type for mask in pruner.masks.values()} == {"cpu"}
        assert {value.device.type for value in pruner.importance.values()} == {"cpu"}
    assert pruner.masks.pruning_ratio == pytest.approx(0.5, abs=0.1)
    require_there(there.state_dict() | {"momentum": optimizer.state[next(there.parameters())]["momentum_buffer"]})
    assert all(isinstance(value, (int, float, dict, list)) for value in pruner.state_dict().values())
    pruner.load_state_dict(pruner.state_dict())
    pruner.observe(with_gradients(there))  # sums that were saved, on the CPU, go on on the device


def test_the_callback_takes_its_example_to_the_cpu(backbone: nn.Module, gpu: None) -> None:
    callback = MVPCallback()
    callback._hook = backbone.register_forward_pre_hook(callback._see_first_input)
    there = IMAGES.to(CUDA)
    callback._see_first_input(backbone, (there,))
    assert callback._example is not None
    assert callback._example[0].device.type == "cpu"


def test_masking_and_cutting_stay_on_the_device(backbone: nn.Module, groups: Groups, gpu: None) -> None:
    masks, there = random_masks(groups, 0.5, seed=1), on_gpu(backbone)
    apply_masks(there, groups, masks)
    small, expected = shrink(there, groups, masks), shrink(backbone, groups, masks)
    require_there(small.state_dict())
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert small(IMAGES.to(CUDA)).shape == expected(IMAGES).shape
    assert {value.device.type for value in map(as_stored, small.state_dict().values())} == {"cpu"}


def test_passes_bring_images_to_the_device_and_features_back(
    backbone: nn.Module, groups: Groups, data: TaskDataModule, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = random_masks(groups, 0.5, seed=1)
    there = shrink(on_gpu(backbone), groups, masks)
    for images in (IMAGES, IMAGES.double(), IMAGES.half()):
        assert features_of(there, images, batch_size=3).device.type == "cpu"
    with monkeypatch.context() as patch:
        patch.setattr(FakeTensor, "__float__", lambda self: 1.0, raising=False)  # batches so far
        reestimate_batch_norm(there, [IMAGES, IMAGES.double()])
    module = TaskModule.for_task(there, data.facts)
    require_there({name: tensor for name, tensor in module.state_dict().items() if not name.startswith("accuracy")})
    fitted = nn.Linear(module.head.in_features, 3)
    monkeypatch.setattr(classifier, "ridge_head", lambda *_: fitted)
    module.initialise_head(data)
    assert module(IMAGES.to(CUDA)).shape == (4, 3)
    require_there(module.to_torch().state_dict())
    # As in a resume from a checkpoint of the dense model.
    module._become({**module.hparams, "recipe": create_backbone(_dense(module.hparams["recipe"])).recipe})
    assert module(IMAGES.to(CUDA)).shape == (4, 3)


def test_prototypes_are_made_where_the_backbone_is(backbone: nn.Module, gpu: None, tmp_path: Path) -> None:
    there, target = on_gpu(backbone), ZooTarget(tmp_path, FACTS)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    target.capture(trainer, there)
    seen = FitPrototypes(target, None)
    seen.seen_by = replace(FACTS, mean=(0.1,) * 3)  # another zoo's, into which images are converted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch says this once in a process, to whichever test is first to copy a fake tensor.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        seen.begin(trainer, L.LightningModule(), there)
        assert seen._dense is not None
        require_there(seen._dense.state_dict())
        seen.before_batch()
        there(IMAGES.to(CUDA))
        seen.after_batch({"image": IMAGES.to(CUDA), "label": torch.tensor([0, 1, 2, -1])})
    assert seen.means.counts.tolist() == [1, 1, 1]
    assert seen.means._sums is not None
    assert seen.means._sums.device.type == "cpu"


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a fake tensor for its number gets 1."""
    monkeypatch.setattr(FakeTensor, "__float__", lambda self: 1.0, raising=False)
    monkeypatch.setattr(FakeTensor, "__int__", lambda self: 1, raising=False)
    monkeypatch.setattr(ridge, "_require_fitting", lambda *_: None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_told_a_device_runs_there_and_comes_back(
    precision: str, backbone: nn.Module, groups: Groups, data: TaskDataModule, numbers: None, gpu: None
) -> None:
    place, seen = Place(CUDA, precision), set()
    backbone.register_forward_pre_hook(lambda _, given: seen.add((given[0].device, len(given[0]))))
    module = TaskModule.for_task(backbone, data.facts, mimic=1.0)
    seen.clear()

    def there(images: Collection[int] = (12,)) -> bool:
        found = seen == {(CUDA, count) for count in images}
        seen.clear()
        return found and {tensor.device.type for tensor in backbone.state_dict().values()} == {"cpu"}

    assert features_over(backbone, pass_over(data, "train", place), place)[0].device.type == "cpu"
    assert there()
    module.initialise_head(data, device=place)
    assert there()
    assert module.head.weight.device.type == "cpu"
    module.accuracy_in(data, device=place)
    assert there({3})
    reestimate_over(backbone, reestimation_batches(data), place)
    assert there({12} if any(isinstance(part, nn.BatchNorm2d) for part in backbone.modules()) else set())
    prototypes = task_means(backbone, data, data.facts, place).means()
    assert there()
    assert prototypes is not None
    assert prototypes.device.type == "cpu"
    module.take_teacher(backbone, data, device=place)
    assert module.teacher is not None
    module.teacher.follow(backbone, data, place)
    assert there({3, 12})


def test_a_vote_runs_its_models_on_the_device(
    backbone: nn.Module, groups: Groups, data: TaskDataModule, gpu: None
) -> None:
    masks = random_masks(groups, 0.5, seed=1)
    small = shrink(backbone, groups, masks)
    weights = {name: tensor.numpy() for name, tensor in small.state_dict().items()}
    head = nn.Linear(small(IMAGES).shape[1], 2).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in head.items()}
    entry = ZooEntry("a--0", FACTS.to_dict(), {}, {k: v.numpy() for k, v in masks.items()}, weights, {}, arrays, None)
    images = PartImages(data, data.part("train"), hold=True)
    target = TargetData(
        None,  # type: ignore[arg-type]  # nobody asks the zoo
        images,
        data.part("train").labels,
        backbone,
        groups,
        (),
        place=Place(CUDA),
        theta0=backbone,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda tensor: torch.tensor(True))
        assert target.probabilities(entry).shape == (12, 2)
    require_there(target._scratch.state_dict())
    assert target.features(FACTS.to_dict()).device.type == "cpu"
    assert {tensor.device.type for tensor in backbone.state_dict().values()} == {"cpu"}


def _dense(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name != "kept"}


def test_costs_are_those_on_the_cpu(backbone: nn.Module, groups: Groups, gpu: None) -> None:
    masks = random_masks(groups, 0.5, seed=1)
    ours, theirs = CostModel(on_gpu(backbone), groups, IMAGES), CostModel(backbone, groups, IMAGES)
    assert (ours.macs(masks), ours.parameters(masks)) == (theirs.macs(masks), theirs.parameters(masks))


def test_scores_of_a_model_as_it_stands(
    backbone: nn.Module, groups: Groups, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on_gpu(backbone)
    head = nn.Linear(there(IMAGES.to(CUDA)).shape[1], 3).to(CUDA)
    found: list[Taylor] = []
    monkeypatch.setattr(Taylor, "scores", lambda self: found.append(self))
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, parameters, **_: [torch.ones_like(p) for p in parameters])
    taylor_importance(there, head, [(IMAGES, torch.tensor([0, 1, 2, 0]))], groups)
    require_there(found[0].sums)
    magnitudes = magnitude_importance(there.state_dict(), groups)
    assert {value.device.type for value in magnitudes.values()} == {"cpu"}


def test_an_entry_of_a_zoo_fills_a_model_on_the_device(backbone: nn.Module, groups: Groups, gpu: None) -> None:
    masks = random_masks(groups, 0.5, seed=1)
    weights = {name: tensor.numpy() for name, tensor in shrink(backbone, groups, masks).state_dict().items()}
    entry = ZooEntry("a--0", FACTS.to_dict(), {}, {k: v.numpy() for k, v in masks.items()}, weights, {}, {}, None)
    scratch = on_gpu(backbone).eval()
    refill(scratch, entry, groups)
    require_there(scratch.state_dict())
    assert features_of(scratch, IMAGES).device.type == "cpu"


class FakeFabric(SimpleNamespace):
    """One process on the fake GPU, as `prune_and_cut` uses Fabric; gradients are made up."""

    world_size, global_rank, device = 1, 0, CUDA

    def setup(self, network: nn.Module, optimizer: Any, move_to_device: bool) -> tuple[nn.Module, Any]:
        self.network = network
        return network, optimizer

    def to_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(CUDA) for tensor in batch)

    def backward(self, loss: Tensor) -> None:
        assert loss.device == CUDA
        with_gradients(self.network)

    def clip_gradients(self, network: nn.Module, optimizer: Any, max_norm: float, error_if_nonfinite: bool) -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


@pytest.mark.parametrize(("recipe", "optimizer"), [("cnn", "sgd"), ("vit", "adamw")], indirect=["recipe"])
def test_rounds_that_cut(
    backbone: nn.Module, data: TaskDataModule, optimizer: OptimizerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PruningSettings(pruning_ratio=0.5, rounds=2, steps_per_round=1)
    options: dict[str, Any] = {"optimizer": optimizer, "learning_rate": 0.01}

    def cut(**others: Any) -> tuple[TaskModule, OwnCutter]:
        module = TaskModule.for_task(copy.deepcopy(backbone), data.facts, **options)
        found = find_prunable(module.backbone, (IMAGES,), settings)
        cutter = OwnCutter(found.groups, found.cost, settings)
        return prune_and_cut(module, data, cutter, settings, 3, clip=1.0, precision="32-true", **others), cutter

    told: list[dict[str, Tensor]] = []
    scores = Taylor.scores
    with monkeypatch.context() as patch:
        patch.setattr(Taylor, "scores", lambda self, candidates: told.append(scores(self)) or told[-1])
        expected, on_cpu = cut()
    assert len(told) == 2
    monkeypatch.setattr(Taylor, "scores", lambda self, candidates: require_there(self.sums) or told.pop(0))
    monkeypatch.setattr(LossWatch, "check", lambda self: None)
    with fake_gpu():
        small, cutter = cut(fabric=FakeFabric())
        require_there(small.state_dict())
        assert small(IMAGES.to(CUDA)).shape == (4, 3)
    assert cutter.masks == on_cpu.masks
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}

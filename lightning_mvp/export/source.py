"""The model to export, from a checkpoint, a folder that `mvp-vote` wrote, or a zoo entry."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_mvp.backbones.create import create_backbone, load_weights, recipe_of
from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.surgery import without_sync
from lightning_mvp.callbacks.small_model import pruning_state, read_checkpoint, small_model_from
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.training.task import TaskModule
from lightning_mvp.zoo.rebuild import dense_backbone, rebuild
from lightning_mvp.zoo.summary import validation_accuracy
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class Source:
    """A trained model to export, and the dense one that it was cut from.

    Args:
        name: The model's name, which its folder gets, too.
        model: The backbone and, where there is one, its linear head; on the CPU, in eval mode.
        recipe: The backbone's recipe, widths included.
        facts: The facts of its task: classes and preprocessing.
        accuracy: What was measured of it before, such as ``test_accuracy``; empty where nothing is known.
    """

    name: str
    model: nn.Sequential
    recipe: dict[str, Any]
    facts: TaskFacts
    accuracy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_backbone(cls, name: str, backbone: Any, head: nn.Linear | None, facts: TaskFacts) -> Source:
        """The source of a backbone that has its recipe, and of its head.

        Raises:
            ValueError: The head has another number of outputs than the task has classes.
        """
        if head is not None and head.out_features != len(facts.classes):
            raise ValueError(
                f"Expected task facts with one class for each of the head's {head.out_features} outputs, but got "
                f"{len(facts.classes)} classes."
            )
        model = nn.Sequential(without_sync(backbone), *([] if head is None else [head]))
        return cls(name, model.cpu().to(memory_format=torch.contiguous_format).eval(), backbone.recipe, facts)

    @classmethod
    def from_module(cls, model: nn.Module, facts: TaskFacts) -> Source:
        """The source of a backbone, or of a Sequential of one and its linear head, such as `MVPCallback.small_model()`.

        Raises:
            ValueError: The backbone has no recipe that says how it was built.
        """
        parts = list(copy.deepcopy(model)) if isinstance(model, nn.Sequential) else [copy.deepcopy(model)]
        backbone: Any = parts[0]
        recipe, heads = recipe_of(backbone), [part for part in parts[1:] if isinstance(part, nn.Linear)]
        if recipe is None or len(parts) > 2 or len(heads) < len(parts) - 1:
            raise ValueError(
                "Expected argument `model` to be a backbone from lightning_mvp.create_backbone, which carries its "
                "recipe, or a Sequential of one and a linear head, but got "
                + (" and ".join(type(part).__name__ for part in parts) or "nothing")
                + ". Hand over MVPCallback.small_model() or MetaVoteModule.to_torch()."
            )
        backbone.recipe = recipe
        return cls.from_backbone(facts.name, backbone, heads[0] if heads else None, facts)

    def images(self, batch: int) -> Tensor:
        """Random images of the task's shape, always the same."""
        shape = (batch, self.facts.channels, self.facts.input_size, self.facts.input_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(batch))

    def dense(self) -> nn.Sequential:
        """The same architecture at full width, with random weights, to compare the small model with."""
        backbone = create_backbone({name: value for name, value in self.recipe.items() if name != "kept"})
        with evaluating(backbone):
            features = backbone(self.images(1)).shape[1]
        head = [nn.Linear(features, part.out_features) for part in self.model[1:] if isinstance(part, nn.Linear)]
        return nn.Sequential(backbone, *head).eval()


def from_checkpoint(
    path: str | Path, module: L.LightningModule | None = None, facts: TaskFacts | None = None
) -> Source:
    """The model of a checkpoint; units that an `MVPCallback` removed are cut out.

    Args:
        path: A checkpoint of a `TaskModule`, of a `MetaVoteModule`, or of your own module that an `MVPCallback` pruned.
        module: Your own module, made as the one that was trained was. The checkpoint's weights are loaded into it.
        facts: The facts of its task; default: those that the callback was given.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a checkpoint of something else, or of unfinished pruning, or the module doesn't fit it.
    """
    path = Path(path)
    saved = read_checkpoint(path)
    state, hparams = pruning_state(saved), saved.get("hyper_parameters") or {}
    name = path.parent.name if path.stem == "model" else path.stem
    if module is not None:
        task = (state or {}).get("task")
        if facts is None and task is None:
            raise ValueError(
                f"Expected argument `facts` to be the task's TaskFacts, because {path} has none: MVPCallback had no "
                "`task`. With mvp-export: 'facts={name: pets, classes: [cat, dog], input_size: 64, mean: [0.5, 0.5, "
                "0.5], std: [0.25, 0.25, 0.25]}'."
            )
        facts = TaskFacts.from_dict(task) if facts is None else facts  # type: ignore[arg-type]
        source = Source.from_module(small_model_from(path, module), facts)
        return replace(source, name=name)
    if "recipe" not in hparams or "facts" not in hparams:
        raise ValueError(
            f"Expected a checkpoint of TaskModule or MetaVoteModule at {path}, but its hyper-parameters are "
            f"{sorted(hparams) or 'none'}. Of a module of your own, name its class, as mvp-export module=package.Class "
            "does, or hand MVPCallback.small_model_from(checkpoint, module) to export_model."
        )
    kind = MetaVoteModule if "report" in hparams else TaskModule
    own = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    if state is None or state["pruner"] is None:
        return Source.from_backbone(name, own.backbone, own.head, own.facts)
    return replace(Source.from_module(small_model_from(path, own, None, "backbone", "head"), own.facts), name=name)


def from_folder(path: str | Path) -> Source:
    """The model of a folder with ``recipe.json`` and ``model.safetensors``, as `mvp-vote` and `mvp-export` write it.

    Raises:
        FileNotFoundError: One of the two is missing.
        ValueError: They are damaged, or don't fit each other.
    """
    path = Path(path)
    weights = path / "model.safetensors"
    for file in (path / "recipe.json", weights):
        if not file.is_file():
            raise FileNotFoundError(
                f"Expected {file.name} and {weights.name} in {path}, as mvp-vote writes them, but {file} is missing."
            )
    try:
        described = json.loads((path / "recipe.json").read_text())
        recipe, facts = described["recipe"], TaskFacts.from_dict(described["facts"])
        with safe_open(weights, framework="pt") as file:
            head = file.get_slice("1.weight").get_shape() if "1.weight" in file.keys() else None  # noqa: SIM118
            bias = "1.bias" in file.keys()  # noqa: SIM118
    except (json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {error!r}. Write it again, with mvp-vote for example.") from error
    linear = None if head is None else nn.Linear(head[1], head[0], bias=bias)
    source = Source.from_backbone(path.resolve().name, create_backbone(recipe), linear, facts)
    load_weights(source.model, weights)
    return replace(source, accuracy=_accuracy_of(path / "report.json"))


def _accuracy_of(report: Path) -> dict[str, float]:
    """What a report says that was measured; nothing of a report that is missing or damaged, since it is only told."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(report.read_text())
        found = found.get("accuracy", found) if isinstance(found, dict) else {}
        names = ("val_accuracy", "test_accuracy")
        return {name: float(found[name]) for name in names if isinstance(found.get(name), int | float)}
    return {}


def from_zoo(path: str | Path, entry: str | None, target: str | None = None) -> Source:
    """The model of a zoo's entry.

    Args:
        path: The zoo's folder.
        entry: The name of the entry.
        target: The function that makes the backbone of a zoo without recipe, as
            :func:`~lightning_mvp.backbones.targets.trust_backbone` takes it.

    Raises:
        FileNotFoundError: There is no zoo.
        ValueError: There is no such entry, it is damaged, or the zoo's backbone can't be built from a recipe.
    """
    zoo = ModelZoo(path)
    if entry is None or entry not in zoo:
        few = ", ".join(zoo.names[:5])
        raise ValueError(
            f"Expected `entry` to be the name of one of the {len(zoo)} entries of {path}, such as {few}, but got "
            f"{entry!r}."
        )
    found = zoo[entry]
    facts = TaskFacts.from_dict(found.facts)
    made = None
    if target is not None:
        made = create_backbone({"model": target, "input_size": facts.input_size, "in_chans": facts.channels})
    dense = dense_backbone(zoo, made)
    groups = find_groups(dense, torch.zeros(1, facts.channels, facts.input_size, facts.input_size))
    groups = groups.listed(zoo.group_sizes, str(path))
    source, measured = (
        Source.from_backbone(entry, *rebuild(found, dense, groups), facts),
        validation_accuracy(found.info),
    )
    return source if measured is None else replace(source, accuracy={"val_accuracy": measured})

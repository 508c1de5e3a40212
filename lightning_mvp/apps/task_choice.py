"""The task that a command is about, from its configuration: which images, which classes, and how a model sees them.

Nothing here reads a pixel but :func:`datamodule_of`, once somebody asks its module for images.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_mvp.apps.runtime import plain
from lightning_mvp.tasks.splits import TaskSpec, split_tasks

if TYPE_CHECKING:
    from lightning_mvp.tasks.data import ImageData
    from lightning_mvp.tasks.datamodule import TaskDataModule
    from lightning_mvp.tasks.splits import TaskSplit

# Keys of the `data` group that say how images are served, not which there are; and what they are unless somebody says.
SERVING: dict[str, Any] = {"num_workers": "auto", "balance": False, "mixing": None, "broken": "refuse"}
SEEING: dict[str, Any] = {"mean": None, "std": None, "crop": None, "interpolation": None}


def data_arguments(config: DictConfig) -> dict[str, Any]:
    """Arguments of :func:`load_data` from the ``data`` group; an option of null is the data set's own default.

    ``_target_``, the import path of a function of somebody's own, may stand for ``name``. With ``split=folders`` the
    task's own folder is the root.
    """
    data = plain(config.data)
    if "_target_" in data:
        data["name"] = data.pop("_target_")
    options = {name: value for name, value in (data.pop("options", None) or {}).items() if value is not None}
    for other in ("batch_size", "augment", "crop", "interpolation", *SERVING):
        data.pop(other, None)
    for moments in ("mean", "std"):
        if data.get(moments) is None:
            data.pop(moments, None)
    if kind_of_tasks(config) == "folders":
        data["root"] = str(folder_of_task(config))
    return {**data, **options}


def data_settings(config: DictConfig) -> dict[str, Any]:
    """What of the ``data`` group decides a result, as hashes of results have it: no key that they had not, unless used.

    The number of loading processes decides nothing.
    """
    data = plain(config.data)
    data.pop("num_workers", None)
    unused = {**SERVING, **SEEING}
    return {name: value for name, value in data.items() if name not in unused or value != unused[name]}


def kind_of_tasks(config: DictConfig) -> str:
    """``"drawn"`` (tasks are drawn from the classes of one data set), ``"all"`` or ``"folders"``."""
    return str(config.split.get("tasks") or "drawn")


def folder_of_task(config: DictConfig) -> Path:
    """The folder below ``data.root`` that ``split.task`` names.

    Raises:
        ValueError: the data set is not one of folders, or no folder is named.
        FileNotFoundError: there is no such folder; the message lists some that there are.
    """
    if config.data.get("name") != "imagefolder":
        raise ValueError(
            f"Expected data=imagefolder with split=folders, but got {config.data.get('name')!r}: a task is a folder of "
            "class folders below data.root."
        )
    root, name = Path(str(plain(config.data)["root"])).expanduser(), config.split.task
    if not root.is_dir():
        raise FileNotFoundError(f"Expected `data.root` to be a folder of one folder for each task, but got {root}.")
    folder = root / str(name)
    if name is None or Path(str(name)).name != str(name) or not folder.is_dir():
        there = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
        raise FileNotFoundError(
            f"Expected `split.task` to name a folder below {root}, but got {name!r}. There are {len(there)}: "
            f"{', '.join(there[:10])}{' …' if len(there) > 10 else ''}. With -m a pattern such as 'cam-*' is several."
        )
    return folder


def data_of(config: DictConfig) -> ImageData:
    """The data set that ``data`` names; the jobs of a sweep that run in one process share it."""
    return _load(json.dumps(data_arguments(config), sort_keys=True), os.getcwd())


@lru_cache(maxsize=1)
def _load(arguments: str, _relative_to: str) -> ImageData:
    from lightning_mvp.tasks.data import load_data

    return load_data(**json.loads(arguments))


def classes_of(config: DictConfig) -> tuple[str, ...]:
    """The classes of the data set that ``data`` names."""
    return _classes(json.dumps(data_arguments(config), sort_keys=True), os.getcwd())


@lru_cache(maxsize=1)
def _classes(arguments: str, _relative_to: str) -> tuple[str, ...]:
    from lightning_mvp.tasks.data import class_names_of

    return class_names_of(**json.loads(arguments))


def split_arguments(config: DictConfig) -> dict[str, Any]:
    """Arguments of :func:`split_tasks` from the ``split`` group."""
    split = plain(config.split)
    for choice in ("kind", "task", "classes", "tasks", "empty"):
        split.pop(choice, None)
    return split


def split_of(config: DictConfig) -> TaskSplit:
    """The data set's source, target and held-out tasks."""
    return split_tasks(classes_of(config), **split_arguments(config))


def seen_classes(config: DictConfig) -> tuple[str, ...]:
    """All classes of the data set that are not held out; no task is drawn for it."""
    split = split_arguments(config)
    held_out = {name: split[name] for name in ("held_out_fraction", "seed") if name in split}
    return split_tasks(classes_of(config), sources=0, targets=0, **held_out).seen


def task_of(config: DictConfig) -> TaskSpec:
    """The task that ``split`` chooses: drawn, of its own classes (a list of names), of all classes, or of a folder."""
    classes, kind, index = config.split.get("classes"), kind_of_tasks(config), config.split.task
    if kind == "folders":
        return TaskSpec(str(index), tuple(classes or classes_of(config)))
    if kind == "all":
        from lightning_mvp.tasks.data import title_of

        told = data_arguments(config)
        return TaskSpec(str(index or title_of(told["name"], told)), classes_of(config))
    if classes is not None:
        return TaskSpec(str(index), tuple(classes))
    if not isinstance(index, int):
        raise ValueError(
            f"Expected `split.task` to be the number of a {config.split.kind} task, but got {index!r}. A task of your "
            "own has a name and classes: 'split.classes=[one, two]'. All classes are one task with split=all, and "
            "each folder below data.root is one with split=folders."
        )
    return split_of(config).get(config.split.kind, index)


def datamodule_of(config: DictConfig, task: TaskSpec, trained_here: bool = False) -> TaskDataModule:
    """Loaders of one task, as the configured backbone sees its images.

    Args:
        config: of the command.
        task: which classes.
        trained_here: whether the backbone is trained on this data set, whose moments then normalise its images.
    """
    from lightning_mvp.tasks.datamodule import TaskDataModule

    serving = {name: config.data.get(name, default) for name, default in SERVING.items()}
    if isinstance(serving["mixing"], DictConfig):
        serving["mixing"] = plain(serving["mixing"])
    augment = config.data.augment
    return TaskDataModule(
        data_of(config),
        task.classes,
        task.name,
        batch_size=config.data.batch_size,
        seed=config.seed,
        augment=plain(augment) if isinstance(augment, DictConfig) else augment,
        preprocessing=(_measured(config) if trained_here else None) or image_preprocessing(config),
        **serving,
    )


def selection_of(config: DictConfig) -> str:
    """What tells the configured selection of images from another, without looking at them."""
    from lightning_mvp.tasks.data import selection_hash

    return selection_hash(**data_arguments(config))


def image_preprocessing(config: DictConfig) -> dict[str, Any] | None:
    """How the configured backbone sees images; None: as the data set's own size and moments say.

    What belongs to the weights comes first: what the zoo says of its θ⁰, what ``mvp-pretrain`` wrote with them, or
    timm's configuration of pretrained ones. Image files whose backbone says nothing are seen as timm's configuration of
    that model says. What ``data`` says of size, crop, interpolation, mean or standard deviation goes before all.

    Raises:
        ValueError: the model takes images of another size only.
    """
    from lightning_mvp.backbones.pretrained import require_size, timm_preprocessing

    recipe, own = plain(config.backbone.recipe), None
    if config.get("zoo") is not None and Path(config.zoo, "zoo.json").exists():
        from lightning_mvp.zoo.zoo import ModelZoo

        zoo = ModelZoo(config.zoo)
        recipe, own = zoo.recipe or recipe, zoo.preprocessing
    own = own or _of_weights(config)
    if own is None and (config.backbone.pretrained or _are_files(config)):
        own = timm_preprocessing(recipe, pretrained=config.backbone.pretrained)
    if own is None:
        return None
    seen = {**own, **_said(config)}
    require_size(recipe, seen["input_size"])
    return seen


def _said(config: DictConfig) -> dict[str, Any]:
    """What the ``data`` group says of how images are seen."""
    data = plain(config.data)
    said = {name: data[name] for name in SEEING if data.get(name) is not None}
    if data.get("image_size") is not None:  # images are squares of this size already
        said = {"input_size": data["image_size"], "crop": 1.0, **said}
    return said


def _measured(config: DictConfig) -> dict[str, Any] | None:
    """How a backbone without weights of somebody else's sees image files: by their moments, for which some are opened.

    None where weights say how, or where images are in memory: the data set's own moments are taken there anyway.
    """
    if config.backbone.pretrained or _of_weights(config) or not _are_files(config):
        return None
    from lightning_mvp.backbones.pretrained import require_size

    data, recipe = data_of(config), plain(config.backbone.recipe)
    seen = {"input_size": recipe["input_size"], "mean": data.mean, "std": data.std, **_said(config)}
    require_size(recipe, seen["input_size"])
    return seen


def _of_weights(config: DictConfig) -> dict[str, Any] | None:
    from lightning_mvp.backbones.pretrained import stored_preprocessing

    weights = config.weights if "weights" in config else config.backbone.weights
    return None if weights is None or not Path(weights).is_file() else stored_preprocessing(Path(weights))


def _are_files(config: DictConfig) -> bool:
    """Whether the images are opened when they are asked for."""
    return config.data.get("name") in ("imagefolder", "huggingface") or (
        config.data.get("name") == "torchvision" and not data_of(config).in_memory
    )

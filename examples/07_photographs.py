"""Photographs at real size: EfficientNet-Lite0 and ResNet-50 are pruned for four tasks, vote for a new one, and go out.

    python examples/07_photographs.py                                       # drawn characters, random weights
    python examples/07_photographs.py --cifar data/ --weights lite0.safetensors --pixels 224 --steps 100 --images 200

The images are JPEG files in class folders, opened when they are asked for. `--cifar` is a folder with CIFAR-100 as
torchvision downloads it, or as cifar100_train.npz (`images` uint8 (N, 32, 32, 3), `labels`, `classes`). As it stands
it takes a minute or two on two cores.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import lightning as L
import rich
from PIL import Image
from torch import Tensor, nn

from lightning_mvp import (
    ImageData,
    MetaVoteModule,
    MVPCallback,
    TaskDataModule,
    TaskModule,
    create_backbone,
    export_model,
    load_data,
    split_tasks,
)
from lightning_mvp.backbones.pretrained import timm_preprocessing

BACKBONES = ("tf_efficientnet_lite0", "resnet50")
SIDE = 160  # of a JPEG file, which is enlarged from what there is


def source_of(cifar: Path | None, images: int) -> ImageData:
    """Small images: CIFAR-100, or characters."""
    if cifar is None:
        return load_data("glyphs", characters="ABDEGHJKMNPRST", per_class_train=images, per_class_val=1)
    if (cifar / "cifar100_train.npz").exists():
        return load_data("arrays", root=cifar, train="cifar100_train.npz")
    return load_data("torchvision", root=cifar, dataset="CIFAR100")


def write_photographs(data: ImageData, folder: Path, images: int) -> int:
    """So many JPEG files of each class below `folder/train`; how many in all."""
    written = [0] * len(data.classes)
    assert isinstance(data.train.images, Tensor)
    for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True):
        if written[label] < images:
            file = folder / "train" / data.classes[label] / f"{written[label]:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)
            written[label] += 1
    return sum(written)


def train(module: L.LightningModule, data: TaskDataModule, steps: int, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    L.Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **quiet).fit(module, datamodule=data)


def prune_vote_export(theta0: nn.Module, photographs: ImageData, folder: Path, options: argparse.Namespace) -> None:
    """Four tasks are pruned into a zoo, which votes a small model for a fifth one."""
    name, begin = theta0.recipe["model"], time.perf_counter()
    seen = timm_preprocessing(theta0.recipe, pretrained=False)  # size, mean, std, crop and interpolation
    tasks = split_tasks(
        photographs.classes, classes_per_task=options.classes, sources=4, targets=1, held_out_fraction=0.0
    )

    def datamodule(task) -> TaskDataModule:
        own = {"batch_size": options.batch, "augment": "crop_flip", "preprocessing": seen, "num_workers": 2}
        return TaskDataModule(photographs, task.classes, task.name, **own)

    for task in tasks.source:
        data = datamodule(task)
        module = TaskModule.for_task(copy.deepcopy(theta0), data.facts)
        module.initialise_head(data)
        pruning = MVPCallback(pruning_ratio=0.5, rounds=2, head="head", task=data.facts, zoo=folder / "zoo")
        train(module, data, options.steps, pruning)
        accuracy = module.accuracy_in(data, "test")
        rich.print(f"{name}, {task.name}: {accuracy:.1%} on test images, {time.perf_counter() - begin:.0f} s")

    data = datamodule(tasks.target[0])
    module = MetaVoteModule.from_zoo(folder / "zoo", data, neighbours=2)
    before = module.accuracy_in(data, "test")
    train(module, data, options.steps)
    after = module.accuracy_in(data, "test")
    report = export_model(module.to_torch(), folder / "model", data.facts, formats=("safetensors", "pt2"), seconds=0.2)
    rich.print(report)
    classes = ", ".join(data.facts.classes)
    rich.print(f"{classes}: {before:.1%} before the first step, {after:.1%} after {options.steps}.")
    rich.print(f"{name}: four tasks, a vote and an export took {time.perf_counter() - begin:.0f} s.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="a folder with CIFAR-100; without it characters are drawn")
    parser.add_argument("--weights", type=Path, help="a safetensors file of tf_efficientnet_lite0; without it: random")
    parser.add_argument("--backbones", nargs="*", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--pixels", type=int, default=96, help="side of what the backbone sees (default: 96)")
    parser.add_argument("--classes", type=int, default=3, help="of each task (default: 3)")
    parser.add_argument("--images", type=int, default=12, help="files of each class (default: 12)")
    parser.add_argument("--steps", type=int, default=4, help="of each training (default: 4)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default: 8)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = write_photographs(source_of(options.cifar, options.images), folder / "images", options.images)
        photographs = load_data("imagefolder", root=folder / "images")  # lists them, opens none
        rich.print(f"{count:,} JPEG files of {len(photographs.classes)} classes")
        for model in options.backbones:
            L.seed_everything(0, verbose=False)
            recipe = {"model": model, "input_size": options.pixels}
            weights = options.weights if model == BACKBONES[0] else None
            prune_vote_export(create_backbone(recipe, weights=weights), photographs, folder / model, options)


if __name__ == "__main__":
    main()

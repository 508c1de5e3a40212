"""Tasks whose images are files: what is opened, when, and what comes out of the loader."""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from lightning_mvp.tasks import Part, TaskDataModule, TaskLoader, load_data
from lightning_mvp.tasks.data import class_names_of
from lightning_mvp.tasks.images import BrokenImageError, ImageFiles
from lightning_mvp.tasks.preprocessing import normalised
from lightning_mvp.training.task import TaskModule
from tests.tasks.photographs import write_photographs
from tests.tasks.test_datamodule import Recorder, joined, saving_every_step

CLASSES = {"ant": 10, "bee": 10, "cat": 14, "dog": 6}
SEEN: dict[str, Any] = {
    "input_size": 16,
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "interpolation": "bicubic",
    "crop": 0.8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", CLASSES)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that this process opens as images."""
    names: list[str] = []
    open_image: Callable[..., Any] = Image.open

    def noted(path: Any, *arguments: Any, **options: Any) -> Any:
        names.append(str(path))
        return open_image(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", noted)
    return names


def task(folder: Path, classes: tuple[str, ...] | None = ("cat", "ant"), **options: Any) -> TaskDataModule:
    data = load_data("imagefolder", root=folder)
    return TaskDataModule(data, classes, **{"preprocessing": SEEN, "batch_size": 4, "num_workers": 0, **options})


def test_nothing_is_opened_before_images_are_asked_for_and_then_of_the_wanted_classes_only(
    folder: Path, opened: list[str]
) -> None:
    own = task(folder)
    assert own.facts.input_size == 16
    assert load_data("imagefolder", root=folder).classes == ("ant", "bee", "cat", "dog")
    assert opened == []
    for loader in (own.train_dataloader(), own.val_dataloader(), own.test_dataloader()):
        list(loader)
    assert {Path(name).parent.name for name in opened} == {"ant", "cat"}
    assert len(set(opened)) == 24


def test_a_folder_of_squares_gives_the_very_batches_of_the_same_images_in_memory(tmp_path: Path) -> None:
    root = write_photographs(tmp_path, {"ant": 12, "bee": 12}, size=(16, 16))
    files = load_data("imagefolder", root=root, image_size=16)
    for augment in ("none", "crop", "crop_flip"):
        options: dict[str, Any] = {"augment": augment, "batch_size": 5, "num_workers": 0}
        ours, theirs = (TaskDataModule(data, **options) for data in (files, files.loaded()))
        assert ours.facts.mean == pytest.approx(theirs.facts.mean)
        for _ in range(2):
            for (images, labels), (other, wanted) in zip(
                ours.train_dataloader(), theirs.train_dataloader(), strict=True
            ):
                assert torch.equal(labels, wanted)
                assert torch.allclose(images, other)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_what_timms_transform_gives_up_to_one_step_of_256(folder: Path, interpolation: str) -> None:
    seen = {**SEEN, "interpolation": interpolation}
    own = task(folder, preprocessing=seen)
    images, labels = joined(list(own.val_dataloader()))
    told = {"mean": SEEN["mean"], "std": SEEN["std"], "crop_pct": SEEN["crop"], "interpolation": interpolation}
    transform = timm.data.create_transform(16, is_training=False, **told)
    part = own.part("val")
    for index, image in enumerate(images):
        theirs = transform(Image.open(part.images.name(index)))  # type: ignore[union-attr]
        assert (image - theirs).abs().max() < 1.01 / 255 / 0.25
    assert torch.equal(labels, part.labels)
    raw, _ = own.val_images()
    assert torch.equal(images, normalised(raw, own.facts))


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet", "randaug"])
def test_loading_processes_change_nothing(folder: Path, augment: str) -> None:
    here, there = (task(folder, augment=augment, num_workers=workers).train_dataloader() for workers in (0, 2))
    before = torch.get_rng_state()
    for _ in range(2):
        for (images, labels), (others, wanted) in zip(here, there, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, wanted)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers change"
    there.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to give memory back")
def test_memory_that_is_free_is_given_back_before_loading_processes_start(folder: Path) -> None:
    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    bytearray(4_000_000)  # from now on smaller ones are pieces of the heap
    held = [bytearray(b"1") * 1_000_000 for _ in range(120)]
    del held[::2]  # holes, which stay with the process
    before = used()
    loader = task(folder, num_workers=1).train_dataloader()
    next(iter(loader))
    loader.close()
    assert used() < before - 40_000_000


def test_random_transforms_differ_by_image_and_epoch(folder: Path) -> None:
    loader = task(folder, augment="imagenet", balance=False).train_dataloader()
    first, second = (
        dict(zip(labels.tolist(), images, strict=True)) for images, labels in (joined(list(loader)) for _ in (0, 1))
    )
    assert all(not torch.equal(first[label], second[label]) for label in first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 4])
def test_state_resumes_at_the_next_batch(folder: Path, workers: int, taken: int) -> None:
    def loader() -> TaskLoader:
        return task(folder, augment="imagenet", num_workers=workers).train_dataloader()

    whole, stopped, resumed = loader(), loader(), loader()
    expected = [*whole, *whole]
    batches = iter(stopped)
    for _ in range(taken):
        next(batches)
    resumed.load_state_dict(stopped.state_dict())
    rest = [*resumed] + ([*resumed] if taken < len(whole) else [])
    assert len(rest) == len(expected) - taken
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(rest, expected[taken:], strict=True))


def test_two_ranks_share_the_order_of_one(folder: Path) -> None:
    own = task(folder, augment="randaug", num_workers=2)
    single = joined(list(own.train_dataloader()))[0]
    ranks = []
    for rank in range(2):
        own.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        ranks.append(joined(list(own.train_dataloader()))[0])
    assert torch.equal(torch.stack(ranks, 1).flatten(0, 1)[: len(single)], single)


@pytest.mark.slow
def test_lightning_resumes_mid_epoch_exactly_with_loading_processes(folder: Path, tmp_path: Path) -> None:
    def fit(steps: int, resume: Path | None = None) -> Recorder:
        torch.manual_seed(0)
        module = Recorder()
        module.layer = torch.nn.Linear(3 * 16 * 16, 3)
        trainer = saving_every_step(steps, tmp_path, resume)
        trainer.fit(module, task(folder, augment="imagenet", num_workers=2), ckpt_path=resume)
        return module

    whole = fit(9)
    for step in (2, 4, 5, 7):
        resumed = fit(9, tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_broken_file_is_refused_by_name_before_any_batch_or_left_out(folder: Path) -> None:
    cut = folder / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "dog" / "0.png").write_bytes(b"")  # of a class that is not wanted
    with pytest.raises(BrokenImageError, match=r"3\.png.*data\.broken=skip"):
        task(folder).train_dataloader()
    with pytest.warns(UserWarning, match=r"Leaving out an image that can't be read: .*3\.png"):
        parts = [task(folder, broken="skip").part(name) for name in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == 23
    with pytest.raises(ValueError, match="`broken` to be one of"):
        task(folder, broken="mend")


def test_what_breaks_only_when_it_is_decoded_is_named_without_a_traceback_of_another_process(folder: Path) -> None:
    part = Part(ImageFiles(folder, ["cat/0.png", "cat/gone.png"]), torch.tensor([0, 1]))
    facts = task(folder).facts
    with pytest.raises(BrokenImageError, match=r"^.*gone\.png can't be read"):
        list(TaskLoader(part, facts, batch_size=1, num_workers=1))


def test_duplicates_are_found_among_the_wanted_classes_by_their_content(tmp_path: Path) -> None:
    root = tmp_path
    for number, name in enumerate(("train", "test")):
        write_photographs(root / name, {"ant": 10, "bee": 10}, size=(20 + number, 20))
    shutil.copy(root / "test" / "ant" / "0.png", root / "train" / "bee" / "same.png")
    Image.open(root / "test" / "ant" / "1.png").save(root / "train" / "ant" / "other.png", compress_level=0)
    train, val = (task(root, ("ant", "bee")).part(name) for name in ("train", "val"))  # type: ignore[arg-type]
    names = [part.images.name(i) for part in (train, val) for i in range(len(part))]  # type: ignore[union-attr]
    assert not any(name.endswith("same.png") for name in names)
    assert any(name.endswith("other.png") for name in names), "equal pixels in different files pass"
    assert len(names) == 21


def test_of_imagenets_layout_val_is_the_test_part(tmp_path: Path) -> None:
    write_photographs(tmp_path / "train", {"ant": 10, "bee": 10}, size=(21, 20))
    write_photographs(tmp_path / "val", {"ant": 4, "bee": 4})
    data = load_data("imagefolder", root=tmp_path)
    assert [len(data.train), len(data.val), len(data.test)] == [18, 2, 8]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = write_photographs(tmp_path, {"bus": 10, "train": 10})
    assert load_data("imagefolder", root=root).classes == ("bus", "train")


def test_missing_empty_and_mixed_folders_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    assert task(folder).facts.classes == ("cat", "ant")
    with pytest.raises(ValueError, match="class 'empty' of data set 'imagefolder' to have training images"):
        task(folder, ("cat", "empty"))
    mixed = write_photographs(write_photographs(tmp_path / "mixed", {"ant": 10}), {"bee": 10}, size=(30, 40))
    with pytest.raises(ValueError, match=r"(?s)one size.*Set `image_size`, or give `preprocessing`"):
        task(mixed, None, preprocessing=None).facts  # noqa: B018
    with pytest.raises(FileNotFoundError, match="one folder of images per class"):
        load_data("imagefolder", root=folder / "empty")
    (tmp_path / "none" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="Expected images in"):
        load_data("imagefolder", root=tmp_path / "none")


def test_a_datamodule_goes_to_another_process_whatever_it_has_loaded(folder: Path) -> None:
    own = task(folder, num_workers=1)
    first = next(iter(own.train_dataloader()))
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(next(iter(again.train_dataloader()))[0], first[0])
    again.teardown("fit")


class Dies:
    """A transform that ends its process."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        os._exit(3)


def test_a_loading_process_that_dies_is_told_in_words(folder: Path) -> None:
    loader = task(folder, augment=Dies(), num_workers=1).train_dataloader()
    with pytest.raises(OSError, match=r"loading process of task .* ended.*data\.num_workers"):
        list(loader)


def test_ctrl_c_in_a_terminal_costs_no_batch(folder: Path) -> None:
    loader = task(folder, num_workers=1).train_dataloader()
    batches = iter(loader)
    first = next(batches)
    assert loader._opening is not None
    (worker,) = loader._opening.loader._iterator._workers  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGINT)
    again = [first, *batches]
    assert len(again) == len(loader)
    loader.close()


class Grey:
    """A transform of somebody's own: Pillow in, Pillow or tensor out."""

    def __init__(self, size: int = 16, as_tensor: bool = False) -> None:
        self.size, self.as_tensor = size, as_tensor

    def __call__(self, picture: Image.Image) -> Any:
        grey = picture.convert("L").convert("RGB").resize((self.size, self.size))
        return torch.from_numpy(np.array(grey)).permute(2, 0, 1).double() if self.as_tensor else grey


def test_a_transform_of_ones_own_gives_pictures_or_tensors(folder: Path) -> None:
    by_path = {"_target_": "tests.tasks.test_files.Grey", "as_tensor": True}
    for augment, top in ((Grey(), 2.0), (by_path, 255.0)):
        images, _ = next(iter(task(folder, augment=augment).train_dataloader()))
        assert torch.equal(images[:, 0], images[:, 1])
        assert top / 4 < images.max() <= top
    with pytest.raises(ValueError, match=r"`augment` to give images uint8 or float of shape \(3, 16, 16\)"):
        list(task(folder, augment=Grey(size=8)).train_dataloader())
    for bad in ("mixup", {"_target_": "tests.tasks.nowhere"}, {"size": 3}, 7):
        with pytest.raises(ValueError, match="`augment`"):
            task(folder, augment=bad)


def test_timms_own_transform_is_one(folder: Path) -> None:
    augment = {
        "_target_": "timm.data.create_transform",
        "input_size": 16,
        "is_training": True,
        "auto_augment": "rand-m9",
    }
    own = task(folder, augment={**augment, "auto_augment": "rand-m9"})
    first, again = (joined(list(own.train_dataloader()))[0] for _ in range(2))
    assert torch.equal(first, again), "drawn from the seed, whatever generator it draws from"


def counts_of(loader: TaskLoader) -> Tensor:
    return joined([(images, labels) for _ in range(8) for images, labels in loader])[1].bincount()


def test_balance_shows_each_class_equally_often(folder: Path) -> None:
    uneven, even = (
        counts_of(task(folder, ("cat", "dog"), balance=balance).train_dataloader()) for balance in (False, True)
    )
    assert uneven[0] > 2 * uneven[1]
    assert abs(int(even[0] - even[1])) < 0.3 * int(even.sum())
    assert int(even.sum()) == int(uneven.sum())


def test_mixing_gives_soft_labels_that_follow_from_the_seed(folder: Path) -> None:
    own = task(folder, mixing={"mixup_alpha": 0.4, "cutmix_alpha": 1.0}, batch_size=5, augment="none")
    first, again = (list(own.train_dataloader()) for _ in range(2))
    for (images, labels), (others, wanted) in zip(first, again, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, wanted)
        assert labels.shape == (len(images), 2)
        assert torch.allclose(labels.sum(1), torch.ones(len(labels)))
    assert any(0 < float(value) < 1 for _, labels in first for value in labels.flatten())
    assert next(iter(own.val_dataloader()))[1].ndim == 1
    module = TaskModule({"model": "resnet10t", "input_size": 16}, own.facts.to_dict())
    images, labels = first[0]
    expected = -(labels * module(images).log_softmax(1)).sum(1).mean()
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    assert torch.allclose(module.training_step((images, labels), 0), expected, atol=1e-5)
    with pytest.raises(ValueError, match="`mixing` to hold arguments of timm"):
        task(folder, mixing={"alpha": 1})


def test_torchvisions_files_are_opened_when_they_are_asked_for(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    class Flowers(torchvision.datasets.ImageFolder):
        def __init__(self, root: str, split: str = "train") -> None:
            if split == "test":
                raise ValueError("Unknown split")
            super().__init__(root)

    monkeypatch.setattr(torchvision.datasets, "Flowers", Flowers, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", [*torchvision.datasets.__all__, "Flowers"])
    data = load_data("torchvision", root=folder, dataset="Flowers")
    assert (data.name, data.classes) == ("flowers", ("ant", "bee", "cat", "dog"))
    assert len(data.test) == sum(CLASSES.values()), "its val split, as of ImageNet"
    assert opened == []
    own = TaskDataModule(data, ("ant", "dog"), preprocessing=SEEN, num_workers=0)
    assert {tuple(images.shape[1:]) for images, _ in own.train_dataloader()} == {(3, 16, 16)}


def test_cifars_classes_are_known_without_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    content = pickle.dumps({CIFAR10.meta["key"]: ["plane", "ship"]})
    (folder / CIFAR10.meta["filename"]).write_bytes(content)
    monkeypatch.setitem(CIFAR10.meta, "md5", hashlib.md5(content).hexdigest())
    assert class_names_of("torchvision", root=tmp_path, dataset="CIFAR10") == ("plane", "ship")
    assert class_names_of("torchvision", root=tmp_path, dataset="MNIST")[3] == "3 - three"
    with pytest.raises(FileNotFoundError, match="the files of torchvision's CIFAR100"):
        class_names_of("torchvision", root=tmp_path, dataset="CIFAR100")

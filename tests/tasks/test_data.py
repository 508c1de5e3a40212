from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lightning_mvp.tasks import ImageData, TaskDataModule, load_data, split_tasks
from lightning_mvp.tasks.partition import image_hashes

SMALL: dict[str, Any] = {"characters": "ABDEGHKLMN", "per_class_train": 12, "per_class_val": 4, "per_class_test": 5}


def rng_images(n: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, side, side, 3), dtype=np.uint8)


def write_npz(path: Path, n: int = 60, classes: int = 3, seed: int = 0, names: bool = True, **arrays: Any) -> Path:
    content = {"images": rng_images(n, seed), "labels": np.arange(n) % classes} | arrays
    if names:
        content["classes"] = np.array([f"name-{i}" for i in range(classes)])
    np.savez(path, **content)
    return path


def hashes(data: ImageData) -> dict[str, set[bytes]]:
    return {part: set(image_hashes(getattr(data, part).images)) for part in ("train", "val", "test")}


def test_no_val_or_test_image_reaches_anything_that_learns_or_chooses(tmp_path: Path) -> None:
    """Every train accessor of every task, over a set that holds many images twice, across tasks and across parts."""
    images = rng_images(400)
    images[200:] = images[np.random.default_rng(1).permutation(200)]  # labels differ: the copy may lie in another task
    path = write_npz(tmp_path / "twice.npz", images=images, labels=np.arange(400) % 8, classes=8)
    for data in (load_data("glyphs", **SMALL), load_data("arrays", train=str(path))):
        of = hashes(data)
        forbidden = of["val"] | of["test"]
        assert len(data.val) > 0
        assert len(data.test) > 0
        assert not of["val"] & of["test"]
        split = split_tasks(data.classes, classes_per_task=3, sources=6, targets=3, held_out_fraction=0.2)
        for spec in (None, *split.source, *split.target):
            task = TaskDataModule(data, None if spec is None else spec.classes, augment="none")
            given = [*task.train_images()[0].split(1), *task.scoring_images(n=30)[0].split(1)]
            assert not {image_hashes(image)[0] for image in given} & forbidden
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
            for batch, _ in task.train_dataloader():
                raw = ((batch * std + mean) * 255).round().to(torch.uint8)
                assert set(image_hashes(raw)) <= of["train"]
                assert not set(image_hashes(raw)) & forbidden


def test_partition_is_drawn_once_and_cached(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "data.npz"))
    data = load_data("arrays", train=path, seed=3)
    assert load_data("arrays", train=path, seed=3) is data
    assert [len(data.train), len(data.val), len(data.test)] == [42, 6, 12]
    assert hashes(load_data("arrays", train=path, seed=4)) != hashes(data)
    tasks = [TaskDataModule(data, classes) for classes in (["name-0", "name-1"], ["name-1", "name-2"])]
    of_shared = [
        set(image_hashes(images[labels == 1 - i])) for i, t in enumerate(tasks) for images, labels in [t.test_images()]
    ]
    assert of_shared[0] == of_shared[1]


def test_shipped_test_part_is_kept_whole(tmp_path: Path) -> None:
    train, test = write_npz(tmp_path / "a.npz"), write_npz(tmp_path / "b.npz", n=9, seed=7)
    data = load_data("arrays", root=tmp_path, train="a.npz", test="b.npz", image_size=4)
    assert len(data.test) == 9
    assert len(data.train) + len(data.val) == 60
    assert data.image_size == 4
    assert load_data("arrays", train=str(train), test=str(test)).image_size == 8
    with pytest.raises(ValueError, match="differ"):
        load_data("arrays", train=str(train), test=str(write_npz(tmp_path / "c.npz", classes=4)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": rng_images(6).astype(np.float32), "labels": np.arange(6)}, "`images` to be uint8"),
        ({"images": rng_images(6), "labels": np.arange(5)}, r"shape \(6,\)"),
        ({"images": rng_images(6), "labels": np.arange(6.0)}, "integers"),
        ({"images": rng_images(6), "labels": np.array([None] * 6)}, "pickled"),
        ({"images": rng_images(6), "labels": np.arange(6) - 1}, "labels"),
    ],
)
def test_malformed_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "bad.npz", names=False, **arrays)
    with pytest.raises(ValueError, match=message):
        load_data("arrays", train=str(path))


def test_missing_or_truncated_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        load_data("arrays", root=tmp_path, train="gone.npz")
    whole = write_npz(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz"):
        load_data("arrays", root=tmp_path, train="cut.npz")
    np.savez(tmp_path / "half.npz", images=rng_images(3))
    with pytest.raises(ValueError, match=r"\['labels'\] is missing"):
        load_data("arrays", root=tmp_path, train="half.npz")


def test_grey_arrays_keep_their_one_channel(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "grey.npz", images=rng_images(60)[..., 0])
    assert load_data("arrays", train=str(path)).mean == pytest.approx((0.5,), abs=0.05)


def test_digits_are_real_scans() -> None:
    data = load_data("digits", image_size=16)
    assert data.classes[7] == "digit-7"
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert abs(len(data.test) - 359) <= 5
    assert load_data("digits", image_size=16, test_fraction=0.5).test.labels.bincount().min() >= 85


def test_imagefolder_with_and_without_parts(tmp_path: Path) -> None:
    for seed, (part, label, n) in enumerate(
        [("train", "cat", 10), ("train", "dog", 10), ("test", "cat", 3), ("test", "dog", 3)]
    ):
        # A seed of its own for each folder: two of one seed hold the same images, which are dropped as duplicates.
        folder = tmp_path / part / label
        folder.mkdir(parents=True)
        for i, image in enumerate(rng_images(n, seed=seed, side=9)):
            Image.fromarray(image[: 9 - i % 2]).save(folder / f"{i}.png")
    data = load_data("imagefolder", root=tmp_path, image_size=8)
    assert data.classes == ("cat", "dog")
    assert [len(data.train), len(data.val), len(data.test)] == [18, 2, 6]
    flat = load_data("imagefolder", root=tmp_path / "train", image_size=8)
    assert [len(flat.train), len(flat.val), len(flat.test)] == [14, 2, 4]
    with pytest.raises(ValueError, match="Set `image_size`"):
        TaskDataModule(load_data("imagefolder", root=tmp_path)).facts  # noqa: B018
    with pytest.raises(FileNotFoundError, match="`root`"):
        load_data("imagefolder", root=tmp_path / "none")


class ByTrain:
    """A data set as torchvision writes them."""

    classes = ("cat", ("dog", "hound"))

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download:
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.images = rng_images(20 if train else 6, seed=int(train))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), index % 2


class BySplit(ByTrain):
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        super().__init__(root, split == "train", download)


@pytest.mark.parametrize("dataset", [ByTrain, BySplit])
def test_torchvision_sets_of_either_kind(dataset: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Toy", dataset, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", [*torchvision.datasets.__all__, "Toy"])
    with pytest.raises(FileNotFoundError, match="download"):
        load_data("torchvision", root=tmp_path, dataset="Toy", val_fraction=0.2)
    root = tmp_path / dataset.__name__
    data = load_data("torchvision", root=root, dataset="Toy", val_fraction=0.2, download=True)
    assert data.classes == ("cat", "dog")
    assert data.name == "toy"
    assert [len(data.train), len(data.val), len(data.test)] == [16, 4, 6]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("glyph", {}, "Did you mean 'glyphs'"),
        ("glyphs", {"per_class": 3}, "per_class"),
        ("glyphs", {"image_size": 0}, "`image_size`"),
        ("digits", {"val_fraction": 0.0}, "`val_fraction`"),
        ("torchvision", {"dataset": "CIFAR101", "root": "x"}, "CIFAR10"),
        ("torchvision", {"dataset": "CIFAR10"}, "`root`"),
        ("torchvision", {}, "dataset"),
        ("arrays", {}, "train"),
    ],
)
def test_bad_requests_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name, **arguments)


def test_a_function_of_ones_own_may_take_lists_and_is_refused_by_name_where_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_set.py").write_text(
        "import torch\nfrom lightning_mvp.tasks.data import Part, Source\n"
        "def images(classes):\n"
        "    labels = torch.arange(len(classes)).repeat_interleave(10)\n"
        "    drawn = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8)\n"
        "    return Source(tuple(classes), Part(drawn, labels))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_data("my_set.images", classes=["one", "two"]).classes == ("one", "two")
    for name in ("my_set.nothing", "no_such.images", "my_set..images"):
        with pytest.raises(ValueError, match="`name` to be the import path of a function"):
            load_data(name, classes=["one", "two"])

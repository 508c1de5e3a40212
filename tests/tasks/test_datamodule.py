from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_mvp.tasks import ImageData, Part, TaskDataModule, TaskFacts, TaskLoader, load_data, preprocess
from lightning_mvp.tasks.loader import shifted

FACTS = TaskFacts("toy", ("a", "b"), 8, (0.5,), (0.25,))


def toy_part(n: int, side: int = 8) -> Part:
    images = torch.randint(1, 256, (n, 1, side, side), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return Part(images, torch.arange(n))


def loader(n: int = 10, **arguments: Any) -> TaskLoader:
    return TaskLoader(toy_part(n), FACTS, **{"batch_size": 4, "train": True, "augment": "crop_flip", **arguments})


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@pytest.fixture(scope="module")
def glyphs() -> ImageData:
    return load_data("glyphs", characters="ABDEGHKL", per_class_train=12, per_class_val=4, per_class_test=5)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_every_image_once_and_no_last_batch_of_one(n: int, batch_size: int, sizes: list[int]) -> None:
    batches = list(loader(n, batch_size=batch_size))
    assert [len(labels) for _, labels in batches] == sizes
    assert len(loader(n, batch_size=batch_size)) == len(sizes)
    assert sorted(joined(batches)[1].tolist()) == list(range(n))


def test_order_and_augmentation_change_by_epoch_and_seed_only() -> None:
    first = loader()
    epochs = [joined(list(first)) for _ in range(2)]
    assert not torch.equal(epochs[0][1], epochs[1][1])
    again = loader(batch_size=3)  # another batch size: the same images in the same order
    again.set_epoch(1)
    assert all(torch.equal(x, y) for x, y in zip(joined(list(again)), epochs[1], strict=True))
    assert not torch.equal(joined(list(loader(seed=1)))[0], epochs[0][0])
    image_of = [images[labels.argsort()] for images, labels in epochs]
    assert not torch.equal(image_of[0], image_of[1])


def test_evaluation_is_in_order_and_untouched() -> None:
    images, labels = joined(list(loader(train=False)))
    assert labels.tolist() == list(range(10))
    assert torch.equal(images, preprocess(toy_part(10).images, FACTS))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_augmented_images_are_shifted_copies(augment: str) -> None:
    part = toy_part(40, side=16)
    facts = TaskFacts("toy", ("a", "b"), 16, (0.5,), (0.25,))
    images, labels = joined(list(TaskLoader(part, facts, batch_size=40, train=True, augment=augment)))
    padded = nn.functional.pad(part.images, [2] * 4)
    shifts, mirrors = set(), set()
    for image, label in zip(images, labels.tolist(), strict=True):
        found = [
            (dy, dx, mirror)
            for dy in range(5)
            for dx in range(5)
            for mirror in (False, True)
            for cut in [padded[label : label + 1, :, dy : dy + 16, dx : dx + 16]]
            if torch.equal(preprocess(cut.flip(3) if mirror else cut, facts)[0], image)
        ]
        assert len(found) == 1
        shifts.add(found[0][:2])
        mirrors.add(found[0][2])
    assert mirrors == ({False, True} if augment == "crop_flip" else {False})
    assert (shifts == {(2, 2)}) == (augment == "none")


@pytest.mark.parametrize(("height", "width"), [(5, 5), (16, 16), (12, 20)])
def test_images_are_moved_and_mirrored_bit_for_bit_as_by_padding_and_indexing(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 3, height, width), dtype=torch.uint8, generator=generator)
    index, margin = torch.randint(9, (40,), generator=generator), width // 8
    places = torch.randint(2 * margin + 1, (40, 2), generator=generator)
    mirrored = torch.rand(40, generator=generator) < 0.5
    windows = nn.functional.pad(images[index], [margin] * 4).unfold(2, height, 1).unfold(3, width, 1)
    expected = windows[torch.arange(40), :, places[:, 0], places[:, 1]]
    expected = torch.where(mirrored.view(-1, 1, 1, 1), expected.flip(3), expected)
    assert torch.equal(shifted(images, index, places - margin, mirrored), expected)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_loading_leaves_the_images_as_they_are(augment: str) -> None:
    part = toy_part(10)
    before = part.images.clone()
    list(TaskLoader(part, FACTS, batch_size=4, train=True, augment=augment))
    assert torch.equal(part.images, before)


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_ranks_share_the_single_process_order(n: int) -> None:
    ranks = [list(loader(n, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(loader(n, rank=0, world_size=2))
    labels = [joined(batches)[1] for batches in ranks]
    single = joined(list(loader(n)))[1]
    assert torch.equal(torch.stack(labels, 1).flatten()[:n], single)
    assert len(labels[0]) == len(labels[1]) == (n + 1) // 2


@pytest.mark.parametrize("taken", range(4))
def test_state_resumes_at_the_next_batch(taken: int) -> None:
    whole = loader()
    expected = [*whole, *whole]
    stopped = loader()
    batches = iter(stopped)
    for _ in range(taken):
        next(batches)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    rest = [*resumed] + ([*resumed] if taken < 3 else [])
    assert len(rest) == len(expected) - taken
    for got, wanted in zip(rest, expected[taken:], strict=True):
        assert torch.equal(got[0], wanted[0])
        assert torch.equal(got[1], wanted[1])


def test_a_dropped_pass_starts_over() -> None:
    one = loader()
    assert torch.equal(next(iter(one))[1], next(iter(one))[1])


def test_bad_loading_is_refused() -> None:
    for arguments, message in (
        ({"batch_size": 0}, "`batch_size`"),
        ({"augment": "mixup"}, "`augment`"),
        ({"rank": 2, "world_size": 2}, "`rank`"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(**arguments)
    with pytest.raises(ValueError, match="images in every part"):
        TaskLoader(Part(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)), FACTS)


def test_labels_follow_the_order_of_classes(glyphs: ImageData) -> None:
    wanted = ("latin-capital-k", "latin-capital-a", "latin-capital-g")
    task = TaskDataModule(glyphs, wanted, name="kag")
    assert (task.spec.name, task.spec.classes, task.facts.classes) == ("kag", wanted, wanted)
    for (images, labels), part in (
        (task.train_images(), glyphs.train),
        (task.val_images(), glyphs.val),
        (task.test_images(), glyphs.test),
    ):
        for label, name in enumerate(wanted):
            assert torch.equal(images[labels == label], part.images[part.labels == glyphs.classes.index(name)])


def test_scoring_images_are_balanced_training_images(glyphs: ImageData) -> None:
    task = TaskDataModule(glyphs, glyphs.classes[:3])
    images, labels = task.scoring_images(n=20)
    assert labels.bincount().tolist() == [6, 6, 6]
    assert torch.equal(images, task.scoring_images(n=20)[0])
    assert not torch.equal(images, task.scoring_images(n=20, seed=1)[0])
    assert task.scoring_images(n=500)[1].bincount().tolist() == [12, 12, 12]
    with pytest.raises(ValueError, match="at least 3"):
        task.scoring_images(n=2)


def test_few_images_per_class(glyphs: ImageData) -> None:
    task = TaskDataModule(glyphs, glyphs.classes[:3], images_per_class=5)
    assert task.train_images()[1].bincount().tolist() == [5, 5, 5]
    assert task.scoring_images()[1].bincount().tolist() == [5, 5, 5]
    assert len(task.test_images()[1]) == 15
    for count in (0, 13):
        with pytest.raises(ValueError, match=r"\[1, 12\]"):
            TaskDataModule(glyphs, glyphs.classes[:3], images_per_class=count)


def test_default_names_differ_by_classes(glyphs: ImageData) -> None:
    names = {TaskDataModule(glyphs, c).spec.name for c in (None, glyphs.classes[:3], glyphs.classes[1:4])}
    assert len(names) == 3
    assert "glyphs" in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["latin-capital-a", "latin-capital-aa"]}, "for example: latin-capital-a"),
        ({"classes": ["latin-capital-a"]}, "two or more"),
        ({"classes": ["latin-capital-a"] * 2}, "once"),
        ({"data_options": {"image_size": 8}}, "`data_options`"),
        ({"augment": "mixup"}, "`augment`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_tasks_are_refused(glyphs: ImageData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskDataModule(glyphs, **arguments)


def test_loaders_are_sharded_by_the_trainer(glyphs: ImageData) -> None:
    task = TaskDataModule(glyphs, glyphs.classes[:3], batch_size=8)
    task.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    train = task.train_dataloader()
    assert (train.rank, train.world_size, len(train)) == (1, 2, 3)


class Recorder(L.LightningModule):
    """Learns a little and writes down which images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 3)
        self.seen: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.seen.append(batch[0].double().sum().item())
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def saving_every_step(steps: int, folder: Path, resume: Path | None) -> L.Trainer:
    """A Trainer that saves after every step, unless it goes on from a checkpoint."""
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[every_step] if resume is None else [],
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_lightning_resumes_mid_epoch_exactly(glyphs: ImageData, tmp_path: Path) -> None:
    def fit(steps: int, resume: Path | None = None) -> Recorder:
        torch.manual_seed(0)
        module = Recorder()
        trainer = saving_every_step(steps, tmp_path, resume)
        task = TaskDataModule(glyphs, glyphs.classes[:3], batch_size=10)
        trainer.fit(module, task, ckpt_path=resume)
        return module

    whole = fit(10)
    for step in (3, 4, 5, 8):  # before, at and after the end of the first epoch of four batches; at the second's
        resumed = fit(10, tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)

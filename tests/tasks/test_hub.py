"""Hugging Face's data sets, from folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_mvp.tasks import TaskDataModule, load_data
from lightning_mvp.tasks.images import BrokenImageError
from tests.tasks.photographs import write_photographs

datasets = pytest.importorskip("datasets")


def encoded(n: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for pixels in np.random.default_rng(seed).integers(256, size=(n, 20, 24, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    return rows


def rows(n: int, seed: int) -> Any:
    features = datasets.Features(
        {"note": datasets.Value("string"), "img": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])}
    )
    columns = {"note": ["x"] * n, "img": encoded(n, seed), "kind": [i % 2 for i in range(n)]}
    return datasets.Dataset.from_dict(columns, features=features)


def task(root: Path, **options: Any) -> TaskDataModule:
    data = load_data("huggingface", root=root, image_size=16, **options)
    assert data.classes == ("ant", "bee")
    return TaskDataModule(data, ("bee", "ant"), num_workers=0)


@pytest.fixture(autouse=True)
def cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_parquet_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    rows(20, 0).to_parquet(root / "train-00000.parquet")
    rows(8, 1).to_parquet(root / "test-00000.parquet")
    own = task(root)
    assert [len(own.part(name)) for name in ("train", "val", "test")] == [18, 2, 8]  # type: ignore[arg-type]
    images, labels = next(iter(own.train_dataloader()))
    assert images.shape[1:] == (3, 16, 16)
    assert set(labels.tolist()) == {0, 1}
    with pytest.raises(ValueError, match=r"`label` to name a column of ClassLabel, but got 'note'.*Value"):
        task(root, label="note")


def test_folders_of_images_and_what_was_saved_to_disk(tmp_path: Path) -> None:
    write_photographs(tmp_path / "folder" / "train", {"ant": 10, "bee": 10})
    assert len(task(tmp_path / "folder").part("train")) == 14
    datasets.DatasetDict({"train": rows(20, 0), "validation": rows(6, 1)}).save_to_disk(tmp_path / "saved")
    own = task(tmp_path / "saved")
    assert [len(own.part(name)) for name in ("train", "val", "test")] == [18, 2, 6]  # type: ignore[arg-type]
    own = task(tmp_path / "saved", image="img", label="kind")
    assert torch.is_tensor(own.part("test").open(0))


def test_what_is_not_there_or_broken_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`root` to be a folder"):
        load_data("huggingface", root=tmp_path / "none")
    damaged = (
        rows(20, 0)
        .cast_column("img", datasets.Image(decode=False))
        .map(
            lambda row, index: {
                "img": {"bytes": row["img"]["bytes"][:60] if index == 3 else row["img"]["bytes"], "path": None}
            },
            with_indices=True,
        )
    )
    damaged.cast_column("img", datasets.Image()).save_to_disk(tmp_path / "cut")
    with pytest.raises(BrokenImageError, match="row 3 of the data set"):
        task(tmp_path / "cut").train_dataloader()

"""Data sets of Hugging Face's `datasets`: opened where they lie, each image decoded when it is asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_mvp.tasks.images import EncodedImages


class HubImages(EncodedImages):
    """One column of encoded images; nothing is decoded before it is asked for.

    Args:
        rows: a `datasets.Dataset`.
        column: name of its column of images.
        image_size: the largest centred square of each is scaled to this size; None leaves them as they are.
    """

    def __init__(self, rows: Any, column: str, image_size: int | None) -> None:
        import datasets

        super().__init__(image_size)
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        path = self.rows[index][self.column]["path"]
        return f"row {index} of the data set" + (f" ({path})" if path else "")

    def stream(self, index: int) -> BinaryIO:
        encoded = self.rows[index][self.column]
        return io.BytesIO(encoded["bytes"]) if encoded["bytes"] is not None else Path(encoded["path"]).open("rb")

    def content_size(self, index: int) -> int | None:
        encoded = self.rows[index][self.column]
        return len(encoded["bytes"]) if encoded["bytes"] is not None else os.stat(encoded["path"]).st_size


def open_parts(root: Path | None, path: str | None, download: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a data set by name, "train" among them.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError: there is nothing there.
        ValueError: it has no part "train".
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Data set 'huggingface' needs datasets: pip install 'lightning-mvp[huggingface]'.") from error
    if path is None and (root is None or not root.is_dir()):
        raise FileNotFoundError(
            f"Expected argument `root` to be a folder of parquet files or images, or one of save_to_disk, but got "
            f"{root}. A data set of the hub is named by the option `path`."
        )
    try:
        if path is None:
            assert root is not None
            found = _from_folder(root, arguments)
        else:
            config = None if download else datasets.DownloadConfig(local_files_only=True)
            found = datasets.load_dataset(path, download_config=config, **arguments)
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"Expected the data set {path or root} to be on this machine, but got: {error} Name a folder by `root`, or "
            "set `download` to true."
        ) from error
    parts = dict(found) if isinstance(found, Mapping) else {"train": found}
    if "train" not in parts:
        raise ValueError(f"Expected the data set {path or root} to have a part 'train', but it has {sorted(parts)}.")
    return parts


def _from_folder(root: Path, arguments: Mapping[str, Any]) -> Any:
    import datasets

    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return datasets.load_from_disk(str(root))
    kind = "parquet" if next(root.glob("**/*.parquet"), None) else "imagefolder"
    return datasets.load_dataset(kind, data_dir=str(root), **arguments)


def columns_of(rows: Any, image: str | None, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and of class labels, and the names of the classes.

    Raises:
        ValueError: there are no such columns; the message lists those that there are.
    """
    import datasets

    def find(argument: str, given: str | None, kind: type) -> str:
        fitting = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
        if given is None and fitting:
            return fitting[0]
        if given is None or given not in fitting:
            raise ValueError(
                f"Expected option `{argument}` to name a column of {kind.__name__}, but got {given!r}. The columns are "
                f"{ {name: type(feature).__name__ for name, feature in rows.features.items()} }."
            )
        return given

    label = find("label", label, datasets.ClassLabel)
    return find("image", image, datasets.Image), label, tuple(rows.features[label].names)

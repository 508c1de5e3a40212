from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_mvp.tasks.images import BrokenImageError, ImageFiles, pixels_of
from tests.tasks.photographs import write_photographs

LEFT_RED = np.zeros((2, 4, 3), np.uint8)
LEFT_RED[:, :2, 0] = 255


def reopened(picture: Image.Image, suffix: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, suffix, **options)  # type: ignore[arg-type]
    return Image.open(file)


def test_a_rotated_photograph_comes_out_as_a_person_sees_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    stored = reopened(Image.fromarray(LEFT_RED), "PNG", exif=exif)
    seen = pixels_of(stored)
    assert seen.shape == (3, 4, 2)
    assert seen[0, :2].eq(255).all()
    assert seen[0, 2:].eq(0).all()


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(suffix: str) -> None:
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert pixels_of(reopened(Image.fromarray(wide), suffix))[1].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (2, 2), (10, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("RGB", (2, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
        (Image.new("I", (2, 2), 65535), (255, 255, 255)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_any_kind_of_picture_becomes_rgb(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert tuple(pixels_of(picture)[:, 0, 0].tolist()) == expected


def test_a_transparent_colour_of_a_palette_shows_white() -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([9, 9, 9, 1, 2, 3])
    assert pixels_of(reopened(picture, "PNG", transparency=0)).unique().tolist() == [255]


def broken_files(folder: Path) -> dict[str, Path]:
    """Files that are no images, or parts of some."""
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.bmp"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    Image.fromarray(np.ones((2, 2), np.float32)).save(folder / "float.tif")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_a_broken_file_is_named_when_it_is_opened_and_when_it_is_checked(tmp_path: Path) -> None:
    files = broken_files(tmp_path)
    images = ImageFiles(tmp_path, files)
    for index, name in enumerate(files):
        with pytest.raises(BrokenImageError, match=f"{name}.*broken"):
            images.open(index)
        if name != "float.tif":  # whose header is sound
            with pytest.raises(BrokenImageError, match=name):
                images.check(index)
    with pytest.raises(BrokenImageError, match=r"gone\.png"):
        ImageFiles(tmp_path, ["gone.png"]).open(0)


def test_a_sound_jpeg_with_something_after_its_end_is_sound(tmp_path: Path) -> None:
    write_photographs(tmp_path, {"a": 1}, suffix=".jpg")
    path = tmp_path / "a" / "0.jpg"
    path.write_bytes(path.read_bytes() + b"notes of the camera")
    images = ImageFiles(tmp_path, ["a/0.jpg"])
    images.check(0)
    assert images.size(0) == (40, 30)
    assert images.open(0).shape == (3, 30, 40)


def test_names_may_hold_any_bytes_and_a_choice_keeps_their_order(tmp_path: Path) -> None:
    write_photographs(tmp_path, {"größe, eins": 3})
    images = ImageFiles(tmp_path, [f"größe, eins/{i}.png" for i in range(3)], image_size=16)
    chosen = images.select(torch.tensor([2, 0])).select(torch.tensor([1, 0]))
    assert [chosen.name(i).endswith(f"{n}.png") for i, n in enumerate((0, 2))] == [True, True]
    assert torch.equal(chosen.open(1), images.open(2))
    assert images.open(0).shape == (3, 16, 16)

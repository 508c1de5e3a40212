from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mvp.tasks.glyphs import (
    CHARACTERS,
    FAMILIES,
    class_name,
    faces_of_parts,
    load_glyphs,
    look_alikes,
    render,
)

FACES = [face for faces in FAMILIES.values() for face in faces]


def drawn(characters: str) -> torch.Tensor:
    return torch.from_numpy(np.array([[render(c, face) for c in characters] for face in FACES])).float() / 255


def test_default_characters_are_many_named_apart_and_no_look_alikes() -> None:
    names = [class_name(character) for character in CHARACTERS]
    assert len(set(names)) == len(CHARACTERS) > 100
    assert all(name.isascii() and name.isprintable() and " " not in name for name in names)
    # A margin below the threshold: another FreeType must not make the default fail.
    assert look_alikes(drawn(CHARACTERS), threshold=0.87) == []


@pytest.mark.parametrize("pair", ["Oo", "OО", "OΟ", "Cc", "Ss", "Zz", "Xx", "xх", "Il", "HН", "Ww", ".·"])
def test_twins_are_found(pair: str) -> None:
    assert look_alikes(drawn(pair)) == [(0, 1)]


def test_twins_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="C and c"):
        load_glyphs(characters="ACc", per_class_train=1, per_class_val=1, per_class_test=1)


@pytest.mark.parametrize("character", ["漢", "\ue000", " ", "∀"])
def test_placeholders_and_blanks_are_refused(character: str) -> None:
    with pytest.raises(ValueError, match=r"no glyph for .* \(U\+"):
        render(character, "DejaVuSerif" if character != "∀" else "STIXGeneralItalic")


def test_other_fonts_are_refused() -> None:
    with pytest.raises(ValueError, match="`face`"):
        render("A", "cmsy10")


@pytest.mark.parametrize("seed", range(5))
def test_no_face_is_in_two_parts(seed: int) -> None:
    parts = faces_of_parts(seed)
    assert sorted(sum(parts.values(), ())) == sorted(FACES)
    for family in FAMILIES.values():
        assert len(set(family) & set(parts["test"])) == 1
        assert len(set(family) & set(parts["train"])) >= 2


def test_images_follow_from_the_seed() -> None:
    def load(seed: int) -> torch.Tensor:
        return load_glyphs(characters="ADΩ", seed=seed, per_class_train=4)[1]["train"].images

    assert torch.equal(load(3), load(3))
    assert not torch.equal(load(3), load(4))


def test_counts_size_and_sheet() -> None:
    classes, parts = load_glyphs(characters="AD7", image_size=16, per_class_train=5, per_class_val=2, per_class_test=3)
    assert classes == ("latin-capital-a", "latin-capital-d", "digit-7")
    assert {name: part.labels.bincount().tolist() for name, part in parts.items()} == {
        "train": [5] * 3,
        "val": [2] * 3,
        "test": [3] * 3,
    }
    assert parts["train"].images.shape == (15, 3, 16, 16)
    # Every image shows something: ink stands out of paper and noise.
    assert parts["train"].images.float().std((1, 2, 3)).min() > 5


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="per_class_val"):
        load_glyphs(per_class_val=0)
    with pytest.raises(ValueError, match="distinct"):
        load_glyphs(characters="AA")

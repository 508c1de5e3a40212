"""Entries that are whole, and sound by their own sum, but of no use to a vote: named, skipped, and never voted with."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_mvp.voting.ranking import rank_neighbours
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import DamagedEntryError, ModelZoo, ZooEntry
from lightning_mvp.zoo.rebuild import rebuild

from .conftest import World

Fill = Callable[..., ModelZoo]


def _fewer_units(entry: ZooEntry) -> ZooEntry:
    """One unit less than the weights have."""
    group, mask = next(iter(entry.masks.items()))
    mask = mask.copy()
    mask[np.flatnonzero(mask)[0]] = False
    return replace(entry, masks={**entry.masks, group: mask})


def _cut(entry: ZooEntry) -> ZooEntry:
    """One weight without its last row."""
    name = "layer1.0.conv1.weight"
    return replace(entry, weights={**entry.weights, name: entry.weights[name][:-1]})


def _head(entry: ZooEntry) -> ZooEntry:
    return replace(entry, head={**entry.head, "weight": entry.head["weight"][:, :-1]})


def _prototypes(entry: ZooEntry) -> ZooEntry:
    assert entry.prototypes is not None
    return replace(entry, prototypes=entry.prototypes[:, :-1])


def _overflow(entry: ZooEntry) -> ZooEntry:
    return replace(entry, head={**entry.head, "weight": np.full_like(entry.head["weight"], 3e38)})


def _facts(**facts: object) -> Callable[[ZooEntry], ZooEntry]:
    return lambda entry: replace(entry, facts={**entry.facts, **facts})


CASES = [
    (_fewer_units, ("leep", "prototypes", "random", "farthest"), "Expected weight .* which its masks leave"),
    (_cut, ("leep", "prototypes", "random", "farthest"), "Expected weight 'layer1.0.conv1.weight'"),
    (_head, ("leep", "farthest"), "head of entry .* features, which its masks leave"),
    (_overflow, ("leep",), "computes NaN or infinity"),
    (_prototypes, ("prototypes",), "prototypes of entry"),
    (_facts(mean=[0.5], std=[0.5]), ("leep", "prototypes", "random"), "images with 3 channels, but its facts have 1"),
    (_facts(mean=[None] * 3), ("leep", "random"), "facts of entry .* say nothing usable"),
    (_facts(mean=7), ("leep",), "say nothing usable"),
    (_facts(unheard_of=1), ("leep",), "say nothing usable.*unheard_of"),
]


@pytest.fixture
def entries(world: World) -> list[ZooEntry]:
    return [world.entry(name, name, seed) for seed, name in enumerate(("abc", "abf", "efg"))]


@pytest.mark.parametrize(
    ("damage", "similarity", "words"),
    [(damage, similarity, words) for damage, similarities, words in CASES for similarity in similarities],
)
def test_what_a_vote_cannot_use_is_named_and_skipped(
    damage, similarity, words: str, world: World, zoo: Fill, entries: list[ZooEntry]
) -> None:
    made = zoo(damage(entries[0]), *entries[1:])
    name = entries[0].name
    assert made.verify()[name] is None, "the zoo, which knows no architecture, finds nothing"
    images, labels = world.of(*"abc")
    options = {"similarity": similarity, "backbone": world.backbone, "groups": world.groups}
    with pytest.warns(UserWarning, match="Skipping a damaged zoo entry") as caught:
        ranked = rank_neighbours(made, images, labels, k=2, **options)
    assert any(name in str(w.message) for w in caught)
    assert any(re.search(words, str(w.message)) for w in caught)
    assert sorted(neighbour.name for neighbour in ranked) == [entry.name for entry in entries[1:]]

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    loader = [(images[order], labels[order])]
    with pytest.warns(UserWarning, match="Skipping a damaged zoo entry"):
        _, report = voted_backbone(made, loader, neighbours=2, similarity=similarity)
    made.remove(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, expected = voted_backbone(made, loader, neighbours=2, similarity=similarity)
    assert report.masks == expected.masks, "no wrong mask"


def test_rebuild_names_the_entry_whose_weights_do_not_fit(world: World, entries: list[ZooEntry]) -> None:
    with pytest.raises(DamagedEntryError, match=f"of entry '{entries[0].name}' to have shape .*prune this task again"):
        rebuild(_fewer_units(entries[0]), world.backbone, world.groups)
    other = replace(entries[0], masks={"other": np.ones(3, bool)})
    with pytest.raises(DamagedEntryError, match=f"Expected entry '{entries[0].name}' to have masks of"):
        rebuild(other, world.backbone, world.groups)
    missing = {name: value for name, value in entries[0].weights.items() if name != "conv1.weight"}
    with pytest.raises(DamagedEntryError, match=r"weight 'conv1.weight' .*but got None"):
        rebuild(replace(entries[0], weights=missing), world.backbone, world.groups)


def test_an_entry_damaged_between_ranking_and_vote_is_left_out(
    world: World, zoo: Fill, entries: list[ZooEntry]
) -> None:
    made = zoo(*entries)
    images, labels = world.of(*"abc")
    ranked = rank_neighbours(made, images, labels, k=None, backbone=world.backbone, groups=world.groups)
    path = made.path / "tasks" / f"{ranked[0].name}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    loader = [(images[order], labels[order])]
    with pytest.warns(UserWarning, match=rf"Leaving a damaged zoo entry out of the vote: .*{ranked[0].name}"):
        _, report = voted_backbone(made, loader, neighbours=list(ranked))
    assert report.neighbours == tuple(ranked[1:])
    assert sorted(report.coefficients) == sorted(neighbour.name for neighbour in ranked[1:])
    with (
        pytest.warns(UserWarning, match="Leaving a damaged"),
        pytest.raises(ValueError, match="No entry that should vote is sound"),
    ):
        voted_backbone(made, loader, neighbours=ranked[:1])


def test_images_that_no_entry_can_read_are_not_blamed_on_the_zoo_alone(
    world: World, zoo: Fill, entries: list[ZooEntry]
) -> None:
    made = zoo(*entries)
    images = torch.full((6, 3, 16, 16), float("nan"))
    with (
        pytest.warns(UserWarning, match="computes NaN"),
        pytest.raises(ValueError, match=r"none could be compared with these images; the warnings say why"),
    ):
        rank_neighbours(made, images, torch.tensor([0, 1] * 3), backbone=world.backbone, groups=world.groups)


def test_a_zoo_of_damaged_entries_only_is_said(world: World, zoo: Fill, entries: list[ZooEntry]) -> None:
    made = zoo(*(_fewer_units(entry) for entry in entries))
    images, labels = world.of(*"abc")
    with (
        pytest.warns(UserWarning, match="Skipping a damaged"),
        pytest.raises(ValueError, match=r"No entry of the zoo .* can be a neighbour"),
    ):
        rank_neighbours(made, images, labels, backbone=world.backbone, groups=world.groups)
    shutil.rmtree(made.path)
    with pytest.raises(FileNotFoundError, match="unmounted"):
        voted_backbone(made, [(images, labels)])

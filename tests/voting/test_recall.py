"""Recall: a large zoo's promising entries, found without running a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_mvp.backbones.features import features_of
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting import leep, voted_backbone
from lightning_mvp.voting.ranking import rank_neighbours
from lightning_mvp.voting.recall import TEMPERATURE, class_means, recall_scores, recalled
from lightning_mvp.voting.sources import TargetData
from lightning_mvp.zoo import ModelZoo, ZooEntry
from lightning_mvp.zoo.catalogue import catalogue
from lightning_mvp.zoo.seen_by import preprocessing_of

from .conftest import World

Fill = Callable[..., ModelZoo]
TASKS = ("abc", "abd", "acd", "bcd", "efg", "efh", "fgh", "abe", "cdg", "dgh")


@pytest.fixture
def entries(world: World) -> list[ZooEntry]:
    return [world.entry(name, name, seed) for seed, name in enumerate(TASKS)]


@pytest.fixture
def options(world: World) -> dict:
    return {"backbone": world.backbone, "groups": world.groups}


def test_scores_are_leep_of_a_softmax_over_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 5, generator=generator), torch.arange(30) % 3
    prototypes, bounds = torch.randn(9, 5, generator=generator), np.array([0, 4, 6, 9])
    scores = recall_scores(features, labels, prototypes, bounds)
    centre = features.mean(0)
    for source in range(3):
        own = prototypes[bounds[source] : bounds[source + 1]]
        cosines = torch.cosine_similarity((features - centre)[:, None], (own - centre)[None], dim=2)
        assert scores[source] == pytest.approx(leep((cosines / TEMPERATURE).softmax(1), labels), abs=1e-5)
    several = torch.stack([labels == 0, labels == 2, labels < 5], 1).long()  # the last one tells nothing apart
    by_label = [recall_scores(features, several[:, label], prototypes, bounds) for label in (0, 1)]
    np.testing.assert_allclose(recall_scores(features, several, prototypes, bounds), np.mean(by_label, 0))


def test_many_sources_are_scored_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 2
    prototypes, bounds = torch.randn(450, 4, generator=generator), np.arange(0, 451, 3)
    together = recall_scores(features, labels, prototypes, bounds)
    alone = [recall_scores(features, labels, prototypes[i : i + 3], np.array([0, 3]))[0] for i in range(0, 450, 3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_large_zoo_is_searched_in_two_stages(world: World, zoo: Fill, entries, options, monkeypatch) -> None:
    made = zoo(*entries)
    images, labels = world.of(*"abc")
    exact = rank_neighbours(made, images, labels, k=None, shortlist=None, **options)
    promising = recalled(TargetData(made, images, labels, world.backbone, world.groups, made.names)).order
    expected = [neighbour for neighbour in exact if neighbour.name in promising[:4]][:2]
    read: list[str] = []
    get = ModelZoo.__getitem__
    monkeypatch.setattr(ModelZoo, "__getitem__", lambda self, name: (read.append(name), get(self, name))[1])
    found = rank_neighbours(made, images, labels, k=2, shortlist=4, **options)
    assert len(set(read)) == len(read) == 4, "no other entry is opened"
    assert list(found) == expected, "what is scored is scored exactly"
    assert set(read) == set(promising[:4])
    assert (found.scored, found.entries) == (4, 10)
    assert (exact.scored, exact.entries) == (10, 10)
    assert found.evidence.leep == expected[0].score
    assert found.evidence.lead is None
    assert exact.evidence.lead is not None
    farthest = rank_neighbours(made, images, labels, k=2, shortlist=3, similarity="farthest", **options)
    assert {n.name for n in farthest} <= set(promising[-3:])
    by_prototypes = {"similarity": "prototypes", "k": 3, **options}
    near = rank_neighbours(made, images, labels, shortlist=3, **by_prototypes)
    assert list(near) == list(rank_neighbours(made, images, labels, shortlist=None, **by_prototypes)), "exactly"
    assert near[0].name.startswith("abc--")
    covering = rank_neighbours(made, images, labels, k=2, shortlist=3, similarity="cover", **options)
    assert covering[0].name in promising[:3]


def test_random_neighbours_are_those_of_the_whole_zoo(world: World, zoo: Fill, entries, options) -> None:
    made = zoo(*entries)
    images, labels = world.of(*"abc")
    some, whole = (
        rank_neighbours(made, images, labels, k=2, shortlist=shortlist, similarity="random", seed=3, **options)
        for shortlist in (2, None)
    )
    assert [n.name for n in some] == [n.name for n in whole]


def test_more_neighbours_than_the_shortlist_are_all_looked_at(world: World, zoo: Fill, entries, options) -> None:
    made = zoo(*entries)
    ranked = rank_neighbours(made, *world.of(*"abc"), k=5, shortlist=2, **options)
    assert len(ranked) == ranked.scored == 5
    assert len(rank_neighbours(made, *world.of(*"abc"), k=None, shortlist=2, **options)) == 10


def test_entries_without_prototypes_are_run_beside_the_shortlist(world: World, zoo: Fill, entries, options) -> None:
    images, labels = world.of(*"abc")
    near, made = {"k": 2, "shortlist": 4, "similarity": "prototypes"}, zoo(*entries)
    exact = rank_neighbours(made, images, labels, k=None, shortlist=None, **options)
    without, *rest = (replace(made[neighbour.name], prototypes=None) for neighbour in exact)
    made.add(without, overwrite=True)
    with pytest.warns(UserWarning, match=f"1 of 10 zoo entries, such as {without.name}, have no prototypes.*are run"):
        ranked = rank_neighbours(made, images, labels, k=2, shortlist=4, **options)
    assert ranked.scored == 5
    assert without.name == ranked[0].name, "the nearest is found, prototypes or not"
    with pytest.warns(UserWarning, match="1 of 10 zoo entries have no prototypes, or are damaged"):
        assert rank_neighbours(made, images, labels, **near, **options).scored == 4
    made.add(replace(rest[-1], prototypes=np.ones((3, 99), np.float32)), overwrite=True)
    with pytest.warns(UserWarning, match="2 of 10 zoo entries"):
        assert rank_neighbours(made, images, labels, k=2, shortlist=4, **options).scored == 6
    for entry in rest:
        made.add(entry, overwrite=True)
    with pytest.warns(UserWarning, match="10 of 10 zoo entries"):
        assert list(rank_neighbours(made, images, labels, k=2, shortlist=4, **options)) == exact[:2]
    with (
        pytest.warns(UserWarning, match="have no prototypes"),
        pytest.raises(ValueError, match=r"has prototypes of θ⁰'s features to be found by\. .*`shortlist=None`"),
    ):
        rank_neighbours(made, images, labels, **near, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(rank_neighbours(made, images, labels, k=2, shortlist=None, **options)) == 2


def test_entries_without_a_head_take_no_place_in_leeps_shortlist(world: World, zoo: Fill, entries, options) -> None:
    images, labels = world.of(*"abc")
    made = zoo(*entries)
    best = recalled(TargetData(made, images, labels, world.backbone, world.groups, made.names)).order[:4]
    for name in best:
        made.add(replace(made[name], head={}), overwrite=True)
    with pytest.warns(UserWarning, match="4 of 10 zoo entries have no head, or are damaged"):
        ranked = rank_neighbours(made, images, labels, k=2, shortlist=4, **options)
    assert ranked.scored == 4
    assert not {n.name for n in ranked} & set(best)
    near = rank_neighbours(made, images, labels, k=4, shortlist=4, similarity="prototypes", **options)
    assert {n.name for n in near} & set(best), "prototypes need no head"


def test_facts_that_say_nothing_usable_cost_only_their_entries(world: World, zoo: Fill, entries, options) -> None:
    broken = replace(entries[0], facts={**entries[0].facts, "mean": [None] * 3})
    made = zoo(broken, *entries[1:])
    with pytest.warns(UserWarning, match=f"Skipping 1 damaged zoo entries, such as {broken.name}"):
        order = recalled(TargetData(made, *world.of(*"abc"), world.backbone, world.groups, made.names)).order
    assert sorted(order) == sorted(entry.name for entry in entries[1:])


def test_each_preprocessing_in_the_zoo_is_looked_through(world: World, zoo: Fill, entries) -> None:
    other = world.entry("ab", "ab", seed=50, mean=0.3)
    made = zoo(*entries[:3], other)
    images, labels = world.of(*"abc")
    order = recalled(TargetData(made, images, labels, world.backbone, world.groups, made.names)).order
    assert set(order) == set(made.names)
    own = features_of(world.backbone, preprocess(images, world.facts("ab", "ab", 0.3)))
    expected = recall_scores(own, labels, torch.from_numpy(other.prototypes), np.array([0, 2]))
    rest = features_of(world.backbone, preprocess(images, world.facts("x", "abc")))
    scores = {other.name: expected[0]}
    for entry in entries[:3]:
        scores[entry.name] = recall_scores(rest, labels, torch.from_numpy(entry.prototypes), np.array([0, 3]))[0]
    assert order == sorted(scores, key=lambda name: -scores[name])


def test_the_report_of_a_vote_says_how_many_were_looked_at(world: World, zoo: Fill, entries) -> None:
    made = zoo(*entries)
    images, labels = world.of(*"abc")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    _, report = voted_backbone(made, [(images[order], labels[order])], neighbours=2, shortlist=4)
    assert (report.scored, report.entries) == (4, 10)
    assert "4 of 10 entries" in report.summary()
    assert report.to_dict()["scored"] == 4


def test_theta0_runs_once_where_prototypes_are_in_the_zoos_preprocessing(world: World, zoo: Fill, entries) -> None:
    images, labels = world.of(*"abc")
    other = world.entry("ab", "ab", seed=50, mean=0.3)
    common = preprocessing_of(entries[0].facts)
    seen_by = TaskFacts.from_dict({**other.facts, **common})
    rows = class_means(features_of(world.backbone, preprocess(world.of(*"ab")[0], seen_by)), world.of(*"ab")[1])
    made = zoo(*entries[:3], replace(other, prototypes=rows.numpy(), prototypes_seen_by=common))
    order, passes = counted_recall(world, made, images, labels)
    assert passes == 1
    features = features_of(world.backbone, preprocess(images, world.facts("x", "abc")))
    cards = catalogue(made)
    scores = {
        name: recall_scores(features, labels, torch.from_numpy(card.prototypes), np.array([0, len(card.classes)]))[0]
        for name, card in cards.items()
    }
    assert order == sorted(scores, key=lambda name: -scores[name])
    assert made[other.name].facts["mean"] == [0.3] * 3, "its facts still say what its model sees"
    made.add(other, overwrite=True)
    assert counted_recall(world, made, images, labels)[1] == 2


def counted_recall(world: World, made: ModelZoo, images: torch.Tensor, labels: torch.Tensor) -> tuple[list[str], int]:
    """The order, and how often θ⁰ ran; of so few images one pass is one batch."""
    target = TargetData(made, images, labels, world.backbone, world.groups, made.names)
    passes: list[object] = []
    hook = target.dense.register_forward_pre_hook(lambda *_: passes.append(None))
    order = recalled(target).order
    hook.remove()
    return order, len(passes)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_shortlist_of_nothing_is_refused(bad: int, world: World, zoo: Fill, entries, options) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `shortlist` to be at least 1, but got {bad}"):
        rank_neighbours(zoo(*entries[:2]), *world.of(*"abc"), shortlist=bad, **options)

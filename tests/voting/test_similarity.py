from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_mvp.backbones import Groups
from lightning_mvp.backbones.features import features_of
from lightning_mvp.voting import prototype_similarity, rank_neighbours
from lightning_mvp.voting.labels import informative_labels
from lightning_mvp.voting.leep import covering_order, expected_predictions, leep
from lightning_mvp.voting.recall import class_means
from lightning_mvp.voting.target_images import as_input
from lightning_mvp.zoo import ZooEntry
from lightning_mvp.zoo.rebuild import rebuild

from .conftest import World

GOLDEN = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]]


def _probabilities(entry: ZooEntry, images: torch.Tensor, backbone: nn.Module, groups: Groups) -> torch.Tensor:
    """By a model of the entry that is made anew."""
    small, head = rebuild(entry, backbone, groups)
    assert head is not None
    with torch.no_grad():
        return head(features_of(small, as_input(images, entry.facts))).double().softmax(1)


def test_leep_golden_values() -> None:
    labels = [0, 0, 1, 1]
    assert leep(np.array(GOLDEN), np.array(labels)) == pytest.approx(-0.4712479065, abs=1e-10)
    uneven = torch.tensor([0, 0, 0, 5])
    entropy = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert leep(torch.full((4, 10), 0.1), uneven) == pytest.approx(entropy, abs=1e-7)
    assert leep(torch.eye(3)[[0, 1, 2, 1]], torch.tensor([4, 0, 2, 0])) == 0.0


def test_leep_is_the_formula_written_as_loops() -> None:
    rng = np.random.default_rng(0)
    theta, y = rng.dirichlet([0.3] * 5, size=40), rng.integers(0, 3, 40)
    joint = {(a, z): sum(theta[i, z] for i in range(40) if y[i] == a) / 40 for a in range(3) for z in range(5)}
    marginal = [sum(joint[a, z] for a in range(3)) for z in range(5)]
    expected = sum(math.log(sum(joint[y[i], z] / marginal[z] * theta[i, z] for z in range(5))) for i in range(40))
    assert leep(theta, y) == pytest.approx(expected / 40, abs=1e-12)


def test_leep_ignores_a_class_without_mass() -> None:
    padded = np.insert(np.array(GOLDEN), 1, 0.0, axis=1)
    assert leep(padded, np.array([0, 0, 1, 1])) == leep(np.array(GOLDEN), np.array([0, 0, 1, 1]))


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), classes=st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_leep_is_at_most_zero_and_blind_to_order(seed, n, classes) -> None:
    rng = np.random.default_rng(seed)
    theta, y = rng.dirichlet([0.1] * classes, size=n), rng.integers(0, 3, n)
    score = leep(theta, y)
    assert -math.log(3) - 1e-9 <= score <= 0
    rows, columns = rng.permutation(n), rng.permutation(classes)
    assert leep(theta[rows][:, columns], 7 - y[rows]) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("theta", "labels"),
    [
        (torch.ones(4), torch.zeros(4)),
        (torch.ones(4, 1), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0)),
        (torch.tensor([[2.0, -1.0]]), torch.zeros(1)),
        (torch.tensor([[float("nan"), 1.0]]), torch.zeros(1)),
        (torch.tensor([[3.0, 1.0]]), torch.zeros(1)),
    ],
)
def test_leep_refuses_what_is_no_probability(theta: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`probabilities`"):
        leep(theta, labels)


def test_leep_of_several_labels_is_the_mean_of_binary_leeps() -> None:
    rng = np.random.default_rng(1)
    theta, y = rng.dirichlet([0.3] * 5, size=40), (rng.random((40, 3)) < [0.2, 0.5, 0.9]).astype(np.int64)
    assert leep(theta, y) == pytest.approx(np.mean([leep(theta, column) for column in y.T]), abs=1e-12)
    assert leep(theta, y[:, :1]) == pytest.approx(leep(theta, y[:, 0]), abs=1e-12)
    for labels in (torch.tensor(y).float(), torch.tensor(y).bool(), torch.tensor(y).to(torch.uint8)):
        assert leep(theta, labels) == leep(theta, y)


def test_leep_of_several_labels_is_zero_for_a_perfect_source_and_minus_entropy_for_a_blind_one() -> None:
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert leep(torch.eye(4), labels) == 0.0
    entropy = math.log(0.5), math.log(0.5), 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    assert leep(torch.full((4, 2), 0.5), labels) == pytest.approx(sum(entropy) / 3, abs=1e-12)
    padded = np.insert(np.array(GOLDEN), 1, 0.0, axis=1)
    assert leep(padded, labels) == leep(np.array(GOLDEN), labels), "a source class without mass"


def test_leep_leaves_out_labels_that_are_always_or_never_present() -> None:
    telling = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    padded = torch.cat([torch.ones(4, 1), telling, torch.zeros(4, 2)], dim=1)
    assert leep(np.array(GOLDEN), padded) == leep(np.array(GOLDEN), telling) < 0
    assert informative_labels(padded).tolist() == telling.bool().tolist()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([[0.5, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), "0 or 1, but got values such as 0.5"),
        (torch.tensor([[3, 1], [1, 0], [0, 0], [2, 0]]), r"class index per image as shape \(n,\)"),
        (torch.tensor([[float("nan"), 1.0]] * 4), "not known"),
        (torch.tensor([[1, 0]] * 4), "every label is always present or always absent"),
        (torch.zeros(4, 0), "every label is always present or always absent"),
        (torch.zeros(3, 2), r"\(n,\) or \(n, L\), but got \(4, 2\) and \(3, 2\)"),
        (torch.zeros(4, 2, 2), r"but got torch.float32 of shape \(4, 2, 2\)"),
    ],
)
def test_leep_refuses_labels_that_say_nothing(labels: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        leep(np.array(GOLDEN), labels)


def test_prototype_similarity_falls_with_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(10, 32, generator=generator) + 5
    near = source + 0.3 * torch.randn(10, 32, generator=generator)
    far = torch.randn(10, 32, generator=generator) + 5
    assert 1 > prototype_similarity(source, near) > prototype_similarity(source, far) + 0.2
    assert prototype_similarity(source, source[:4]) == pytest.approx(1), "every target class is a source class"
    assert prototype_similarity(source[:4], source) < 0.9
    with pytest.raises(ValueError, match="same D"):
        prototype_similarity(source, far[:, :3])


def test_class_means() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    assert class_means(features, torch.tensor([7, 7, 2])).tolist() == [[0.0, 5.0], [2.0, 0.0]]


def test_class_means_of_several_labels_are_those_of_the_images_that_have_them() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    labels = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]])  # the last two columns tell nothing
    assert class_means(features, labels).tolist() == [[2.0, 0.0], [1.5, 2.5]]
    assert class_means(features, labels.bool()).tolist() == class_means(features, labels).tolist()


@pytest.fixture
def entries(world: World) -> list[ZooEntry]:
    return [world.entry(name, name, seed) for seed, name in enumerate(("abc", "abf", "efg", "fgh"))]


def _tasks(neighbours) -> list[str]:
    return [neighbour.name.split("--")[0] for neighbour in neighbours]


@pytest.mark.parametrize("similarity", ["leep", "prototypes"])
def test_the_entry_of_the_same_classes_is_nearest(similarity, world: World, zoo, entries) -> None:
    images, labels = world.of(*"abc")
    options = {"backbone": world.backbone, "groups": world.groups, "classes": "abc"}
    ranked = rank_neighbours(zoo(*entries), images, labels, similarity=similarity, k=4, **options)
    assert _tasks(ranked)[0] == "abc"
    assert ranked[0].shared_classes == 3
    scores = [neighbour.score for neighbour in ranked]
    assert scores == sorted(scores, reverse=True)
    if similarity == "leep":
        farthest = rank_neighbours(zoo(), images, labels, similarity="farthest", k=4, **options)
        assert [neighbour.name for neighbour in farthest] == [neighbour.name for neighbour in reversed(ranked)]


def test_covering_neighbours_complement_each_other(world: World, zoo, entries) -> None:
    images, labels = world.of(*"abgh")
    options = {"backbone": world.backbone, "groups": world.groups, "classes": "abgh", "k": None}
    ranked = rank_neighbours(zoo(*entries), images, labels, similarity="leep", **options)
    covering = rank_neighbours(zoo(), images, labels, similarity="cover", **options)
    assert covering[0] == ranked[0], "the first is the nearest"
    assert {neighbour.name: neighbour.score for neighbour in covering} == {n.name: n.score for n in ranked}
    named = {entry.name: entry for entry in entries}
    rows = [
        expected_predictions(_probabilities(named[name], images, world.backbone, world.groups), labels)
        for name in sorted(named)
    ]
    order = covering_order(torch.stack(rows), 4)
    assert [neighbour.name for neighbour in covering] == [sorted(named)[row] for row in order]
    with pytest.raises(ValueError, match="one class per image for similarity='cover'"):
        rank_neighbours(zoo(), images, torch.eye(4)[labels % 4], similarity="cover", **options)


def test_the_covering_order_is_greedy() -> None:
    expected = torch.tensor([[0.8, 0.8, 0.1, 0.1], [0.79, 0.79, 0.1, 0.1], [0.1, 0.1, 0.5, 0.5]])
    assert covering_order(expected, 2) == [0, 2]
    assert covering_order(expected, 9) == [0, 2, 1]
    assert covering_order(expected[:1].repeat(3, 1), 3) == [0, 1, 2]


def test_scores_are_leep_of_each_source_through_its_own_preprocessing(world: World, zoo, entries) -> None:
    other = world.entry("abd", "abd", 9, mean=0.2)
    images, labels = world.of(*"abc")
    made = zoo(*entries, other)
    ranked = rank_neighbours(made, images, labels, backbone=world.backbone, groups=world.groups, k=None)
    scores = {neighbour.name: neighbour.score for neighbour in ranked}
    assert scores.keys() == set(made.names)
    own = leep(_probabilities(other, images, world.backbone, world.groups), labels)
    assert scores[other.name] == own
    foreign = replace(other, facts=entries[0].facts)
    assert own != leep(_probabilities(foreign, images, world.backbone, world.groups), labels)


def test_random_is_a_function_of_the_seed(world: World, zoo, entries) -> None:
    images, labels = world.of(*"abc")
    made = zoo(*entries)
    drawn = {
        seed: _tasks(
            rank_neighbours(
                made, images, labels, backbone=world.backbone, groups=world.groups, similarity="random", k=2, seed=seed
            )
        )
        for seed in (0, 1, 2, 3)
    }
    again = rank_neighbours(
        made, images, labels, backbone=world.backbone, groups=world.groups, similarity="random", k=2, seed=3
    )
    assert _tasks(again) == drawn[3]
    assert len({tuple(names) for names in drawn.values()}) > 1


def test_headless_entries_are_skipped_by_leep_but_serve_prototypes(world: World, zoo, entries) -> None:
    headless = replace(entries[0], head={})
    made = zoo(headless, *entries[1:])
    images, labels = world.of(*"abc")
    with pytest.warns(UserWarning, match=f"without a head: {headless.name}"):
        ranked = rank_neighbours(made, images, labels, backbone=world.backbone, groups=world.groups, k=3)
    assert headless.name not in {neighbour.name for neighbour in ranked}
    ranked = rank_neighbours(
        made, images, labels, backbone=world.backbone, groups=world.groups, similarity="prototypes", k=1
    )
    assert ranked[0].name == headless.name


def test_warnings_say_what_is_unusual(world: World, zoo, entries) -> None:
    images, labels = world.of(*"abc")
    options = {"backbone": world.backbone, "groups": world.groups}
    made = zoo(*entries[:2])
    with pytest.warns(UserWarning, match="at least 8 entries to choose from, but got 2"):
        assert len(rank_neighbours(made, images, labels, **options)) == 2
    made.add(world.entry("ab", "ab", 5))
    with pytest.warns(UserWarning, match=r"have \[2, 3\] classes"):
        rank_neighbours(made, images, labels, k=1, **options)
    made.add(world.entry("gh", "gh", 6, ratio=0.3))
    with pytest.warns(
        UserWarning, match="several pruning configs.*left out are 1 of .*Choose one by `config`.*config='all'"
    ):
        ranked = rank_neighbours(made, images, labels, k=3, similarity="prototypes", **options)
    assert "gh" not in _tasks(ranked)
    (rare,) = (key for key, names in made.configs.items() if len(names) == 1)
    assert _tasks(rank_neighbours(made, images, labels, k=1, config=rare, **options)) == ["gh"]


def test_nothing_to_choose_from_is_refused(world: World, zoo, entries) -> None:
    images, labels = world.of(*"abc")
    options = {"backbone": world.backbone, "groups": world.groups}
    made = zoo()
    with pytest.raises(ValueError, match="is empty"):
        rank_neighbours(made, images, labels, **options)
    made.add(entries[0])
    with pytest.raises(ValueError, match="not excluded"):
        rank_neighbours(made, images, labels, exclude=[entries[0].name], **options)
    with pytest.raises(ValueError, match="`similarity` to be one of"):
        rank_neighbours(made, images, labels, similarity="logme", **options)
    with pytest.raises(ValueError, match="`k` to be at least 1"):
        rank_neighbours(made, images, labels, k=0, **options)

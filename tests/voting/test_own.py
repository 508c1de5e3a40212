"""Similarities and merges of a user's own, and what a ranking keeps in memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.voting import Similarity, TargetData, rank_neighbours, sources, voted_backbone
from lightning_mvp.voting.merge import merge
from lightning_mvp.voting.merges import MERGES, Mean
from lightning_mvp.voting.options import VoteOptions, stored_options
from lightning_mvp.voting.similarities import SIMILARITIES, Cover, Farthest, Leep, Prototypes, Random
from lightning_mvp.voting.voted import Election
from lightning_mvp.zoo import ModelZoo, ZooEntry
from lightning_mvp.zoo.rebuild import entry_masks

from .conftest import World
from .own import Alphabetical, First, Forgetful

OWN = f"{__package__}.own"


@pytest.fixture
def made(world: World, zoo: Callable[..., ModelZoo]) -> ModelZoo:
    names = ("abc", "abf", "efg", "fgh", "abd", "bcd", "cde")
    return zoo(*(world.entry(name, name, seed) for seed, name in enumerate(names)))


@pytest.fixture
def loader(world: World) -> list[Any]:
    images, labels = world.of(*"abc")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[part], labels[part]) for part in order.split(24)]


class Reads:
    """How often each entry was read, and how many were alive at most when another one had just been read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.weights: list[weakref.ref[Any]] = []
        self.most = 0

    def see(self, entry: ZooEntry) -> ZooEntry:
        self.counts[entry.name] += 1
        self.weights.append(weakref.ref(entry.weights["conv1.weight"]))
        self.most = max(self.most, sum(weights() is not None for weights in self.weights))
        return entry


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    seen, get = Reads(), ModelZoo.__getitem__
    monkeypatch.setattr(ModelZoo, "__getitem__", lambda zoo, name: seen.see(get(zoo, name)))
    return seen


@pytest.mark.parametrize("similarity", ["leep", "prototypes", "latest", "random", "farthest", Alphabetical()])
@pytest.mark.parametrize("shortlist", [4, None])
def test_each_voter_is_read_once_and_one_entry_and_the_best_are_in_memory(
    similarity: Any, shortlist: int | None, made: ModelZoo, loader: Any, reads: Reads
) -> None:
    _, report = voted_backbone(made, loader, neighbours=2, similarity=similarity, shortlist=shortlist)
    all_read = shortlist is None or isinstance(similarity, Similarity)
    assert sorted(reads.counts.values()) == [1] * (7 if all_read else 4)
    assert {neighbour.name for neighbour in report.neighbours} <= reads.counts.keys()
    assert reads.most == 2 + 1


def test_covering_voters_that_were_not_kept_are_read_again(made: ModelZoo, loader: Any, reads: Reads) -> None:
    _, report = voted_backbone(made, loader, neighbours=2, similarity="cover")
    assert reads.most <= 2 + 1
    again = {name for name, count in reads.counts.items() if count > 1}
    assert again <= {neighbour.name for neighbour in report.neighbours}


def test_a_ranking_brings_its_entries_and_a_list_of_neighbours_has_them_read(
    world: World, made: ModelZoo, loader: Any, reads: Reads, tmp_path: Any
) -> None:
    ranking = rank_neighbours(made, *world.of(*"abc"), backbone=world.backbone, groups=world.groups, k=3)
    reads.counts.clear()
    small, report = voted_backbone(made, loader, neighbours=ranking)
    assert not reads.counts
    again, _ = voted_backbone(made, loader, neighbours=list(ranking))
    assert reads.counts == Counter(neighbour.name for neighbour in ranking)
    assert fingerprint(small.state_dict()) == fingerprint(again.state_dict())
    other = ModelZoo.create(tmp_path / "other", made.recipe, made.theta0(), made.group_sizes)
    for neighbour in ranking:
        other.add(made[neighbour.name])
    reads.counts.clear()
    voted_backbone(other, loader, neighbours=ranking)
    assert len(reads.counts) == 3, "entries of another folder are not taken for this one's"
    assert report.evidence == ranking.evidence


def test_several_numbers_of_voters_share_one_reading(made: ModelZoo, loader: Any, reads: Reads) -> None:
    election = Election(made, loader, 3, VoteOptions())
    reads.counts.clear()
    for count in (1, 3):
        expected = voted_backbone(made, loader, neighbours=count)[0].state_dict()
        assert fingerprint(election.result(count)[0].state_dict()) == fingerprint(expected)
        assert len(election.result(count)[1].neighbours) == count


def test_a_name_an_object_and_a_target_are_one_choice(made: ModelZoo, loader: Any) -> None:
    path = "lightning_mvp.voting.similarities.Farthest"
    choices: list[Any] = ["farthest", Farthest(), {"_target_": path}]
    states = {fingerprint(voted_backbone(made, loader, neighbours=2, similarity=c)[0].state_dict()) for c in choices}
    assert len(states) == 1
    assert [SIMILARITIES.stored(choice) for choice in choices] == ["farthest"] * 3
    for name, kind in {"leep": Leep, "cover": Cover, "prototypes": Prototypes, "random": Random}.items():
        assert (type(SIMILARITIES.resolve(name)), SIMILARITIES.stored(kind())) == (kind, name)
    assert (MERGES.stored(Mean()), MERGES.stored("mean")) == ("mean", "mean")


def test_a_similarity_of_ones_own_ranks(made: ModelZoo, loader: Any) -> None:
    last = [made.names[index] for index in (6, 5, 4)]
    for own in (Alphabetical(2), {"_target_": f"{OWN}.Alphabetical", "factor": 2}):
        _, report = voted_backbone(made, loader, neighbours=3, similarity=own)
        assert [neighbour.name for neighbour in report.neighbours] == last
        assert [neighbour.score for neighbour in report.neighbours] == [12, 10, 8]
        assert (report.evidence, report.scored) == (None, 7)
        assert stored_options({"similarity": own}) == {"similarity": {"_target_": f"{OWN}.Alphabetical", "factor": 2}}


def test_a_score_that_is_no_number_costs_its_entry(made: ModelZoo, loader: Any) -> None:
    own = Alphabetical()
    own.score = lambda entry, target: float("nan") if entry.name.startswith("abd") else 1.0  # type: ignore
    with pytest.warns(UserWarning, match=r"similarity of entry 'abd--\w+' is nan"):
        _, report = voted_backbone(made, loader, neighbours=7, similarity=own)
    assert len(report.neighbours) == 6


def test_a_merge_of_ones_own_takes_the_place_of_the_mean(world: World, made: ModelZoo) -> None:
    entries = {name: made[name] for name in made.names[:3]}
    masks = {name: entry_masks(entry) for name, entry in entries.items()}
    options: dict[str, Any] = {"target": masks[made.names[0]], "groups": world.groups, "theta0": made.theta0()}
    states = {name: entry.weights for name, entry in entries.items()}
    mean = merge(states, masks, **options).state
    first = merge(states, masks, combine=First().combine, **options).state
    for name, tensor in first.items():
        own = torch.from_numpy(entries[made.names[0]].weights[name])
        expected = mean[name] if "running" in name or "num_batches" in name else own
        assert torch.equal(tensor, expected), name

    def weighted(values: torch.Tensor, present: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        counted = weights.reshape(-1, *[1] * (values.ndim - 1)) * present
        return (counted * values).sum(0) / counted.sum(0)

    unequal = dict(zip(states, (1.0, 2.0, 0.5), strict=True))
    mean = merge(states, masks, coefficients=unequal, missing="producer", **options).state
    again = merge(states, masks, coefficients=unequal, missing="producer", combine=weighted, **options).state
    assert all(torch.allclose(again[name], mean[name]) for name in mean), "what is missing is filled in all the same"
    with pytest.raises(ValueError, match=r"`combine` to give a tensor of shape .* for 'bn1.bias'"):
        merge(states, masks, combine=lambda values, *_: values, **options)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("logme", r"`similarity` to be one of \('leep', .*but got 'logme'\."),
        (Leep, "got <class .*Leep.*>, a class; make an object of it"),
        (7, "of a subclass of lightning_mvp.voting.similarities.Similarity, .*but got 7"),
        (First(), "but got <tests.voting.own.First"),
        ({"factor": 2}, "`_target_` None, which can't be imported"),
        ({"_target_": "nowhere.Own"}, "'nowhere.Own', which can't be imported .*No module named 'nowhere'"),
        ({"_target_": f"{OWN}.Owm"}, "which can't be imported .*Owm"),
        ({"_target_": "os.system", "command": "true"}, "'os.system', which is no subclass of Similarity"),
        ({"_target_": f"{OWN}.Alphabetical", "speed": 1}, "which can't be made .*unexpected keyword argument 'speed'"),
        ({"_target_": "lightning_mvp.voting.Similarity"}, "which can't be made .*abstract"),
    ],
)
def test_what_is_no_similarity_is_refused_before_any_work(choice: Any, match: str, made: ModelZoo) -> None:
    with pytest.raises(ValueError, match=match):
        voted_backbone(made, [], similarity=choice)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        (type("Made", (Alphabetical,), {})(), "any process can import, .*Made"),
        (Forgetful(), r"Forgetful does not keep `factor`.*self\.factor = factor"),
        (Alphabetical(torch.ones(1)), "plain arguments .*but tests.voting.own.Alphabetical has"),  # type: ignore
        (Alphabetical(float("inf")), "plain arguments"),
    ],
)
def test_what_has_no_plain_form_is_refused_where_it_would_be_stored(choice: Any, match: str) -> None:
    SIMILARITIES.resolve(choice)
    with pytest.raises(ValueError, match=match):
        stored_options({"similarity": choice})


def test_images_that_are_preprocessed_pass_the_dense_backbone_once_whatever_the_entries_facts(
    made: ModelZoo, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    monkeypatch.setattr(sources, "features_over", lambda *_: passes.append(1) or (torch.zeros(9, 4), torch.empty(0)))
    images, labels = world.of(*"abc")
    facts = made[made.names[0]].facts
    for floating, expected in ((True, 1), (False, 2)):
        passes.clear()
        seen = images.float() if floating else images
        target = TargetData(made, seen, labels, world.backbone, world.groups, made.names)
        target.features(facts)
        target.features({**facts, "mean": [0.1] * len(facts["mean"])})
        assert len(passes) == expected

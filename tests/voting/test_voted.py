from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mvp.backbones import create_backbone
from lightning_mvp.backbones.cost import count_parameters
from lightning_mvp.backbones.features import features_of, reestimate_batch_norm
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.loader import TaskLoader
from lightning_mvp.tasks.partition import Part
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting import voted
from lightning_mvp.voting.ranking import rank_neighbours
from lightning_mvp.voting.reading import balanced_subset
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import ModelZoo, ZooEntry
from lightning_mvp.zoo.rebuild import dense_backbone, rebuild

from .conftest import RECIPE, World


@pytest.fixture
def entries(world: World) -> list[ZooEntry]:
    return [world.entry(name, name, seed) for seed, name in enumerate(("abc", "abf", "efg", "fgh"))]


@pytest.fixture
def made(zoo: Callable[..., ModelZoo], entries: list[ZooEntry]) -> ModelZoo:
    return zoo(*entries)


class Module:
    """What `voted_backbone` needs of a TaskDataModule."""

    def __init__(self, world: World, classes: str) -> None:
        self.images, self.labels = world.of(*classes)
        self.facts = world.facts("target", classes)

    def part(self, name: str) -> Part:
        return Part(self.images, self.labels)

    def scoring_part(self, n: int = 500, seed: int = 0) -> Part:
        return self.part("train")[balanced_subset(self.labels, n, seed)]

    def pass_loader(self, part: Part, facts: TaskFacts, batch_size: int) -> TaskLoader:
        return TaskLoader(part, facts, batch_size=batch_size)

    def scoring_images(self) -> tuple[torch.Tensor, torch.Tensor]:
        part = self.scoring_part()
        return part.images, part.labels


def test_rebuild_gives_the_stored_model(world: World, made: ModelZoo, entries: list[ZooEntry]) -> None:
    before = fingerprint(world.backbone.state_dict())
    small, head = rebuild(made[entries[0].name], world.backbone, world.groups)
    assert fingerprint(small.state_dict()) == fingerprint(entries[0].weights)
    assert head is not None
    assert fingerprint(head.state_dict()) == fingerprint(entries[0].head)
    assert fingerprint(world.backbone.state_dict()) == before
    assert not small.training
    assert rebuild(replace(entries[0], head={}), world.backbone, world.groups)[1] is None
    bare = replace(entries[0], head={"weight": entries[0].head["weight"]})
    bare_head = rebuild(bare, world.backbone, world.groups)[1]
    assert bare_head is not None
    assert bare_head.bias is None


def test_dense_backbone_is_theta0_and_another_architecture_is_refused(world: World, made: ModelZoo) -> None:
    dense = dense_backbone(made)
    assert fingerprint(dense.state_dict()) == fingerprint(made.theta0()) == fingerprint(world.backbone.state_dict())
    with pytest.raises(
        ValueError,
        match=r"another backbone: .* tensors differ, first 'bn1\.num_batches_tracked': expected shape \(\), got None",
    ):
        dense_backbone(made, nn.Sequential(nn.Linear(3, 3)))


def test_a_classifier_inside_the_backbone_is_no_part_of_it(world: World, made: ModelZoo) -> None:
    classifying = create_backbone({**RECIPE, "arguments": {**RECIPE["arguments"], "num_classes": 5}})
    dense = dense_backbone(made, classifying)
    assert fingerprint(dense.state_dict()) == fingerprint(made.theta0())
    assert classifying.get_classifier().out_features == 5, "the given one is not changed"


def test_one_neighbour_without_reestimation_is_that_neighbour(world: World, made: ModelZoo, entries) -> None:
    small, report = voted_backbone(made, Module(world, "abc"), neighbours=1, reestimate_batches=0)
    assert report.neighbours[0].name == entries[0].name
    assert report.neighbours[0].shared_classes == 3
    assert fingerprint(small.state_dict()) == fingerprint(entries[0].weights)
    assert report.shares == {"0": 0.0, "1": 1.0, ">=2": 0.0}


def test_vote_of_several(world: World, made: ModelZoo) -> None:
    small, report = voted_backbone(made, Module(world, "abd"), neighbours=3, pruning_ratio=0.5, temperature=0.1)
    assert len(report.neighbours) == 3
    assert sum(report.coefficients.values()) == pytest.approx(1)
    assert report.masks.kept == report.widths
    assert report.parameters == count_parameters(small) < report.dense_parameters == count_parameters(world.backbone)
    assert 0 < report.macs < report.dense_macs
    assert sum(report.shares.values()) == pytest.approx(1)
    assert torch.isfinite(features_of(small, preprocess(world.images, world.facts("all", "abd")))).all()


class Own(L.LightningModule):
    """A module that leaves the backbone in the mode that it came in, as most do."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.LazyLinear(3)
        self.head(features_of(backbone, torch.zeros(1, 3, 16, 16)))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_trainer_trains_it_batch_norm_included(world: World, made: ModelZoo) -> None:
    small, _ = voted_backbone(made, Module(world, "abd"), neighbours=3)
    assert all(part.training for part in small.modules())
    before = {name: value.clone() for name, value in small.state_dict().items()}
    images, labels = world.of(*"abd")
    data = TensorDataset(preprocess(images, world.facts("target", "abd")), labels)
    fit_options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=2, enable_progress_bar=False, **fit_options)
    trainer.fit(Own(small), DataLoader(data, 24, shuffle=True))
    assert small.bn1.num_batches_tracked == before["bn1.num_batches_tracked"] + 2
    assert not torch.equal(small.bn1.running_mean, before["bn1.running_mean"])


def test_a_ranking_can_be_used_again(world: World, made: ModelZoo) -> None:
    module = Module(world, "abd")
    ranking = rank_neighbours(made, *module.scoring_images(), backbone=world.backbone, groups=world.groups, k=None)
    ours, report = voted_backbone(made, module, neighbours=ranking[:2], temperature=0.1)
    theirs, _ = voted_backbone(made, module, neighbours=2, temperature=0.1)
    assert [neighbour.name for neighbour in report.neighbours] == [neighbour.name for neighbour in ranking[:2]]
    assert fingerprint(ours.state_dict()) == fingerprint(theirs.state_dict())
    with pytest.raises(ValueError, match="at least one neighbour"):
        voted_backbone(made, module, neighbours=[])


def test_statistics_are_those_of_the_target(world: World, made: ModelZoo) -> None:
    images, _ = world.of(*"abd")
    small, _ = voted_backbone(made, Module(world, "abd"), neighbours=3)
    conv, norm = small.conv1, small.bn1
    seen = conv(preprocess(images, world.facts("target", "abd")))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, seen.var((0, 2, 3)), rtol=1e-3)


def test_the_order_of_the_zoo_and_global_seeds_do_not_matter(world: World, made: ModelZoo, entries, tmp_path) -> None:
    other = ModelZoo.create(tmp_path / "other", made.recipe, made.theta0(), made.group_sizes)
    for entry in reversed(entries):
        other.add(entry)
    states = []
    for seed, each in enumerate((made, other)):
        torch.manual_seed(seed)
        small, report = voted_backbone(each, Module(world, "abd"), neighbours=3, temperature=0.2)
        states.append((fingerprint(small.state_dict()), report.masks.fingerprint))
    assert states[0] == states[1]


@pytest.mark.parametrize("raw", [True, False], ids=["uint8", "float"])
def test_any_iterable_of_training_batches_will_do(raw: bool, world: World, made: ModelZoo) -> None:
    images, labels = world.of(*"abc")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    fed = images if raw else preprocess(images, world.facts("target", "abc"))
    loader = [(fed[part], labels[part]) for part in order.split(16)]
    small, report = voted_backbone(made, loader, neighbours=2, classes=tuple("abc"), backbone=world.backbone)
    assert report.neighbours[0].shared_classes == 3
    reference, _ = voted_backbone(made, Module(world, "abc"), neighbours=2)
    for name, value in reference.state_dict().items():
        assert torch.allclose(small.state_dict()[name].double(), value.double(), atol=1e-4), name


@pytest.mark.parametrize("similarity", ["leep", "prototypes"])
def test_several_labels_per_image_find_the_entry_that_tells_them_apart(
    similarity: Any, world: World, made: ModelZoo, entries
) -> None:
    images, labels = world.of(*"efg")
    several = torch.stack([labels == 0, labels != 1, labels >= 0], dim=1)  # the last label is on every image
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    loaders = [
        [(images[part], several[part].to(kind)) for part in order.split(16)] for kind in (torch.float32, torch.bool)
    ]
    reports = [voted_backbone(made, loader, neighbours=2, similarity=similarity)[1] for loader in loaders]
    assert reports[0].neighbours[0].name == entries[2].name
    assert reports[0].neighbours == reports[1].neighbours


def test_of_a_batch_for_two_heads_the_first_labels_decide(world: World, made: ModelZoo) -> None:
    images, labels = world.of(*"efg")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    other = (images.float().mean((1, 2, 3)) > 120).long()

    def scores(*heads: torch.Tensor) -> list[float]:
        loader = [[images[part], *(head[part] for head in heads)] for part in order.split(16)]
        return [neighbour.score for neighbour in voted_backbone(made, loader, neighbours=2)[1].neighbours]

    assert scores(labels, other) == scores(labels) != scores(other, labels)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (
            {"pixels": torch.zeros(4, 3, 16, 16), "breed": torch.zeros(4)},
            r"dict with keys \['pixels', 'breed'\].*batch\['image'\], batch\['label'\]\) for batch in loader",
        ),
        ((torch.zeros(4, 3, 16, 16), (torch.zeros(4), torch.zeros(4))), "got a tuple of Tensor, tuple.*Wrap it"),
        (torch.zeros(4, 3, 16, 16), "got a Tensor"),
        ((torch.zeros(4, 3, 16, 16), torch.zeros(4, 16, 16)), r"multi-hot \(n, L\), but got .* and \(4, 16, 16\)"),
        ((torch.zeros(4, 3, 16, 16), torch.zeros(3)), r"and \(3,\)"),
    ],
    ids=["dict", "nested", "images alone", "segmentation", "too few labels"],
)
def test_batches_of_another_form_are_refused_with_the_way_to_wrap_them(batch: Any, match: str, made: ModelZoo) -> None:
    with pytest.raises(ValueError, match=match):
        voted_backbone(made, [batch])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.randn(48), "regression"),
        (torch.zeros(48, dtype=torch.long), "all 48 are of class 0"),
        (torch.arange(48), "48 different labels"),
        (torch.ones(48, 2), "always present or always absent"),
    ],
)
def test_labels_that_say_nothing_are_refused_unless_nothing_is_asked_of_them(
    labels: torch.Tensor, match: str, world: World, made: ModelZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = list(zip(world.images[:48].split(16), labels.split(16), strict=True))
    drawn = voted_backbone(made, loader, neighbours=2, similarity="random", reestimate_batches=0)[1].neighbours
    voted_backbone(made, loader, neighbours=drawn, reestimate_batches=0)
    with pytest.raises(ValueError, match=match):
        rank_neighbours(made, world.images[:48], labels, backbone=world.backbone, groups=world.groups)
    monkeypatch.setattr(voted, "find_groups", None)  # before any work
    with pytest.raises(ValueError, match=match):
        voted_backbone(made, loader)


def test_a_sorted_loader_votes_as_a_shuffled_one(world: World, made: ModelZoo) -> None:
    images, labels = world.of(*"efg")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))

    def vote(order: torch.Tensor, batches: int) -> list[str]:
        loader = [(images[part], labels[part][:, None]) for part in order.split(4)]
        report = voted_backbone(made, loader, neighbours=4, reestimate_batches=batches)[1]
        return [neighbour.name for neighbour in report.neighbours]

    with pytest.warns(UserWarning, match=r"one class after the other: its first 2 batches hold class 0 only"):
        in_order = vote(torch.arange(len(images)), 2)
    assert in_order == vote(order, 50)


def test_a_task_of_more_classes_than_scoring_images_has_two_of_each(world: World, made: ModelZoo) -> None:
    _, report = voted_backbone(made, Module(world, "efg"), neighbours=1, scoring_images=2)
    assert report.evidence is not None
    one_each = Module(world, "efg")
    one_each.images, one_each.labels = (part[[0, 24, 48]] for part in (one_each.images, one_each.labels))
    with pytest.raises(ValueError, match=r"3 images have 3 different labels.*'prototypes'"):
        voted_backbone(made, one_each)
    voted_backbone(made, one_each, similarity="prototypes", neighbours=1, reestimate_batches=0)


def test_images_of_any_precision_are_taken_and_of_other_channels_refused(world: World, made: ModelZoo) -> None:
    images, labels = world.of(*"efg")
    images = preprocess(images, world.facts("target", "efg"))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))

    def vote(images: torch.Tensor) -> Any:
        loader = [(images[part], labels[part]) for part in order.split(36)]
        return voted_backbone(ModelZoo(made.path), loader, neighbours=2, backbone=world.backbone)

    expected = vote(images)[1]
    for precision in (torch.float64, torch.float16):
        other, report = vote(images.to(precision))
        assert report.masks == expected.masks
        assert other.bn1.running_var.dtype == torch.float32
    with pytest.raises(ValueError, match=r"`loader` to give images with 3 channels .*got 1"):
        vote(images[:, :1])
    with pytest.raises(ValueError, match=r"`images` .* but .* fails on an image of shape \(1, 16, 16\)"):
        rank_neighbours(made, images[:, :1], labels, backbone=world.backbone, groups=world.groups)


def test_batches_whose_labels_differ_in_shape_are_refused(made: ModelZoo) -> None:
    images = torch.zeros(4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"one shape per image, but got \[\(2,\), \(3,\)\]"):
        voted_backbone(made, [(images, torch.zeros(4, 3)), (images, torch.zeros(4, 2))])


def test_a_balanced_subset_of_several_labels_takes_images_of_each_ones_rarest() -> None:
    common = torch.tensor([[1, 0, 0]] * 40)
    rare = torch.tensor([[1, 1, 0]] * 4 + [[1, 0, 1]] * 6)
    labels = torch.cat([common, rare, torch.zeros(5, 3, dtype=torch.long)])
    for kind in (labels, labels.float(), labels.bool()):
        chosen = kind[balanced_subset(kind, 16, seed=3)].long().tolist()
        counts = [chosen.count(row) for row in ([1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0])]
        assert counts == [4, 4, 4, 4]
    assert len(balanced_subset(labels, 500)) == len(labels)
    assert not torch.equal(balanced_subset(labels, 16, seed=3), balanced_subset(labels, 16, seed=4))


def test_the_report_is_json_and_a_table(world: World, made: ModelZoo) -> None:
    _, report = voted_backbone(made, Module(world, "abd"), neighbours=2)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["masks"] == report.masks.fingerprint
    assert [neighbour["name"] for neighbour in plain["neighbours"]] == [n.name for n in report.neighbours]
    text = report.summary()
    for expected in (*plain["neighbours"][0]["name"].split("--"), "shared classes", "layer1.residual", "MACs"):
        assert expected in text


def test_bad_input_is_refused_before_any_work(world: World, made: ModelZoo, tmp_path) -> None:
    module = Module(world, "abc")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        voted_backbone(tmp_path / "nowhere", module)
    with pytest.raises(ValueError, match=r"`pruning_ratio` .* but got 1\.2"):
        voted_backbone(made, module, pruning_ratio=1.2)
    with pytest.raises(ValueError, match="at least one batch"):
        voted_backbone(made, [])
    with pytest.raises(ValueError, match=r"3 channels.*got 1"):
        voted_backbone(made, [(torch.zeros(4, 1, 16, 16), torch.zeros(4, dtype=torch.long))])
    empty = ModelZoo.create(tmp_path / "empty", made.recipe, made.theta0(), made.group_sizes)
    with pytest.raises(ValueError, match="is empty"):
        voted_backbone(empty, module)


@pytest.mark.parametrize(
    "bad", [{"missing": "mean"}, {"similarity": "leap"}, {"temperature": 0.0}, {"pruning_ratio": 2.0}]
)
def test_arguments_out_of_range_are_refused_before_the_loader_is_read(bad: dict, made: ModelZoo) -> None:
    def loader() -> Iterator[None]:
        raise AssertionError("the loader was read")
        yield

    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        voted_backbone(made, loader(), **bad)


def test_reconstruction_brings_the_vote_nearer_to_the_dense_backbone(world: World, made: ModelZoo) -> None:
    target = Module(world, "abe")
    (plain, first), (better, report), (again, _) = (
        voted_backbone(made, target, neighbours=3, reconstruct=images) for images in (0, 60, 60)
    )
    assert report.masks.fingerprint == first.masks.fingerprint
    assert [*report.seconds] == ["read", "rank", "vote", "merge", "build", "reconstruct", "re-estimate"]
    assert "reconstruct" not in first.seconds
    assert better.training
    assert fingerprint(better.state_dict()) == fingerprint(again.state_dict())
    dense, images = dense_backbone(made), preprocess(target.images, target.facts)
    reestimate_batch_norm(dense, [images])
    wanted = features_of(dense, images)
    kept = world.groups.kept_features(report.masks, wanted.shape[1])
    errors = [(features_of(small, images) - wanted[:, kept]).norm() for small in (plain, better)]
    assert errors[1] < 0.8 * errors[0]
    with pytest.raises(ValueError, match="Expected argument `reconstruct` to be a number of images"):
        voted_backbone(made, target, reconstruct=-1)
    with pytest.raises(ValueError, match="`reestimate_batches` to be at least 1 with `reconstruct`"):
        voted_backbone(made, target, reconstruct=10, reestimate_batches=0)

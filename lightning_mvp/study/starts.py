"""Where each method's fine-tuning starts: a backbone, how large it is, and what it took to get there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.features import reestimate_batch_norm
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.reconstruct import reconstruct
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.criteria import taylor_importance
from lightning_mvp.pruning.importance import Scores, magnitude_importance, random_importance
from lightning_mvp.study.growth import Growth, growth_folder
from lightning_mvp.study.methods import ORACLE
from lightning_mvp.study.origin import Origin
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.rounds import endless
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.latest import latest
from lightning_mvp.voting.merge import merge
from lightning_mvp.voting.ranking import Neighbour
from lightning_mvp.voting.target import REESTIMATION_BATCHES, Target, reestimation_batches
from lightning_mvp.voting.vote import coefficients
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo.rebuild import entry_masks
from lightning_mvp.zoo.zoo import ModelZoo

if TYPE_CHECKING:
    from lightning_mvp.study.parts import Workshop
    from lightning_mvp.study.settings import StudySettings

ONESHOT_BATCHES = 10
RECONSTRUCTION_IMAGES = 1000
VOTE_OPTIONS = ("pruning_ratio", "temperature", "missing", "ballots", "reestimate_batches", "reconstruct")


@dataclass(frozen=True)
class Start:
    """Where a method's fine-tuning starts, and what is kept of how it got there.

    Args:
        backbone: small, or dense.
        origin: what it was cut from: what it may mimic.
        masks: what is left of that; None: all.
        notes: for the record.
    """

    backbone: nn.Module
    origin: Origin
    masks: Masks | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Starts:
    """The starts of one study's methods.

    Args:
        shop: its data, backbones and folder.
        settings: of the study, with a trial's changes.
    """

    def __init__(self, shop: Workshop, settings: StudySettings) -> None:
        self.shop, self.settings = shop, settings

    def of(self, method: str, data: TaskDataModule) -> Start:
        """The start of a method that does not prune while it trains, or of one that does, from the dense θ⁰."""
        own: dict[str, Callable[[TaskDataModule], Start]] = {
            "mvp": self.mvp,
            "mvp_refine": self.mvp,
            "grown": self.grown,
            "parent_magnitude": self.parent_magnitude,
            "nearest": lambda data: self._vote(data, self.ranking(data)[:1]),
            "random_vote": self.random_vote,
            "farthest_vote": self.farthest_vote,
            "all_vote": lambda data: self._vote(data, self.ranking(data), temperature=None),
            "vote_theta0": lambda data: self._voted_masks(data, lambda root: root.build()),
            "vote_random": lambda data: self._voted_masks(data, lambda root: create_backbone(root.recipe)),
            "vote_nearest": self.vote_nearest,
            "magnitude_average": lambda data: self._other_masks(data, self._magnitudes(self.shop.root)),
            "random_average": lambda data: self._other_masks(
                data, random_importance(self.shop.root.groups, self._seed_of(data))
            ),
            "generic": lambda data: self._generic(data, "generic"),
            "generic_parent": lambda data: self._generic(data, "generic_parent"),
            "generic_zoo": lambda data: self._generic(data, "generic_zoo"),
            "oneshot_taylor": self.oneshot_taylor,
            "oneshot_reconstructed": lambda data: self.oneshot_taylor(data, RECONSTRUCTION_IMAGES),
            "oneshot_magnitude": lambda data: self._one_shot(
                data, self.shop.theta0.build(), self._magnitudes(self.shop.theta0)
            ),
        }
        return own.get(method, self.dense)(data)

    @property
    def neighbours(self) -> int:
        return self.settings.vote.get("neighbours", 8)

    @property
    def options(self) -> dict[str, Any]:
        """What the settings say of a vote, once its neighbours are chosen."""
        return {key: self.settings.vote[key] for key in VOTE_OPTIONS if key in self.settings.vote}

    def ranking(self, data: TaskDataModule) -> list[Neighbour]:
        """The zoo's entries, nearest first, as a part of the study found them.

        With ``vote.entries``, those of a zoo of only so many sources, the ones of the lowest numbers.
        """
        similarity = self.settings.vote.get("similarity", "leep")
        record = self.shop.ranking(data.facts.name, similarity)
        ranked = [Neighbour(**neighbour) for neighbour in record["similarities"]]
        if similarity == ORACLE:
            ranked.sort(key=lambda neighbour: (-(neighbour.shared_classes or 0), neighbour.name))
        limit = self.settings.vote.get("entries")
        if limit is not None:
            small_zoo = set(sorted(neighbour.name for neighbour in ranked)[:limit])
            ranked = [neighbour for neighbour in ranked if neighbour.name in small_zoo]
        return ranked

    def _seed_of(self, data: TaskDataModule) -> int:
        # Others for each target, the same in every run.
        return self.settings.seed + zlib.crc32(data.facts.name.encode())

    # From θ⁰ ----------------------------------------------------------------------------------------------------------

    def dense(self, data: TaskDataModule) -> Start:
        origin = self.shop.theta0
        return Start(self._reestimated(origin.build(), data), origin, notes=origin.size_of(None))

    def oneshot_taylor(self, data: TaskDataModule, images: int = 0) -> Start:
        """θ⁰ cut at once; so many images then fit its layers towards θ⁰'s."""
        backbone = self._reestimated(self.shop.theta0.build(), data)
        module = TaskModule.for_task(backbone, data.facts)
        module.initialise_head(data)
        batches = islice(endless(data), ONESHOT_BATCHES)
        scores = taylor_importance(backbone, module.head, batches, self.shop.theta0.groups)
        return self._one_shot(data, backbone, scores, images)

    def _magnitudes(self, origin: Origin) -> Scores:
        return magnitude_importance(origin.build().state_dict(), origin.groups)

    def _one_shot(self, data: TaskDataModule, backbone: nn.Module, scores: Scores, images: int = 0) -> Start:
        pruning, origin = self.shop.scratch_settings(self.settings), self.shop.theta0
        kept = 1 - pruning.pruning_ratio
        masks = pruning.choose(scores, Masks.full(origin.pruned), kept, origin.pruned, origin.cost)
        small = shrink(backbone, origin.pruned, masks)
        if images:
            target = Target.read(data, len(data.facts.classes), REESTIMATION_BATCHES, self.settings.seed)
            first = target.first(data.facts.to_dict(), images)
            small = reconstruct(small, backbone, origin.pruned, masks, first)
        return Start(self._reestimated(small, data), origin, masks, origin.size_of(masks))

    def _reestimated(self, backbone: nn.Module, data: TaskDataModule) -> nn.Module:
        """The backbone with batch-norm statistics of the target, as voted ones have: no method starts without."""
        reestimate_batch_norm(backbone, reestimation_batches(data, self.settings.seed))
        return backbone

    def parent_magnitude(self, data: TaskDataModule) -> Start:
        """The parent cut once more by magnitude, to the size of the zoo's entries."""
        root, pruning = self.shop.root, self.shop.scratch_settings(self.settings)
        kept = 1 - self.settings.entry_ratio
        masks = pruning.choose(self._magnitudes(root), Masks.full(root.pruned), kept, root.pruned, root.cost)
        return self._cut_to(data, masks, root.build())

    # From pruned models -----------------------------------------------------------------------------------------------

    def mvp(self, data: TaskDataModule) -> Start:
        return self._vote(data, self.ranking(data)[: self.neighbours])

    def grown(self, data: TaskDataModule) -> Start:
        """The vote of a zoo that has grown to ``vote.entries`` by ``vote.growth``.

        The latest entries vote; with ``vote.among`` those that are nearest among so many of the latest.
        """
        vote = self.settings.vote
        name, entries, among = vote["growth"], vote["entries"], vote.get("among")
        growth = Growth(**self.shop.settings.growths[name])
        folder = growth_folder(self.shop.zoo_home, name)
        zoo, before = ModelZoo(folder), growth.wave(entries - growth.seeds)
        if among is None:
            voters = latest(zoo, self.neighbours, before_wave=before)
            return self._vote(data, voters, folder.name, temperature=None)
        near = {voter.name for voter in latest(zoo, among, before_wave=before)}
        others = tuple(entry for entry in zoo.names if entry not in near)
        return self._vote(data, self.neighbours, folder.name, similarity="leep", config=None, exclude=others)

    def farthest_vote(self, data: TaskDataModule) -> Start:
        ranked = sorted(self.ranking(data), key=lambda neighbour: neighbour.score)
        return self._vote(data, ranked[: self.neighbours], temperature=None)

    def random_vote(self, data: TaskDataModule) -> Start:
        options: dict[str, Any] = {"similarity": "random", "temperature": None, "seed": self._seed_of(data)}
        return self._vote(data, self.neighbours, **options)

    def _vote(
        self, data: TaskDataModule, neighbours: list[Neighbour] | int, folder: str = "zoo", **options: Any
    ) -> Start:
        """The vote of these neighbours (or of so many), with the study's options unless others are given."""
        origin = self.shop.theta0 if folder in ("generic", "generic_zoo") else self.shop.root
        small, report = voted_backbone(
            self.shop.zoo_home / folder,
            data,
            neighbours=neighbours,
            backbone=origin.build(),
            groups=origin.groups,
            **{"seed": self.settings.seed, **self.options, **options},
        )
        notes = origin.size_of(report.masks)
        notes["neighbours"] = [vars(neighbour) for neighbour in report.neighbours]
        notes["shares"], notes["stage_seconds"] = report.shares, report.seconds
        return Start(small, origin, report.masks, notes)

    def _generic(self, data: TaskDataModule, folder: str) -> Start:
        return self._vote(data, 1, folder, similarity="random", temperature=None)

    def _voted_masks(self, data: TaskDataModule, build: Callable[[Origin], nn.Module]) -> Start:
        """The vote's masks on weights from before the zoo, or on none: what are averaged weights worth?"""
        root, masks = self.shop.root, self._vote_of_neighbours(data)
        return self._cut_to(data, masks, build(root))

    def vote_nearest(self, data: TaskDataModule) -> Start:
        """The vote's masks on the nearest model's weights; what it lacks is as before the zoo."""
        return self._with_average(data, self._vote_of_neighbours(data), 1)

    def _other_masks(self, data: TaskDataModule, scores: Mapping[str, Any]) -> Start:
        """Masks that nobody voted for, of the same widths, on the neighbours' average weights."""
        return self._with_average(data, top_units(dict(scores), self._vote_of_neighbours(data).kept), self.neighbours)

    def _cut_to(
        self, data: TaskDataModule, masks: Masks, backbone: nn.Module, state: dict[str, Any] | None = None
    ) -> Start:
        small = shrink(backbone, self.shop.root.groups, masks)
        if state is not None:
            small.load_state_dict(state)
        return Start(self._reestimated(small, data), self.shop.root, masks, self.shop.root.size_of(masks))

    def _vote_of_neighbours(self, data: TaskDataModule) -> Masks:
        """The masks that MVP's neighbours vote for."""
        root = self.shop.root
        _, report = voted_backbone(
            self.shop.zoo_home / "zoo",
            data,
            neighbours=self.ranking(data)[: self.neighbours],
            backbone=root.build(),
            groups=root.groups,
            **{**self.options, "reestimate_batches": 0},
        )
        return report.masks

    def _with_average(self, data: TaskDataModule, masks: Masks, neighbours: int) -> Start:
        """Masks on the average weights of so many nearest models."""
        root, zoo, ranked = self.shop.root, ModelZoo(self.shop.zoo_home / "zoo"), self.ranking(data)[:neighbours]
        entries = {neighbour.name: zoo[neighbour.name] for neighbour in ranked}
        merged = merge(
            {name: entry.weights for name, entry in entries.items()},
            {name: entry_masks(entry) for name, entry in entries.items()},
            masks,
            root.groups,
            coefficients(
                {neighbour.name: neighbour.score for neighbour in ranked}, self.settings.vote.get("temperature")
            ),
            theta0=zoo.theta0(),
        )
        return self._cut_to(data, masks, root.build(), merged.state)

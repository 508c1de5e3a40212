"""Where each method's fine-tuning starts: a backbone, how large it is, and what it took to get there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.backbones.features import reestimate_batch_norm
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.reconstruct import reconstruct
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.pruning.choose import top_units
from lightning_mvp.pruning.criteria import taylor_importance
from lightning_mvp.pruning.importance import Scores, random_importance
from lightning_mvp.study.grown_zoo import grown_zoo_folder
from lightning_mvp.study.methods import ORACLE
from lightning_mvp.study.origin import Origin
from lightning_mvp.study.study_context import StudyContext
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.training.rounds import endless
from lightning_mvp.training.task import TaskModule
from lightning_mvp.voting.latest import latest
from lightning_mvp.voting.merge import merge
from lightning_mvp.voting.ranking import Neighbour
from lightning_mvp.voting.target import REESTIMATION_BATCHES, Target, reestimation_batches
from lightning_mvp.voting.vote import coefficients
from lightning_mvp.voting.voted import VoteReport, voted_backbone
from lightning_mvp.zoo.rebuild import entry_masks
from lightning_mvp.zoo.zoo import ModelZoo

ONESHOT_BATCHES = 10
RECONSTRUCTION_IMAGES = 1000
VOTE_OPTIONS = ("pruning_ratio", "temperature", "missing", "ballots", "reestimate_batches", "reconstruct")


@dataclass(frozen=True)
class StartingPoint:
    """Where a method's fine-tuning starts, and what is kept of how it got there.

    Args:
        backbone: a small one, or the dense one.
        origin: the backbone that it was cut from, which it may mimic.
        masks: the units of the origin that are left; None for all.
        notes: further entries of the run's record.
    """

    backbone: nn.Module
    origin: Origin
    masks: Masks | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class StartingPoints:
    """Where the methods of a study start on one task.

    Args:
        study: its data, backbones and folder.
        settings: of the study, with a trial's changes.
        data: of the task.
    """

    def __init__(self, study: StudyContext, settings: StudySettings, data: TaskDataModule) -> None:
        self.study, self.settings, self.data = study, settings, data

    def make(self, method: str) -> StartingPoint:
        """Where a method starts. One that prunes while it trains, or never, starts from the dense θ⁰."""
        number = self.number_of_neighbours
        # Random choices differ between targets, and are the same in every run.
        seed = self.settings.seed + zlib.crc32(self.data.facts.name.encode())
        makers: dict[str, Callable[[], StartingPoint]] = {
            "mvp": lambda: self._vote(self.ranking()[:number]),
            "mvp_refine": lambda: self._vote(self.ranking()[:number]),
            "nearest": lambda: self._vote(self.ranking()[:1]),
            "random_vote": lambda: self._vote(number, similarity="random", temperature=None, seed=seed),
            "farthest_vote": lambda: self._vote(
                sorted(self.ranking(), key=attrgetter("score"))[:number], temperature=None
            ),
            "all_vote": lambda: self._vote(self.ranking(), temperature=None),
            "grown": self._grown,
            "generic": lambda: self._generic("generic"),
            "generic_parent": lambda: self._generic("generic_parent"),
            "generic_zoo": lambda: self._generic("generic_zoo"),
            "vote_theta0": lambda: self._voted_masks(Origin.build),
            "vote_random": lambda: self._voted_masks(lambda origin: create_backbone(origin.recipe)),
            "vote_nearest": lambda: self._average_weights(1, self._masks_of_vote()),
            "magnitude_average": lambda: self._other_masks(self.study.zoo_origin.magnitudes()),
            "random_average": lambda: self._other_masks(random_importance(self.study.zoo_origin.groups, seed)),
            "parent_magnitude": lambda: self._magnitude(self.study.zoo_origin, self.settings.entry_ratio),
            "oneshot_magnitude": lambda: self._magnitude(self.study.theta0, self.settings.pruning_ratio),
            "oneshot_taylor": self._oneshot_taylor,
            "oneshot_reconstructed": lambda: self._oneshot_taylor(RECONSTRUCTION_IMAGES),
        }
        return makers.get(method, self._dense)()

    @property
    def number_of_neighbours(self) -> int:
        return self.settings.vote.get("neighbours", 8)

    def ranking(self) -> list[Neighbour]:
        """The zoo's entries, nearest first, as a part of the study found them.

        With ``vote.entries``, those of a zoo of only so many sources, the ones of the lowest numbers.
        """
        similarity, limit = self.settings.vote.get("similarity", "leep"), self.settings.vote.get("entries")
        record = self.study.ranking(self.data.facts.name, similarity)
        ranked = [Neighbour(**neighbour) for neighbour in record["similarities"]]
        if similarity == ORACLE:
            ranked.sort(key=lambda neighbour: (-(neighbour.shared_classes or 0), neighbour.name))
        small_zoo = sorted(neighbour.name for neighbour in ranked)[:limit]
        return [neighbour for neighbour in ranked if neighbour.name in small_zoo]

    # From θ⁰ or the parent, without a vote ----------------------------------------------------------------------------

    def _dense(self) -> StartingPoint:
        origin = self.study.theta0
        return StartingPoint(self._reestimated(origin.build()), origin, notes=origin.measure(None))

    def _oneshot_taylor(self, images: int = 0) -> StartingPoint:
        """θ⁰ cut at once. As many images as are given then fit its layers to θ⁰'s."""
        origin, data = self.study.theta0, self.data
        backbone = self._reestimated(origin.build())
        module = TaskModule.for_task(backbone, data.facts)
        module.initialise_head(data)
        scores = taylor_importance(backbone, module.head, islice(endless(data), ONESHOT_BATCHES), origin.groups)
        return self._cut_once(origin, scores, self.settings.pruning_ratio, backbone, images)

    def _magnitude(self, origin: Origin, ratio: float) -> StartingPoint:
        return self._cut_once(origin, origin.magnitudes(), ratio)

    def _cut_once(
        self, origin: Origin, scores: Scores, ratio: float, backbone: nn.Module | None = None, images: int = 0
    ) -> StartingPoint:
        pruning, groups = self.study.scratch_settings(self.settings), origin.pruned
        backbone = origin.build() if backbone is None else backbone
        own = {name: scores[name] for name in groups.names}
        masks = pruning.choose(own, Masks.full(groups), 1 - ratio, groups, origin.cost)
        small = shrink(backbone, groups, masks)
        if images:
            facts = self.data.facts
            target = Target.read(self.data, len(facts.classes), REESTIMATION_BATCHES, self.settings.seed)
            small = reconstruct(small, backbone, groups, masks, target.first(facts.to_dict(), images))
        return self._at(small, origin, masks)

    def _at(self, small: nn.Module, origin: Origin, masks: Masks) -> StartingPoint:
        return StartingPoint(self._reestimated(small), origin, masks, origin.measure(masks))

    def _reestimated(self, backbone: nn.Module) -> nn.Module:
        """The backbone with the target's batch-norm statistics, which voted backbones have: every method starts so."""
        reestimate_batch_norm(backbone, reestimation_batches(self.data, self.settings.seed))
        return backbone

    # From pruned models -----------------------------------------------------------------------------------------------

    def _vote(self, neighbours: list[Neighbour] | int, folder: str = "zoo", **options: Any) -> StartingPoint:
        """The vote of these neighbours (or of so many), with the study's options unless others are given."""
        origin = self.study.theta0 if folder in ("generic", "generic_zoo") else self.study.zoo_origin
        small, report = self._run_vote(origin, neighbours, folder, **options)
        notes = {
            **origin.measure(report.masks),
            "neighbours": [vars(neighbour) for neighbour in report.neighbours],
            "shares": report.shares,
            "stage_seconds": report.seconds,
        }
        return StartingPoint(small, origin, report.masks, notes)

    def _run_vote(
        self, origin: Origin, neighbours: list[Neighbour] | int, folder: str = "zoo", **options: Any
    ) -> tuple[nn.Module, VoteReport]:
        own = {key: self.settings.vote[key] for key in VOTE_OPTIONS if key in self.settings.vote}
        return voted_backbone(
            self.study.zoo_home / folder,
            self.data,
            neighbours=neighbours,
            backbone=origin.build(),
            groups=origin.groups,
            **{"seed": self.settings.seed, **own, **options},
        )

    def _grown(self) -> StartingPoint:
        """The vote of a zoo that has grown to ``vote.entries`` by ``vote.growth``.

        The latest entries vote; with ``vote.among`` those that are nearest among so many of the latest.
        """
        vote = self.settings.vote
        growth, among = self.study.settings.growth(vote["growth"]), vote.get("among")
        folder = grown_zoo_folder(self.study.zoo_home, vote["growth"])
        zoo, before = ModelZoo(folder), growth.wave(vote["entries"] - growth.seeds)
        if among is None:
            voters = latest(zoo, self.number_of_neighbours, before_wave=before)
            return self._vote(voters, folder.name, temperature=None)
        near = {voter.name for voter in latest(zoo, among, before_wave=before)}
        others = tuple(entry for entry in zoo.names if entry not in near)
        options = {"similarity": "leep", "config": None, "exclude": others}
        return self._vote(self.number_of_neighbours, folder.name, **options)

    def _generic(self, folder: str) -> StartingPoint:
        return self._vote(1, folder, similarity="random", temperature=None)

    # Masks and weights of two kinds -----------------------------------------------------------------------------------

    def _masks_of_vote(self) -> Masks:
        """The masks that MVP's neighbours vote for."""
        neighbours = self.ranking()[: self.number_of_neighbours]
        return self._run_vote(self.study.zoo_origin, neighbours, reestimate_batches=0)[1].masks

    def _voted_masks(self, build: Callable[[Origin], nn.Module]) -> StartingPoint:
        """The vote's masks on weights from before the zoo or on random ones: what are averaged weights worth?"""
        origin, masks = self.study.zoo_origin, self._masks_of_vote()
        return self._at(shrink(build(origin), origin.groups, masks), origin, masks)

    def _other_masks(self, scores: Mapping[str, Tensor]) -> StartingPoint:
        """Masks that nobody voted for, of the same widths, on the neighbours' average weights."""
        return self._average_weights(self.number_of_neighbours, top_units(scores, self._masks_of_vote().kept))

    def _average_weights(self, number: int, masks: Masks) -> StartingPoint:
        """Masks on the average weights of so many nearest models; weights that none has are as before the zoo."""
        origin, zoo, ranked = self.study.zoo_origin, ModelZoo(self.study.zoo_home / "zoo"), self.ranking()[:number]
        entries = {neighbour.name: zoo[neighbour.name] for neighbour in ranked}
        scores = {neighbour.name: neighbour.score for neighbour in ranked}
        merged = merge(
            {name: entry.weights for name, entry in entries.items()},
            {name: entry_masks(entry) for name, entry in entries.items()},
            masks,
            origin.groups,
            coefficients(scores, self.settings.vote.get("temperature")),
            theta0=zoo.theta0(),
        )
        small = shrink(origin.build(), origin.groups, masks)
        small.load_state_dict(merged.state)
        return self._at(small, origin, masks)

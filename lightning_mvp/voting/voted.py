"""From a zoo and a new task to the small backbone to start from: rank, vote, merge, build, re-estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import unit_multiples
from lightning_mvp.backbones.passes import Place, Where, reestimate_over
from lightning_mvp.backbones.reconstruct import reconstruct
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.units import Groups
from lightning_mvp.backbones.weights import load_tensors
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.voting.merge import merge
from lightning_mvp.voting.options import VoteKeywords, VoteOptions
from lightning_mvp.voting.ranking import Neighbour, Ranking, candidate_names, nearest, read_usable
from lightning_mvp.voting.report import VoteReport
from lightning_mvp.voting.sources import TargetData, require_takes
from lightning_mvp.voting.target import Target
from lightning_mvp.voting.target_images import Converted, HeldImages, Images
from lightning_mvp.voting.vote import coefficients, vote, vote_widths
from lightning_mvp.zoo.entry import ZooEntry
from lightning_mvp.zoo.rebuild import dense_backbone, entry_masks
from lightning_mvp.zoo.zoo import ModelZoo

if TYPE_CHECKING:
    from typing_extensions import Unpack


def voted_backbone(
    zoo: ModelZoo | str | Path,
    loader: Iterable[Any] | TaskDataModule,
    *,
    neighbours: int | Sequence[Neighbour] | None = 8,
    backbone: nn.Module | None = None,
    groups: Groups | None = None,
    classes: Sequence[str] | None = None,
    device: Where = None,
    batch_to: Callable[[Any], Any] | None = None,
    **options: Unpack[VoteKeywords],
) -> tuple[nn.Module, VoteReport]:
    """The small backbone that the nearest pruned models of a zoo vote for, with their merged weights.

    The stages are `rank_neighbours`, `vote`, `merge`, `shrink`, `reconstruct` if asked for, and batch-norm statistics
    re-estimated on the target.
    The backbone has no head: put your own on it, or start from `ridge_head`, and fine-tune. It is in train mode, since
    a Trainer trains a module in the mode that it finds; call ``.eval()`` to use it as it is.

    Args:
        zoo: a `ModelZoo` or its path.
        loader: the *training* data of the target: a `TaskDataModule`, or any iterable of `(images, labels)` in shuffled
            order. Images are uint8 (every source then sees them through its own preprocessing) or float, preprocessed.
            Labels are class indices `(n,)` or multi-hot `(n, L)` of 0 and 1, and serve the similarity only. What a
            batch holds beyond these two (a second head's labels) is not looked at: put first what shall decide.
            `reestimate_batches` batches are read; where these lack classes, or come one class after the other, up to
            1,000, and a warning says which classes were seen. If these images take more than 128 MB, only those that
            decide the similarity are held in memory, and the loader is read again for the statistics.
        neighbours: how many entries vote; None lets all vote; or a ranking already made by `rank_neighbours`, so that
            several votes for one target score the zoo once.
        backbone: the dense backbone, for its structure; None builds it from the zoo's recipe.
        groups: the groups of that backbone, if they are known already.
        classes: the target's class names in the order of its labels, to report shared ones and those that no image
            was seen of; a `TaskDataModule`, or a torchvision data set, knows its own.
        device: where the images go through models, such as "cuda", or a
            :class:`~lightning_mvp.backbones.passes.Place`, which also says the precision. None: where `backbone` is,
            in float32. Tracing and merging stay on the CPU, and so does what is returned.
        batch_to: batch → images and labels, where a batch of the loader is not these two, such as a dict.
        options: ``similarity="leep"``, ``merge="mean"``, ``pruning_ratio=None`` and all others of
            :class:`~lightning_mvp.voting.options.VoteOptions`.

    Returns:
        The voted backbone, physically small, in train mode and ready for a Trainer; and the report.

    Raises:
        FileNotFoundError: there is no zoo.
        ValueError: the zoo is empty or of another backbone, no entry that should vote is sound, the loader gives no
            usable batch, labels that say nothing (one class only, the numbers of a regression, nearly as many labels as
            images), or images that the backbone can't take; or an argument is out of its range.

    Example:
        >>> small, report = voted_backbone("zoo/", loader, neighbours=5)  # doctest: +SKIP
        >>> module = YourModule(small)  # doctest: +SKIP
    """
    if batch_to is not None:
        loader = map(batch_to, loader) if isinstance(loader, Iterator) else Converted(loader, batch_to)
    chosen = VoteOptions(**options)  # type: ignore[arg-type]  # it takes names, too
    return Election(zoo, loader, neighbours, chosen, backbone, groups, classes, device).result()


class Election:
    """A target task and the entries that may vote for it, read once for any number of votes.

    Args:
        zoo: as in :func:`voted_backbone`.
        loader: as in :func:`voted_backbone`.
        neighbours: as in :func:`voted_backbone`.
        options: how the vote is held.
        backbone: as in :func:`voted_backbone`.
        groups: as in :func:`voted_backbone`.
        classes: as in :func:`voted_backbone`.
        device: as in :func:`voted_backbone`.
    """

    def __init__(
        self,
        zoo: ModelZoo | str | Path,
        loader: Iterable[Any] | TaskDataModule,
        neighbours: int | Sequence[Neighbour] | None,
        options: VoteOptions,
        backbone: nn.Module | None = None,
        groups: Groups | None = None,
        classes: Sequence[str] | None = None,
        device: Where = None,
    ) -> None:
        ranked = isinstance(neighbours, Sequence)
        if ranked and not neighbours:
            raise ValueError("Expected argument `neighbours` to hold at least one neighbour, but the ranking is empty.")
        self.zoo = zoo if isinstance(zoo, ModelZoo) else ModelZoo(zoo)
        if not len(self.zoo):
            raise ValueError(f"The zoo at {self.zoo.path} is empty. Fill it with `mvp-prune`.")
        self.place = Place.at(device).alone
        self.options, similarity, self.seconds = options, options.similarity, dict[str, float]()
        with _timed(self.seconds, "read"):
            batches, matter = max(1, options.reestimate_batches), not ranked and similarity.needs_labels
            self.target = Target.read(loader, options.scoring_images, batches, options.seed, matter, classes)
            images, labels = self.target.scoring, self.target.labels
            # Only its shape matters here: any preprocessing of the zoo's gives the input size of the backbone.
            self.example = images.example(self.target.facts or _any_facts(self.zoo, images))
            _require_channels(self.zoo, self.example)
            if matter:
                similarity.require_labels(labels)
            self.dense = dense_backbone(self.zoo, backbone)
            require_takes(self.dense, self.example, "loader")
            groups = find_groups(self.dense, self.example) if groups is None else groups
            self.groups = groups.listed(self.zoo.group_sizes, str(self.zoo.path))
        with _timed(self.seconds, "rank"):
            names = () if ranked else candidate_names(self.zoo, options.config, options.exclude)
            data = TargetData(
                self.zoo,
                images,
                labels,
                self.dense,
                self.groups,
                names,
                self.target.classes,
                options.seed,
                place=self.place,
                theta0=self.dense,
            )
            if not isinstance(neighbours, Sequence):
                neighbours = nearest(data, similarity, neighbours, options.shortlist)
            self.entries = _read(data, neighbours)
        self.ranking = [neighbour for neighbour in neighbours if neighbour.name in self.entries]
        found = ("evidence", "scored", "entries")
        self.about = {name: getattr(neighbours, name) for name in found if isinstance(neighbours, Ranking)}

    def result(self, count: int | None = None) -> tuple[nn.Module, VoteReport]:
        """The vote of the best `count` entries, or of all.

        Returns:
            The voted backbone in train mode, and the report.
        """
        options, groups, dense, seconds = self.options, self.groups, self.dense, dict(self.seconds)
        ranking = self.ranking[:count]
        entries = {neighbour.name: self.entries[neighbour.name] for neighbour in ranking}
        with _timed(seconds, "vote"):
            masks = {name: entry_masks(entry) for name, entry in entries.items()}
            weights = coefficients({neighbour.name: neighbour.score for neighbour in ranking}, options.temperature)
            widths = vote_widths(masks, options.pruning_ratio, multiples=unit_multiples(groups, options.round_to))
            chosen = vote(
                masks,
                widths,
                weights,
                {name: entry.importance for name, entry in entries.items()},
                magnitude_importance(dense.state_dict(), groups),
                options.ballots,
            )
        with _timed(seconds, "merge"):
            merged = merge(
                {name: entry.weights for name, entry in entries.items()},
                masks,
                chosen,
                groups,
                weights,
                theta0=self.zoo.theta0(),
                missing=options.missing,
                combine=options.merge.combine,
            )
        with _timed(seconds, "build"):
            small = shrink(dense, groups, chosen)
            load_tensors(small, merged.state)
        # Without facts of its own the target is seen as its nearest neighbour sees it.
        facts = self.target.facts or entries[ranking[0].name].facts
        if options.reconstruct:
            with _timed(seconds, "reconstruct"):
                first = self.target.first(facts, options.reconstruct)
                with self.place.exact.holding(small, dense):
                    small = reconstruct(small, dense, groups, chosen, first)
                small.to(next(dense.parameters()).device)
        with _timed(seconds, "re-estimate"):
            if options.reestimate_batches:
                reestimate_over(small, self.target.batches(facts, options.reestimate_batches), self.place)
        report = VoteReport(
            neighbours=tuple(ranking),
            coefficients=weights,
            masks=chosen,
            widths=widths,
            sizes=dict(groups.sizes),
            shares=merged.shares,
            parameters=count_parameters(small),
            dense_parameters=count_parameters(dense),
            macs=count_macs(small, self.example),
            dense_macs=count_macs(dense, self.example),
            seconds=seconds,
            **self.about,
        )
        return small.train(), report


def _read(target: TargetData, ranking: Sequence[Neighbour]) -> dict[str, ZooEntry]:
    """The entries of a ranking, read where they were not; damaged ones are left out with a warning."""
    known = ranking.read if isinstance(ranking, Ranking) and ranking.zoo == target.zoo.path else {}
    entries: dict[str, ZooEntry] = {}
    for neighbour in ranking:
        name = neighbour.name
        entry = read_usable(target, name, "Leaving a damaged zoo entry out of the vote", known.get(name))
        if entry is not None:
            entries[name] = entry
    if not entries:
        raise ValueError(f"No entry that should vote is sound in the zoo at {target.zoo.path}; the warnings say why.")
    return entries


def _require_channels(zoo: ModelZoo, example: Tensor) -> None:
    channels = (zoo.recipe or {}).get("in_chans", example.shape[1])
    if example.shape[1] != channels:
        raise ValueError(
            f"Expected argument `loader` to give images with {channels} channels for this backbone, but got "
            f"{example.shape[1]}. Convert them, grey ones by images.expand(-1, 3, -1, -1)."
        )


def _any_facts(zoo: ModelZoo, images: Images) -> dict[str, Any]:
    """Those of the first entry that is about such images, or of any: the error then says what the zoo's images are."""
    found = None
    channels = images.images.shape[1] if isinstance(images, HeldImages) else None
    for name in zoo.names:
        with suppress(ValueError, TypeError, KeyError):  # a damaged entry, or one that was removed
            found = TaskFacts.from_dict(zoo.header(name)["facts"])
            if found.channels == channels:
                break
    if found is not None:
        return found.to_dict()
    raise ValueError(f"No entry of the zoo at {zoo.path} is sound: {zoo.verify()}. Fill it again with `mvp-prune`.")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start

"""From a zoo and a new task to the small backbone to start from: rank, vote, merge, build, re-estimate."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_mvp.backbones.cost import count_macs, count_parameters
from lightning_mvp.backbones.features import reestimate_batch_norm
from lightning_mvp.backbones.groups import find_groups
from lightning_mvp.backbones.masks import Masks, require_round_to, unit_multiples
from lightning_mvp.backbones.reconstruct import reconstruct as reconstructed
from lightning_mvp.backbones.reconstruct import require_count
from lightning_mvp.backbones.surgery import shrink
from lightning_mvp.backbones.units import Groups
from lightning_mvp.backbones.weights import load_tensors
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.pruning.importance import magnitude_importance
from lightning_mvp.pruning.schedule import require_ratio
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.voting.labels import require_content
from lightning_mvp.voting.merge import Missing, merge
from lightning_mvp.voting.similarity import (
    SHORTLIST,
    Neighbour,
    Ranking,
    Similarity,
    rank_neighbours,
    require_usable,
)
from lightning_mvp.voting.sources import as_input, require_takes
from lightning_mvp.voting.target import REESTIMATION_BATCHES, Target
from lightning_mvp.voting.trust import Evidence, nearest_words
from lightning_mvp.voting.vote import Ballots, coefficients, require_temperature, vote, vote_widths
from lightning_mvp.zoo.entry import DamagedEntryError, ZooEntry
from lightning_mvp.zoo.rebuild import dense_backbone, entry_masks
from lightning_mvp.zoo.zoo import ModelZoo


@dataclass(frozen=True)
class VoteReport:
    """What `voted_backbone` did.

    Args:
        neighbours: the entries that voted, best first.
        coefficients: entry name → how much it counted.
        masks: the units that won the vote.
        widths: units kept in each group, and
        sizes: the units each group had.
        shares: fractions of the merged entries from "0", "1" and ">=2" neighbours.
        parameters: of the voted backbone, against
        dense_parameters: of the dense one.
        macs: multiply-accumulates of one image through the voted backbone, against
        dense_macs: through the dense one.
        seconds: stage → wall time.
        evidence: what LEEP said of the zoo; None where it was not asked for.
        scored: entries that were read and scored, of
        entries: those that might have voted; both 0 where the ranking was made by hand.
    """

    neighbours: tuple[Neighbour, ...]
    coefficients: dict[str, float]
    masks: Masks
    widths: dict[str, int]
    sizes: dict[str, int]
    shares: dict[str, float]
    parameters: int
    dense_parameters: int
    macs: int
    dense_macs: int
    seconds: dict[str, float]
    evidence: Evidence | None = None
    scored: int = 0
    entries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the masks are represented by their fingerprint."""
        plain = {name: value for name, value in vars(self).items() if name not in ("neighbours", "masks", "evidence")}
        neighbours = [asdict(neighbour) for neighbour in self.neighbours]
        evidence = None if self.evidence is None else asdict(self.evidence)
        return {"neighbours": neighbours, **plain, "masks": self.masks.fingerprint, "evidence": evidence}

    def table(self) -> Table:
        """Neighbours, widths, shares and size against the dense backbone, for `rich.print`."""
        table = Table("what", "value", title=f"Vote of {len(self.neighbours)} neighbours", title_justify="left")
        for neighbour in self.neighbours:
            shared = "" if neighbour.shared_classes is None else f", {neighbour.shared_classes} shared classes"
            share = self.coefficients[neighbour.name] / sum(self.coefficients.values())
            table.add_row(neighbour.name, f"score {neighbour.score:.3f}{shared}, weight {share:.2f}")
        if self.evidence is not None:
            table.add_row("LEEP", nearest_words(self.evidence))
        if self.scored < self.entries:
            table.add_row("looked at", f"{self.scored} of {self.entries} entries")
        table.add_section()
        for group, width in self.widths.items():
            table.add_row(f"units of {group}", f"{width} of {self.sizes[group]}")
        table.add_section()
        for count, words in (("0", "no neighbour"), ("1", "one"), (">=2", "two or more")):
            table.add_row(f"entries from {words}", f"{self.shares[count]:.1%}")
        table.add_section()
        for label, small, dense in (
            ("units", sum(self.widths.values()), sum(self.sizes.values())),
            ("parameters", self.parameters, self.dense_parameters),
            ("MACs", self.macs, self.dense_macs),
        ):
            table.add_row(label, f"{small:,} of {dense:,} ({small / dense:.1%})")
        table.add_row("seconds", ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items()))
        return table

    def summary(self) -> str:
        """The table as plain text, for logs."""
        console = Console(width=100, file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def __rich__(self) -> Table:
        return self.table()


def voted_backbone(
    zoo: ModelZoo | str | Path,
    loader: Iterable[Any] | TaskDataModule,
    *,
    neighbours: int | Sequence[Neighbour] | None = 8,
    pruning_ratio: float | None = None,
    similarity: Similarity = "leep",
    temperature: float | None = None,
    missing: Missing = "theta0",
    ballots: Ballots = "masks",
    backbone: nn.Module | None = None,
    groups: Groups | None = None,
    config: str | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    scoring_images: int = 500,
    reestimate_batches: int = REESTIMATION_BATCHES,
    exclude: Collection[str] = (),
    round_to: int = 1,
    shortlist: int | None = SHORTLIST,
    reconstruct: int = 0,
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
            1,000, and a warning says which classes were seen.
        neighbours: how many entries vote; None lets all vote; or a ranking already made by `rank_neighbours`, so that
            several votes for one target score the zoo once.
        pruning_ratio: fraction of each group's units removed, in (0, 1); None takes the neighbours' mean widths.
        similarity: "leep", "prototypes", "cover", "random" or "farthest".
        temperature: of the softmax that weights the neighbours by similarity; None counts them alike. On CIFAR-100,
            with entries that share a parent, 0.1 changed nothing: +0.2 points [−0.9, +1.2] (see benchmarks/cifar100).
        missing: what a weight gets that no neighbour kept: "theta0", "producer" or "zero".
        ballots: what a neighbour's vote counts: "masks" (one for each unit kept) or "importance", which changed nothing
            there (−0.4 points [−1.4, +0.6]).
        backbone: the dense backbone, for its structure; None builds it from the zoo's recipe.
        groups: of that backbone, if they are known already.
        config: hash of the pruning config whose entries may vote.
        classes: the target's class names in the order of its labels, to report shared ones and those that no image
            was seen of; a `TaskDataModule`, or a torchvision data set, knows its own.
        seed: of every random choice.
        scoring_images: at most that many images, class-balanced, decide the similarity; two of each class if that is
            more.
        reestimate_batches: at most that many batches give the batch-norm statistics; 0 keeps the merged ones.
        exclude: names of entries that must not vote.
        round_to: round the channels of each group up to a multiple of this, such as 8; never whole heads.
        shortlist: of a larger zoo so many entries are read and scored, see `rank_neighbours`; None scores all.
        reconstruct: so many images of the target refit the merged weights, layer by layer, so that each layer gives
            what the zoo's dense backbone gives (:func:`~lightning_mvp.backbones.reconstruct.reconstruct`); 0 leaves
            them as they are, 1,000 are enough. Where the loader gave fewer, all are used.

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
    if pruning_ratio is not None:
        require_ratio(pruning_ratio)
    require_choice("similarity", similarity, Similarity)
    require_choice("missing", missing, Missing)
    require_temperature(temperature)
    require_round_to(round_to)
    if require_count(reconstruct) and not reestimate_batches:
        raise ValueError(
            "Expected argument `reestimate_batches` to be at least 1 with `reconstruct`, but got 0: the merged "
            "batch-norm statistics do not fit weights that are refitted."
        )
    if isinstance(neighbours, Sequence) and not neighbours:
        raise ValueError("Expected argument `neighbours` to hold at least one neighbour, but the ranking is empty.")
    zoo = zoo if isinstance(zoo, ModelZoo) else ModelZoo(zoo)
    if not len(zoo):
        raise ValueError(f"The zoo at {zoo.path} is empty. Fill it with `mvp-prune`.")
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        asked = None if isinstance(neighbours, Sequence) else similarity
        target = Target.read(loader, scoring_images, max(1, reestimate_batches), seed, asked, classes)
        # Only its shape matters here: any preprocessing of the zoo's gives the input size of the backbone.
        example = as_input(target.images[:1], target.facts or _any_facts(zoo, target.images.shape[1]))
        _require_channels(zoo, example)
        if asked is not None:
            require_content(target.scoring_labels, asked)
        dense, groups = _structure(zoo, backbone, groups, example)
    with _timed(seconds, "rank"):
        ranking = (
            neighbours
            if isinstance(neighbours, Sequence)
            else rank_neighbours(
                zoo,
                target.scoring_images,
                target.scoring_labels,
                backbone=dense,
                groups=groups,
                similarity=similarity,
                k=neighbours,
                config=config,
                classes=target.classes,
                seed=seed,
                exclude=exclude,
                shortlist=shortlist,
            )
        )
    with _timed(seconds, "vote"):
        entries = _sound_entries(zoo, ranking, target.images, dense, groups)
        ranked = [neighbour for neighbour in ranking if neighbour.name in entries]
        masks = {name: entry_masks(entry) for name, entry in entries.items()}
        weights = coefficients({neighbour.name: neighbour.score for neighbour in ranked}, temperature)
        widths = vote_widths(masks, pruning_ratio, multiples=unit_multiples(groups, round_to))
        chosen = vote(
            masks,
            widths,
            weights,
            {name: entry.importance for name, entry in entries.items()},
            magnitude_importance(dense.state_dict(), groups),
            ballots,
        )
    with _timed(seconds, "merge"):
        states = {name: entry.weights for name, entry in entries.items()}
        merged = merge(states, masks, chosen, groups, weights, theta0=zoo.theta0(), missing=missing)
    with _timed(seconds, "build"):
        small = shrink(dense, groups, chosen)
        load_tensors(small, merged.state)
    # Without facts of its own the target is seen as its nearest neighbour sees it.
    own = target.facts or entries[ranked[0].name].facts
    if reconstruct:
        with _timed(seconds, "reconstruct"):
            small = reconstructed(small, dense, groups, chosen, target.first(own, reconstruct))
    with _timed(seconds, "re-estimate"):
        if reestimate_batches:
            reestimate_batch_norm(small, target.batches(own, reestimate_batches))
    report = VoteReport(
        neighbours=tuple(ranked),
        coefficients=weights,
        masks=chosen,
        widths=widths,
        sizes=dict(groups.sizes),
        shares=merged.shares,
        parameters=count_parameters(small),
        dense_parameters=count_parameters(dense),
        macs=count_macs(small, example),
        dense_macs=count_macs(dense, example),
        seconds=seconds,
        **(vars(ranking) if isinstance(ranking, Ranking) else {}),
    )
    return small.train(), report


def _require_channels(zoo: ModelZoo, example: Tensor) -> None:
    channels = (zoo.recipe or {}).get("in_chans", example.shape[1])
    if example.shape[1] != channels:
        raise ValueError(
            f"Expected argument `loader` to give images with {channels} channels for this backbone, but got "
            f"{example.shape[1]}. Convert them, grey ones by images.expand(-1, 3, -1, -1)."
        )


def _structure(
    zoo: ModelZoo, backbone: nn.Module | None, groups: Groups | None, example: Tensor
) -> tuple[nn.Module, Groups]:
    """The zoo's dense backbone and its groups; refuses images or a backbone that are not the zoo's."""
    dense = dense_backbone(zoo, backbone)
    require_takes(dense, example, "loader")
    groups = find_groups(dense, example) if groups is None else groups
    groups = groups.listed(zoo.group_sizes, str(zoo.path))
    return dense, groups


def _sound_entries(
    zoo: ModelZoo, ranked: Sequence[Neighbour], images: Tensor, dense: nn.Module, groups: Groups
) -> dict[str, ZooEntry]:
    """The entries of a ranking; those that were damaged since, or never checked, are left out with a warning."""
    entries = {}
    for neighbour in ranked:
        try:
            entry = zoo[neighbour.name]
            require_usable(entry, zoo, images, dense, groups)
        except DamagedEntryError as error:
            warnings.warn(f"Leaving a damaged zoo entry out of the vote: {error}", stacklevel=3)
        else:
            entries[neighbour.name] = entry
    if not entries:
        raise ValueError(f"No entry that should vote is sound in the zoo at {zoo.path}; the warnings say why.")
    return entries


def _any_facts(zoo: ModelZoo, channels: int) -> dict[str, Any]:
    """Those of the first entry that is about such images, or of any: the error then says what the zoo's images are."""
    found = None
    for entry in zoo.entries():
        with suppress(ValueError, TypeError):
            found = TaskFacts.from_dict(entry.facts)
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

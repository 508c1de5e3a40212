"""The voted small model of a new task, ready for a Trainer of one or many processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lightning_mvp.backbones.create import as_json
from lightning_mvp.backbones.passes import Place, Where
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.training.batches import BatchTo, LoadedTask, facts_for, task_of
from lightning_mvp.training.classifier import HeadInit
from lightning_mvp.training.decision import Decision, freeze, is_first_process, rank_variables
from lightning_mvp.training.mimic import Teacher, require_weight
from lightning_mvp.training.resume import undisturbed
from lightning_mvp.training.task import TaskModule
from lightning_mvp.turns import failing_for_all, let_go, wait_for_rank_zero
from lightning_mvp.voting.options import VOTE_OPTIONS, AnySimilarity, VoteOptions
from lightning_mvp.voting.ranking import Neighbour
from lightning_mvp.voting.report import VoteReport
from lightning_mvp.voting.voted import Election
from lightning_mvp.zoo.zoo import ModelZoo


class MetaVoteModule(TaskModule):
    """A :class:`TaskModule` over :func:`~lightning_mvp.voting.voted.voted_backbone`; make one with :meth:`from_zoo`.

    ``load_from_checkpoint`` rebuilds the small model from the checkpoint's hyper-parameters and needs no zoo.

    Where a Trainer of several processes runs the same script in each, only the process of global rank 0 opens the zoo
    and votes, in :meth:`from_zoo`. In the others the module waits: it has no backbone, head or report until the Trainer
    calls :meth:`configure_model`, at the start of fit, validate, test or predict. However long the vote takes, no
    timeout of the Trainer's strategy runs meanwhile; if it fails, the others fail with its error.

    Args:
        recipe: the small backbone's recipe, widths included; None: rank 0 decides.
        facts: the task's facts as a plain dict.
        report: what the vote did, as a plain dict (:meth:`VoteReport.to_dict`); None: rank 0 decides.
        options: of :class:`TaskModule`.
    """

    own_hparams: ClassVar[tuple[str, ...]] = (*TaskModule.own_hparams, "report")

    def __init__(
        self,
        recipe: Mapping[str, Any] | None,
        facts: Mapping[str, Any],
        report: Mapping[str, Any] | None,
        **options: Any,
    ) -> None:
        # Lightning saves what this constructor was given, too: all of it plain.
        recipe, facts, report = as_json(recipe), as_json(facts), as_json(report)
        if (recipe is None) != (report is None):
            raise ValueError(
                "Expected arguments `recipe` and `report` to be both given, or both None where rank 0 decides, but got "
                f"recipe={recipe!r} and report={report!r}."
            )
        super().__init__(recipe, facts, **options)  # type: ignore[arg-type]  # `_build` waits where there is no recipe
        self._to_share = False
        self._dense: nn.Module | None = None  # what a process that waits was given
        if report is not None:
            self.report = dict(report)

    @classmethod
    def from_zoo(
        cls,
        zoo: ModelZoo | str | Path,
        datamodule: TaskDataModule | L.LightningDataModule,
        neighbours: int | Sequence[Neighbour] | None = 8,
        pruning_ratio: float | None = None,
        similarity: AnySimilarity = "leep",
        *,
        head_init: HeadInit = "ridge",
        backbone: nn.Module | None = None,
        mimic: float = 0.0,
        theta0: nn.Module | None = None,
        best_of: Sequence[int] | None = None,
        facts: TaskFacts | Mapping[str, Any] | None = None,
        batch_to: BatchTo | None = None,
        device: Where = None,
        **options: Any,
    ) -> MetaVoteModule:
        """Find the nearest tasks, vote, merge, cut, set the head; nothing is trained yet.

        Under a Trainer of several processes only rank 0 does so; see the class.

        Args:
            zoo: a zoo or its folder.
            datamodule: the new task; only its training images are used, but for ``best_of``. Of a LightningDataModule
                of any kind the training loader is read, one batch at a time: a few batches for the vote, all once for
                the head (of a loader without length 1,000 batches). Where it augments, so are these.
            neighbours: how many zoo entries vote; None lets all vote; or a ranking already made, such as that of
                :func:`~lightning_mvp.voting.latest.latest`.
            pruning_ratio: of the voted model; None takes the neighbours' mean widths.
            similarity: ``"leep"``, ``"prototypes"`` or another, see
                :class:`~lightning_mvp.voting.options.VoteOptions`.
            head_init: ``"ridge"`` (closed form on the training images) or ``"random"``.
            backbone: the dense backbone, where the zoo has no recipe to build it from.
            mimic: weight of :func:`~lightning_mvp.training.mimic.mimic_loss` in the training loss, such as 2: the
                features are drawn to those of the zoo's backbone. 0 leaves it out.
            theta0: another teacher than the zoo's backbone, such as the wider one that a parent was pruned from.
            best_of: numbers of neighbours to try, such as ``(1, 4, 8)``: each vote is measured before its first step,
                with the ridge head, on the task's validation images, and the best is taken; of equal ones that of the
                fewest. ``neighbours`` then says who may vote at most. None tries no others than ``neighbours``.
            facts: the task's classes, in the order of its labels, and how its images are preprocessed; None: those of
                ``datamodule.facts``. Images that a loader gives as floats are preprocessed already.
            batch_to: batch → images and labels, see :class:`TaskModule`; labels are class indices ``(N,)`` or multi-hot
                ``(N, classes)``.
            device: where images go through models before the Trainer starts, such as ``"cuda"``, or a
                :class:`~lightning_mvp.backbones.passes.Place`, which also says the precision. None: where the backbone
                is, in float32. The module itself stays on the CPU until the Trainer takes it.
            options: any others of :class:`~lightning_mvp.voting.options.VoteOptions`, such as ``merge`` or
                ``temperature``, and of :class:`TaskModule`: ``learning_rate``, ``optimizer``, ``weight_decay``,
                ``schedule``.

        Returns:
            The module; its ``report`` says what was done, also printed once. On any other rank than 0 it waits.
        """
        vote = {name: options.pop(name) for name in VOTE_OPTIONS & options.keys()}
        chosen = VoteOptions(pruning_ratio=pruning_ratio, similarity=similarity, **vote)  # type: ignore[arg-type]
        options["mimic"] = require_weight(mimic)
        require_counts(best_of)
        own, options["batch_to"] = facts_for(datamodule, facts, batch_to), batch_to
        if not is_first_process():
            module = cls(None, own.to_dict(), None, **options)
            module._to_share, module._dense = True, backbone
            return module
        with failing_for_all():
            return cls._vote(
                zoo,
                task_of(datamodule, own, batch_to),
                own,
                neighbours,
                chosen,
                head_init,
                backbone,
                mimic,
                theta0,
                best_of,
                Place.at(device).alone,
                options,
            )

    @classmethod
    def _vote(
        cls,
        zoo: ModelZoo | str | Path,
        task: Any,
        own: TaskFacts,
        neighbours: int | Sequence[Neighbour] | None,
        chosen: VoteOptions,
        head_init: HeadInit,
        backbone: nn.Module | None,
        mimic: float,
        theta0: nn.Module | None,
        best_of: Sequence[int] | None,
        place: Place,
        options: dict[str, Any],
    ) -> MetaVoteModule:
        """What :meth:`from_zoo` does on rank 0."""
        if not isinstance(zoo, ModelZoo):
            zoo = ModelZoo(zoo)
        election = Election(zoo, task, neighbours, chosen, backbone, device=place)
        if best_of:
            small, report, starts = best_start(election, best_of, task, place)
        else:
            (small, report), starts = election.result(), {}
        if election.target.labels.ndim == 2:
            options["multi_label"] = True
        described = {**report.to_dict(), **({"starts": starts} if starts else {})}
        voted = cls.for_task(small, own, report=described, **options)
        assert isinstance(voted, cls)
        voted.initialise_head(task, head_init, device=place)
        if theta0 is not None:
            voted.take_teacher(theta0, task, seed=chosen.seed, device=place)
        elif mimic:
            voted.take_teacher(election.dense, task, election.groups, report.masks, chosen.seed, device=place)
        voted._to_share = True
        rank_zero_info(report.summary())
        return voted

    @property
    def waits(self) -> bool:
        """Whether rank 0's decision has yet to come."""
        return self.hparams["recipe"] is None

    def configure_callbacks(self) -> list[L.Callback]:
        """Lightning calls it on all ranks before they need each other: wait until rank 0 has voted.

        Returns:
            Those of any :class:`TaskModule`.

        Raises:
            RankZeroError: the vote has failed.
        """
        if self._to_share:
            wait_for_rank_zero(self.trainer.strategy)
        return super().configure_callbacks()

    def configure_model(self) -> None:
        """Lightning calls it on all ranks before weights are restored: give rank 0's decision to the others, once.

        Raises:
            RuntimeError: the module waits for a rank 0 that doesn't exist, or that waits itself.
        """
        let_go()
        if not self._to_share:
            return
        if self.trainer.world_size == 1:
            if self.waits:
                raise RuntimeError(_nobody_decided("the Trainer has one process only"))
            return  # a later Trainer may have more
        packed = None
        if self.global_rank == 0 and not self.waits:
            own = {name: self.hparams[name] for name in self.own_hparams if name in self.hparams}
            packed = Decision.of(self, own).pack()
        packed = self.trainer.strategy.broadcast(packed)
        if packed is None:
            raise RuntimeError(_nobody_decided("the process that the Trainer made rank 0 waits, too"))
        if self.global_rank != 0:
            decision = Decision.unpack(*packed)
            self._become(decision.hparams)
            self.load_state_dict(decision.weights)
            freeze(self, decision.frozen)
        if self.mimic:
            self._share_teacher()
        self._to_share = False

    def _share_teacher(self) -> None:
        """Give rank 0's teacher to the others: they open no zoo."""
        teacher = self.teacher if self.global_rank == 0 else None
        packed = self.trainer.strategy.broadcast(None if teacher is None else teacher.pack())
        if self.global_rank != 0 and packed is not None:
            with undisturbed():
                self.teacher = Teacher.unpack(*packed, self._dense)

    def _build(self, recipe: Mapping[str, Any] | None, backbone: nn.Module | None = None) -> None:
        if recipe is not None:
            super()._build(recipe, backbone)

    def _become(self, hparams: Mapping[str, Any]) -> None:
        if "report" not in hparams:
            raise ValueError(
                "Expected a checkpoint of a MetaVoteModule, which says how its widths were voted, but this one has no "
                "`report`. Resume it with a TaskModule."
            )
        super()._become(hparams)
        self.report = dict(hparams["report"])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in ("backbone", "head", "report"):
                raise
            raise AttributeError(
                f"This process is not rank 0 ({rank_variables()}): its {type(self).__name__} waits for rank 0's vote "
                f"and has no `{name}` before the Trainer starts (fit, validate, test or predict). Use it on rank 0 "
                "only, after the Trainer has run, or in a hook such as on_fit_start."
            ) from None


def require_counts(best_of: Sequence[int] | None) -> None:
    """Refuse what are no numbers of neighbours.

    Example:
        >>> require_counts((0, 8))
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `best_of` to be integers of at least 1, such as (1, 4, 8), but got [0, 8].
    """
    if best_of is not None and not (best_of and all(type(count) is int and count >= 1 for count in best_of)):
        raise ValueError(
            f"Expected argument `best_of` to be integers of at least 1, such as (1, 4, 8), but got {list(best_of)}."
        )


def best_start(
    election: Election, counts: Sequence[int], datamodule: TaskDataModule | LoadedTask, device: Where = None
) -> tuple[nn.Module, VoteReport, dict[str, float]]:
    """The vote whose start is best on validation images, out of several numbers of neighbours.

    Args:
        election: the task, and the entries that may vote for it at most.
        counts: how many of those to try.
        datamodule: of the task.
        device: as in :meth:`MetaVoteModule.from_zoo`.

    Returns:
        The voted backbone, its report, and the accuracy of each number that was tried.
    """
    found: dict[int, tuple[float, nn.Module, VoteReport]] = {}
    for count in sorted({min(count, len(election.ranking)) for count in counts}):
        small, report = election.result(count)
        trial = TaskModule.for_task(small, datamodule.facts)
        trial.initialise_head(datamodule, device=device)
        found[count] = (trial.accuracy_in(datamodule, device=device), small, report)
    _, small, report = max(found.values(), key=lambda start: start[0])  # the first of equals
    return small, report, {str(count): start[0] for count, start in found.items()}


def _nobody_decided(why: str) -> str:
    return (
        f"Expected the process of rank 0 to have voted, but {why}: this process took itself for another rank when "
        f"MetaVoteModule.from_zoo was called ({rank_variables()}). Unset the variable if it is left over from another "
        "run; else give the Trainer as many devices and nodes as there are processes."
    )

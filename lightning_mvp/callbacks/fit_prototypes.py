"""Prototypes of a fit: class means of θ⁰'s features of the images that the backbone is given while it trains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from inspect import signature
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_mvp.agreement import on_rank_zero
from lightning_mvp.backbones.copies import detached_copy
from lightning_mvp.backbones.features import classifier_name, evaluating, features_of
from lightning_mvp.backbones.passes import images_a_batch
from lightning_mvp.callbacks.batch_labels import find_labels, tensors_of
from lightning_mvp.callbacks.state import PruningState
from lightning_mvp.lightning_internals import is_compiled, prepared_batch
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.voting.class_means import ClassMeans, task_means
from lightning_mvp.voting.reading import MOST_BATCHES
from lightning_mvp.zoo.new_entry import ZooTarget
from lightning_mvp.zoo.seen_by import as_seen_by, preprocessing_of


class _ImagesSeen(BaseException):
    """The backbone was given its images, and nothing that follows is wanted. No error, so nobody takes it for one."""


class FitPrototypes:
    """Sums features of θ⁰ by class, on rank 0 alone; no image is kept.

    A `TaskDataModule`, or a loader of prototypes, is read before the first step. With any other loader the first
    training batches are looked at: the images are those that the backbone is given, whatever the module made of the
    batch before, and their classes are found in the batch (:func:`~lightning_mvp.callbacks.batch_labels.find_labels`).

    Args:
        target: the zoo and the task.
        given: the loader of prototypes, if there is one.
    """

    def __init__(self, target: ZooTarget, given: Iterable[Any] | None) -> None:
        self.target, self.given = target, given
        self.seen_by: TaskFacts | None = None
        self.means = ClassMeans(len(target.task.classes))
        self.over = False
        self._read = 0
        self._places: list[str] | None = None
        self._among: list[int] | None = None
        self._dense: nn.Module | None = None
        self._hook: RemovableHandle | None = None
        self._images: Tensor | None = None
        self._looking = self._breaking = False

    @property
    def rows(self) -> Tensor | None:
        """The prototypes, ``(classes, features)``; None where a class has no image."""
        return self.means.means()

    def begin(self, trainer: L.Trainer, module: L.LightningModule, backbone: nn.Module) -> None:
        """Before the first step, when the loaders are known and the backbone is on its device."""
        self.let_go()
        if self.over:
            return
        with self._no_prototypes_if_it_fails():
            if self.seen_by is None:
                self.seen_by = self.target.prototype_facts()
            self._dense = theta0_copy(backbone, self.target.theta0)
            datamodule = getattr(trainer, "datamodule", None)
            if self.given is not None:
                with torch.random.fork_rng(devices=[]):  # what loaders draw must not change the training
                    self._read_given(self.given)
            elif isinstance(datamodule, TaskDataModule):
                if len(datamodule.facts.classes) != len(self.means.counts):
                    raise ValueError(
                        f"the datamodule's task has {len(datamodule.facts.classes)} classes, not `task`'s."
                    )
                self.means = task_means(self._dense, datamodule, self.seen_by)
                self._end()
            elif not is_compiled(module):  # hooks may not run in a compiled one: there the batch's images are taken
                self._hook = backbone.register_forward_pre_hook(self._see, with_kwargs=True)

    def before_batch(self) -> None:
        """Before each training batch."""
        self._images, self._looking = None, self._dense is not None

    def after_batch(self, batch: Any) -> None:
        """After each training batch."""
        if not self._looking:
            return
        self._looking = False
        with self._no_prototypes_if_it_fails():
            self._add_batch(batch)
            if self._read >= MOST_BATCHES and not self.means.lacking:
                self._end()

    def end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """After the last step: classes that no batch has shown are looked for in batches that are not trained on."""
        if self._dense is None:
            return
        with self._no_prototypes_if_it_fails():
            if self.means.lacking and module.automatic_optimization:
                self._read_on(trainer, module)
            self._end()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run goes on with the sums."""
        seen_by = None if self.seen_by is None else preprocessing_of(self.seen_by.to_dict())
        return {"means": self.means.state_dict(), "seen_by": seen_by, "read": self._read, "over": self.over}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.means.load_state_dict(state["means"])
        self.seen_by = None if state["seen_by"] is None else as_seen_by(self.target.task, state["seen_by"])
        self._read, self.over, self._places = state["read"], state["over"], None

    # Images and labels ------------------------------------------------------------------------------------------------

    def _see(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._looking and self._images is None:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            self._images = next(given, torch.empty(0)).detach()
            if self._breaking:
                raise _ImagesSeen

    def _add_batch(self, batch: Any) -> None:
        images, own = self._images, self._hook is None
        self._images = None
        if own:
            images = next((tensor for _, tensor in tensors_of(batch) if tensor.ndim == 4), None)
            if images is None or not images.is_floating_point():
                raise ValueError("a compiled module hides what its backbone is given, and a batch has no float images.")
        if images is not None:  # the module did not ask the backbone
            self._read += 1
            self._add(images, self._labels(batch, len(images)), given=False)

    def _labels(self, batch: Any, n: int) -> Tensor:
        """The classes of a batch, from where all batches so far had some."""
        found = find_labels(batch, n, len(self.means.counts))
        places = [place for place in found if self._places is None or place in self._places]
        if not places:
            raise ValueError(
                f"the backbone is given {n} images, and the batch has no tensor of their classes: integers ({n},) from "
                f"0 to {len(self.means.counts) - 1}, or multi-hot ({n}, {len(self.means.counts)})."
            )
        if self._places is None and len(places) > 1:
            rank_zero_warn(
                f"Several parts of a batch could be the classes of its images, for the prototypes of the zoo entry: "
                f"{', '.join(places)}. {places[0]} is taken. Another one: MVPCallback(prototype_loader=...)."
            )
        if self._places is not None and places[0] != self._places[0]:  # what was taken for classes is something else
            self.means = ClassMeans(len(self.means.counts))
        self._places = places
        return found[places[0]]

    def _add(self, images: Tensor, labels: Tensor, given: bool) -> None:
        assert self._dense is not None
        rows = self.means.wanted(labels, self._among)
        if len(rows):
            chosen = self._as_seen(images[rows.to(images.device)], given)
            self.means.add(
                features_of(self._dense, chosen, images_a_batch(chosen.shape[-1], chosen.device)), labels[rows]
            )
        if self.means.enough:
            self._end()

    def _as_seen(self, images: Tensor, given: bool) -> Tensor:
        """The images in the zoo's preprocessing, as far as that only differs from the task's own by mean and std."""
        task, seen_by = self.target.task, self.seen_by
        assert seen_by is not None
        if given and images.dtype == torch.uint8:
            return preprocess(images, seen_by)
        alike = replace(seen_by, mean=task.mean, std=task.std) == task if seen_by.channels == task.channels else False
        if not alike or not images.is_floating_point() or images.shape[1:2] != (task.channels,):
            self.seen_by = task
        if self.seen_by == task:
            return images
        mean, std, to_mean, to_std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (task.mean, task.std, seen_by.mean, seen_by.std)
        )
        return (images.float() * std + (mean - to_mean)) / to_std

    # Other loaders ----------------------------------------------------------------------------------------------------

    def _read_given(self, loader: Iterable[Any]) -> None:
        for batch in islice(loader, MOST_BATCHES):
            if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[0], Tensor):
                raise ValueError(
                    f"expected argument `prototype_loader` to give (images, class indices), but got a "
                    f"{type(batch).__name__}."
                )
            self._add(batch[0], self._labels(batch[1:], len(batch[0])), given=True)
            if self.over:
                return
        self._end()

    def _read_on(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give the module batches until its backbone is asked: what comes after that is not run."""
        step = module.training_step
        if self._hook is not None and "dataloader_iter" in signature(step).parameters:
            return
        self._among = self.means.lacking  # images that were seen in training must not count twice
        for number, batch in enumerate(islice(trainer.train_dataloader or (), MOST_BATCHES)):
            batch, self._looking, self._breaking = prepared_batch(trainer, batch), True, True
            if self._hook is not None:
                with (
                    evaluating(module),
                    trainer.precision_plugin.train_step_context(),
                    suppress(_ImagesSeen),
                ):
                    step(*(batch, number)[: len(signature(step).parameters)])
            self._add_batch(batch)
            if not self.means.lacking:
                return

    # The end ----------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """No more images: says so if there are no prototypes."""
        self.over = True
        self.let_go()
        if self.means.lacking:
            names = [self.target.task.classes[place] for place in self.means.lacking]
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise ValueError(f"no image was seen of {len(names)} of {len(self.means.counts)} classes: {shown}.")

    def let_go(self) -> None:
        """Remove the copy of the backbone and what watches its images."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._dense = self._images = None
        self._looking = self._breaking = False

    @contextmanager
    def _no_prototypes_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: no training is lost to what only helps to find its entry
            self.let_go()
            self.means, self.over = ClassMeans(len(self.means.counts)), True
            rank_zero_warn(
                "The zoo entry will have no prototypes, by which a search of a large zoo finds entries without running "
                f"them: {str(error).rstrip('.')}. Give images as the backbone takes them, and their class indices: "
                "MVPCallback(prototype_loader=...)."
            )


def theta0_copy(backbone: nn.Module, theta0: Mapping[str, Tensor]) -> nn.Module:
    """The dense backbone with the weights θ⁰ in float32, beside the one that trains and on its device.

    Args:
        backbone: the one that trains. What hooks do to its input is done already where its images are seen, and the
            zoo's backbone has none.
        theta0: without the classifier that may sit inside the backbone.
    """
    hooks, backbone._forward_pre_hooks = backbone._forward_pre_hooks, OrderedDict()
    try:
        dense = detached_copy(backbone).float()
    finally:
        backbone._forward_pre_hooks = hooks
    dense.load_state_dict(dict(theta0), strict=False)
    if classifier_name(dense) is not None:
        dense.reset_classifier(0)  # type: ignore[operator]  # timm's
    return dense.requires_grad_(False)


class MakesPrototypes(PruningState):
    """The hooks of :class:`~lightning_mvp.callbacks.mvp.MVPCallback` that compute prototypes for the zoo entry."""

    _prototypes: FitPrototypes | None
    _dev_run: bool

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the first training step, when the loaders are known."""
        made = self._prototypes
        if made is not None and not self._dev_run:
            on_rank_zero(trainer, lambda: made.begin(trainer, pl_module, self._backbone(pl_module)))

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each training batch."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._prototypes is not None:
            self._prototypes.before_batch()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each training batch."""
        if self._prototypes is not None:
            self._prototypes.after_batch(batch)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last step, with the model on its device."""
        made = self._prototypes
        if made is not None and self.finished:
            on_rank_zero(trainer, lambda: made.end(trainer, pl_module))

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called last, also where pruning was not completed."""
        if self._prototypes is not None:
            self._prototypes.let_go()


def require_loader(loader: Any) -> Iterable[Any] | None:
    """Refuse what is no loader of prototypes, before any work."""
    if loader is not None and not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise ValueError(
            "Expected argument `prototype_loader` to be an iterable of (images, class indices), but got a "
            f"{type(loader).__name__}."
        )
    return loader

"""A backbone and a head that learn one task: what the apps and the study train."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_mvp.agreement import close_process_group_at_exit
from lightning_mvp.backbones.create import as_json, create_backbone, recipe_of
from lightning_mvp.backbones.features import classifier_name, feature_count
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.layout import training_layout
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.passes import Place, Where
from lightning_mvp.callbacks.bar import RoundInBar
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.training.batches import AnyTask, BatchTo, accuracies, loss_of
from lightning_mvp.training.classifier import Classifier, name_of
from lightning_mvp.training.decision import freeze, frozen_parameters
from lightning_mvp.training.mimic import Teacher, require_weight
from lightning_mvp.training.optimizer import (
    OPTIMIZER,
    OptimizerChoice,
    OptimizerName,
    ScheduleChoice,
    ScheduleName,
    optimizer_of,
    require_optim_choice,
    schedule_of,
)
from lightning_mvp.training.optimizer import one_cycle as one_cycle
from lightning_mvp.training.resume import require_resizable, require_same_model, same_shapes, undisturbed
from lightning_mvp.zoo.rebuild import dense_backbone
from lightning_mvp.zoo.zoo import ModelZoo

TEACHER = "lightning_mvp_teacher"  # what a checkpoint says of it
READ_BY = "lightning_mvp_batch_to"  # and of the function that read batches


class TaskModule(Classifier):
    """A classifier for one task: ``head(backbone(images))`` trained with cross-entropy.

    Batches are images and labels: class indices ``(N,)``; or multi-hot ``(N, classes)``, for which the loss is binary
    cross-entropy. ``Trainer.predict`` gives probabilities, float32 ``(N, classes)``, of images with or without labels.

    Everything a checkpoint needs to be loaded is in its hyper-parameters, as plain containers: the backbone's recipe
    (with the widths of a small one) and the task's facts. A module that resumes from a checkpoint of the same
    architecture and classes takes the checkpoint's hyper-parameters for its own and rebuilds itself at its widths.

    Args:
        recipe: the backbone's recipe, see :func:`~lightning_mvp.backbones.create.create_backbone`.
        facts: the task's facts as a plain dict, see :meth:`TaskFacts.to_dict`.
        learning_rate: the peak.
        optimizer: ``"sgd"`` (momentum 0.9, Nesterov), ``"adamw"``, or a class by its import path, as
            ``{"_target_": "timm.optim.Muon", "momentum": 0.95}``; see
            :func:`~lightning_mvp.training.optimizer.optimizer_of`.
        weight_decay: of weights with two or more axes; norms and biases have none.
        schedule: ``"onecycle"`` (linear warm-up over the first 10 % of the steps, then a cosine to zero),
            ``"constant"``, or likewise a class such as ``torch.optim.lr_scheduler.StepLR``, which goes by steps.
        channels_last: the memory layout that the backbone trains in; None: what
            :func:`~lightning_mvp.backbones.layout.training_layout` says of it. True also forces the layout where it
            doesn't, which on an old CPU may crash.
        backbone: a ready backbone to train instead of building one; its recipe is ``recipe``.
        mimic: weight of :func:`~lightning_mvp.training.mimic.mimic_loss` in the training loss, such as 2; 0 leaves it
            out. A module with another weight needs a teacher: :meth:`take_teacher` gives it one.
        multi_label: whether an image may have several labels, or none: labels are multi-hot then.
        batch_to: batch → images and labels, for batches that are not these two, such as dicts: it is called in each
            step, with the batch on the Trainer's device. Images are float and preprocessed, or uint8. A checkpoint does
            not hold it: give it to :meth:`load_from_checkpoint` again.
        zoo: a zoo, or its folder, whose backbone is the teacher of the checkpoint that this module goes on from;
        theta0: or that teacher itself. Only :meth:`load_from_checkpoint` needs one of them, and only to train further.

    Shapes:
        ``forward``: ``(N, C, S, S)`` normalised images to ``(N, classes)`` logits.

    Example:
        >>> recipe = {"model": "resnet18", "arguments": {"num_classes": 0}, "input_size": 32, "in_chans": 3}
        >>> facts = TaskFacts("pets", ("cat", "dog"), 32, (0.5,) * 3, (0.25,) * 3)
        >>> TaskModule(recipe, facts.to_dict())(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 2])
    """

    # What a checkpoint says of the module that resumes from it; a subclass's further arguments stay its own.
    own_hparams: ClassVar[tuple[str, ...]] = (
        "recipe",
        "facts",
        "learning_rate",
        "optimizer",
        "weight_decay",
        "schedule",
        "channels_last",
        "mimic",
        "multi_label",
    )
    teacher: Teacher | None

    def __init__(
        self,
        recipe: Mapping[str, Any],
        facts: Mapping[str, Any],
        learning_rate: float = 0.05,
        optimizer: OptimizerChoice = "sgd",
        weight_decay: float = 5e-4,
        schedule: ScheduleChoice = "onecycle",
        channels_last: bool | None = None,
        backbone: nn.Module | None = None,
        mimic: float = 0.0,
        multi_label: bool = False,
        batch_to: BatchTo | None = None,
        zoo: ModelZoo | str | Path | None = None,
        theta0: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.batch_to, self._read_by = batch_to, name_of(batch_to)
        self._measures: tuple[int, bool] | None = None
        self.mimic, self.teacher, self._gone_on_from = require_weight(mimic), None, None
        if zoo is not None or theta0 is not None:
            if zoo is not None:
                theta0 = dense_backbone(ModelZoo(zoo) if isinstance(zoo, str | Path) else zoo)
            assert theta0 is not None
            self.teacher = Teacher(theta0)
        require_optim_choice("optimizer", optimizer, OptimizerName)
        require_optim_choice("schedule", schedule, ScheduleName)
        if not learning_rate > 0:
            raise ValueError(f"Expected argument `learning_rate` to be above 0, but got {learning_rate!r}.")
        if not isinstance(channels_last, bool | None):
            raise ValueError(f"Expected argument `channels_last` to be true, false or None, but got {channels_last!r}.")
        # Containers of another library, such as OmegaConf's, would break loading with weights_only=True.
        recipe, facts, optimizer, schedule = (as_json(each) for each in (recipe, facts, optimizer, schedule))
        # Without mimicking, or several labels, a checkpoint says what it said before there was either.
        unsaid = [name for name, said in (("mimic", self.mimic), ("multi_label", multi_label)) if not said]
        self.save_hyperparameters(ignore=["backbone", "zoo", "theta0", "batch_to", *unsaid])
        self._describe(facts)
        self._build(recipe, backbone)

    def _describe(self, facts: Mapping[str, Any]) -> None:
        self.facts = TaskFacts.from_dict(facts)
        kind = len(self.facts.classes), self.multi_label
        if kind != self._measures:
            self._measures, self.accuracy = kind, accuracies(*kind).to(self.device)
        self.example_input_array = torch.zeros(2, len(self.facts.mean), self.facts.input_size, self.facts.input_size)

    @property
    def example(self) -> Tensor:
        """Two images of zeros in the task's size."""
        assert isinstance(self.example_input_array, Tensor)
        return self.example_input_array

    def _build(self, recipe: Mapping[str, Any], backbone: nn.Module | None = None) -> None:
        self.backbone = create_backbone(recipe) if backbone is None else backbone
        self._lay_out()
        self.backbone.train()
        n_features = feature_count(self.backbone, recipe, self.example)
        # Drawn on the CPU, whatever the backbone is on: the same seed, the same head.
        device = next(self.backbone.parameters()).device
        self.head = nn.Linear(n_features, len(self.facts.classes)).to(device)

    def _lay_out(self) -> None:
        """Bring the backbone's weights into the layout that it trains in."""
        chosen = self.hparams["channels_last"]
        if chosen is None:
            self.layout = training_layout(self.backbone)
        else:
            self.layout = torch.channels_last if chosen else torch.contiguous_format
        self.backbone.to(memory_format=self.layout)

    def _become(self, hparams: Mapping[str, Any]) -> None:
        """Take other hyper-parameters for one's own and rebuild at their widths; the weights then say nothing yet."""
        own = {name: copy.deepcopy(hparams[name]) for name in self.own_hparams if name in hparams}
        before = self.hparams["recipe"]
        for name in ("mimic", "multi_label"):
            self.hparams.pop(name, None)
        self.hparams.update(own)
        self.mimic = float(own.get("mimic", 0.0))
        self._hparams_initial = copy.deepcopy(self.hparams)  # what loggers are given
        with undisturbed():
            self._describe(own["facts"])
        if same_shapes(before, own["recipe"]):
            self._lay_out()  # the checkpoint may say another layout
            return
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        frozen = frozen_parameters(self)
        with undisturbed():
            self._build(own["recipe"])
        for part in (self.backbone, self.head):
            part.to(device)
        freeze(self, frozen)

    def setup(self, stage: str) -> None:
        self._require_reader()
        if self.trainer.world_size > 1:
            close_process_group_at_exit()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        if "recipe" not in saved or "facts" not in saved:
            return  # of a LightningModule of another kind, whose weights may still fit
        require_same_model(self.hparams, saved)
        if not same_shapes(self.hparams["recipe"], saved["recipe"]):
            require_resizable(self._trainer)
        self._become(saved)
        self._gone_on_from, self._read_by = checkpoint.get(TEACHER), checkpoint.get(READ_BY) or self._read_by
        if self.teacher is not None and self._gone_on_from is not None:
            self.teacher.load_state_dict(self._gone_on_from)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.mimic:  # all but its weights; a module that was never trained further hands on what it was told
            checkpoint[TEACHER] = self._gone_on_from if self.teacher is None else self.teacher.state_dict()
        if self._read_by is not None:
            checkpoint[READ_BY] = self._read_by

    @classmethod
    def for_task(cls, backbone: nn.Module, facts: TaskFacts, **options: Any) -> TaskModule:
        """A module around a ready backbone that carries its recipe.

        Raises:
            ValueError: a backbone without recipe, or one with a timm classifier inside.
        """
        recipe = recipe_of(backbone)
        if recipe is None:
            raise ValueError(
                "Expected a backbone from lightning_mvp.create_backbone, which carries its recipe. One of your own: "
                "create_backbone({'model': trust_backbone('package.module:function'), 'input_size': 224})."
            )
        if classifier_name(backbone) is not None:
            raise ValueError("Expected a backbone without classifier: create it with num_classes=0.")
        return cls(recipe, facts.to_dict(), backbone=backbone, **options)

    @property
    def training_options(self) -> dict[str, Any]:
        """The hyper-parameters that say how it is trained: what a smaller module of the same task takes over."""
        told = ("recipe", "facts", "report")
        return {name: value for name, value in self.hparams.items() if name in self.own_hparams and name not in told}

    def take_teacher(
        self,
        theta0: nn.Module,
        datamodule: AnyTask,
        groups: Groups | None = None,
        masks: Mapping[str, Any] | None = None,
        seed: int = 0,
        *,
        device: Where = None,
    ) -> None:
        """Choose the backbone whose features are mimicked, before fit; nothing is done where ``mimic`` is 0.

        Args:
            theta0: the dense backbone, such as the one that this module's was pruned from; it is copied.
            datamodule: the task; its training images give batch-norm moments.
            groups: of ``theta0``, with ``masks``.
            masks: the units of ``theta0`` that this module's backbone has. None: all, if it has as many features; else
                a linear map from this module's features to those of ``theta0`` is fitted in closed form.
            seed: of the images that give the moments.
            device: as in :meth:`initialise_head`; each rank makes the passes by itself.
        """
        if self.mimic:
            self.teacher = Teacher(theta0, self._task(datamodule), seed, Place.at(device).alone)
            if groups is not None and masks is not None:
                self.teacher.keep(groups, masks)
            elif self.teacher.width != self.head.in_features:
                self.teacher.follow(self.backbone, self._task(datamodule), device)

    def on_units_kept(self, groups: Groups, masks: Masks) -> None:
        """:class:`~lightning_mvp.callbacks.mvp.MVPCallback` says, after each round, which units are left."""
        if self.teacher is not None:
            self.teacher.keep(groups, masks)

    def require_teacher(self) -> None:
        """Refuse to train with a weight of mimicking and nobody to mimic.

        Raises:
            ValueError: what to do is in the message.
        """
        if self.mimic and self.teacher is None:
            raise ValueError(
                f"Expected a teacher, because this module mimics with weight {self.mimic:g}, but got none. Call "
                "module.take_teacher(theta0, datamodule) before fit; for a module of load_from_checkpoint give zoo=… "
                "or theta0=… there."
            )

    def on_fit_start(self) -> None:
        self.require_teacher()

    def to_torch(self) -> nn.Module:
        """The classifier as a plain module in eval mode: a copy of the backbone, then of the head.

        The module itself stays in train mode, so that it can be trained further.
        """
        plain_module = copy.deepcopy(nn.Sequential(self.backbone, self.head)).eval()
        plain_module.zero_grad(set_to_none=True)
        return plain_module

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def _shared_step(self, batch: Any, stage: str) -> Tensor:
        images, labels = self.pair_of(batch)
        images = images.contiguous(memory_format=self.layout)
        if stage == "train" and self.teacher is not None and self.mimic:
            features = self.backbone(images)
            logits, mimicked = self.head(features), self.teacher.loss(features, images)
            self.log("mimic_loss", mimicked)
            loss = loss_of(logits, labels, self.multi_label) + self.mimic * mimicked
        else:
            logits = self(images)
            loss = loss_of(logits, labels, self.multi_label)
        metric = self.accuracy[f"{stage}_stage"]
        assert isinstance(metric, Metric)
        if self.multi_label:
            metric(logits.float().sigmoid(), labels.long())
        else:  # of a mixed image the class that it has most of
            metric(logits, labels.argmax(1) if labels.ndim == 2 else labels)
        size = len(images)
        self.log(f"{stage}_loss", loss, prog_bar=stage == "train", batch_size=size)
        self.log(f"{stage}_accuracy", metric, prog_bar=stage != "test", on_step=False, on_epoch=True, batch_size=size)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "test")

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer at its peak rate; norms and biases have no weight decay."""
        return optimizer_of(self.parameters(), **{name: self.hparams[name] for name in OPTIMIZER})

    def configure_callbacks(self) -> list[L.Callback]:
        """What names epochs in a progress bar where ``max_steps`` ends the run, unless the Trainer has that already."""
        there = any(isinstance(other, RoundInBar) for other in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if there else [RoundInBar()]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        schedule = self.hparams["schedule"]
        if schedule == "constant":
            return optimizer
        scheduler = schedule_of(optimizer, schedule, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

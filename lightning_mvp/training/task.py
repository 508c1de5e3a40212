"""A backbone and a head that learn one task: what the apps and the study train."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_mvp.agreement import close_process_group_at_exit
from lightning_mvp.backbones.create import as_json, create_backbone, recipe_of
from lightning_mvp.backbones.features import classifier_name, evaluating, features_of
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.inputs import one_sample
from lightning_mvp.backbones.layout import training_layout
from lightning_mvp.backbones.masks import Masks
from lightning_mvp.backbones.passes import Place, Where, features_over, pass_over
from lightning_mvp.backbones.ridge import ridge_head
from lightning_mvp.pruning.choose import require_choice
from lightning_mvp.tasks.datamodule import PartName, TaskDataModule
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import preprocess
from lightning_mvp.training.decision import freeze, frozen_parameters
from lightning_mvp.training.mimic import Teacher, require_weight
from lightning_mvp.training.optimizer import OPTIMIZER, OptimizerName, ScheduleName, one_cycle, optimizer_of
from lightning_mvp.training.resume import require_resizable, require_same_model, same_shapes, undisturbed
from lightning_mvp.zoo.rebuild import dense_backbone
from lightning_mvp.zoo.zoo import ModelZoo

HeadInit = Literal["ridge", "random"]
TEACHER = "lightning_mvp_teacher"  # what a checkpoint says of it


class TaskModule(L.LightningModule):
    """A classifier for one task: ``head(backbone(images))`` trained with cross-entropy.

    Everything a checkpoint needs to be loaded is in its hyper-parameters, as plain containers: the backbone's recipe
    (with the widths of a small one) and the task's facts. A module that resumes from a checkpoint of the same
    architecture and classes takes the checkpoint's hyper-parameters for its own and rebuilds itself at its widths.

    Args:
        recipe: the backbone's recipe, see :func:`~lightning_mvp.backbones.create.create_backbone`.
        facts: the task's facts as a plain dict, see :meth:`TaskFacts.to_dict`.
        learning_rate: the peak.
        optimizer: ``"sgd"`` (momentum 0.9, Nesterov) or ``"adamw"``.
        weight_decay: of weights with two or more axes; norms and biases have none.
        schedule: ``"onecycle"`` (linear warm-up over the first 10 % of the steps, then a cosine to zero) or
            ``"constant"``.
        channels_last: the memory layout that the backbone trains in; None: what
            :func:`~lightning_mvp.backbones.layout.training_layout` says of it. True also forces the layout where it
            doesn't, which on an old CPU may crash.
        backbone: a ready backbone to train instead of building one; its recipe is ``recipe``.
        mimic: weight of :func:`~lightning_mvp.training.mimic.mimic_loss` in the training loss, such as 2; 0 leaves it
            out. A module with another weight needs a teacher: :meth:`take_teacher` gives it one.
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
    )
    teacher: Teacher | None

    def __init__(
        self,
        recipe: Mapping[str, Any],
        facts: Mapping[str, Any],
        learning_rate: float = 0.05,
        optimizer: OptimizerName = "sgd",
        weight_decay: float = 5e-4,
        schedule: ScheduleName = "onecycle",
        channels_last: bool | None = None,
        backbone: nn.Module | None = None,
        mimic: float = 0.0,
        zoo: ModelZoo | str | Path | None = None,
        theta0: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mimic, self.teacher, self._gone_on_from = require_weight(mimic), None, None
        if zoo is not None or theta0 is not None:
            if zoo is not None:
                theta0 = dense_backbone(ModelZoo(zoo) if isinstance(zoo, str | Path) else zoo)
            assert theta0 is not None
            self.teacher = Teacher(theta0)
        require_choice("optimizer", optimizer, OptimizerName)
        require_choice("schedule", schedule, ScheduleName)
        if not learning_rate > 0:
            raise ValueError(f"Expected argument `learning_rate` to be above 0, but got {learning_rate!r}.")
        if not isinstance(channels_last, bool | None):
            raise ValueError(f"Expected argument `channels_last` to be true, false or None, but got {channels_last!r}.")
        # Containers of another library, such as OmegaConf's, would break loading with weights_only=True.
        recipe, facts = as_json(recipe), as_json(facts)
        # Without mimicking a checkpoint says what it said before there was any.
        self.save_hyperparameters(ignore=["backbone", "zoo", "theta0", *([] if self.mimic else ["mimic"])])
        self._describe(facts)
        classes = len(self.facts.classes)
        self.accuracy = nn.ModuleDict(
            {f"{stage}_stage": MulticlassAccuracy(classes, average="micro") for stage in ("train", "val", "test")}
        )
        self._build(recipe, backbone)

    def _describe(self, facts: Mapping[str, Any]) -> None:
        self.facts = TaskFacts.from_dict(facts)
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
        n_features = _feature_count(self.backbone, recipe, self.example)
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
        self.hparams.pop("mimic", None)
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
        self._gone_on_from = checkpoint.get(TEACHER)
        if self.teacher is not None and self._gone_on_from is not None:
            self.teacher.load_state_dict(self._gone_on_from)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.mimic:  # all but its weights; a module that was never trained further hands on what it was told
            checkpoint[TEACHER] = self._gone_on_from if self.teacher is None else self.teacher.state_dict()

    @classmethod
    def for_task(cls, backbone: nn.Module, facts: TaskFacts, **options: Any) -> TaskModule:
        """A module around a ready backbone that carries its recipe.

        Raises:
            ValueError: a backbone without recipe, or one with a timm classifier inside.
        """
        recipe = recipe_of(backbone)
        if recipe is None:
            raise ValueError("Expected a backbone from lightning_mvp.create_backbone, which carries its recipe.")
        if classifier_name(backbone) is not None:
            raise ValueError("Expected a backbone without classifier: create it with num_classes=0.")
        return cls(recipe, facts.to_dict(), backbone=backbone, **options)

    def initialise_head(
        self, datamodule: TaskDataModule, head_init: HeadInit = "ridge", *, device: Where = None
    ) -> None:
        """Set the head before the first step.

        Args:
            datamodule: the task.
            head_init: ``"ridge"``: in closed form on all training images; ``"random"``: as it is.
            device: where the images go through the backbone, such as ``"cuda"``, or a
                :class:`~lightning_mvp.backbones.passes.Place`, which also says the precision and whether ranks share
                the work. None: where the backbone is, in float32.
        """
        require_choice("head_init", head_init, HeadInit)
        if head_init == "ridge":
            features, labels = features_over(self.backbone, pass_over(datamodule, "train", device, self.facts), device)
            self.head.load_state_dict(ridge_head(features, labels, len(self.facts.classes), device).state_dict())

    @property
    def training_options(self) -> dict[str, Any]:
        """The hyper-parameters that say how it is trained: what a smaller module of the same task takes over."""
        told = ("recipe", "facts", "report")
        return {name: value for name, value in self.hparams.items() if name in self.own_hparams and name not in told}

    def take_teacher(
        self,
        theta0: nn.Module,
        datamodule: TaskDataModule,
        groups: Groups | None = None,
        masks: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Choose the backbone whose features are mimicked, before fit; nothing is done where ``mimic`` is 0.

        Args:
            theta0: the dense backbone, such as the one that this module's was pruned from; it is copied.
            datamodule: the task; its training images give batch-norm moments.
            groups: of ``theta0``, with ``masks``.
            masks: the units of ``theta0`` that this module's backbone has. None: all, if it has as many features; else
                a linear map from this module's features to those of ``theta0`` is fitted in closed form.
            seed: of the images that give the moments.
        """
        if self.mimic:
            self.teacher = Teacher(theta0, datamodule, seed)
            if groups is not None and masks is not None:
                self.teacher.keep(groups, masks)
            elif self.teacher.width != self.head.in_features:
                self.teacher.follow(self.backbone, datamodule)

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

    def accuracy_on(self, images: Tensor, labels: Tensor) -> float:
        """Accuracy on raw images, in eval mode.

        Args:
            images: uint8 ``(N, C, H, W)``.
            labels: int64 ``(N,)`` in 0..classes-1.
        """
        features = features_of(self.backbone, preprocess(images, self.facts)).to(self.head.weight)
        with torch.no_grad():
            return (self.head(features).argmax(1).cpu() == labels.cpu()).float().mean().item()

    def accuracy_of(self, batches: Iterable[Any], *, device: Where = None) -> float:
        """Accuracy in eval mode on batches of preprocessed images, one of which is in memory at a time.

        Args:
            batches: pairs of images ``(N, C, S, S)`` and labels ``(N,)``, such as ``datamodule.val_dataloader()``.
            device: as in :meth:`initialise_head`. Where ranks share the pass each gives batches of its own, and all get
                the accuracy on all of them.

        Raises:
            ValueError: there is no image.

        Example:
            >>> recipe = {"model": "resnet18", "arguments": {"num_classes": 0}, "input_size": 32, "in_chans": 3}
            >>> module = TaskModule(recipe, TaskFacts("pets", ("cat", "dog"), 32, (0.5,) * 3, (0.25,) * 3).to_dict())
            >>> batch = torch.zeros(4, 3, 32, 32), torch.tensor([0, 0, 0, 1])
            >>> module.accuracy_of([batch]) in (0.25, 0.75)
            True
        """
        place, counts = Place.at(device), torch.zeros(2, dtype=torch.int64)
        with place.holding(self):
            for images, labels in batches:
                logits = self.head(place.run(self.backbone, images).to(self.head.weight))
                counts += torch.tensor([int((logits.argmax(1).cpu() == labels.cpu()).sum()), len(labels)])
        right, seen = place.summed(counts).tolist()
        if not seen:
            raise ValueError("Expected argument `batches` to give at least one image, but it gave none.")
        return float(torch.tensor(right, dtype=torch.float32) / seen)  # as accuracies were ever rounded

    def accuracy_in(self, datamodule: TaskDataModule, part: PartName = "val", *, device: Where = None) -> float:
        """Accuracy on a part of the task, ``"val"`` or ``"test"``; ``device`` as in :meth:`initialise_head`."""
        return self.accuracy_of(pass_over(datamodule, part, device, self.facts), device=device)

    def to_torch(self) -> nn.Module:
        """The classifier as a plain module in eval mode: a copy of the backbone, then of the head.

        The module itself stays in train mode, so that it can be trained further.
        """
        plain_module = copy.deepcopy(nn.Sequential(self.backbone, self.head)).eval()
        plain_module.zero_grad(set_to_none=True)
        return plain_module

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def _shared_step(self, batch: Sequence[Tensor], stage: str) -> Tensor:
        images, labels = batch
        images = images.contiguous(memory_format=self.layout)
        if stage == "train" and self.teacher is not None and self.mimic:
            features = self.backbone(images)
            logits, mimicked = self.head(features), self.teacher.loss(features, images)
            self.log("mimic_loss", mimicked)
            loss = F.cross_entropy(logits.float(), labels) + self.mimic * mimicked
        else:
            logits = self(images)
            loss = F.cross_entropy(logits.float(), labels)
        metric = self.accuracy[f"{stage}_stage"]
        assert isinstance(metric, MulticlassAccuracy)
        metric(logits, labels)
        self.log(f"{stage}_loss", loss, prog_bar=stage == "train")
        self.log(f"{stage}_accuracy", metric, prog_bar=stage != "test", on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._shared_step(batch, "val")

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._shared_step(batch, "test")

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer at its peak rate; norms and biases have no weight decay."""
        return optimizer_of(self.parameters(), **{name: self.hparams[name] for name in OPTIMIZER})

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if self.hparams["schedule"] == "constant":
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, total=total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _feature_count(backbone: nn.Module, recipe: Mapping[str, Any], example: Tensor) -> int:
    """The number of features that a backbone makes of a task's images; refuses images that it can't take."""
    channels, size = example.shape[1:3]
    expected = recipe.get("in_chans", 3)
    if channels != expected:
        raise ValueError(
            f"Expected images of {expected} channel(s), as the backbone {recipe['model']} takes, but the task's have "
            f"{channels}. Convert the images (grey ones by repeating the channel), or use a backbone whose recipe, its "
            f"replaced modules included, is made for {channels}."
        )
    try:
        with evaluating(backbone):
            features = backbone(*one_sample((example,), backbone))  # which may be on a GPU already
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The backbone {recipe['model']} can't take the task's images of {size} × {size} pixels: {error} Load the "
            f"data with image_size={recipe.get('input_size', size)}."
        ) from error
    if features.ndim != 2:
        raise ValueError(
            f"Expected a backbone whose output is (N, features), but {recipe['model']} gives {tuple(features.shape)}. "
            "Create it with num_classes=0 and its usual pooling."
        )
    return features.shape[1]

"""Mimicking: while a small model is trained, its features are drawn to those of the backbone that it came from."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lightning_mvp.backbones.create import create_backbone, recipe_of
from lightning_mvp.backbones.groups import Groups
from lightning_mvp.backbones.layout import training_layout
from lightning_mvp.backbones.least_squares import solve_ridge
from lightning_mvp.backbones.passes import Place, Where, features_over, reestimate_over, sample_of
from lightning_mvp.backbones.weights import load_tensors
from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.tasks.datamodule import TaskDataModule
from lightning_mvp.voting.target import reestimation_batches
from lightning_mvp.zoo.new_entry import as_stored, own_state

MAP_IMAGES = 1000
MAP_PENALTY = 1e-2


def mimic_loss(features: Tensor, teacher_features: Tensor, kept: Tensor | None = None) -> Tensor:
    r"""How far a small model's features are from its teacher's, as a share of the teacher's variance.

    :math:`\operatorname{mean}((\phi_s - \phi_t[kept])^2) / \operatorname{mean}(\operatorname{var}(\phi_t[kept]))`
    with means over images and features and the variance over the images of the batch: 0 for equal features, 1 for those
    that say only what the teacher's are on average. Features are matched as in FitNets (Romero et al., 2015, equation
    3), without a layer in between, since the units of a pruned model are some of the teacher's, and on the task's own
    images as in MiR (Wang et al., CVPR 2023).

    Add it to the loss of your own module, times a weight such as 2: see ``examples/06_mimic.py``.

    Args:
        features: ``(N, d)``, penultimate features of the small model; or ``(N, D)``, of one whose removed units are
            zeroed and not cut out.
        teacher_features: ``(N, D)``, the teacher's of the same images; no gradient goes there.
        kept: int64 ``(d,)``, which of the teacher's features the small model has; None: all.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: shapes that don't fit.

    Example:
        >>> teacher = torch.tensor([[0.0, 5.0, 2.0], [2.0, 5.0, 0.0]])
        >>> mimic_loss(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), teacher, torch.tensor([0, 2]))
        tensor(0.)
        >>> mimic_loss(torch.ones(2, 2), teacher, torch.tensor([0, 2]))
        tensor(1.)
    """
    features, wanted = features.float(), teacher_features.detach().float()
    if kept is not None:
        kept = kept.to(wanted.device)
        if features.shape[1:] == wanted.shape[1:]:
            features = features[:, kept]
        wanted = wanted[:, kept]
    if features.ndim != 2 or features.shape != wanted.shape:
        raise ValueError(
            f"Expected `features` (N, d) for d of the teacher's features, but got {tuple(features.shape)} for "
            f"{tuple(wanted.shape)}. Pass `kept`, the indices of the teacher's features that the small model has."
        )
    spread = wanted.var(0, correction=0).mean().clamp_min(1e-12)
    return (features - wanted).square().mean() / spread


def linear_map(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map from a small model's features to a wider teacher's with the least squared error, in closed form.

    Ridge regression on centred features, its penalty :data:`MAP_PENALTY` of their mean variance.

    Args:
        features: ``(n, d)``.
        targets: ``(n, D)``.

    Returns:
        Weight ``(D, d)`` and bias ``(D,)``, float32.

    Example:
        >>> features = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> weight, bias = linear_map(features, features[:, :1] + 3)
        >>> bool((features @ weight.T + bias - features[:, :1] - 3).abs().max() < 0.1)
        True
    """
    x, y = features.double(), targets.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram, cross = (x - mean_x).T @ (x - mean_x), (y - mean_y).T @ (x - mean_x)
    weight = solve_ridge(gram[None], cross[None], MAP_PENALTY * gram.diagonal().mean()[None])[0]
    return weight.float(), (mean_y - weight @ mean_x).float()


class Teacher:
    """The backbone whose features a small model mimics: in eval mode, with the task's batch-norm moments.

    It is no module, so that it is in no state dict, optimizer, DDP wrapper, copy or export of whoever holds it. It
    moves to the device and the precision of the images that it sees.

    Args:
        backbone: the dense backbone; it is copied.
        data: the task, whose training images give the batch-norm moments; None leaves the backbone's own.
        seed: of the images that give the moments.
        device: where these go through the backbone: a device or a :class:`~lightning_mvp.backbones.passes.Place`.

    Attributes:
        fingerprint: of the backbone's weights as they were given.
        width: the number of features that ``kept`` chooses from: the teacher's own, or those that the linear map takes.
        kept: int64, those of them that the small model has; None: all.
        map: weight ``(D, width)`` and bias ``(D,)`` of the linear map to the teacher's features; None: they correspond.
    """

    def __init__(
        self, backbone: nn.Module, data: TaskDataModule | None = None, seed: int = 0, device: Where = None
    ) -> None:
        self.fingerprint = backbone_fingerprint(backbone)
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.backbone.to(memory_format=training_layout(self.backbone))  # type: ignore[call-overload]
        self._place: tuple[torch.device, torch.dtype] | None = None
        self.width = 0
        self.kept: Tensor | None = None
        self.map: tuple[Tensor, Tensor] | None = None
        if data is not None:
            reestimate_over(self.backbone, reestimation_batches(data, seed), device)
            images, labels = next(iter(sample_of(data, 1)))
            self.width = features_over(self.backbone, [(images, labels)], device)[0].shape[1]

    def features(self, images: Tensor) -> Tensor:
        """``(N, D)`` for preprocessed images, without gradient."""
        place = (images.device, images.dtype)
        if place != self._place:
            self.backbone.to(*place)
            self._place = place
            self._bring()
        with torch.no_grad():
            return self.backbone(images)

    def loss(self, features: Tensor, images: Tensor) -> Tensor:
        """:func:`mimic_loss` of a small model's features of these images, through the linear map where there is one."""
        wanted = self.features(images)
        if self.map is None:
            return mimic_loss(features, wanted, self.kept)
        weight, bias = self.map
        if self.kept is not None:
            weight = weight[:, self.kept]
            features = features if features.shape[1] == len(self.kept) else features[:, self.kept]
        return mimic_loss(features.float() @ weight.T + bias, wanted)

    def keep(self, groups: Groups, masks: Mapping[str, Any]) -> None:
        """Only these units are left of what the small model was pruned from."""
        self.kept = torch.as_tensor(groups.kept_features(masks, self.width))
        self._bring()

    def follow(self, backbone: nn.Module, data: TaskDataModule, device: Where = None) -> None:
        """Mimic through a linear map, fitted on training images: nobody knows which features the backbone has."""
        place, features = Place.at(device).alone, []
        with place.holding(backbone, self.backbone):
            for images, _ in sample_of(data, MAP_IMAGES, place):
                features.append([place.run(net, images).cpu() for net in (backbone, self.backbone)])
        own, wanted = map(torch.cat, zip(*features, strict=True))
        self.map, self.kept = linear_map(own, wanted), None
        self.width = self.map[0].shape[1]
        self._bring()

    def _bring(self) -> None:
        """What each step needs comes to the device of the images once, not at each step."""
        if self._place is not None:
            device = self._place[0]
            self.kept = None if self.kept is None else self.kept.to(device)
            self.map = None if self.map is None else (self.map[0].to(device), self.map[1].to(device))

    # Checkpoints and other ranks --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, which whoever goes on must bring: plain values and tensors on the CPU."""
        trained = {name for name, _ in self.backbone.named_parameters()}
        moments = {name: as_stored(t) for name, t in own_state(self.backbone).items() if name not in trained}
        kept = None if self.kept is None else self.kept.cpu()
        map_ = None if self.map is None else (self.map[0].cpu(), self.map[1].cpu())
        return {"fingerprint": self.fingerprint, "width": self.width, "kept": kept, "map": map_, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint says of its teacher.

        Raises:
            ValueError: that teacher had other weights.
        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"Expected the teacher that the checkpoint's model mimics, of fingerprint {state['fingerprint']}, but "
                f"got a backbone of {self.fingerprint}. Give the zoo that the model was voted from as zoo=…, or the "
                "backbone that it began with as theta0=…"
            )
        load_tensors(self.backbone, {**own_state(self.backbone), **state["moments"]})
        self.width, self.kept = state["width"], state["kept"]
        self.map = None if state["map"] is None else (state["map"][0], state["map"][1])
        self._bring()

    def pack(self) -> tuple[str, bytes]:
        """All of it, for another process: JSON text and safetensors bytes."""
        tensors = {f"weights/{name}": as_stored(tensor) for name, tensor in own_state(self.backbone).items()}
        tensors |= {} if self.kept is None else {"kept": self.kept}
        tensors |= {} if self.map is None else {"map/weight": self.map[0], "map/bias": self.map[1]}
        tensors = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        said = {"recipe": recipe_of(self.backbone), "fingerprint": self.fingerprint, "width": self.width}
        return json.dumps(said), save(tensors)

    @classmethod
    def unpack(cls, text: str, packed: bytes, backbone: nn.Module | None = None) -> Teacher:
        """The inverse of :meth:`pack`; a backbone without recipe is a copy of ``backbone``."""
        said, tensors = json.loads(text), load(packed)
        if said["recipe"] is None and backbone is None:
            raise ValueError("Expected argument `backbone` on all ranks, because the zoo has no recipe, but got None.")
        teacher = cls(backbone if said["recipe"] is None else create_backbone(said["recipe"]))  # type: ignore[arg-type]
        weights = {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}
        load_tensors(teacher.backbone, {name.removeprefix("weights/"): tensor for name, tensor in weights.items()})
        teacher.fingerprint, teacher.width, teacher.kept = said["fingerprint"], said["width"], tensors.get("kept")
        teacher.map = (tensors["map/weight"], tensors["map/bias"]) if "map/weight" in tensors else None
        return teacher


def backbone_fingerprint(backbone: nn.Module) -> str:
    """Of all weights and buffers but a timm classifier's, in float32 as a zoo keeps them."""
    return fingerprint({name: as_stored(tensor).numpy() for name, tensor in own_state(backbone).items()})


def require_weight(mimic: float) -> float:
    """Refuse a weight of the mimicking loss that is below 0, or no number.

    Example:
        >>> require_weight(2)
        2.0
    """
    if isinstance(mimic, bool) or not isinstance(mimic, int | float) or not 0 <= mimic < float("inf"):
        raise ValueError(f"Expected argument `mimic` to be a number of at least 0, but got {mimic!r}.")
    return float(mimic)

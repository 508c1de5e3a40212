"""A backbone's output on many images, and re-estimated batch-norm statistics: passes that train nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_mvp.backbones.inputs import one_sample
from lightning_mvp.words import counted


def classifier_name(backbone: nn.Module) -> str | None:
    """The dotted name of the timm classifier inside a backbone, or None where there is none.

    Example:
        >>> import timm
        >>> classifier_name(timm.create_model("resnet18"))
        'fc'
        >>> classifier_name(timm.create_model("resnet18", num_classes=0)) is None
        True
    """
    classifier = _classifiers(backbone)
    if not isinstance(classifier, nn.Linear):
        return None
    return next((name for name, module in backbone.named_modules() if module is classifier), None)


def classifier_names(backbone: nn.Module) -> list[str]:
    """The dotted names of the layers of a backbone's timm classifier, or classifiers, whose outputs are fixed.

    Example:
        >>> import timm
        >>> classifier_names(timm.create_model("deit_tiny_distilled_patch16_224"))
        ['head', 'head_dist']
    """
    given = _classifiers(backbone)
    heads = given if isinstance(given, (tuple, list)) else [given]
    parts = {part for head in heads if isinstance(head, nn.Module) for part in head.modules()}
    return [name for name, module in backbone.named_modules() if module in parts and name]


def _classifiers(backbone: nn.Module) -> Any:
    """What timm's ``get_classifier`` gives, None where there is none."""
    get_classifier = getattr(backbone, "get_classifier", None)
    try:
        return get_classifier() if callable(get_classifier) else None
    except AttributeError:  # some of timm's look for a layer that a model without classifier does not have
        return None


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's own training flag comes back afterwards."""
    flags = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def features_of(backbone: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Penultimate features in eval mode.

    Args:
        backbone: maps images to features.
        images: ``(N, C, H, W)``, preprocessed; floats of any precision are brought to the backbone's.
        batch_size: images a pass.

    Returns:
        ``(N, D)`` float32 on the CPU.
    """
    with evaluating(backbone):
        parts = [backbone(as_taken(part, backbone)).float().cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def feature_count(backbone: nn.Module, recipe: Mapping[str, Any], example: Tensor) -> int:
    """The number of features that a backbone makes of a task's images; refuses images that it can't take."""
    channels, size = example.shape[1:3]
    expected = recipe.get("in_chans", 3)
    if channels != expected:
        raise ValueError(
            f"Expected images of {counted(expected, 'channel')}, as the backbone {recipe['model']} takes, but the "
            f"task's have {channels}. Convert the images (grey ones by repeating the channel), or use a "
            f"backbone whose recipe, its replaced modules included, is made for {channels}."
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


def as_taken(images: Tensor, backbone: nn.Module) -> Tensor:
    """Images on the backbone's device and, where they are of floats, of its dtype; in channels_last where they can."""
    parameter = next(backbone.parameters(), torch.empty(0))
    images = images.to(parameter.device, parameter.dtype if images.is_floating_point() else None)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


@contextmanager
def batch_moments(*modules: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, but batch norms use the moments of their batch; all is as it was afterwards.

    Their stored statistics are only out of sight meanwhile: no number of theirs, momentum or count is touched.
    """
    norms = {part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)}
    held = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    with evaluating(*modules):
        try:
            for norm in norms:
                norm.running_mean = norm.running_var = None
            yield
        finally:
            for norm, mean, variance in held:
                norm.running_mean, norm.running_var = mean, variance


def reestimate_batch_norm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace batch-norm statistics by their plain average over the batches; no weight changes.

    Args:
        backbone: a module; one without batch norm is left as it is.
        batches: float images ``(B, C, H, W)``, preprocessed as for evaluation. At least one.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(backbone):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative average
            norm.train()
        for batch in batches:
            backbone(as_taken(batch, backbone))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

"""The labels that LEEP can be computed from, and those that it says nothing about. Pure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WITHOUT_LABELS = "`similarity='random'` asks for no labels."


def as_labels(labels: Any) -> Tensor:
    """Labels in one of two forms, on the CPU: class indices ``(n,)``, or multi-hot ``(n, L)`` of 0 and 1.

    Args:
        labels: class indices ``(n,)`` or ``(n, 1)`` of an integer type; or 0 and 1 of any type, ``(n,)``, ``(n, 1)`` or
            multi-hot ``(n, L)``. Tensor, array or list.

    Raises:
        ValueError: the labels are names, numbers of a regression, mixed (as by mixup), or negative, which often marks
            images whose label is not known.

    Example:
        >>> as_labels(torch.tensor([[2], [0]])), as_labels(torch.tensor([1.0, 0.0]))
        (tensor([2, 0]), tensor([1, 0]))
    """
    try:
        labels = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected labels to be class indices (n,) or multi-hot (n, L), but got {_kind(labels)} ({error}). Names "
            "become indices by torch.tensor([classes.index(name) for name in names])."
        ) from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or labels.is_complex():
        raise ValueError(
            f"Expected labels to be class indices (n,) or multi-hot (n, L), but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    binary = bool(((labels == 0) | (labels == 1)).all())
    if labels.ndim == 2:
        if not binary:
            raise ValueError(_not_multi_hot(labels))
        return labels
    if binary:
        return labels.long()
    if labels.is_floating_point():
        raise ValueError(
            f"Expected labels to be classes, but got {labels.dtype} with values such as {_others(labels)}: the targets "
            "of a regression make every image a class of its own, and LEEP says nothing then. Put them into classes "
            "first, by torch.bucketize(targets, targets.quantile(torch.tensor([0.25, 0.5, 0.75]))) for example; give "
            f"classes as integers (labels.long()). {WITHOUT_LABELS}"
        )
    if bool((labels < 0).any()) and set(labels.tolist()) != {-1, 1}:  # -1 and 1 are two classes, as for an SVM
        raise ValueError(
            f"Expected class indices of at least 0, but got {int(labels.min())}, which often marks images whose class "
            "is not known. Leave these out: ((images[labels >= 0], labels[labels >= 0]) for images, labels in loader). "
            "If it is a class, count from 0."
        )
    return labels


def require_content(labels: Tensor) -> None:
    """Refuse labels for which every entry would have the same LEEP score, or too few images for a score.

    Args:
        labels: as :func:`as_labels` gives them.

    Raises:
        ValueError: one class only, or fewer than two images for each class.

    Example:
        >>> require_content(torch.tensor([0, 1, 0, 1]))
        >>> require_content(torch.tensor([3, 3, 3]))
        Traceback (most recent call last):
        ...
        ValueError: Expected images of at least two classes, but all 3 are of class 3: LEEP is ...
    """
    if not len(labels):
        return
    if labels.ndim == 2:
        _require_repeated(informative_labels(labels))
        return
    classes = labels.unique()
    if len(classes) == 1:
        raise ValueError(
            f"Expected images of at least two classes, but all {len(labels)} are of class {int(classes[0])}: LEEP is 0 "
            "for every source then. Shuffle the loader (shuffle=True) if it gives one class after the other; for a "
            "task of one class take `similarity='prototypes'`."
        )
    if 2 * len(classes) > len(labels):
        raise ValueError(
            f"Expected at least two images for each class, but {len(labels)} images have {len(classes)} different "
            "labels: where nearly every image is a class of its own, LEEP says nothing. Give more images, class "
            f"indices rather than numbers of a regression, or take `similarity='prototypes'`. {WITHOUT_LABELS}"
        )


def informative_labels(labels: Tensor) -> Tensor:
    """The columns of multi-hot labels that some images have and some lack, as booleans.

    Args:
        labels: ``(n, L)`` of 0 and 1, of any type.

    Raises:
        ValueError: other values, or no such column.

    Example:
        >>> informative_labels(torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist()
        [[True], [False]]
    """
    present = labels == 1
    if not bool((present | (labels == 0)).all()):
        raise ValueError(_not_multi_hot(labels))
    telling = present.any(0) & ~present.all(0)
    if not bool(telling.any()):
        raise ValueError(
            f"Expected multi-hot labels {tuple(labels.shape)} of which at least one differs between images, but every "
            "label is always present or always absent. Give more images, or labels that tell them apart."
        )
    return present[:, telling]


def _require_repeated(present: Tensor) -> None:
    counts = present.sum(0)
    if bool((torch.minimum(counts, len(present) - counts) < 2).all()):
        raise ValueError(
            f"Expected a multi-hot label that at least two images have and two lack, but each of the {len(counts)} "
            f"labels that differ between the {len(present)} images differs for one image only: LEEP says nothing then. "
            "Give more images, or take `similarity='prototypes'`."
        )


def _not_multi_hot(labels: Tensor) -> str:
    expected = (
        f"Expected multi-hot labels {tuple(labels.shape)} to be 0 or 1, but got values such as {_others(labels)}."
    )
    if labels.is_floating_point() and bool(((labels >= 0) & (labels <= 1)).all()):
        return (
            f"{expected} Labels that were mixed or smoothed (mixup, cutmix, label smoothing) are not classes: give a "
            "loader that doesn't mix, with class indices (n,). If they were only smoothed, give labels.argmax(1)."
        )
    return (
        f"{expected} Give one class index per image as shape (n,); leave out images whose labels are not known. "
        f"{WITHOUT_LABELS}"
    )


def _others(labels: Tensor) -> str:
    """A few values that are neither 0 nor 1."""
    values = labels[(labels != 0) & (labels != 1)]
    return ", ".join(f"{value:g}" for value in values[:3].tolist())


def _kind(labels: Any) -> str:
    first = next(iter(labels), None) if isinstance(labels, (list, tuple)) else None
    return type(labels).__name__ + ("" if first is None else f" of {type(first).__name__}")

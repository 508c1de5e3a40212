from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mvp.voting.labels import as_labels, require_content
from lightning_mvp.voting.similarities import SIMILARITIES

INDICES = torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (INDICES, [2, 0, 1, 2]),
        (INDICES[:, None], [2, 0, 1, 2]),
        (INDICES.to(torch.uint8).numpy(), [2, 0, 1, 2]),
        (INDICES.tolist(), [2, 0, 1, 2]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor([[1.0], [0.0]]), [1, 0]),
        (torch.tensor([-1, 1, 1]), [-1, 1, 1]),
        (torch.tensor([[1.0, 0.0], [1.0, 1.0]]), [[1, 0], [1, 1]]),
    ],
    ids=["indices", "(n, 1)", "uint8 array", "list", "bool", "float binary", "of an SVM", "float multi-hot"],
)
def test_labels_of_either_form_are_taken(labels: Any, expected: list[Any]) -> None:
    assert as_labels(labels).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.randn(4), r"torch\.float32 with values such as .*regression.*bucketize.*'random'"),
        (torch.tensor([0.0, 1.0, 2.0]), r"labels\.long\(\)"),
        (torch.tensor([0.0, torch.nan]), "such as nan"),
        (torch.randn(4, 1), "regression"),
        (torch.tensor([[0.7, 0.3], [0.0, 1.0]]), r"such as 0\.7, 0\.3\. .*mixup.*argmax"),
        (torch.tensor([[1, -1], [0, 1]]), "0 or 1, but got values such as -1.*not known"),
        (torch.tensor([[2, 5], [0, 1]]), r"class index per image as shape \(n,\)"),
        (torch.tensor([0, 1, -1]), r"but got -1.*not known.*labels >= 0"),
        (torch.tensor([0, 1, -100]), "but got -100"),
        (("cat", "dog"), r"tuple of str.*classes\.index\(name\)"),
        (torch.zeros(2, 3, 3), r"of shape \(2, 3, 3\)"),
    ],
)
def test_what_names_no_class_is_refused_with_the_way_out(labels: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        as_labels(labels)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.full((6,), 2), "all 6 are of class 2.*Shuffle"),
        (torch.arange(6), "6 images have 6 different labels.*'prototypes'"),
        (torch.tensor([0, 1, 2, 3, 3]), "5 images have 4 different"),
        (torch.tensor([[1, 0]] * 4), "always present or always absent"),
        (torch.eye(5), "each of the 5 labels that differ between the 5 images differs for one image only"),
    ],
    ids=["one class", "all different", "nearly all different", "multi-hot alike", "one-hot, all different"],
)
def test_labels_of_which_leep_would_know_nothing_are_refused(labels: torch.Tensor, match: str) -> None:
    for similarity in ("leep", "cover", "farthest"):
        with pytest.raises(ValueError, match=match):
            SIMILARITIES.resolve(similarity).require_labels(labels)
    assert not SIMILARITIES.resolve("random").needs_labels
    if labels.ndim == 1:  # class means say something of one class, and of one image each
        SIMILARITIES.resolve("prototypes").require_labels(labels)


def test_two_images_of_each_class_are_enough() -> None:
    require_content(torch.tensor([0, 1, 2, 0, 1, 2]))
    require_content(torch.eye(3).repeat(2, 1))

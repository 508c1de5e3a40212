from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_mvp.backbones.ridge import PENALTIES, SCALES, ridge_head


def blobs(per_class: int = 12, features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = 2 * torch.randn(classes, features, generator=generator)
    return centres[labels] + torch.randn(len(labels), features, generator=generator), labels


def closed_form(x: Tensor, y: Tensor, penalty: float, new: Tensor) -> Tensor:
    """Ridge regression as in a textbook, with the penalty in units of the whole set's mean eigenvalue given."""
    centred = x - x.mean(0)
    weight = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(x.shape[1]).double(), centred.T @ y)
    return (new - x.mean(0)) @ weight + y.mean(0)


def test_it_is_the_ridge_regression_with_the_least_leave_one_out_loss():
    labels = torch.arange(3).repeat_interleave(5)
    # Nothing to learn: what fits these images best does worst on one that was left out.
    features = torch.randn(15, 12, generator=torch.Generator().manual_seed(0))
    x, y = features.double(), F.one_hot(labels, 3).double()
    centred = x - x.mean(0)
    unit = float(torch.linalg.eigvalsh(centred.T @ centred).mean())
    candidates = {}
    for penalty in PENALTIES:
        # Centres of the whole set, as the closed form has them: leaving one out moves them by O(1/n).
        gram = centred.T @ centred + penalty * unit * torch.eye(12).double()
        hat = centred @ torch.linalg.solve(gram, centred.T) + 1 / len(x)
        fitted = hat @ y
        left_out = (fitted - hat.diag()[:, None] * y) / (1 - hat.diag()[:, None])
        for scale in SCALES:
            candidates[float(F.cross_entropy(scale * left_out, labels))] = (penalty, scale)
    penalty, scale = candidates[min(candidates)]
    expected = scale * closed_form(x, y, penalty * unit, x)
    head = ridge_head(features, labels, 3)
    torch.testing.assert_close(head(features), expected.float(), rtol=1e-4, atol=1e-4)


def test_it_tells_classes_apart_that_can_be_told_apart():
    features, labels = blobs()
    assert (ridge_head(features, labels, 3)(features).argmax(1) == labels).float().mean() > 0.9


def test_more_features_than_images_and_dead_features_are_no_trouble():
    features, labels = blobs(per_class=3, features=40)
    features[:, 5] = 0
    head = ridge_head(features, labels, 3)
    assert torch.isfinite(head.weight).all()
    assert head.weight[:, 5].abs().max() < 1e-9 * head.weight.abs().max()
    assert (head(features).argmax(1) == labels).all()


def test_the_order_of_the_images_does_not_matter_and_nothing_is_random():
    features, labels = blobs()
    order = torch.randperm(len(labels))
    one, two = ridge_head(features, labels, 3), ridge_head(features[order], labels[order], 3)
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.weight, ridge_head(features, labels, 3).weight)


@pytest.mark.parametrize(
    ("features", "labels", "match"),
    [
        (torch.zeros(4, 2, 2), torch.zeros(4, dtype=torch.int64), "shape"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), "shape"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 2, 2]), r"none of \[1\]"),
        (torch.full((3, 2), torch.nan), torch.tensor([0, 1, 2]), "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features: Tensor, labels: Tensor, match: str):
    with pytest.raises(ValueError, match=match):
        ridge_head(features, labels, 3)

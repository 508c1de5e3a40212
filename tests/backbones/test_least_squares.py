"""A layer's weights by ridge regression are those of the formula, computed by hand from unfolded images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones.least_squares import LeastSquares


def by_hand(patches: Tensor, wanted: Tensor, weight: Tensor, penalty: float, centred: bool) -> Tensor:
    """``(Σ y uᵀ + λ W₀) (Σ u uᵀ + λ I)⁻¹`` for rows of u and y."""
    if centred:
        patches, wanted = patches - patches.mean(0), wanted - wanted.mean(0)
    gram = patches.T @ patches
    ridge = penalty * gram.diagonal().mean()
    return (wanted.T @ patches + ridge * weight) @ torch.linalg.inv(gram + ridge * torch.eye(len(gram)).double())


@pytest.mark.parametrize("size", [4, 12], ids=["fewer positions than inputs", "more"])
@pytest.mark.parametrize(("bias", "norm_follows"), [(False, False), (True, False), (False, True)])
def test_a_grouped_convolution_gets_the_weights_of_the_formula(size: int, bias: bool, norm_follows: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias).double()
    images = 2 + torch.randn(3, 4, size, size).double()
    begun = copy.deepcopy(layer)
    wanted = 1 + torch.randn_like(layer(images))
    sums = LeastSquares(layer, penalty=0.05, norm_follows=norm_follows)
    for part in range(3):
        assert sums.add(images[part : part + 1], layer(images[part : part + 1]), wanted[part : part + 1])
    assert sums.fit()
    for group in range(2):
        own = slice(3 * group, 3 * group + 3)
        u = F.unfold(images[:, 2 * group : 2 * group + 2], 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
        y = wanted[:, own].permute(0, 2, 3, 1).reshape(-1, 3)
        expected = by_hand(u, y, begun.weight[own].flatten(1).detach(), 0.05, bias or norm_follows)
        torch.testing.assert_close(layer.weight[own].flatten(1), expected, rtol=1e-9, atol=1e-9)
        if bias:
            assert layer.bias is not None
            torch.testing.assert_close(layer.bias[own], y.mean(0) - expected @ u.mean(0), rtol=1e-9, atol=1e-9)


def test_a_linear_layer_whose_inputs_depend_on_each_other_gets_finite_weights_without_a_penalty() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 2, bias=False).double()
    inputs = torch.randn(50, 2).double() @ torch.randn(2, 4).double()
    wanted, before = inputs[:, :2], layer.weight.detach().clone()
    sums = LeastSquares(layer, penalty=0.0)
    sums.add(inputs, layer(inputs), wanted)
    assert sums.fit()
    torch.testing.assert_close(layer(inputs), wanted, rtol=1e-9, atol=1e-9)
    nowhere = torch.linalg.svd(inputs).Vh[2:]  # what no input has stays as it was
    torch.testing.assert_close(layer.weight @ nowhere.T, before @ nowhere.T, rtol=1e-9, atol=1e-9)

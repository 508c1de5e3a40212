from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mvp.backbones import Groups, Masks, create_backbone, find_groups
from lightning_mvp.backbones.selfcheck import randomise
from lightning_mvp.pruning import Taylor, magnitude_importance, normalised, random_importance, taylor_importance

from ..backbones.recipes import recipe
from ..backbones.test_gates import gate_units


@pytest.fixture(params=["resnet_mini", "vit_mini"])
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Groups]:
    backbone = create_backbone(recipe(request.param))
    randomise(backbone)
    return backbone, find_groups(backbone, torch.zeros(1, 3, 32, 32), check=False)


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(n)]


def test_taylor_scores_are_mean_squared_gate_gradients_as_autograd_computes_them(net: tuple[nn.Module, Groups]):
    backbone, groups = net
    backbone.double().eval()
    data = [(images.double(), labels) for images, labels in batches(2)]
    head = nn.Linear(backbone(data[0][0]).shape[1], 3).double()
    scores = taylor_importance(backbone, head, data, groups)

    gates = {group.name: torch.ones(group.size, dtype=torch.float64, requires_grad=True) for group in groups}
    for group in groups:
        gate_units(backbone, group, gates[group.name])
    expected = {name: torch.zeros_like(gate) for name, gate in gates.items()}
    for images, labels in data:
        loss = F.cross_entropy(head(backbone(images)), labels)
        for (name, _), gradient in zip(gates.items(), torch.autograd.grad(loss, list(gates.values())), strict=True):
            expected[name] += gradient.square() / len(data)
    for name, score in scores.items():
        top = float(expected[name].max())
        torch.testing.assert_close(score, expected[name].float().detach(), rtol=1e-4, atol=1e-5 * top)


def test_taylor_importance_changes_nothing_in_the_model():
    backbone = create_backbone(recipe("resnet_mini"))
    groups = find_groups(backbone, torch.zeros(1, 3, 32, 32), check=False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    taylor_importance(backbone, nn.Linear(128, 3), batches(1), groups)
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_step_whose_gradients_are_not_finite_does_not_count(net: tuple[nn.Module, Groups]):
    backbone, groups = net
    parameters = dict(backbone.named_parameters())
    ones = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    gate = next(member.tensor for member in next(iter(groups)).members if member.gate)
    broken = {**ones, gate: torch.full_like(parameters[gate], torch.inf)}
    scores = Taylor()
    scores.begin(groups)
    scores.observe(parameters, ones)
    once = scores.scores()
    scores.observe(parameters, broken)
    assert all(torch.equal(score, once[name]) for name, score in scores.scores().items())


def test_scores_without_a_finite_step_are_refused(net: tuple[nn.Module, Groups]):
    scores = Taylor()
    scores.begin(net[1])
    with pytest.raises(RuntimeError, match="No step with finite gradients"):
        scores.scores()
    parameters = dict(net[0].named_parameters())
    scores.observe(parameters, dict.fromkeys(parameters, None))
    with pytest.raises(RuntimeError, match="No step with finite gradients"):
        scores.scores()


def test_magnitude_is_the_norm_of_everything_a_unit_owns():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    groups = find_groups(backbone, torch.zeros(1, 3, 4, 4), check=False).select(include=["0"])
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
        backbone[0].weight[1, 2] = 3.0
        backbone[1].bias[1] = 4.0
        backbone[3].weight[0, 1] = 12.0
        backbone[1].weight[2] = -2.0
        backbone[1].running_mean[3] = 50.0
    scores = magnitude_importance(backbone.state_dict(), groups)
    assert scores["0"].tolist() == [0.0, 13.0, 2.0, 0.0]


def test_random_scores_are_a_function_of_the_seed(net: tuple[nn.Module, Groups]):
    one, again, other = (random_importance(net[1], seed) for seed in (1, 1, 2))
    assert {name: len(score) for name, score in one.items()} == net[1].sizes
    assert all(torch.equal(score, again[name]) for name, score in one.items())
    assert not all(torch.equal(score, other[name]) for name, score in one.items())


def test_scores_are_divided_by_the_mean_of_the_units_still_there():
    masks = Masks({"a": torch.tensor([True, True, False]), "b": torch.tensor([True])})
    result = normalised({"a": torch.tensor([1.0, 3.0, 100.0]), "b": torch.tensor([0.0])}, masks)
    assert result["a"].tolist() == [0.5, 1.5, 50.0]
    assert result["b"].tolist() == [0.0]

"""Σ w·g over a group's gate members is the derivative by explicit gates on its units, as autograd computes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import UnitGroup, create_backbone, find_groups
from lightning_mvp.backbones.selfcheck import randomise

from .recipes import recipe


def gate_units(backbone: nn.Module, group: UnitGroup, gate: Tensor) -> None:
    """Multiply the group's units by ``gate`` in the forward pass, where DESIGN puts the gate."""

    def scale_output(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * gate[:, None, None]

    def scale_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * gate.repeat_interleave(inputs[0].shape[-1] // len(gate)),)

    if group.kind == "mlp":
        backbone.get_submodule(f"{group.name}.fc2").register_forward_pre_hook(scale_input)
    elif group.kind == "heads":
        backbone.get_submodule(group.name.replace("heads", "proj")).register_forward_pre_hook(scale_input)
    else:
        for layer in {member.tensor.rpartition(".")[0] for member in group.members if member.role == "norm"}:
            backbone.get_submodule(layer).register_forward_hook(scale_output)


@pytest.mark.parametrize("name", ["resnet_mini", "vit_mini"])
@pytest.mark.parametrize("training", [True, False])
def test_gate_members_give_the_derivative_by_explicit_gates(name: str, training: bool):
    backbone = create_backbone(recipe(name)).double().train(training)
    randomise(backbone)
    groups = find_groups(backbone, torch.zeros(1, 3, 32, 32), check=False)
    gates = {group.name: torch.ones(group.size, dtype=torch.float64, requires_grad=True) for group in groups}
    for group in groups:
        gate_units(backbone, group, gates[group.name])

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    backbone(images).pow(3).mean().backward()

    parameters = dict(backbone.named_parameters())
    for group in groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.gate:
                product = parameters[member.tensor].detach() * parameters[member.tensor].grad
                along = product.movedim(member.axis, 0).reshape(product.shape[member.axis], -1).sum(1)
                total += along[torch.from_numpy(member.index)].sum(1)
        expected = gates[group.name].grad
        torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))

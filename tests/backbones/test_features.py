from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_mvp.backbones import classifier_name, create_backbone, features_of, load_weights, reestimate_batch_norm
from lightning_mvp.backbones.features import evaluating
from lightning_mvp.backbones.weights import save_weights

from .recipes import build, recipe


def images(n: int = 10) -> torch.Tensor:
    return 2 + 3 * torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_eval_mode_in_order_whatever_the_batch_size():
    backbone = create_backbone(recipe("resnet_mini"))
    features_of(backbone, images())
    assert backbone.training
    backbone.eval()
    with torch.no_grad():
        expected = backbone(images())
    for batch_size in (3, 256):
        torch.testing.assert_close(features_of(backbone, images(), batch_size), expected, rtol=1e-4, atol=1e-5)
    assert not features_of(backbone, images()).requires_grad


def test_training_flags_come_back_one_by_one_even_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    net[1].eval()

    def fail() -> None:
        with evaluating(net):
            assert not net[0].training
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (net.training, net[0].training, net[1].training) == (True, True, False)


def test_reestimated_statistics_are_the_plain_average_over_batches():
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3))
    net[0].running_mean.fill_(100.0)
    batches = list(images(12).split(4))
    weight = net[0].weight.clone()
    reestimate_batch_norm(net, batches)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net[0].running_var, variance, rtol=1e-5, atol=1e-5)
    assert torch.equal(net[0].weight, weight)
    assert net[0].momentum == 0.3
    assert net.training


def test_a_backbone_without_batch_norm_is_not_even_run():
    backbone = build("vit_mini", 32)[0]

    def batches() -> torch.Tensor:
        raise AssertionError("a batch was read")

    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    reestimate_batch_norm(backbone, (batches() for _ in range(1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_timm_classifier_is_named_only_where_there_is_one():
    assert classifier_name(timm.create_model("resnet18", num_classes=4)) == "fc"
    assert classifier_name(timm.create_model("vit_tiny_patch16_224", num_classes=4)) == "head"
    assert classifier_name(build("resnet_mini", 32)[0]) is None
    assert classifier_name(nn.Linear(2, 2)) is None


def test_weights_are_written_whole_and_never_over_others(tmp_path: Path):
    backbone = create_backbone(recipe("resnet_mini")).to(memory_format=torch.channels_last)
    path = save_weights(backbone, tmp_path / "new" / "weights.safetensors")
    assert load_file(path).keys() == backbone.state_dict().keys()
    other = create_backbone(recipe("resnet_mini"))
    load_weights(other, path)
    assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(FileExistsError):
        save_weights(other, path)
    save_weights(other, path, overwrite=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

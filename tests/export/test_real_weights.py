"""A backbone with real ImageNet weights: pruned mildly and exported, it still names scikit-learn's sample photos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_mvp import TaskFacts, create_backbone, export_model, find_groups, shrink
from lightning_mvp.backbones import count_macs, widths
from lightning_mvp.pruning import magnitude_importance, top_units

WEIGHTS = (
    Path(__file__).parents[3] / "shared" / "data" / "weights" / "imagenet_tf_efficientnet_lite0_timm_fp16.safetensors"
)
PALACE, DAISY = 698, 985

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS.name} is not among this machine's shared data")


def photos() -> Tensor:
    """china.jpg and flower.jpg as the weights want them: 224 of 256 pixels, mean and std 0.5."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = torch.stack([torch.from_numpy(np.array(image)) for image in datasets.load_sample_images().images])
    images = images.permute(0, 3, 1, 2).float() / 255
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    return (
        interpolate(square, (256, 256), mode="bicubic", antialias=True)[:, :, 16:240, 16:240].clamp(0, 1) - 0.5
    ) / 0.5


@pytest.mark.slow
def test_efficientnet_lite0_still_names_the_photos_after_mild_pruning_and_export(tmp_path: Path):
    backbone = create_backbone({"model": "tf_efficientnet_lite0", "arguments": {"num_classes": 1000}}).eval()
    backbone.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    images = photos()
    groups = find_groups(backbone, images).select(exclude=["residual"])
    masks = top_units(magnitude_importance(backbone.state_dict(), groups), widths(groups.sizes, 0.98))
    small = shrink(backbone, groups, masks).eval()
    with torch.no_grad():
        assert backbone(images).argmax(1).tolist() == [PALACE, DAISY]
        assert small(images).argmax(1).tolist() == [PALACE, DAISY]
    assert count_macs(small, images) < 0.99 * count_macs(backbone, images)

    facts = TaskFacts("imagenet", tuple(f"class {i}" for i in range(1000)), 224, (0.5,) * 3, (0.5,) * 3)
    export_model(small, tmp_path / "export", facts, formats=["safetensors"], batch_sizes=[1], seconds=0.1)
    torch.save(images, tmp_path / "photos.pt")
    code = (
        "import sys, torch, json; sys.path.insert(0, 'export'); from load import load; "
        "model, _ = load('export'); images = torch.load('photos.pt', weights_only=True); "
        "print(json.dumps(model(images).argmax(1).tolist())); assert 'lightning_mvp' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == [PALACE, DAISY]

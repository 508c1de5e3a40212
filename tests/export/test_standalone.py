"""`load` builds the very model that was exported, from two files and timm."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from lightning_mvp.backbones import create_backbone, find_groups, random_masks, shrink
from lightning_mvp.export.formats import write_safetensors
from lightning_mvp.export.source import Source
from lightning_mvp.export.standalone import load, transform_of
from lightning_mvp.tasks.facts import TaskFacts
from lightning_mvp.tasks.preprocessing import fitted, normalised

from ..callbacks.user import FACTS, RECIPE
from .conftest import RECIPES, run_elsewhere

ELSEWHERE = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
for folder in map(Path, sys.argv[1:]):
    sys.path.insert(0, str(folder))
    sys.modules.pop("load", None)
    from load import load
    assert sys.modules["load"].__file__ == str(folder / "load.py")
    sys.path.pop(0)
    model, transform = load(folder)
    assert not model.training
    with torch.no_grad():
        save_file({"logits": model(load_file(folder / "images")["images"])}, folder / "logits")
assert "lightning_mvp" not in sys.modules
"""


@pytest.fixture(scope="module")
def folders(source_of: Callable[[str], Source], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each source's folder, with images and the logits of a process without lightning_mvp; tests must not change it."""
    root = tmp_path_factory.mktemp("folders")
    found = {kind: root / kind for kind in RECIPES}
    for kind, folder in found.items():
        write_safetensors(source_of(kind), folder)
        save_file({"images": source_of(kind).images(3)}, folder / "images")
    run_elsewhere(ELSEWHERE, *found.values(), cwd=root)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_another_process_computes_the_same_bits(
    kind: str, folders: dict[str, Path], source_of: Callable[[str], Source]
) -> None:
    source = source_of(kind)
    with torch.no_grad():
        expected = source.model(source.images(3))
    assert torch.equal(load_file(folders[kind] / "logits")["logits"], expected)
    assert expected.std() > 0


@pytest.mark.parametrize("kind", RECIPES)
def test_layers_say_their_own_sizes(kind: str, folders: dict[str, Path], source_of: Callable[[str], Source]) -> None:
    ours, theirs = source_of(kind).model, load(folders[kind])[0]
    assert repr(theirs) == repr(ours)
    for name, module in ours.named_modules():
        for attribute in ("num_heads", "attn_dim", "num_features", "head_hidden_size", "groups"):
            if isinstance(getattr(module, attribute, None), int):
                got = getattr(theirs.get_submodule(name), attribute)
                assert got == getattr(module, attribute), f"{name}.{attribute}"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", ["nearest", "bilinear", "bicubic"])
def test_the_transform_is_what_the_model_was_trained_with(how: str, channels: int) -> None:
    facts = TaskFacts("pets", ("cat",), 24, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels], how, 0.875)
    transform, generator = transform_of(facts.to_dict()), torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, 40, 30), dtype=torch.uint8, generator=generator)
    expected = normalised(fitted(image, facts)[None], facts)
    picture = v2.functional.to_pil_image(image)
    for seen in (transform(image)[None], transform(image[None]), transform(picture.convert("RGBA"))[None]):
        assert type(seen) is torch.Tensor
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)
    pickle.dumps(transform)  # for the processes of a DataLoader


def test_a_grouped_convolution_lost_conv_groups_and_a_depthwise_one_stayed_depthwise(
    source_of: Callable[[str], Source],
) -> None:
    regnet, efficientnet = (source_of(kind).model[0] for kind in ("regnety_002", "efficientnet_b0"))
    grouped = [m for m in regnet.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert {m.weight.shape[1] for m in grouped} == {8}
    depthwise = [m for m in efficientnet.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert depthwise
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_rebuilt_model_trains_as_the_first_does(
    kind: str, folders: dict[str, Path], source_of: Callable[[str], Source], tmp_path: Path
) -> None:
    images, losses = source_of(kind).images(6), []
    write_safetensors(source_of(kind), tmp_path / "twin")
    for folder in (folders[kind], tmp_path / "twin"):
        model = load(folder)[0].train()
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(6) % 3)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_weights_are_aligned_in_memory(folders: dict[str, Path]) -> None:
    from_file = load_file(folders["resnet"] / "model.safetensors")
    if all(tensor.data_ptr() % 64 == 0 for tensor in from_file.values()):
        pytest.skip("this safetensors aligns them itself")
    assert all(parameter.data_ptr() % 64 == 0 for parameter in load(folders["resnet"])[0].parameters())


def test_a_backbone_without_head_is_one_part(source_of: Callable[[str], Source], tmp_path: Path) -> None:
    with_head = source_of("vit")
    alone = Source(with_head.name, with_head.model[:1], with_head.recipe, with_head.facts)
    write_safetensors(alone, tmp_path)
    model, _ = load(tmp_path)
    assert len(model) == 1
    assert model(alone.images(2)).shape == (2, 24)


def test_a_timm_classifier_inside_the_backbone_goes_along(tmp_path: Path) -> None:
    backbone = create_backbone({**RECIPE, "arguments": {**RECIPE["arguments"], "num_classes": 3}})
    groups = find_groups(backbone, torch.zeros(1, 3, 16, 16), check=False)
    source = Source.from_module(shrink(backbone, groups, random_masks(groups, 0.5, seed=0)), FACTS)
    write_safetensors(source, tmp_path)
    model, _ = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(source.images(2)), source.model(source.images(2)))
    assert model[0].num_features == model[0].fc.in_features == 8
    model[0].reset_classifier(5)
    assert model(source.images(2)).shape == (2, 5)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_file_of_other_tensors_is_refused(change: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["resnet"], tmp_path / "copy"))
    state = load_file(folder / "model.safetensors")
    removed = state.pop("0.layer2.0.conv1.weight")
    if change == "unexpected":
        state |= {"0.layer2.0.conv1.weight": removed, "0.layer2.0.conv1.bias": torch.zeros(len(removed))}
    save_file(state, folder / "model.safetensors")
    with pytest.raises((RuntimeError, AttributeError), match="conv1"):
        load(folder)


def test_the_recipe_is_readable_and_says_classes_and_preprocessing(folders: dict[str, Path]) -> None:
    described = json.loads((folders["resnet"] / "recipe.json").read_text())
    assert described["recipe"]["model"] == "resnet18"
    assert described["recipe"]["kept"]["layer1.residual"] == 4
    assert described["facts"]["classes"] == ["red", "green", "blue"]
    assert described["facts"]["mean"] == [0.5, 0.5, 0.5]

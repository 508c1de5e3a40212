from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mvp.backbones import (
    Masks,
    apply_masks,
    create_backbone,
    dead_entries,
    random_masks,
    widths,
    zero_entries,
)

from .recipes import build, recipe

SIZES = {"b": 8, "a": 5}


def test_masks_are_copied_ordered_and_compared_by_value():
    source = torch.tensor([True, False, True])
    masks = Masks({"x": source, "a": np.array([True, True])})
    source[1] = True
    assert masks.kept == {"x": 2, "a": 2}
    assert list(masks) == ["x", "a"]
    assert masks == Masks({"x": torch.tensor([True, False, True]), "a": torch.tensor([True, True])})
    assert masks != Masks({"x": torch.tensor([True, True, True]), "a": torch.tensor([True, True])})
    assert masks.pruning_ratio == pytest.approx(0.2)


def test_the_fingerprint_depends_on_content_only():
    one, two = random_masks(SIZES, 0.5, seed=1), random_masks(SIZES, 0.5, seed=2)
    assert one.fingerprint == Masks({name: one[name] for name in reversed(list(one))}).fingerprint
    assert one.fingerprint != two.fingerprint


def test_saved_masks_come_back_in_order_and_are_not_overwritten(tmp_path):
    masks = random_masks(SIZES, 0.5, seed=0)
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    assert Masks.load(path) == masks
    with pytest.raises(FileExistsError, match="never replaced silently"):
        masks.save(path)
    masks.save(path, overwrite=True)


def test_files_that_are_no_masks_are_refused(tmp_path):
    path = tmp_path / "masks.safetensors"
    with pytest.raises(FileNotFoundError, match="No masks at"):
        Masks.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="damaged"):
        Masks.load(path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3), "bool tensor of shape"),
        (torch.ones(2, 2, dtype=torch.bool), "bool tensor of shape"),
        (torch.zeros(3, dtype=torch.bool), "at least one kept unit in group 'a'"),
    ],
)
def test_invalid_masks_are_refused(mask: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Masks({"a": mask})


@given(st.integers(0, 99), st.integers(0, 99), st.floats(0.05, 0.95))
def test_iou(seed: int, other_seed: int, ratio: float):
    one, two = random_masks(SIZES, ratio, seed), random_masks(SIZES, ratio, other_seed)
    assert one.iou(one) == {"b": 1.0, "a": 1.0}
    assert one.iou(two) == two.iou(one)
    both, either = (one["b"] & two["b"]).sum(), (one["b"] | two["b"]).sum()
    assert one.iou(two)["b"] == pytest.approx(float(both / either))


def test_iou_of_other_groups_is_refused():
    with pytest.raises(ValueError, match="same groups"):
        Masks.full(SIZES).iou(Masks.full({"a": 5}))


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 5000), max_size=5), st.floats(0.001, 1.0), st.integers(1, 4))
def test_widths_are_exact(sizes: dict[str, int], fraction: float, floor: int):
    for name, width in widths(sizes, fraction, floor).items():
        assert min(floor, sizes[name]) <= width <= sizes[name]
        assert abs(width - fraction * sizes[name]) <= 0.5 + 1e-6 or width == min(floor, sizes[name])


@pytest.mark.parametrize(
    ("size", "ratio", "width"), [(5, 0.9, 1), (5, 0.7, 2), (25, 0.9, 3), (15, 0.9, 2), (128, 0.7, 38)]
)
def test_halves_go_up_for_every_ratio(size: int, ratio: float, width: int):
    assert widths({"a": size}, 1 - ratio) == {"a": width}


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_widths_refuse_fractions_out_of_range(fraction: float):
    with pytest.raises(ValueError, match="kept_fraction"):
        widths(SIZES, fraction)


def test_random_masks_are_a_function_of_the_seed():
    state = torch.random.get_rng_state()
    assert random_masks(SIZES, 0.5, seed=4) == random_masks(SIZES, 0.5, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())


def test_applied_masks_silence_exactly_the_removed_units():
    backbone = create_backbone(recipe("resnet_mini"))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(1.0)
    _, groups, _ = build("resnet_mini", 32)
    masks = random_masks(groups, 0.5, seed=0)
    apply_masks(backbone, groups, masks)
    state = backbone.state_dict()
    alive = masks["layer2.0.conv1"]
    for name in ("layer2.0.conv1.weight", "layer2.0.bn1.weight", "layer2.0.bn1.bias"):
        flat = state[name].flatten(1) if state[name].ndim > 1 else state[name][:, None]
        assert torch.equal((flat != 0).any(1), alive)
        assert torch.equal((flat != 0).all(1), alive)
    # A consumer keeps its columns: they read zeros. Statistics are no parameters.
    assert (state["layer2.0.conv2.weight"][masks["layer2.residual"]] == 1).all()
    assert (state["layer2.0.bn1.running_var"] == 1).all()


def test_dead_entries_also_zero_gradients_and_nan():
    _, groups, _ = build("resnet_mini", 32)
    masks = random_masks(groups, 0.5, seed=0)
    gradient = {"layer1.0.bn1.weight": torch.full((32,), torch.nan)}
    zero_entries(gradient, dead_entries(groups, masks))
    assert torch.equal(gradient["layer1.0.bn1.weight"] == 0, ~masks["layer1.0.conv1"])
    assert dead_entries(groups, Masks.full(groups)) == {}


def test_masks_of_another_backbone_are_refused():
    backbone, groups, _ = build("resnet_mini", 32)
    wrong = Masks({**Masks.full(groups), "layer1.0.conv1": torch.ones(7, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'layer1\.0\.conv1': expected 32 units, got 7"):
        apply_masks(backbone, groups, wrong)

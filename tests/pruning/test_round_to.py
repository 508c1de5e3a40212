"""Widths rounded up to whole multiples of channels, wherever units are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mvp import MVPCallback
from lightning_mvp.backbones import CostModel, Masks, create_backbone, find_groups, widths
from lightning_mvp.backbones.masks import round_up, unit_multiples
from lightning_mvp.pruning.choose import choose_masks
from lightning_mvp.pruning.settings import PruningSettings, plan_rounds
from lightning_mvp.voting.vote import vote_widths

from ..callbacks.user import EXAMPLE, VIT_RECIPE, UserModule, callback, fit, loader, make_trainer

RECIPE: dict[str, Any] = {
    "model": "resnet18",
    "arguments": {"layers": [1, 1, 1, 1], "channels": [32, 36, 40, 48]},
    "input_size": 32,
    "in_chans": 3,
}


@given(st.integers(1, 100), st.floats(0.01, 1.0), st.integers(1, 16), st.integers(1, 5))
def test_a_rounded_width_is_the_next_multiple_or_all(size: int, fraction: float, multiple: int, floor: int) -> None:
    exact = widths({"a": size}, fraction, floor)["a"]
    rounded = widths({"a": size}, fraction, floor, {"a": multiple})["a"]
    assert exact <= rounded <= size
    assert rounded - exact < multiple
    assert rounded % multiple == 0 or rounded == size


def test_heads_are_not_rounded_but_hidden_neurons_are() -> None:
    groups = find_groups(create_backbone(VIT_RECIPE), torch.zeros(1, 3, 16, 16), check=False)
    multiples = unit_multiples(groups, 8)
    assert {group.kind: multiples[group.name] for group in groups} == {"heads": 1, "mlp": 8}
    assert set(unit_multiples(groups, 1).values()) == {1}


def test_units_of_several_channels_are_counted_in_channels() -> None:
    regnet = create_backbone({"model": "regnety_002", "input_size": 32})
    groups = find_groups(regnet, torch.zeros(1, 3, 32, 32), check=False)
    spans = {
        group.name: next(member for member in group.members if member.role == "producer").index.shape[1]
        for group in groups
    }
    assert {1, 8} <= set(spans.values())
    for name, multiple in unit_multiples(groups, 16).items():
        assert multiple * spans[name] == 16


@pytest.mark.parametrize("round_to", [0, -8, 2.0, True])
def test_what_is_no_number_of_channels_is_refused(round_to: Any) -> None:
    with pytest.raises(ValueError, match=f"`round_to` to be an integer of at least 1, but got {round_to}"):
        MVPCallback(round_to=round_to)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("ratio_of", ["units", "params", "macs"])
def test_every_choice_keeps_multiples_and_its_target(scope: Any, ratio_of: Any) -> None:
    backbone, example = create_backbone(RECIPE), torch.zeros(1, 3, 32, 32)
    groups = find_groups(backbone, example, check=False)
    cost, full = CostModel(backbone, groups, example), Masks.full(groups)
    generator = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=generator) for group in groups}
    options: dict[str, Any] = {"scope": scope, "ratio_of": ratio_of, "cost": cost}
    masks = choose_masks(scores, full, 0.4, multiples=unit_multiples(groups, 8), **options)
    for name, kept in masks.kept.items():
        assert kept % 8 == 0 or kept == groups[name].size
        assert scores[name][masks[name]].min() >= scores[name][~masks[name]].max() if kept < groups[name].size else True
    amounts = {"units": lambda each: sum(each.kept.values()), "params": cost.parameters, "macs": cost.macs}
    share = amounts[ratio_of](masks) / amounts[ratio_of](full)
    if (scope, ratio_of) == ("layer", "units"):
        assert 0.4 <= share < 0.6
    else:
        assert 0.2 < share <= 0.4


def test_a_target_that_rounding_puts_out_of_reach_says_so() -> None:
    scores = {"a": torch.arange(8.0), "b": torch.arange(8.0)}
    options: dict[str, Any] = {"scope": "global", "multiples": {"a": 8, "b": 8}}
    with pytest.raises(ValueError, match=r"\(rounded up\) 100\.0% remain\. Choose a smaller `pruning_ratio` or `round"):
        choose_masks(scores, Masks.full({"a": 8, "b": 8}), 0.5, **options)


def test_a_callback_rounds_every_round() -> None:
    pruning = callback(round_to=4, pruning_ratio=0.6)
    fit(UserModule(), pruning)
    sizes = pruning.groups.sizes
    assert pruning.masks.kept == round_up(widths(sizes, 0.4), sizes, dict.fromkeys(sizes, 4))
    assert set(pruning.masks.kept.values()) == {4, 8}
    cost = CostModel(UserModule().net, pruning.groups, EXAMPLE)
    plans = plan_rounds(pruning.settings, pruning.groups, cost, steps=12)
    assert plans[-1].widths == pruning.masks.kept


def test_ids_of_entries_without_rounding_stay_as_they_were() -> None:
    config = PruningSettings(steps_per_round=5).config(100)
    assert "round_to" not in config
    assert PruningSettings(steps_per_round=5, round_to=8).config(100) == {**config, "round_to": 8}


def test_a_checkpoint_older_than_rounding_resumes_and_other_rounding_is_refused(tmp_path: Path) -> None:
    first = callback(head="classifier")
    trainer = make_trainer(first, max_steps=7)
    trainer.fit(UserModule(), loader())
    trainer.save_checkpoint(tmp_path / "seven.ckpt")
    assert "round_to" not in first.state_dict()["settings"]
    again = callback(head="classifier")
    make_trainer(again).fit(UserModule(), loader(), ckpt_path=tmp_path / "seven.ckpt", weights_only=True)
    assert again.masks == first.masks
    other = callback(head="classifier", round_to=4)
    with pytest.raises(ValueError, match="it had round_to=1, not 4"):
        make_trainer(other).fit(UserModule(), loader(), ckpt_path=tmp_path / "seven.ckpt", weights_only=True)


def test_votes_are_rounded_up_too() -> None:
    masks = {"x": Masks({"a": torch.arange(20) < 9, "b": torch.arange(6) < 2})}
    assert vote_widths(masks, multiples={"a": 8, "b": 1}) == {"a": 16, "b": 2}
    assert vote_widths(masks, 0.9, multiples={"a": 8, "b": 8}) == {"a": 8, "b": 6}


def test_a_module_voted_from_a_zoo_is_rounded(tmp_path: Path) -> None:
    from lightning_mvp import ImageData, MetaVoteModule, voted_backbone

    from ..callbacks.user import RECIPE as TINY
    from ..training.conftest import CLASSES, fill, part, task

    data = ImageData("colours", CLASSES, part(8, 0), part(4, 1), part(4, 2))
    zoo, target = fill(data, tmp_path / "zoo", TINY), task(data, "acd", "target")
    exact = voted_backbone(zoo, target, neighbours=2, pruning_ratio=0.7)[1]
    report = MetaVoteModule.from_zoo(zoo, target, neighbours=2, pruning_ratio=0.7, round_to=4).report
    assert report["widths"] == round_up(exact.widths, exact.sizes, dict.fromkeys(exact.sizes, 4))
    assert report["widths"] != exact.widths

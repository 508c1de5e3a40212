"""Pruning inside a plain user's Trainer: what is removed, what stays removed, what is said about it."""

from __future__ import annotations

import copy
import io
from typing import Any

import lightning as L
import pytest
import rich
import timm
import torch
from rich.console import Console

from lightning_mvp import Masks, ModelZoo, MVPCallback, apply_masks, create_backbone, find_groups
from lightning_mvp.backbones import count_macs, count_parameters, widths
from lightning_mvp.pruning import Taylor, normalised, random_importance, top_units

from .user import EXAMPLE, FACTS, RECIPE, VIT_RECIPE, UserModule, callback, fit, loader, make_trainer, removed_entries


class Watch(L.Callback):
    """Masks after every batch, and whether removed units were zero then."""

    def __init__(self, mvp: MVPCallback) -> None:
        self.mvp, self.masks, self.zero = mvp, [], []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.masks.append(self.mvp.masks)
        removed = removed_entries(self.mvp, dict(pl_module.net.named_parameters()))
        self.zero.append(not any(bool(entries.any()) for entries in removed))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("recipe", [RECIPE, VIT_RECIPE], ids=["resnet", "vit"])
def test_removed_units_are_zero_after_every_step_whatever_momentum_and_decay_do(recipe: Any, optimizer: str):
    mvp = callback(head="classifier")
    watch = Watch(mvp)
    module = UserModule(create_backbone(recipe), optimizer=optimizer)
    trainer = fit(module, mvp, watch)

    assert all(watch.zero)
    state = trainer.optimizers[0].state
    for name in ("momentum_buffer",) if optimizer == "sgd" else ("exp_avg", "exp_avg_sq"):
        memory = {key: state[parameter][name] for key, parameter in module.net.named_parameters()}
        entries = removed_entries(mvp, memory)
        assert entries
        assert not any(bool(part.any()) for part in entries)
        assert all(bool(value.any()) for value in memory.values() if value.ndim > 1)  # the living learn


def test_each_round_removes_from_what_is_left_at_its_step():
    mvp = callback(head="classifier", warmup_steps=1)
    watch = Watch(mvp)
    fit(UserModule(), mvp, watch)
    units = [sum(masks.kept.values()) for masks in watch.masks]
    total = sum(mvp.groups.sizes.values())
    expected = [sum(widths(mvp.groups.sizes, 0.5 ** (round_ / 3)).values()) for round_ in range(4)]
    # After steps 3, 5 and 7.
    assert units == [total] * 2 + [expected[1]] * 2 + [expected[2]] * 2 + [expected[3]] * 6
    for earlier, later in zip(watch.masks, watch.masks[1:], strict=False):
        assert all(not (later[name] & ~earlier[name]).any() for name in later)
    assert mvp.masks.kept == widths(mvp.groups.sizes, 0.5)
    assert mvp.finished


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("ratio_of", ["units", "params", "macs"])
def test_ratios_are_realised(criterion: Any, scope: Any, ratio_of: Any):
    mvp = callback(criterion=criterion, scope=scope, ratio_of=ratio_of, head="classifier", rounds=2)
    module = UserModule()
    dense = {"params": count_parameters(module.net), "macs": count_macs(module.net, EXAMPLE)}
    trainer = fit(module, mvp, max_steps=5)
    small = mvp.small_model()[0]
    kept = {
        "units": sum(mvp.masks.kept.values()) / sum(mvp.groups.sizes.values()),
        "params": count_parameters(small) / dense["params"],
        "macs": count_macs(small, EXAMPLE) / dense["macs"],
    }
    if ratio_of == "units":
        assert kept["units"] == 0.5
    else:  # one unit of so few is several percent
        assert 0.4 < kept[ratio_of] <= 0.5
    for name, value in kept.items():
        assert float(trainer.callback_metrics[f"mvp/kept_{name}"]) == pytest.approx(value, abs=1e-6)
    assert float(trainer.callback_metrics["mvp/round"]) == 2


@pytest.mark.parametrize("recipe", [RECIPE, VIT_RECIPE], ids=["resnet", "vit"])
def test_the_small_model_computes_what_the_zeroed_module_does(recipe: Any):
    mvp = callback(head="classifier")
    module = UserModule(create_backbone(recipe))
    dense = count_parameters(module)
    fit(module, mvp)
    module.eval()
    small = mvp.small_model()
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module(EXAMPLE), rtol=1e-5, atol=1e-5)
    assert count_parameters(small) < 0.7 * dense
    assert not small.training


def test_without_head_the_feature_group_stays_and_this_is_said():
    mvp = callback()
    module = UserModule()
    with pytest.warns(UserWarning, match=r"layer3\.residual.*stays whole"):
        fit(module, mvp)
    assert "layer3.residual" not in mvp.groups
    small = mvp.small_model()
    module.eval()
    with torch.no_grad():
        features = small(EXAMPLE)
        torch.testing.assert_close(features, module.net(EXAMPLE), rtol=1e-5, atol=1e-5)
    assert features.shape[1] == 16


def test_a_timm_classifier_inside_the_backbone_keeps_its_outputs():
    backbone = timm.create_model("resnet18", num_classes=3, channels=[8, 8, 12, 12])
    mvp = callback()
    module = UserModule(backbone, head=torch.nn.Identity())
    fit(module, mvp)
    small = mvp.small_model()
    assert "layer4.residual" in mvp.groups
    assert small.fc.weight.shape == (3, 6)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), module(EXAMPLE), rtol=1e-5, atol=1e-5)


def test_with_accumulation_steps_are_the_optimizers():
    mvp = callback(head="classifier", rounds=2, steps_per_round=2)
    watch = Watch(mvp)
    fit(UserModule(), mvp, watch, max_steps=6, accumulate_grad_batches=2)
    assert mvp.step == 6
    units = [sum(masks.kept.values()) for masks in watch.masks]
    changes = [batch for batch in range(1, len(units)) if units[batch] != units[batch - 1]]
    assert changes == [3, 7]  # the last batches of steps 2 and 4


def test_the_default_spreads_rounds_over_sixty_percent_of_the_run():
    mvp = callback(head="classifier", steps_per_round=None, rounds=3)
    fit(UserModule(), mvp, max_steps=20)
    assert mvp.schedule is not None
    assert mvp.schedule.steps_per_round == 4
    assert mvp.finished


@pytest.mark.parametrize("zoo_or_not", [False, True])
def test_without_an_example_the_backbones_first_input_serves(zoo_or_not: bool, tmp_path: Any):
    options = {"zoo": tmp_path / "zoo", "task": FACTS} if zoo_or_not else {}
    with_example, without = callback(head="classifier"), callback(head="classifier", example_input=None, **options)
    fit(UserModule(), with_example)
    module = UserModule()
    fit(module, without)
    assert without.masks == with_example.masks
    assert not module.net._forward_pre_hooks
    assert len(list(tmp_path.rglob("tasks/*.safetensors"))) == zoo_or_not


def test_the_modules_example_input_array_serves_too():
    module = UserModule()
    module.example_input_array = EXAMPLE
    mvp = callback(head="classifier", example_input=None)
    trainer = make_trainer(mvp)
    mvp.setup(trainer, module, "fit")
    assert len(mvp.groups) == 6


def test_the_preview_says_what_happens():
    mvp = callback(head="classifier", ratio_of="macs", warmup_steps=1)
    module = UserModule()
    rich.reconfigure(width=120, color_system=None)
    with rich.get_console().capture() as printed:
        plans = mvp.preview(module)
    rows = [line.replace("│", " ").split() for line in printed.get().splitlines()]
    kept = [f"{100 * 0.5 ** (round_ / 3):.0f}" for round_ in (1, 2, 3)]
    assert [row[:3] for row in rows if row[:1] in (["1"], ["2"], ["3"])] == [
        ["1", "3", kept[0]],
        ["2", "5", kept[1]],
        ["3", "7", kept[2]],
    ]
    watch = Watch(mvp)
    fit(module, mvp, watch)
    assert [plan.step for plan in plans] == [3, 5, 7]
    for plan in plans:
        assert plan.step is not None
        masks = watch.masks[plan.step - 1]
        assert plan.widths == masks.kept
        assert plan.macs == mvp.cost.macs(masks)


def test_a_preview_with_global_scope_says_that_scores_decide():
    plans = callback(head="classifier", scope="global", steps_per_round=None).preview(UserModule(), EXAMPLE)
    assert [(plan.step, plan.widths, plan.macs) for plan in plans] == [(None, None, None)] * 3
    plans = callback(head="classifier", scope="global", steps_per_round=None).preview(UserModule(), EXAMPLE, steps=10)
    assert [plan.step for plan in plans] == [2, 4, 6]
    assert plans[-1].kept_fraction == pytest.approx(0.5)


def test_the_table_tells_units_parameters_and_macs_of_each_group():
    mvp = callback(head="classifier")
    fit(UserModule(), mvp)
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(mvp.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for group in mvp.groups:
        line = next(line for line in text.splitlines() if f" {group.name} " in line)
        assert f" {group.size} " in line
        assert f" {mvp.masks.kept[group.name]} " in line
    small = mvp.small_model()[0]
    assert f"{count_parameters(small):,}" in text
    assert f"{count_macs(small, EXAMPLE):,}" in text


def test_importance_is_the_last_score_before_removal():
    mvp = callback(head="classifier", criterion="random", rounds=2)
    fit(UserModule(), mvp)
    first = random_importance(mvp.groups, 1)
    second = random_importance(mvp.groups, 2)
    full = Masks.full(mvp.groups)
    kept = widths(mvp.groups.sizes, 0.5**0.5)
    for name, size in mvp.groups.sizes.items():
        alive = torch.zeros(size, dtype=torch.bool)
        alive[first[name].argsort(descending=True)[: kept[name]]] = True
        expected = torch.where(
            alive,
            normalised(second, Masks({**full, name: alive}))[name],
            normalised(first)[name],
        )
        torch.testing.assert_close(mvp.importance[name], expected.float())


def test_scores_are_those_of_the_steps_since_the_last_round():
    """A plain training loop beside it takes the same scores, chooses the same masks and ends at the same weights."""
    mvp = callback(head="classifier", rounds=1, steps_per_round=2, warmup_steps=2)
    module = UserModule()
    groups = find_groups(module.net, EXAMPLE)
    twin, scores = copy.deepcopy(module), Taylor()
    scores.begin(groups)
    optimizer = twin.configure_optimizers()
    for step, batch in zip(range(4), loader(), strict=False):
        optimizer.zero_grad()
        twin.training_step(batch, step).backward()
        if step >= 2:
            parameters = dict(twin.net.named_parameters())
            scores.observe(parameters, {name: parameter.grad for name, parameter in parameters.items()})
        optimizer.step()
    fit(module, mvp, max_steps=4)
    expected = top_units(scores.scores(), widths(groups.sizes, 0.5))
    assert mvp.masks == expected
    for name, score in normalised(scores.scores()).items():
        torch.testing.assert_close(mvp.importance[name], score.float())
    apply_masks(twin.net, groups, expected)
    assert all(torch.equal(tensor, twin.net.state_dict()[name]) for name, tensor in module.net.state_dict().items())


def test_scores_start_after_the_warm_up_afresh_in_each_round_and_end_with_the_last():
    class Counts(L.Callback):
        seen: tuple[int, ...] = ()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen += (int(mvp.pruner.criterion.count),)

    mvp, counts = callback(head="classifier", rounds=2, warmup_steps=1), Counts()
    fit(UserModule(), mvp, counts, max_steps=7)
    assert counts.seen == (0, 1, 0, 1, 0, 0, 0)


def test_groups_are_chosen_by_kind_and_by_pattern(tmp_path: Any):
    mvp = callback(head="classifier", exclude="residual", task=FACTS, zoo=tmp_path / "zoo")
    fit(UserModule(), mvp)
    assert mvp.groups.names == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    (entry,) = ModelZoo(tmp_path / "zoo").entries()
    assert entry.masks["layer1.residual"].all()
    assert not entry.masks["layer1.0.conv1"].all()
    assert entry.config["exclude"] == ["residual"]
    only = callback(head="classifier", include=["layer2.*", "layer3.0.*"], exclude=["layer2.residual"])
    fit(UserModule(), only)
    assert only.groups.names == ["layer2.0.conv1", "layer3.0.conv1"]
    headless = callback(exclude=["layer3.residual"])  # which stays whole without a head anyway
    fit(UserModule(), headless)
    assert "layer3.residual" not in headless.groups
    with pytest.raises(ValueError, match=r"'stem\*' matches no group; there are layer1\.residual"):
        fit(UserModule(), callback(exclude="stem*"))


def test_a_backbone_of_two_inputs_is_pruned_with_an_explicit_example():
    class TwoInputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.photo, self.mask = (torch.nn.Conv2d(channels, 8, 3) for channels in (3, 1))
            self.both = torch.nn.Conv2d(8, 16, 3)

        def forward(self, photo: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.both((self.photo(photo) + self.mask(mask)).relu()).mean((2, 3))

    class Module(UserModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = TwoInputs()

        def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return self.classifier(self.net(images, images[:, :1] if mask is None else mask))

    example = (EXAMPLE, EXAMPLE[:, :1])
    for given in (example, None):
        mvp, module = callback(head="classifier", example_input=given), Module()
        fit(module, mvp)
        assert mvp.groups.sizes == {"residual": 8, "both": 16}
        backbone, head = mvp.small_model()
        module.eval()
        with torch.no_grad():
            torch.testing.assert_close(head(backbone(*example)), module(*example), rtol=1e-5, atol=1e-5)

"""What cannot work is refused before any step, with what was expected, got, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from lightning_mvp import MVPCallback, TaskFacts, create_backbone
from lightning_mvp.callbacks.guards import refuse_lossy_sync_batch_norm, refuse_what_cannot_work

from .user import EXAMPLE, FACTS, RECIPE, VIT_RECIPE, UserModule, callback, content, fit, make_trainer


def refused(kind: type[Exception], match: str, module: UserModule, *callbacks: L.Callback, **options: Any) -> Exception:
    """Fit is refused, and no parameter has moved."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(kind, match=match) as caught:
        fit(module, *callbacks, **options)
    changed = [name for name, tensor in module.named_parameters() if not torch.equal(tensor, before[name])]
    assert not changed
    return caught.value


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("criterion", "sensitivity"),
        ("ratio_of", "flops"),
        ("scope", "local"),
        ("pruning_ratio", 1.0),
        ("rounds", 0),
        ("warmup_steps", -1),
        ("steps_per_round", 0),
        ("floor", 0),
        ("power", -1.0),
        ("example_input", "cat.png"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once_by_name(argument: str, value: Any):
    with pytest.raises(ValueError, match=f"`{argument}`.* but got"):
        MVPCallback(**{argument: value})


def test_a_zoo_needs_the_facts_of_the_task(zoo: Path):
    with pytest.raises(ValueError, match="`task` to be given with `zoo`"):
        MVPCallback(zoo=zoo)


def test_an_unknown_backbone_is_refused_with_the_names_there_are():
    refused(ValueError, "`backbone`.*'encoder'.*`net`, `classifier`", UserModule(), callback(backbone="encoder"))
    refused(ValueError, "`head`.*'fc'.*`net`", UserModule(), callback(head="fc"))


def test_frozen_units_are_refused_and_named():
    module = UserModule()
    module.net.layer2.requires_grad_(False)
    refused(ValueError, r"group `layer2.*frozen.*Unfreeze", module, callback(head="classifier"))


def test_an_example_that_the_backbone_cannot_take_is_refused_by_name():
    vit = {**VIT_RECIPE, "arguments": {**VIT_RECIPE["arguments"], "num_classes": 0}}
    of_size = r"`example_input` .* VisionTransformer .* float32 \(1, 3, 32, 32\) \(AssertionError: .*match"
    large = callback(head="classifier", example_input=(2, 3, 32, 32))
    refused(ValueError, of_size, UserModule(create_backbone(vit)), large)
    grey = callback(head="classifier", example_input=torch.zeros(2, 1, 16, 16))
    refused(ValueError, r"`example_input` to be what ResNet takes.*\(1, 1, 16, 16\)", UserModule(), grey)
    raw = callback(head="classifier", example_input=torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    refused(ValueError, r"`example_input` .* uint8 \(1, 3, 16, 16\)", UserModule(), raw)
    module = UserModule()
    module.example_input_array = torch.zeros(2, 1, 16, 16)
    refused(ValueError, "`example_input_array`", module, callback(head="classifier", example_input=None))
    for nothing in ((0, 3, 16, 16), torch.zeros(0, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"`example_input`.* but got shape \(0, 3, 16, 16\)"):
            callback(example_input=nothing)


@pytest.mark.parametrize("precision", [torch.float16, torch.float64])
def test_an_example_of_another_precision_is_as_good(precision: torch.dtype):
    mvp = callback(head="classifier", example_input=EXAMPLE.to(precision))
    fit(UserModule(), mvp)
    assert mvp.finished


class Doubled(UserModule):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(images)


class Batches(UserModule):
    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


def test_a_wrong_head_is_refused(zoo: Path):
    refused(ValueError, r"head\(backbone\(x\)\) to equal module\(x\)", Doubled(), callback(head="classifier"))
    facts = TaskFacts("two", ("a", "b"), 16, (0.5,) * 3, (0.25,) * 3)
    refused(ValueError, "2 classes, but it has 3", UserModule(), callback(head="classifier", task=facts, zoo=zoo))
    wide = UserModule(head=nn.Linear(20, 3))
    refused(ValueError, r"`head` .* reads 20 features, .* shape \(1, 16\)", wide, callback(head="classifier"))
    refused(ValueError, r"Batches\.forward .*TypeError.*Leave `head` out", Batches(), callback(head="classifier"))
    deep = UserModule(head=nn.Sequential(nn.Linear(16, 3)))
    refused(ValueError, r"torch\.nn\.Linear, but it names a Sequential", deep, callback(head="classifier"))
    assert not zoo.exists()


def test_without_example_a_wrong_head_is_refused_before_the_first_step():
    refused(ValueError, "to equal module", Doubled(), callback(head="classifier", example_input=None))


@pytest.mark.parametrize("options", [{"max_steps": 5}, {"max_steps": -1, "max_epochs": 1, "limit_train_batches": 5}])
def test_a_schedule_longer_than_the_run_is_refused_with_the_steps_it_needs(options: Any):
    refused(ValueError, "at least 6 optimizer steps.*will do 5", UserModule(), callback(head="classifier"), **options)


def test_a_run_without_end_needs_steps_per_round(zoo: Path):
    endless = {"max_steps": -1, "max_epochs": -1}
    mvp = callback(head="classifier", steps_per_round=None)
    refused(ValueError, "`steps_per_round`.*no known length", UserModule(), mvp, **endless)
    mvp = callback(head="classifier", task=FACTS, zoo=zoo)
    refused(ValueError, "max_steps or max_epochs", UserModule(), mvp, **endless)


@pytest.mark.parametrize(
    "other",
    [
        EarlyStopping("train_loss"),
        StochasticWeightAveraging(1e-2),
        ModelPruning("l1_unstructured", amount=0.5),
    ],
    ids=lambda other: type(other).__name__,
)
def test_callbacks_that_stop_or_average_are_refused_by_name(other: L.Callback):
    refused(ValueError, f"no {type(other).__name__} beside MVPCallback", UserModule(), callback(), other)


def test_a_second_callback_is_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `MVPCallback`"):
        fit(UserModule(), callback(), callback())  # by Lightning itself

    class Mine(MVPCallback):
        pass

    refused(ValueError, "one MVPCallback", UserModule(), callback(), Mine(backbone="net", example_input=EXAMPLE))


@pytest.mark.parametrize("sharded", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_sharded_strategies_are_refused_by_name(sharded: Any):
    strategy = sharded.__new__(sharded)  # DeepSpeed itself need not be installed
    trainer: Any = SimpleNamespace(strategy=strategy, callbacks=[])
    with pytest.raises(ValueError, match=sharded.__name__):
        refuse_what_cannot_work(trainer)


def test_a_monitored_checkpoint_warns(tmp_path: Path):
    trainer: Any = SimpleNamespace(strategy=None, callbacks=[ModelCheckpoint(tmp_path, monitor="val_loss")])
    with pytest.warns(UserWarning, match="val_loss.*unpruned"):
        refuse_what_cannot_work(trainer)


class TwoOptimizers(UserModule):
    """Manual optimization; each optimizer gets one of ``parts``."""

    def __init__(self, *parts: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.parts = parts

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        return [torch.optim.SGD(self.get_submodule(part).parameters(), lr=0.1) for part in self.parts]


@pytest.mark.parametrize(
    ("parts", "owners"), [(("classifier",), "0 of 1"), (("net.layer1", "net.layer2"), "2 of 2")], ids=["none", "two"]
)
def test_one_optimizer_must_own_the_backbone(parts: tuple[str, ...], owners: str):
    refused(ValueError, f"one optimizer to own.*{owners}", TwoOptimizers(*parts), callback(head="classifier"))


def test_units_that_the_optimizer_leaves_out_are_refused_and_named():
    module = TwoOptimizers("net.layer1")
    refused(ValueError, r"group `layer1.*`bn1\.weight` is in no parameter group of SGD", module, callback())


class WithOptimizer(UserModule):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


def test_an_optimizer_with_one_flat_state_is_refused():
    refused(ValueError, "LBFGS", WithOptimizer(torch.optim.LBFGS), callback())


def test_a_fused_optimizer_with_a_scaler_is_refused():
    module = WithOptimizer(lambda parameters: torch.optim.AdamW(parameters, fused=True))
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    refused(ValueError, "fused=False", module, callback(), plugins=[scaler])


@pytest.mark.parametrize("how", ["prune", "parametrization"])
def test_weights_that_are_computed_from_others_are_refused_and_named(how: str):
    module = UserModule()
    if how == "prune":
        torch.nn.utils.prune.ln_structured(module.net.layer2[0].conv1, "weight", 0.5, 2, 0)
    else:
        torch.nn.utils.parametrizations.weight_norm(module.net.layer2[0].conv1)
    refused(ValueError, r"`layer2\.0\.conv1` are computed.*remove", module, callback())


def test_sync_batchnorm_that_would_drop_activations_is_refused():
    backbone = timm.create_model("efficientnet_b0", num_classes=0)
    trainer = make_trainer(callback(), sync_batchnorm=True, strategy=DDPStrategy(), devices=2)
    with pytest.raises(ValueError, match=r"`bn1` is a BatchNormAct2d with an activation inside"):
        refuse_lossy_sync_batch_norm(trainer, backbone)
    refuse_lossy_sync_batch_norm(trainer, UserModule().net)
    refuse_lossy_sync_batch_norm(make_trainer(callback()), backbone)


def test_a_learning_rate_spent_before_the_last_round_is_warned_of():
    class Spent(UserModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 3 else 0.01)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    with pytest.warns(UserWarning, match="learning rate is 0.001 at the last pruning round"):
        fit(Spent(), callback(head="classifier"))


def test_what_exists_only_after_fit_says_so():
    mvp = callback()
    for ask in (lambda: mvp.masks, lambda: mvp.groups, mvp.small_model, mvp.table):
        with pytest.raises(RuntimeError, match="before fit"):
            ask()
    with pytest.raises(ValueError, match="`example_input`"):
        callback(example_input=None).preview(UserModule())


def test_an_entry_that_exists_is_refused_before_any_step(zoo: Path):
    options = {"head": "classifier", "task": FACTS, "zoo": zoo}
    fit(UserModule(), callback(**options))
    before = content(zoo)
    refused(FileExistsError, "already has an entry colours--", UserModule(), callback(**options))
    assert content(zoo) == before
    fit(UserModule(), callback(**options, seed=1))
    assert len(content(zoo)) == len(before) + 1


@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["example", "first input"])
def test_a_foreign_zoo_is_refused_before_any_step(zoo: Path, entries: Callable[[], int], example: Any):
    options = {"head": "classifier", "zoo": zoo, "example_input": example}
    fit(UserModule(), callback(**options, task=FACTS))
    before = content(zoo)
    other_task = TaskFacts("others", FACTS.classes, 16, FACTS.mean, FACTS.std)

    moved = UserModule()
    with torch.no_grad():
        moved.net.conv1.weight[0, 0, 0, 0] += 1e-3
    error = refused(ValueError, "begins with other weights", moved, callback(**options, task=other_task))

    arguments = {**RECIPE["arguments"], "channels": [8, 12, 20]}
    wide = UserModule(create_backbone({**RECIPE, "arguments": arguments}))
    refused(ValueError, "another backbone or θ⁰.*backbone recipe", wide, callback(**options, task=other_task))
    assert content(zoo) == before
    assert entries() == 1

    (remedy,) = re.findall(r"by `(from safetensors.*?)`", str(error))
    exec(remedy, {"backbone": moved.net})
    fit(moved, callback(**options, task=other_task))
    assert entries() == 2


def test_a_ratio_out_of_reach_is_refused_before_any_step():
    unreachable = callback(ratio_of="macs", pruning_ratio=0.999)
    refused(ValueError, "out of reach: with 1 unit.*Choose a smaller `pruning_ratio`", UserModule(), unreachable)

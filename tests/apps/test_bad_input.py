"""What a person can get wrong is refused before any work: exit code 1, one message, no traceback, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lightning_mvp.apps import values
from lightning_mvp.fitting.growing import Which
from lightning_mvp.pruning.choose import RatioOf, Scope
from lightning_mvp.pruning.criteria import CRITERIA
from lightning_mvp.training.classifier import HeadInit
from lightning_mvp.training.optimizer import OptimizerName, ScheduleName
from lightning_mvp.voting.merge import Missing
from lightning_mvp.voting.merges import MERGES
from lightning_mvp.voting.similarities import SIMILARITIES
from lightning_mvp.zoo.entry_file import Storage

from .conftest import TINY, TINY_COMPARE, TINY_ROUNDS, Run

COMPARE_ONLY = [
    ("split.targets=0", "`split.targets` to be at least 1, but got 0"),
    ("methods=[mvp,magic]", "a method such as mvp or taylor@1000, out of mvp, "),
    ("vote.similarity=leap", "`vote.similarity` to be one of 'leep'"),
    ("vote.missing=mean", "`vote.missing` to be one of 'theta0'"),
    ("vote.neighbours=0", "`vote.neighbours` to be an integer of at least 1, but got 0"),
    ("vote.temperature=0", "`temperature` to be above 0 or None, but got 0"),
    ("vote.pruning_ratio=0.5", "Expected `vote.pruning_ratio` to be null, but got 0.5"),
    ("source_steps=1", "Expected a run of at least 2 optimizer steps"),
    ("steps=1", "Expected a run of at least 2 optimizer steps"),
    ("pruning={pruning_ratio: 0.999, ratio_of: macs}", "Keeping 0.1% of the macs is out of reach: with 1 unit left"),
    ("backbone.weights=nowhere.safetensors", "No weights at nowhere.safetensors. `mvp-pretrain` writes such a file"),
]
BOTH = [  # asked of one command; that the other reads the same configuration one of them shows
    ("backbone=resnet_minni", "Could not find 'backbone/resnet_minni'"),
    ("backbone.recipe.model=resnet81", "Expected `model` to be a name that timm"),
    ("backbone.recipe.model=resnet81", "but got 'resnet81'. Close names: resnet"),
    ("data=glyph", "Could not find 'data/glyph'"),
    ("data.name=glyphz", "but got 'glyphz'. Did you mean 'glyphs'?"),
    ("data.root=???", "Expected `data.root` to be given, but it has no default. Add data.root=… to the command."),
    ("split.classes_per_task=9", "Expected at least 9 seen classes for tasks of 9 classes, but got 8. Lower"),
    (
        "pruning.pruning_ratio=80",
        "`pruning.pruning_ratio` to be a number in (0, 1), the fraction that is removed",
    ),
    ("pruning.pruning_ratio=0", "but got 0. Write pruning.pruning_ratio=0.7, or leave it out."),
    (
        "pruning.criterion=tailor",
        "`pruning.criterion` to be one of 'taylor', 'magnitude', 'random' or {_target_: package.Class}",
    ),
    (
        "optim.optimizer=adam",
        "`optim.optimizer` to be one of 'sgd', 'adamw' or {_target_: package.Class}, but got",
    ),
    ("backbone.recipe.in_chans=1", "channel"),
]


def refused(run: Run, home: Path, name: str, *overrides: str) -> str:
    """The message with which a command refuses; it must have left nothing but Hydra's logs."""
    done = run(name, *overrides, home=home)
    assert done.code == 1, done.text
    assert "Traceback" not in done.text
    left = [path for path in home.iterdir() if path.name != "logs"] if home.exists() else []
    assert not left
    return done.line


@pytest.mark.parametrize(("override", "words"), BOTH)
def test_mvp_prune_refuses(override: str, words: str, tmp_path: Path, run: Run) -> None:
    assert words in refused(run, tmp_path / "home", "prune", *TINY, *TINY_ROUNDS, "weights=null", override)


@pytest.mark.parametrize(("override", "words"), [BOTH[0], *COMPARE_ONLY])
def test_mvp_compare_refuses_before_any_process_starts(override: str, words: str, tmp_path: Path, run: Run) -> None:
    assert words in refused(run, tmp_path / "home", "compare", *TINY_COMPARE, override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["split.classes=[latin-capital-a, latin-capital-z]"], "but got 'latin-capital-z'. It has, for example: latin"),
        (["split.classes=[latin-capital-a]"], "`classes` to be two or more class names, but got"),
        (["split.task=99"], "to be in [0, 3) for source tasks, but got 99"),
        (["split.task=first"], "Expected `split.task` to be the number of a source task, but got 'first'"),
        (
            ["split.kind=sauce"],
            "`split.kind` to be one of 'source', 'target', 'development', 'heldout', but got",
        ),
        (["steps=1"], "Expected a run of at least 2 optimizer steps"),
        (["weights=nowhere"], "weights of the backbone at nowhere, but there is no such file. Make them with `mvp-pre"),
    ],
)
def test_mvp_prune_refuses_tasks_and_weights(overrides: list[str], words: str, tmp_path: Path, run: Run) -> None:
    assert words in refused(run, tmp_path / "home", "prune", *TINY, *TINY_ROUNDS, "weights=null", *overrides)


@pytest.mark.parametrize("name", ["prune", "compare"])
def test_weights_of_another_channel_count_are_refused(name: str, tmp_path: Path, run: Run) -> None:
    grey = tmp_path / "grey.safetensors"
    save_file({"conv1.weight": torch.zeros(32, 1, 3, 3)}, grey)
    options = [*TINY, f"weights={grey}"] if name == "prune" else [*TINY_COMPARE, f"backbone.weights={grey}"]
    message = refused(run, tmp_path / "home", name, *options, "pruning.rounds=2")
    assert "conv1.weight: expected (32, 3, 3, 3), got (32, 1, 3, 3)" in message
    assert "Use the recipe that the weights were made with." in message


def test_a_loading_process_that_ends_in_the_midst_of_a_step_is_told_in_a_sentence(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("lightning_mvp.tasks.data.class_names_of", interrupted)
    done = run("prune", *TINY, "data.seed=98", home=tmp_path)
    assert (done.code, "Traceback" in done.text) == (1, False)
    assert "killed by signal: Killed.). If memory ran out, lower data.num_workers" in done.line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("pretrain",), "goes on from there."),
        (("prune", "-m", "split.task=0"), "goes on from there."),
        (("prune",), "starts this job anew."),
    ],
)
def test_ctrl_c_is_answered_in_a_sentence(
    command: tuple[str, ...], words: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_mvp.tasks.data.class_names_of", interrupted)
    done = run(*command, *TINY, "data.seed=99", home=tmp_path)  # a seed that no test before has loaded
    assert done.code == 130
    assert f"Stopped. What is written stays; the same command {words}" in done.line
    assert "Traceback" not in done.text


def test_a_missing_zoo_is_refused_with_how_to_fill_one(tmp_path: Path, run: Run) -> None:
    zoo = tmp_path / "home" / "zoos" / "glyphs-resnet_mini"
    message = refused(run, tmp_path / "home", "vote", *TINY)
    assert f"Expected a zoo at {zoo}, but there is no such folder. Fill one with `mvp-prune`." in message


def test_a_traceback_is_there_on_request(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_MVP_TRACEBACK", "1")
    done = run("prune", *TINY, "data.name=glyphz", home=tmp_path)
    assert done.code == 1
    assert "Traceback" in done.text


def test_a_backbone_that_fails_the_self_check_is_refused_in_a_sentence(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any real architecture would do that Torch-Pruning maps wrongly; those are large.
    monkeypatch.setattr("lightning_mvp.backbones.selfcheck.TOLERANCE", -1.0)
    monkeypatch.setattr("lightning_mvp.backbones.groups_cache._found", OrderedDict())
    message = refused(run, tmp_path / "home", "prune", *TINY, *TINY_ROUNDS, "weights=null")
    assert "a backbone with units that can be pruned, but ResNet has none: layer1.residual: left out, zeroed" in message


# What a value must be, as its rule begins to say → values that are not.
WRONG_BY_RULE = {
    "an integer": ("abc", 0.5, True, -7),
    "auto or": ("all", 1.5, True, -1),
    "refuse or": ("mend", 1),
    "drawn, all": ("some", 1),
    "a number": ("abc", True, float("nan")),
    "true or false": ("no", 1),
    "text": (3,),
    "a list": (3,),
    "a mapping": ("abc", 3),
    "theta0": ("zoo",),
    "one of": ("magic", 1, {"name": "sgd"}),
}
# Key, whether it may be null, and what else it must be.
RULED = [(key.removesuffix("?"), key.endswith("?"), rule.what) for rule in values.RULES for key in rule.keys.split()]
WRONG = [
    *(
        (key, value)
        for key, _, what in RULED
        for says, wrong in WRONG_BY_RULE.items()
        if what.startswith(says)
        for value in wrong
    ),
    *((key, None) for key, may_be_null, _ in RULED if not may_be_null),
    *((key, None) for key in ("zoo", "output")),
    ("methods", "abc"),
    ("growth.without", ["abc"]),
    ("seed", 2**32),
    ("split.classes", "cat"),
    ("zoo", ""),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(key: str, value: object) -> None:
    config = OmegaConf.create()
    OmegaConf.update(config, key, value)
    with pytest.raises(
        ValueError, match=rf"^Expected `{re.escape(key)}` to be .+, but got .+\. Write {re.escape(key)}="
    ):
        values.require_types(config, "prune")


@pytest.mark.parametrize("key", [key for key, null, _ in RULED if null and key not in values.GIVEN["prune"].split()])
def test_null_is_a_value_where_it_has_a_meaning(key: str) -> None:
    config = OmegaConf.create({"output": "x", "data": {"root": "???"}})
    OmegaConf.update(config, key, None)
    values.require_types(config, "prune")


NO_GPU = "trainer.accelerator=gpu, trainer.devices=2, trainer.strategy=ddp, trainer.precision=auto Lightning refuses: "


@pytest.mark.parametrize("name", ["pretrain", "prune", "vote"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=abc", "Expected `steps` to be an integer of at least 1, but got 'abc'. Write steps=NUMBER, or leave"),
        ("steps=0", "Expected `steps` to be an integer of at least 1, but got 0"),
        ("seed=abc", "Expected `seed` to be an integer of at least 0, but got 'abc'"),
        ("dry_run=no", "Expected `dry_run` to be true or false, but got 'no'"),
        ("strategy=ddp", NO_GPU),
        ("trainer.accelerator=quantum", "You selected an invalid accelerator name"),
        ("trainer.devices=0", "trainer.devices=0"),
        ("+trainer.foo=1", "unexpected keyword argument 'foo'"),
        ("launcher=slurm", "Expected -m with launcher=slurm, which starts the jobs of a sweep, but got none"),
    ],
)
def test_every_command_that_trains_refuses_what_its_keys_cannot_be(
    name: str, override: str, words: str, tmp_path: Path, run: Run
) -> None:
    if torch.cuda.is_available() and "ddp" in override:
        pytest.skip("there is a GPU")
    assert words in refused(run, tmp_path / "home", name, *TINY, override)


def test_a_study_refuses_devices_that_it_would_not_use(tmp_path: Path, run: Run) -> None:
    message = refused(run, tmp_path / "home", "compare", *TINY_COMPARE, "strategy=ddp")
    assert "Expected strategy=cpu, because a study trains on one CPU thread in each of its workers, but got" in message
    message = refused(run, tmp_path / "home", "compare", *TINY_COMPARE, "trainer.precision=7")
    assert "with trainer.precision=7 Lightning refuses: Precision 7 is invalid" in message


def test_an_argument_that_nobody_has_is_named(tmp_path: Path, run: Run) -> None:
    message = refused(run, tmp_path / "home", "prune", *TINY, *TINY_ROUNDS, "weights=null", "+optim.momentum=0.5")
    assert "Expected arguments that exist, but got `optim.momentum`. Leave +optim.momentum=0.5 out of" in message


def test_a_sweep_on_slurm_without_slurm_is_refused(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values.shutil, "which", lambda _: None)
    message = refused(run, tmp_path / "home", "prune", "-m", *TINY, "launcher=slurm", "split.task=0,1")
    assert "Expected SLURM's commands for launcher=slurm, but there is no srun here." in message


def test_random_weights_are_said_to_be_random(tmp_path: Path, run: Run) -> None:
    said = "null without backbone.pretrained=true: the backbone begins with random weights, drawn by seed=0."
    done = run("prune", *TINY, *TINY_ROUNDS, "weights=null", "dry_run=true", home=tmp_path)
    assert f"weights={said}" in done.line
    parent = run("pretrain", *TINY, *TINY_ROUNDS, "pruning.pruning_ratio=0.3", "dry_run=true", home=tmp_path)
    assert f"backbone.weights={said}" in parent.line
    silent = run("pretrain", *TINY, "dry_run=true", home=tmp_path)
    assert "random" not in silent.line


NAMES = {
    "optim.optimizer": get_args(OptimizerName),
    "optim.schedule": get_args(ScheduleName),
    "pruning.criterion": CRITERIA.known,
    "pruning.ratio_of": get_args(RatioOf),
    "pruning.scope": get_args(Scope),
    "vote.similarity": SIMILARITIES.known,
    "vote.merge": MERGES.known,
    "vote.missing": get_args(Missing),
    "head_init": get_args(HeadInit),
    "storage": get_args(Storage),
    "growth.which": get_args(Which),
}


@pytest.mark.parametrize(("key", "names"), NAMES.items())
def test_names_that_are_checked_early_are_those_that_there_are(key: str, names: Iterable[str]) -> None:
    (rule,) = (rule for rule in values.RULES if rule.what.startswith("one of") and key in rule.keys.split())
    assert set(re.findall(r"'(\w+)'", rule.what)) == set(names)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("prune", "steps=abc", "Expected `steps` to be an integer"),
        ("prune", "optim.optimizer=adam", "Expected `optim.optimizer` to be one of"),
        ("prune", "weights=nowhere", "Expected weights of the backbone at nowhere"),
        ("vote", "zoo=nowhere", "Expected a zoo at nowhere"),
        ("export", "seed=1", "but got none of them"),
        ("compare", "vote.missing=mean", "Expected `vote.missing` to be one of"),
    ],
)
def test_a_mistake_is_answered_before_torch_is_imported(name: str, override: str, words: str, tmp_path: Path) -> None:
    """Its import takes seconds, in which one thinks that all is well."""
    script = (
        f"import sys; sys.argv[1:] = [{override!r}]\nimport lightning_mvp.apps.{name} as app\n"
        "try:\n    app.main()\nexcept SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'lightning', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "LIGHTNING_MVP_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert words in " ".join(done.stdout.split())
    assert done.stdout.rstrip().endswith("1 []")

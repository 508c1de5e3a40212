"""From pre-training to a small model for a new task, by the commands alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_mvp.backbones.create import create_backbone
from lightning_mvp.training.meta_vote import MetaVoteModule
from lightning_mvp.zoo.zoo import ModelZoo

from ..voting import own
from .conftest import TINY, TINY_ROUNDS, Run, modified

pytestmark = pytest.mark.xdist_group("end_to_end")  # one process makes what several tests look at
OUTPUTS = {"model.ckpt", "model.safetensors", "recipe.json", "report.json", "neighbours.png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this file write, one after the other."""
    return tmp_path_factory.mktemp("home")


def zoo_of(home: Path) -> Path:
    return home / "zoos" / "glyphs-resnet_mini"


@pytest.fixture
def pretrained(home: Path, run: Run) -> Path:
    weights = home / "backbones" / "glyphs-resnet_mini.safetensors"
    if not weights.exists():
        done = run("pretrain", *TINY, home=home)
        assert done.code == 0
        assert f"wrote {weights}" in done.text
        assert "% on validation images of 8 classes" in done.text
    return weights


@pytest.fixture
def zoo(home: Path, pretrained: Path, run: Run) -> Path:
    if not zoo_of(home).exists():
        assert run("prune", *TINY, *TINY_ROUNDS, home=home).code == 0
        assert run("prune", "-m", *TINY, *TINY_ROUNDS, "split.task=0,1,2", home=home).code == 0
    return zoo_of(home)


@pytest.fixture
def voted(home: Path, zoo: Path, run: Run) -> Path:
    folder = home / "voted" / "mine"
    if not folder.exists():
        done = run("vote", *TINY, "vote.neighbours=2", f"output={folder}", home=home)
        assert done.code == 0
        for name in OUTPUTS:
            assert f"wrote {folder / name}: " in done.text
    return folder


def test_one_job_and_then_a_multirun_fill_a_zoo(zoo: Path) -> None:
    entries = list(ModelZoo(zoo).entries())
    assert [entry.facts["name"] for entry in entries] == ["source-000", "source-001", "source-002"]
    assert all(0.25 < sum(m.sum() for m in e.masks.values()) / 448 < 0.35 for e in entries), "30 % of the units stay"


def test_a_second_run_skips_what_is_there(home: Path, zoo: Path, run: Run) -> None:
    before = modified(zoo)
    done = run("prune", "-m", *TINY, *TINY_ROUNDS, "split.task=0,1,2", home=home)
    assert done.code == 0
    assert done.line.count("already: skipped") == 3
    assert modified(zoo) == before


def test_an_entry_of_that_name_about_other_classes_is_refused(home: Path, zoo: Path, run: Run) -> None:
    before = modified(zoo)
    done = run("prune", *TINY, *TINY_ROUNDS, "split.seed=1", home=home)
    assert done.code == 1
    assert "to be about this task, but it is about other classes or other data: latin-" in done.line
    assert modified(zoo) == before


def test_a_vote_writes_its_four_files_and_says_what_it_did(voted: Path) -> None:
    assert {path.name for path in voted.iterdir()} == OUTPUTS
    report = json.loads((voted / "report.json").read_text())
    assert len(report["neighbours"]) == 2
    assert {"widths", "shares", "parameters", "dense_parameters", "macs", "test_accuracy", "steps"} <= set(report)
    assert report["parameters"] < 0.2 * report["dense_parameters"]


@pytest.mark.slow
def test_a_class_in_the_present_folder_is_named_on_the_command_line(
    home: Path, zoo: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(own.__file__, tmp_path / "my_own.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    choices = ["vote.similarity={_target_: my_own.Alphabetical, factor: 2}", "vote.merge={_target_: my_own.First}"]
    command = (*TINY, "vote.neighbours=2", *choices, f"zoo={zoo}", "output=voted")
    done = run("vote", *command, home=tmp_path)
    assert done.code == 0, done.text
    report = json.loads(Path("voted", "report.json").read_text())
    assert [neighbour["score"] for neighbour in report["neighbours"]] == [4, 2]
    assert report["settings"]["vote"]["similarity"] == {"_target_": "my_own.Alphabetical", "factor": 2}
    assert "is there already: skipped" in run("vote", *command, home=tmp_path).line
    refused = run("vote", *command[:-1], "vote.merge={_target_: my_own.Alphabetical}", "output=other", home=tmp_path)
    assert refused.code == 1
    assert "'my_own.Alphabetical', which is no subclass of Merge" in refused.line


@pytest.mark.slow
def test_a_sweep_of_votes_skips_what_is_done_and_refuses_what_is_another(home: Path, zoo: Path, run: Run) -> None:
    command = ("-m", *TINY, "vote.neighbours=2", "split.task=0,1", f"output={home}/swept/${{split.task}}")
    assert run("vote", *command, home=home).code == 0
    before = modified(home / "swept")
    assert len(before) == 2 * len(OUTPUTS)
    again = run("vote", *command, home=home)
    assert again.code == 0
    assert "2 jobs: 2 there already" in again.line
    other = run("vote", *command, "seed=1", home=home)
    assert other.code == 1
    assert "swept/0 exists already and is not overwritten" in other.line
    assert modified(home / "swept") == before


@pytest.mark.slow
def test_a_sweep_over_settings_of_one_task_has_a_folder_for_each_and_skips_equal_ones(
    home: Path, zoo: Path, tmp_path: Path, run: Run
) -> None:
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    command = ("-m", *TINY, "vote.neighbours=1,2", f"zoo={copy}")
    done = run("vote", *command, home=tmp_path)
    assert done.code == 0, done.text
    folders = sorted((tmp_path / "voted").iterdir())
    assert len(folders) == 2
    assert all(re.fullmatch(r"glyphs-target-0-[0-9a-f]{8}", folder.name) for folder in folders)
    before = modified(tmp_path / "voted")
    assert "2 jobs: 2 there already" in run("vote", *command, home=tmp_path).line
    alone = run("vote", *command[1:-2], "vote.neighbours=2", command[-1], home=tmp_path)
    assert "is there already: skipped" in alone.line
    assert modified(tmp_path / "voted") == before
    (copy / "tasks" / f"{ModelZoo(zoo).names[0]}.safetensors").unlink()
    assert "2 jobs: 2 done" in run("vote", *command, home=tmp_path).line, "other voters, another result"
    assert before.items() <= modified(tmp_path / "voted").items()


def test_a_vote_is_overwritten_on_request_only(home: Path, zoo: Path, tmp_path: Path, run: Run) -> None:
    command = (*TINY, f"zoo={zoo}", f"output={tmp_path}/v")
    assert run("vote", *command, "vote.neighbours=1", home=tmp_path).code == 0
    refused = run("vote", *command, "vote.neighbours=2", home=tmp_path)
    assert refused.code == 1
    assert "overwrite=true replaces it once the new one is done." in refused.line
    assert len(json.loads((tmp_path / "v" / "report.json").read_text())["neighbours"]) == 1
    assert run("vote", *command, "vote.neighbours=2", "overwrite=true", home=tmp_path).code == 0
    assert len(json.loads((tmp_path / "v" / "report.json").read_text())["neighbours"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"v", "logs"}


@pytest.mark.slow
def test_a_vote_that_was_killed_while_it_wrote_leaves_nothing_in_the_way(home: Path, zoo: Path, run: Run) -> None:
    partial = home / "killed" / ".0.partial"
    partial.mkdir(parents=True)
    (partial / "model.ckpt").write_text("half")
    assert run("vote", *TINY, "vote.neighbours=2", f"output={home}/killed/0", home=home).code == 0
    assert {path.name for path in (home / "killed").iterdir()} == {"0"}
    assert {path.name for path in (home / "killed" / "0").iterdir()} == OUTPUTS


def test_the_checkpoint_loads_without_the_zoo(voted: Path, tmp_path: Path) -> None:
    alone = shutil.copy(voted / "model.ckpt", tmp_path)
    assert torch.load(alone, weights_only=True)["hyper_parameters"]["recipe"]["kept"]
    module = MetaVoteModule.load_from_checkpoint(alone).eval()
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_weights_and_recipe_rebuild_the_same_function(voted: Path) -> None:
    described = json.loads((voted / "recipe.json").read_text())
    backbone = create_backbone(described["recipe"])
    head = torch.nn.Linear(backbone(torch.zeros(2, 3, 32, 32)).shape[1], len(described["facts"]["classes"]))
    rebuilt = torch.nn.Sequential(backbone, head)
    rebuilt.load_state_dict(load_file(voted / "model.safetensors"))
    module = MetaVoteModule.load_from_checkpoint(voted / "model.ckpt").eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = rebuilt.eval()(images), module(images)
    torch.testing.assert_close(ours, theirs)
    assert ours.std() > 0


@pytest.mark.slow
def test_a_terminal_shows_the_vote_once_and_nothing_of_lightnings_own(home: Path, zoo: Path) -> None:
    command = [sys.executable, "-m", "lightning_mvp.apps.vote", *TINY, "vote.neighbours=2", f"output={home}/shown"]
    environment = {**os.environ, "LIGHTNING_MVP_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shown = done.stdout + done.stderr
    assert shown.count("Vote of 2 neighbours") == 1
    for noise in ("GPU available", "TPU available", "litlogger", "Tip:", "LeafSpec", "eval mode", "weights_only"):
        assert noise not in shown


@pytest.mark.slow
@pytest.mark.parametrize("app", [pytest.param("prune", marks=pytest.mark.slow), "vote"])
def test_under_ddp_one_rank_writes_and_speaks(app: str, home: Path, zoo: Path) -> None:
    own = ("split.seed=2", f"zoo={home}/ddp") if app == "prune" else ("vote.neighbours=2", f"output={home}/ddp-voted")
    options = [*TINY, *(TINY_ROUNDS if app == "prune" else ()), "strategy=ddp_cpu", *own]
    environment = {**os.environ, "LIGHTNING_MVP_HOME": str(home)}
    command = [sys.executable, "-m", f"lightning_mvp.apps.{app}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "Error" not in shown
    assert shown.count("wrote ") == (1 if app == "prune" else len(OUTPUTS))
    if app == "vote":
        (again,) = (line for line in shown.splitlines() if line.startswith("    mvp-prune "))
        assert "strategy=ddp_cpu" in again, "what was typed is known in the rank that speaks"


def test_a_task_of_ones_own_classes_is_pruned_under_its_name(home: Path, pretrained: Path, run: Run) -> None:
    classes = "split.classes=[latin-capital-a, latin-capital-k]"
    done = run("prune", *TINY, *TINY_ROUNDS, classes, "split.task=mine", f"zoo={home}/own", home=home)
    assert done.code == 0
    (entry,) = ModelZoo(home / "own").entries()
    assert (entry.facts["name"], entry.facts["classes"]) == ("mine", ["latin-capital-a", "latin-capital-k"])


def test_existing_output_is_never_overwritten(home: Path, voted: Path, pretrained: Path, run: Run) -> None:
    before = {**modified(voted), **modified(pretrained.parent)}
    for name, target in (("vote", voted), ("pretrain", pretrained)):
        done = run(name, *TINY, f"output={target}", home=home)
        assert done.code == 1
        assert f"{target} exists already and is not overwritten. Name another output, or remove it." in done.line
        assert "Traceback" not in done.text
    assert {**modified(voted), **modified(pretrained.parent)} == before


def test_fewer_zoo_tasks_than_neighbours_warns_and_uses_all(home: Path, zoo: Path, run: Run) -> None:
    with pytest.warns(UserWarning, match="Expected at least 8 entries to choose from, but got 3: using all"):
        done = run("vote", *TINY, f"output={home}/all", home=home)
    assert done.code == 0
    assert len(json.loads((home / "all" / "report.json").read_text())["neighbours"]) == 3


def test_a_truncated_zoo_file_is_named_and_skipped(home: Path, zoo: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(zoo, tmp_path / "zoo")
    name = ModelZoo(zoo).names[1]
    damaged = tmp_path / "zoo" / "tasks" / f"{name}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"Skipping a damaged zoo entry: .*{name}"):
        done = run("vote", *TINY, "vote.neighbours=2", f"zoo={damaged.parents[1]}", f"output={tmp_path}/v", home=home)
    assert done.code == 0
    used = {neighbour["name"] for neighbour in json.loads((tmp_path / "v" / "report.json").read_text())["neighbours"]}
    assert used == set(ModelZoo(zoo).names) - {name}
    again = run("prune", *TINY, *TINY_ROUNDS, "split.task=1", f"zoo={damaged.parents[1]}", home=home)
    assert again.code == 1, "a damaged entry is not taken for done"
    assert str(damaged) in again.line.replace("\n", "")


def test_a_zoo_of_another_theta0_is_refused(home: Path, zoo: Path, run: Run) -> None:
    before = modified(zoo)
    other = ("weights=null", "seed=5")
    for task in ("split.task=0", "split.task=9 split.sources=10"):
        done = run("prune", *TINY, *TINY_ROUNDS, *other, *task.split(), home=home)
        assert done.code == 1
        assert "begins with other weights than this backbone" in done.line
        assert f"weights={zoo}/theta0.safetensors" in done.text
    assert modified(zoo) == before


def test_a_zoo_of_another_backbone_is_refused(home: Path, zoo: Path, run: Run) -> None:
    done = run("prune", *TINY, *TINY_ROUNDS, "backbone=vit_mini", "weights=null", f"zoo={zoo}", home=home)
    assert done.code == 1
    assert "is of another backbone or θ⁰. backbone recipe: expected" in done.line


def test_a_zoo_without_entries_is_refused(home: Path, zoo: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(zoo, tmp_path / "zoo", ignore=shutil.ignore_patterns("tasks"))
    done = run("vote", *TINY, f"zoo={tmp_path}/zoo", f"output={tmp_path}/v", home=home)
    assert done.code == 1
    assert f"The zoo at {tmp_path}/zoo is empty. Fill it with `mvp-prune`." in done.line


@pytest.mark.slow
def test_a_zoo_of_a_parent_that_is_pruned_already(home: Path, pretrained: Path, run: Run) -> None:
    parent, zoo = home / "parent.safetensors", home / "kin"
    ratio = ("pruning.pruning_ratio=0.5", *TINY_ROUNDS)
    made = ("pretrain", *TINY, *ratio, f"backbone.weights={pretrained}", f"output={parent}")
    done = run(*made, home=home)
    assert done.code == 0, done.text
    recipe = json.loads(parent.with_suffix(".json").read_text())
    assert set(recipe["kept"].values()) == {16, 32, 64}
    assert create_backbone(recipe, weights=parent)(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    again = run(*made, home=home)
    assert again.code == 1
    assert "exists already and is not overwritten" in again.line

    common = (*TINY, *ratio, f"zoo={zoo}")
    assert run("prune", "-m", *common, f"weights={parent}", "split.task=0,1", home=home).code == 0
    assert ModelZoo(zoo).group_sizes["layer3.residual"] == 64
    done = run(
        "vote", *common[: len(TINY)], f"zoo={zoo}", f"output={home / 'kin-voted'}", "vote.neighbours=2", home=home
    )
    assert done.code == 0, done.text
    report = json.loads((home / "kin-voted" / "report.json").read_text())
    assert set(report["widths"].values()) == {8, 16, 32}
    other = run("prune", *common, f"weights={parent}", "backbone=resnet_mini_s2", "split.task=2", home=home)
    assert other.code == 1
    assert "with some units removed, but" in other.line


def test_a_vote_says_what_to_expect_and_how_to_prune_from_scratch_instead(home: Path, zoo: Path, run: Run) -> None:
    command = (*TINY, "vote.neighbours=2", "split.task=1")
    done = run("vote", *command, f"output={home}/advised", home=home)
    assert done.code == 0
    report = json.loads((home / "advised" / "report.json").read_text())
    share = 1 + report["evidence"]["leep"] / report["evidence"]["label_entropy"]
    assert f"The nearest task explains {share:.0%} of the labels' entropy" in done.line
    assert done.line.index("explains") < done.line.index("on test images"), "before it trains"
    words = shlex.split(next(line for line in done.text.splitlines() if line.startswith("    mvp-prune ")))[1:]
    assert {"split.kind=target", "split.task=1", "pruning.pruning_ratio=0.70"} <= set(words)
    assert f"steps={10 * report['steps']}" in words
    assert not any(word.startswith("vote.") for word in words)
    from_scratch = run("prune", *words, home=home)
    assert from_scratch.code == 0, from_scratch.text
    silent = run("vote", *command, "vote.similarity=prototypes", f"output={home}/silent", home=home)
    assert silent.code == 0
    assert "explains" not in silent.line


def test_callbacks_of_ones_own_are_made_and_a_checkpoint_has_what_a_round_did(tmp_path: Path, run: Run) -> None:
    saving = f"dirpath: {tmp_path}/saved, every_n_train_steps: 1, save_top_k: -1"
    saving = f"+trainer.callbacks=[{{_target_: lightning_mvp.PrunedCheckpoint, {saving}}}]"
    options = (saving, "trainer.enable_checkpointing=true", "weights=null")
    done = run("prune", *TINY, *TINY_ROUNDS, *options, home=tmp_path / "home")
    assert done.code == 0, done.text
    # 60 % of 4 steps over 2 rounds: one after each of the first two.
    rounds = {}
    for path in (tmp_path / "saved").iterdir():
        saved = torch.load(path, weights_only=True)
        rounds[saved["global_step"]] = saved["callbacks"]["MVPCallback"]["pruner"]["round"]
    assert rounds == {1: 1, 2: 2, 3: 2, 4: 2}


def test_a_parent_is_pruned_beside_callbacks_of_ones_own(tmp_path: Path, run: Run) -> None:
    average = "+trainer.callbacks={_target_: lightning.pytorch.callbacks.EMAWeightAveraging}"
    output = tmp_path / "parent.safetensors"
    options = ("pruning.pruning_ratio=0.5", average, f"output={output}")
    done = run("pretrain", *TINY, *TINY_ROUNDS, *options, home=tmp_path / "home")
    assert done.code == 0, done.text
    recipe = json.loads(output.with_suffix(".json").read_text())
    assert sum(recipe["kept"].values()) == 448 / 2
    create_backbone(recipe, weights=output)

"""Commands on image files: what they open and when, one folder a customer, and how the backbone sees images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from lightning_mvp.apps.task_choice import image_preprocessing, task_of
from lightning_mvp.backbones.pretrained import stored_preprocessing
from lightning_mvp.zoo.zoo import ModelZoo

from ..tasks.photographs import write_photographs
from .conftest import Run
from .test_config import compose_for

SMALL = ("data=imagefolder", "data.batch_size=8", "data.num_workers=0", "steps=3", "trainer.enable_progress_bar=false")
DRAWN = (*SMALL, "split.classes_per_task=2", "split.sources=3", "split.targets=2", "split.held_out_fraction=0")
ROUND = ("pruning.rounds=1", "pruning.warmup_steps=0")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest, **options: (names.append(str(path)), read(path))[1])
    return names


def entries(zoo: Path) -> dict[str, dict[str, Any]]:
    return {entry.facts["name"]: dict(entry.facts) for entry in ModelZoo(zoo).entries()}


@pytest.mark.slow
def test_a_backbone_trained_on_photographs_says_how_it_sees_them_and_tasks_open_their_own(
    tmp_path: Path, run: Run, opened: list[str]
) -> None:
    root = write_photographs(tmp_path / "photographs", dict.fromkeys(("ant", "bee", "cat", "dog"), 14))
    own = (*DRAWN, f"data.root={root}")
    # It asks for no tasks: ten classes each, as is the default, are more than there are.
    trained = run("pretrain", *SMALL, f"data.root={root}", "split.held_out_fraction=0", home=tmp_path)
    assert trained.code == 0, trained.text
    seen = stored_preprocessing(tmp_path / "backbones" / "imagefolder-resnet_mini.safetensors")
    assert seen is not None
    assert seen["input_size"] == 32
    # Of these random images, and of no others: ImageNet has 0.485 and 0.229.
    assert seen["mean"] == pytest.approx([0.5] * 3, abs=0.01)
    assert seen["std"] == pytest.approx([0.289] * 3, abs=0.01)

    opened.clear()
    planned = run("prune", "-m", *own, *ROUND, "split.task=range(0,3)", "dry_run=true", home=tmp_path)
    assert "3 planned" in planned.line, planned.text
    assert opened == []
    done = run("prune", "-m", *own, *ROUND, "split.task=0,1", home=tmp_path)
    assert done.code == 0, done.text
    zoo = ModelZoo(tmp_path / "zoos" / "imagefolder-resnet_mini")
    assert {entry.facts["input_size"] for entry in zoo.entries()} == {32}
    assert all(list(entry.facts["mean"]) == seen["mean"] for entry in zoo.entries())
    first = next(entry for entry in zoo.entries() if entry.facts["name"] == "source-000")
    assert first.info["data"]

    opened.clear()
    again = run("prune", "-m", *own, *ROUND, "split.task=0,1", home=tmp_path)
    assert "2 there already" in again.line
    assert opened == []
    other = run("prune", *own, *ROUND, "split.task=0", "data.seed=7", home=tmp_path)
    assert "to be about this task" in other.line

    voted = run("vote", *own, "split.task=0", "vote.neighbours=2", "vote.best_of=[1,2]", "mimic=2", home=tmp_path)
    assert voted.code == 0, voted.text
    report = json.loads(next((tmp_path / "voted").glob("*/report.json")).read_text())
    assert report["settings"]["data"].keys().isdisjoint({"num_workers", "balance", "mean"})


@pytest.mark.slow
def test_each_customers_folder_is_a_task(tmp_path: Path, run: Run) -> None:
    customers = tmp_path / "customers"
    for name, classes in {"cam-1": "ok scratch", "cam-2": "ok dent hole", "cam, 3": "ok rust", "line": "a b"}.items():
        write_photographs(customers / name, {each: 10 + len(name) for each in classes.split()})
    (customers / "cam-empty" / "ok").mkdir(parents=True)
    own = ("split=folders", *SMALL, f"data.root={customers}")
    theta0 = ("weights=null",)
    refused = run("prune", "-m", *own, *ROUND, *theta0, "split.task=cam*", home=tmp_path)
    assert refused.code == 1
    assert "1 of 4 do not: cam-empty" in refused.line
    assert not (tmp_path / "zoos").exists()
    done = run("prune", "-m", *own, *ROUND, *theta0, "split.task=cam*", "split.empty=skip", home=tmp_path)
    assert done.code == 0, done.text
    assert "Leaving out 1 folder without two classes of images: cam-empty" in done.line
    zoo = tmp_path / "zoos" / "imagefolder-resnet_mini"
    made = entries(zoo)
    assert {name: list(facts["classes"]) for name, facts in made.items()} == {
        "cam-1": ["ok", "scratch"],
        "cam-2": ["dent", "hole", "ok"],
        "cam, 3": ["ok", "rust"],
    }
    voted = run("vote", *own, "split.task=line", "vote.neighbours=2", home=tmp_path)
    assert voted.code == 0, voted.text
    assert "on test images of line after 3 steps" in voted.line

    for words, message in (
        (("split.task=cam-?",), "Expected -m with split.task=cam-?"),
        (("split.task=none*",), "there are none with images"),
        (("split.task=nobody",), "Expected `split.task` to name a folder"),
        (("split.task=cam-empty",), "Expected images in"),
        (("split.task=../customers",), "Expected `split.task` to name a folder"),
        (("split.task=cam-1", "data=glyphs"), "Expected data=imagefolder with split=folders"),
    ):
        bad = run("prune", *own, *ROUND, *theta0, *words, home=tmp_path)
        assert bad.code == 1
        assert message in bad.line, bad.text


def test_all_classes_may_be_one_task(tmp_path: Path) -> None:
    root = write_photographs(tmp_path, dict.fromkeys(("ant", "bee", "cat"), 3))
    config = OmegaConf.create(compose_for("prune", "split=all", "data=imagefolder", f"data.root={root}"))
    assert task_of(config).name == "imagefolder"
    assert task_of(config).classes == ("ant", "bee", "cat")
    config.split.task = "insects"
    assert task_of(config).name == "insects"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("backbone=resnet50",), {"input_size": 224, "mean": [0.485, 0.456, 0.406], "crop": 0.95}),
        (("backbone=resnet50", "data.image_size=96"), {"input_size": 96, "crop": 1.0, "interpolation": "bicubic"}),
        (("backbone=vit_tiny",), {"input_size": 224, "mean": [0.5, 0.5, 0.5], "crop": 0.9}),
        (("backbone=resnet50", "data.mean=[0.1,0.2,0.3]", "data.crop=0.5"), {"mean": [0.1, 0.2, 0.3], "crop": 0.5}),
    ],
)
def test_pretrained_weights_see_images_as_timm_says_unless_somebody_says_otherwise(
    words: tuple[str, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    for data in ("imagefolder", "huggingface"):
        told = ("weights=null", "backbone.pretrained=true", f"data={data}", f"data.root={tmp_path}", *words)
        seen = image_preprocessing(OmegaConf.create(compose_for("prune", *told)))
        assert seen is not None
        assert {name: seen[name] for name in expected} == expected


def test_a_size_that_a_pretrained_model_does_not_take_is_refused_before_any_work(tmp_path: Path, run: Run) -> None:
    root = write_photographs(tmp_path / "photographs", {"ant": 10, "bee": 10})
    own = ("split=all", *SMALL, f"data.root={root}", "backbone=vit_tiny", "weights=null", *ROUND)
    refused = run("prune", *own, "data.image_size=64", home=tmp_path)
    assert refused.code == 1
    assert "Expected images of 224 × 224 for vit_tiny_patch16_224" in refused.line

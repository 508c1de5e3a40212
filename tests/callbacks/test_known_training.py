"""Editing a script and running it again: what of the training is part of an entry's id, and what an id knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_mvp import ModelZoo, MVPCallback
from lightning_mvp.pruning.settings import entry_config
from lightning_mvp.voting.ranking import candidate_names
from lightning_mvp.zoo.entry import entry_id

from .test_resume import SaveAt, Stop
from .user import FACTS, UserModule, callback, fit, loader, make_trainer


class Rated(UserModule):
    """With a rate that a script's author changes, and a schedule that changes it further."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 0.1), "interval": "step"}]


def into(zoo: Path, **options: Any) -> MVPCallback:
    return callback(head="classifier", task=FACTS, zoo=zoo, **options)


def test_another_rate_is_another_entry_and_a_run_that_goes_on_keeps_its_id(zoo: Path, tmp_path: Path):
    fit(Rated(0.05), first := into(zoo), accumulate_grad_batches=2, max_steps=6)
    known = {"optimizer": "SGD", "learning_rate": 0.05, "weight_decay": 0.0, "batch_size": 12, "precision": "32-true"}
    assert first.config(6)["training"] == known
    path = tmp_path / "some.ckpt"
    make_trainer(into(zoo), SaveAt(5, path), Stop(5)).fit(Rated(0.02), loader())
    make_trainer(into(zoo)).fit(Rated(0.02), loader(), ckpt_path=path)
    made = ModelZoo(zoo)
    assert {entry.config["training"]["learning_rate"] for entry in made.entries()} == {0.05, 0.02}
    keys = [key for key, _ in sorted(made.configs.items())]
    with pytest.warns(UserWarning, match=r"left out are 1 of \w+ \(.*learning_rate 0\.0[25], not 0\.0[25]"):
        assert len(candidate_names(made, None, ())) == 1
    assert candidate_names(made, "all", ()) == candidate_names(made, keys, ()) == list(made.names)


def test_what_cannot_be_known_is_left_out(zoo: Path):
    batches = [tuple(batch) for batch in loader(batches=7)]
    mvp = into(zoo)
    make_trainer(mvp, max_steps=6).fit(UserModule(optimizer="adamw"), DataLoader(batches, batch_size=None))
    known = {"optimizer": "AdamW", "learning_rate": 0.01, "weight_decay": 0.1, "precision": "32-true"}
    assert mvp.config(6)["training"] == known


def test_ids_that_are_stored_and_those_of_the_commands_stay_as_they_were(zoo: Path):
    training = {"learning_rate": 0.05, "optimizer": "sgd"}
    own, study = into(zoo, training=training, seed=1), into(zoo, training={}, seed=1)
    fit(Rated(0.05), own)
    fit(Rated(0.05), study)
    names = {entry_id("colours", entry_config(own.settings, 12, each)) for each in (training, None)}
    # As they were before anything was guessed.
    assert set(ModelZoo(zoo).names) == names == {"colours--61df9659", "colours--e05dab2f"}


def test_the_same_again_is_refused_with_what_is_equal_and_may_replace(zoo: Path):
    fit(Rated(0.05), into(zoo))
    (name,) = ModelZoo(zoo).names
    with pytest.raises(FileExistsError) as caught:
        fit(Rated(0.05), into(zoo))
    for words in (name, "rounds=3", "training.learning_rate=0.05", "nothing else, such as code", "overwrite=True"):
        assert words in str(caught.value)
    before = ModelZoo(zoo)[name].info
    again = into(zoo, overwrite=True)
    again.info["note"] = "other code"
    fit(Rated(0.05), again)
    assert "note" not in before
    assert ModelZoo(zoo).names == (name,)
    assert ModelZoo(zoo)[name].info["note"] == "other code"

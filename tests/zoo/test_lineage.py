"""Families, waves, descendants and the masks of generations, from a zoo that has grown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_mvp.zoo import ModelZoo, config_hash, entry_id
from lightning_mvp.zoo.families import families
from lightning_mvp.zoo.generations import generations
from lightning_mvp.zoo.lineage import descendants, lineage, seeds_fingerprint
from lightning_mvp.zoo.waves import WAVES, family_members, growth_config, next_wave, refusal, refuse, wave_voters

from .entries import CONFIG, GROUPS, THETA0, make_entry
from .grown import FAMILY, grown, grown_zoo


@pytest.fixture
def zoo(tmp_path: Path) -> ModelZoo:
    return grown_zoo(tmp_path / "zoo")


def short(names: tuple[str, ...] | list[str]) -> list[str]:
    return [name.partition("--")[0] for name in names]


def test_a_family_is_its_seeds_and_what_grew_from_them(zoo: ModelZoo, tmp_path: Path) -> None:
    found = families(zoo)
    assert {key: short(names) for key, names in found.items()} == {FAMILY: ["a", "a", "b", "c"], other(): ["z"]}
    plain = ModelZoo.create(tmp_path / "plain", None, THETA0, GROUPS)
    for config in (CONFIG, {"rounds": 9}, {"start": "vote"}, {"start": "vote", "family": 3}):
        plain.add(make_entry("a", config))
    assert families(plain) == plain.configs


def other() -> str:
    return config_hash({"rounds": 9})


def test_members_come_by_wave_then_name_whatever_their_files_times(zoo: ModelZoo) -> None:
    _, members = family_members(zoo)
    assert [(member.task, member.wave, member.generation) for member in members] == [
        ("a", 0, 0),
        ("b", 0, 0),
        ("c", 1, 1),
        ("a", 2, 2),
    ]
    for path in (zoo.path / "tasks").iterdir():
        path.touch()
    assert family_members(zoo)[1] == members
    assert next_wave(members) == 3
    assert members[3].parents == (members[2].name, members[1].name)


def test_descendants_are_followed_also_from_an_entry_that_is_gone(zoo: ModelZoo) -> None:
    a, c = entry_id("a", CONFIG), lineage(zoo)[3].name
    assert short(descendants(lineage(zoo), [a])) == ["c", "a"]
    assert short(descendants(lineage(zoo), [c])) == ["a"]
    zoo.remove(a)
    assert short(descendants(lineage(zoo), [a])) == ["c", "a"]


def test_the_seeds_fingerprint_is_of_their_content_and_of_nothing_else(zoo: ModelZoo) -> None:
    before = seeds_fingerprint(family_members(zoo)[1])
    zoo.add(grown(zoo, "d", 3, [], 3))
    assert seeds_fingerprint(family_members(zoo)[1]) == before
    zoo.add(make_entry("a", seed=9), overwrite=True)
    assert seeds_fingerprint(family_members(zoo)[1]) != before


def test_a_grown_entry_that_hides_where_it_comes_from_is_named_and_left_out(zoo: ModelZoo) -> None:
    liar = grown(zoo, "liar", 3, [], 3)
    zoo.add(replace(liar, info={**liar.info, "wave": "last"}))
    with pytest.warns(UserWarning, match="name its wave, generation and parents, but got 'last'"):
        assert "liar" not in {member.task for member in lineage(zoo)}


def test_the_first_list_of_a_wave_counts_for_all_its_jobs(zoo: ModelZoo) -> None:
    family, members = family_members(zoo)
    config = growth_config(family, members, {"wave": 2, "neighbours": 3})
    voters = wave_voters(zoo, config)
    assert short([voter.name for voter in voters]) == ["a", "b", "c"]
    (path,) = (zoo.path / WAVES).iterdir()
    assert json.loads(path.read_text())["voters"] == [voter.name for voter in voters]
    zoo.add(grown(zoo, "late", 1, [], 1, neighbours=9))
    assert wave_voters(zoo, config) == voters
    assert len(wave_voters(zoo, {**config, "neighbours": 4})) == 4, "another rule has a list of its own"


def test_a_list_with_a_voter_that_is_gone_is_written_anew_unless_the_wave_has_used_it(zoo: ModelZoo) -> None:
    family, members = family_members(zoo)
    config = growth_config(family, members, {"wave": 3})
    assert len(wave_voters(zoo, config)) == 4
    gone = members[3]
    zoo.remove(gone.name)
    assert wave_voters(zoo, config) == members[:3]
    zoo.add(grown(zoo, "d", 3, [members[2].name], 2))
    zoo.remove(members[2].name)
    with pytest.raises(ValueError, match=r"c--.* is gone\. Put it back .*or remove d--"):
        wave_voters(zoo, config)


@pytest.mark.parametrize("content", ["[]", "{}", '{"voters": []}', '{"voters": [1]}', "no json", "[1, 2", '"' * 9])
def test_a_damaged_list_is_refused_by_its_name(zoo: ModelZoo, content: str) -> None:
    family, members = family_members(zoo)
    config = growth_config(family, members, {"wave": 3})
    (zoo.path / WAVES).mkdir()
    path = zoo.path / WAVES / f"3--{config_hash(config)}.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path.name}.* Remove it"):
        wave_voters(zoo, config)


def test_a_refused_task_is_remembered_with_its_reason(zoo: ModelZoo) -> None:
    assert refusal(zoo, "d--12345678") is None
    refuse(zoo, "d--12345678", {"val_accuracy": 0.25})
    refuse(zoo, "d--12345678", {"val_accuracy": 0.75})
    assert refusal(zoo, "d--12345678") == {"val_accuracy": 0.25}


def test_a_family_without_seeds_is_refused(zoo: ModelZoo, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="family 'nothing' has none; the zoo has the families"):
        family_members(zoo, "nothing")
    with pytest.raises(ValueError, match="it has none; the zoo has no entries"):
        family_members(ModelZoo.create(tmp_path / "empty", None, THETA0, GROUPS))


def test_generations_say_how_alike_their_masks_are(zoo: ModelZoo) -> None:
    _, members = family_members(zoo)
    found = generations(zoo, members)
    assert [(each.number, each.entries) for each in found] == [(0, 2), (1, 1), (2, 1)]
    seeds, first, second = found
    a, b, c, again = (zoo[member.name].masks for member in members)

    def iou(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
        each = {group: (one[group] & two[group]).sum() / (one[group] | two[group]).sum() for group in GROUPS}
        return sum(GROUPS[group] * each[group] for group in GROUPS) / sum(GROUPS.values())

    assert seeds.iou == pytest.approx(iou(a, b))
    assert seeds.random_iou is not None
    assert seeds.parents_iou is None
    assert (first.iou, first.accuracy) == (None, 0.6)
    assert first.parents_iou == pytest.approx((iou(c, a) + iou(c, b)) / 2)
    assert second.parents_iou == pytest.approx((iou(again, c) + iou(again, b)) / 2)

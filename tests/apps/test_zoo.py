"""`mvp-zoo` says what a zoo holds, finds what is damaged, removes what it is told to, and is quick to start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.apps.zoo import main
from lightning_mvp.zoo import ModelZoo, ZooEntry, config_hash, entry_id
from lightning_mvp.zoo.waves import WAVES, family_members, growth_config, refuse, wave_voters

from ..zoo.entries import CONFIG, GROUPS, THETA0, make_entry
from ..zoo.grown import FAMILY, grown, grown_zoo

OTHER = {**CONFIG, "rounds": 8}


@dataclass(frozen=True)
class Answer:
    """What the command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """What went to the screen, without line breaks."""
        return " ".join(self.out.split())


Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run ``mvp-zoo`` in this process."""

    def asked(*arguments: str | Path) -> Answer:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["mvp-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        streams = capsys.readouterr()
        return Answer(int(stopped.value.code or 0), streams.out, streams.err)

    return asked


def with_info(entry: ZooEntry, accuracy: float | None, units: float) -> ZooEntry:
    metrics = {"val_accuracy": accuracy, "train_loss": 0.1}
    kept = {"units": units, "params": units / 2, "macs": units / 4}
    return replace(entry, info={**entry.info, "metrics": metrics, "kept": kept})


@pytest.fixture
def zoo(tmp_path: Path) -> ModelZoo:
    """Three entries of one config, one of another."""
    zoo = ModelZoo.create(tmp_path / "zoo", {"model": "mini"}, THETA0, GROUPS)
    for seed, (task, accuracy) in enumerate([("alpha", 0.5), ("beta", None), ("gamma", 0.875)]):
        zoo.add(with_info(make_entry(task, seed=seed), accuracy, 0.4))
    zoo.add(make_entry("alpha", OTHER, seed=3))
    return zoo


def file_of(zoo: ModelZoo, name: str) -> Path:
    return zoo.path / "tasks" / f"{name}.safetensors"


def name_of(task: str) -> str:
    """The entry of a task in the config of three."""
    return entry_id(task, CONFIG)


def damage(path: Path) -> None:
    """One bit at the very end: of a tensor, not of the header."""
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def test_list_has_a_row_for_each_entry_and_says_what_tells_configs_apart(zoo: ModelZoo, ask: Ask) -> None:
    done = ask("list", zoo.path)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines() if "--" in line]
    assert [row[0] for row in rows] == [name for names in zoo.configs.values() for name in names]
    size = f"{file_of(zoo, name_of('alpha')).stat().st_size / 1000:.1f}"
    assert [name_of("alpha"), "2", "50.0%", "40.0%", "20.0%", "10.0%", size, "kB"] in rows
    assert [name_of("beta"), "2", "–"] in [row[:3] for row in rows], "an undefined accuracy is not 0"
    for config in (CONFIG, OTHER):
        assert f"config {config_hash(config)}, rounds={config['rounds']}\n" in done.out
    assert "4 entries, " in done.out


def test_list_sorts_within_each_config(zoo: ModelZoo, ask: Ask) -> None:
    names = [each["name"] for each in ask("list", zoo.path, "--sort", "accuracy", "--json").json["entries"]]
    three = [name for name in names if name[-8:] == config_hash(CONFIG)]
    assert three == [name_of(task) for task in ("gamma", "alpha", "beta")], "unknown comes last"
    assert abs(names.index(three[0]) - names.index(three[2])) == 2, "configs stay together"


def test_list_as_json_is_exact(zoo: ModelZoo, ask: Ask) -> None:
    done = ask("list", zoo.path, "--json")
    assert (done.code, done.err) == (0, "")
    name = name_of("gamma")
    (entry,) = (each for each in done.json["entries"] if each["name"] == name)
    assert entry == {
        "name": name,
        "config": name[-8:],
        "size": file_of(zoo, name).stat().st_size,
        "task": "gamma",
        "classes": 2,
        "accuracy": 0.875,
        "kept": {"units": 0.4, "params": 0.2, "macs": 0.1},
        "problem": None,
    }
    assert done.json["configs"][name[-8:]] == CONFIG


def test_an_empty_zoo_is_listed_as_such(tmp_path: Path, ask: Ask) -> None:
    empty = ModelZoo.create(tmp_path / "zoo", None, THETA0, GROUPS)
    assert ask("list", empty.path).out.startswith("0 entries")
    assert ask("list", empty.path, "--json").json["entries"] == []
    assert ask("verify", empty.path).code == 0


def test_damaged_entries_are_listed_with_the_reason(zoo: ModelZoo, ask: Ask) -> None:
    name = name_of("beta")
    file_of(zoo, name).write_bytes(b"torn")
    done = ask("list", zoo.path)
    assert done.code == 0
    assert [name, "damaged"] in [line.split()[:2] for line in done.out.splitlines()]
    assert f"damaged: {file_of(zoo, name)}: " in done.out
    problems = {each["name"]: each["problem"] for each in ask("list", zoo.path, "--json").json["entries"]}
    assert [each for each, problem in problems.items() if problem] == [name]


def test_verify_reads_what_list_does_not(zoo: ModelZoo, ask: Ask) -> None:
    assert ask("verify", zoo.path).line == "4 of 4 entries are sound, and so is θ⁰"
    name = name_of("beta")
    damage(file_of(zoo, name))
    assert all(each["problem"] is None for each in ask("list", zoo.path, "--json").json["entries"]), "headers only"
    done = ask("verify", zoo.path)
    assert (done.code, done.err) == (1, "")
    assert f"damaged: {file_of(zoo, name)}: " in done.out
    assert "its content does not match its SHA-256" in done.out
    assert done.line.endswith("3 of 4 entries are sound, and so is θ⁰")
    found = ask("verify", zoo.path, "--json")
    assert found.code == 1
    assert list(found.json["damaged"]) == [name]
    assert (found.json["sound"], found.json["theta0"]) == (3, None)


def test_verify_does_not_blame_entries_for_a_damaged_theta0(zoo: ModelZoo, ask: Ask) -> None:
    damage(zoo.path / "theta0.safetensors")
    damage(file_of(zoo, name_of("beta")))
    done = ask("verify", zoo.path, "--json")
    assert done.code == 1
    assert "theta0.safetensors" in done.json["theta0"]
    assert list(done.json["damaged"]) == [name_of("beta")]
    assert ask("verify", zoo.path).line.endswith("3 of 4 entries are sound, but θ⁰ is not")


def test_verify_names_each_file_of_a_wave_that_is_damaged_or_lists_what_is_gone(tmp_path: Path, ask: Ask) -> None:
    zoo = grown_zoo(tmp_path / "zoo")
    family, members = family_members(zoo)
    for wave in (3, 4):
        wave_voters(zoo, growth_config(family, members, {"wave": wave}))
    refuse(zoo, "x--12345678", {"val_accuracy": 0.25})
    assert ask("verify", zoo.path, "--json").json["waves"] == {}
    zoo.add(grown(zoo, "d", 3, [members[2].name], 2))
    zoo.remove(members[2].name)
    (zoo.path / WAVES / "x--12345678.refused.json").write_text("{")
    (zoo.path / WAVES / "5--12345678.json").write_text('{"voters": []}')
    done = ask("verify", zoo.path, "--json")
    assert (done.code, done.json["damaged"]) == (1, {})
    (used,) = (zoo.path / WAVES).glob("3--*")
    assert set(done.json["waves"]) == {
        f"{WAVES}/{n}" for n in (used.name, "x--12345678.refused.json", "5--12345678.json")
    }
    assert f"{members[2].name} is gone. Put it back" in done.json["waves"][f"{WAVES}/{used.name}"]
    assert ask("verify", zoo.path).out.count("damaged: ") == 3


def test_verify_names_what_killed_writers_left_but_that_is_no_damage(zoo: ModelZoo, ask: Ask) -> None:
    (zoo.path / "tasks" / ".beta.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    done = ask("verify", zoo.path)
    assert done.code == 0
    assert "tasks/.beta.safetensors.0123456789abcdef.tmp" in done.out
    assert len(ask("verify", zoo.path, "--json").json["leftovers"]) == 1


def test_a_name_that_would_steer_the_terminal_is_escaped(zoo: ModelZoo, ask: Ask) -> None:
    file_of(zoo, "\x1b[2Jx--00000000").write_bytes(b"torn")
    for command in ("list", "verify"):
        out = ask(command, zoo.path).out
        assert "\x1b" not in out
        assert "\\x1b[2Jx--00000000" in out


def test_show_says_all_about_an_entry_and_its_nearest(zoo: ModelZoo, ask: Ask) -> None:
    name = name_of("alpha")
    page = ask("show", zoo.path, name)
    assert (page.code, page.err) == (0, "")
    for words in ("a, b", "pruning_ratio=0.5", "50.0%", "2 class means stored", "Widths", "Nearest tasks"):
        assert words in page.out
    assert "rounds=2" in page.out
    rows = [" ".join(line.replace("│", " ").split()) for line in page.out.splitlines()]
    assert "stem 3 6 50.0%" in rows
    assert "block 4 9 44.4%" in rows
    assert "all groups 7 15 46.7%" in rows
    found = ask("show", zoo.path, name, "--json").json
    assert found["widths"] == {"stem": {"kept": 3, "units": 6}, "block": {"kept": 4, "units": 9}}
    assert found["facts"]["classes"] == ["a", "b"]
    assert (found["importance"], found["accuracy"]) == (True, 0.5)
    nearest = found["nearest"]
    assert {each["name"] for each in nearest} == {name_of("beta"), name_of("gamma")}, "the same config only"
    assert [each["similarity"] for each in nearest] == sorted((each["similarity"] for each in nearest), reverse=True)
    assert {each["shared_classes"] for each in nearest} == {2}


def test_show_leaves_damaged_neighbours_out_by_name(zoo: ModelZoo, ask: Ask) -> None:
    damage(file_of(zoo, name_of("beta")))
    found = ask("show", zoo.path, name_of("alpha"), "--json")
    assert found.code == 0
    assert [each["name"] for each in found.json["nearest"]] == [name_of("gamma")]
    assert list(found.json["left_out"]) == [name_of("beta")]
    page = ask("show", zoo.path, name_of("alpha"))
    assert f"left out, damaged: {file_of(zoo, name_of('beta'))}" in page.out


def test_remove_takes_exactly_the_named_entries(zoo: ModelZoo, ask: Ask) -> None:
    gone = [name_of("beta"), name_of("gamma")]
    kept = set(zoo) - set(gone)
    file_of(zoo, gone[0]).write_bytes(b"torn")
    done = ask("remove", zoo.path, *gone, gone[0])
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if line.startswith("removed ")]
    assert lines == [f"removed {name}" for name in gone]
    assert set(zoo) == kept
    assert ask("remove", zoo.path, *kept, "--json").json == {"zoo": str(zoo.path), "removed": list(kept), "left": 0}


@pytest.mark.parametrize("unknown", ["alpha--00000000", "../theta0", "", "zoo.json"])
def test_remove_refuses_unknown_names_before_it_removes_any(unknown: str, zoo: ModelZoo, ask: Ask) -> None:
    before = sorted(path for path in zoo.path.rglob("*"))
    done = ask("remove", zoo.path, name_of("beta"), unknown)
    assert (done.code, done.out) == (1, "")
    assert "Nothing was removed." in done.err
    assert f"no {unknown!r}" in done.err
    assert sorted(path for path in zoo.path.rglob("*")) == before


def test_picture_is_one_page_and_never_overwritten(zoo: ModelZoo, tmp_path: Path, ask: Ask) -> None:
    page = tmp_path / "page.png"
    done = ask("picture", zoo.path, "--output", page)
    assert (done.code, done.err) == (0, "")
    assert page.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {page}: overlap and similarity of 3 tasks" in done.line
    assert "--config draws another: " in done.line
    before = page.read_bytes()
    again = ask("picture", zoo.path, "--output", page)
    assert (again.code, again.out) == (1, "")
    assert "exists already and is not overwritten" in " ".join(again.err.split())
    assert page.read_bytes() == before


def test_picture_as_json_and_its_default_place(zoo: ModelZoo, ask: Ask) -> None:
    damage(file_of(zoo, name_of("beta")))
    found = ask("picture", zoo.path, "--json").json
    assert found["output"] == str(zoo.path / "picture.png")
    assert (zoo.path / "picture.png").exists()
    assert set(found["entries"]) == {name_of("alpha"), name_of("gamma")}
    assert list(found["left_out"]) == [name_of("beta")]
    assert len(zoo) == 4, "a picture in its folder is no entry"


def test_pictures_that_cannot_be_are_refused_and_leave_nothing(zoo: ModelZoo, tmp_path: Path, ask: Ask) -> None:
    done = ask("picture", zoo.path, "--config", config_hash(OTHER))
    assert done.code == 1
    assert "at least two sound entries of one config to compare, but got 1" in done.err
    assert "Expected `--config` to be one of" in ask("picture", zoo.path, "--config", "none").err
    assert "is empty" in ask("picture", ModelZoo.create(tmp_path / "new", None, THETA0, GROUPS).path).err
    assert ask("picture", zoo.path, "--output", tmp_path / "page.words").code == 1
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("*.words"))


@pytest.mark.parametrize(
    "arguments", [("list",), ("verify",), ("show", "entry"), ("remove", "entry"), ("picture",), ("list", "--json")]
)
def test_no_zoo_is_an_answer_in_a_sentence(
    arguments: tuple[str, ...], tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *others = arguments
    done = ask(command, tmp_path / "nowhere", *others)
    assert (done.code, done.out) == (1, "")
    assert f"Expected a zoo at {tmp_path / 'nowhere'}, but there is no such folder" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("LIGHTNING_MVP_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["mvp-zoo", command, str(tmp_path / "nowhere"), *others])
    with pytest.raises(FileNotFoundError):
        main()


def test_show_tells_names_like_a_mistyped_one(zoo: ModelZoo, ask: Ask) -> None:
    done = ask("show", zoo.path, "gama--" + config_hash(CONFIG))
    assert (done.code, done.out) == (1, "")
    assert f"similar: {name_of('gamma')}" in done.err


def test_looking_after_a_zoo_imports_neither_torch_nor_hydra_nor_matplotlib(zoo: ModelZoo) -> None:
    name = name_of("alpha")
    runs = [["list"], ["verify"], ["show", name], ["show", name, "--json"], ["remove", name]]
    script = f"""
import sys
from lightning_mvp.apps.zoo import main
for command, *others in {runs!r}:
    sys.argv = ["mvp-zoo", command, {str(zoo.path)!r}, *others]
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code == 0, command
print("heavy imports:", sorted({{"torch", "lightning", "timm", "hydra", "matplotlib", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy imports: []")
    assert name not in zoo


def test_a_reader_that_has_enough_is_no_error(zoo: ModelZoo) -> None:
    script = "import sys; from lightning_mvp.apps.zoo import main; main()"
    for flag in ([], ["--json"]):
        command = [sys.executable, "-c", script, "list", str(zoo.path), *flag]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""


def test_names_and_groups_are_never_taken_for_markup(tmp_path: Path, ask: Ask) -> None:
    zoo = ModelZoo.create(tmp_path / "zoo", None, THETA0, GROUPS)
    zoo.add(replace(make_entry("[red]x"), prototypes=None, head={}, importance={}))
    name = zoo.names[0]
    assert name in ask("list", zoo.path).out
    shown = ask("show", zoo.path, name)
    assert shown.code == 0
    assert name in shown.out
    assert "no head" in shown.out
    assert shown.out.count("not stored") == 2


def test_lineage_says_who_came_from_whom(tmp_path: Path, ask: Ask) -> None:
    zoo = grown_zoo(tmp_path / "zoo")
    found = ask("lineage", zoo.path, "--json").json["families"][FAMILY]
    assert [(each["task"], each["wave"], each["generation"]) for each in found["members"]] == [
        ("a", 0, 0),
        ("b", 0, 0),
        ("c", 1, 1),
        ("a", 2, 2),
    ]
    assert [each["entries"] for each in found["generations"]] == [2, 1, 1]
    a, b = name_of("a"), name_of("b")
    zoo.remove(a)
    done = ask("lineage", zoo.path)
    assert (done.code, done.err) == (0, "")
    assert " †" in done.line
    assert "Masks by generation" in done.line
    assert f"family {FAMILY}" in done.line
    rows = [line.split() for line in done.out.splitlines() if "--" in line]
    assert ["0", "0", b] in [row[:3] for row in rows]


def test_a_grown_zoo_is_listed_and_shown_by_family(tmp_path: Path, ask: Ask) -> None:
    zoo = grown_zoo(tmp_path / "zoo")
    done = ask("list", zoo.path)
    assert done.out.count("config ") == 2, "the seeds' config, with what was grown from it, and another one"
    assert len(ask("show", zoo.path, name_of("a"), "--json").json["nearest"]) == 3


def test_what_others_were_grown_from_is_removed_only_by_a_word(tmp_path: Path, ask: Ask) -> None:
    zoo = grown_zoo(tmp_path / "zoo")
    before = zoo.names
    refused = ask("remove", zoo.path, name_of("a"))
    assert refused.code == 1
    assert "Nothing was removed. 2 entries descend from what you named" in " ".join(refused.err.split())
    assert zoo.names == before
    assert ask("remove", zoo.path, "z--" + config_hash({"rounds": 9})).code == 0
    kept = ask("remove", zoo.path, name_of("a"), "--yes", "--json")
    assert len(kept.json["descend"]) == 2
    gone = ask("remove", zoo.path, name_of("b"), "--descendants")
    assert gone.code == 0
    assert zoo.names == ()


def test_show_takes_the_beginning_of_one_name_alone(zoo: ModelZoo, ask: Ask) -> None:
    assert ask("show", zoo.path, "bet", "--json").json["name"] == name_of("beta")
    several = ask("show", zoo.path, "alpha")
    assert (several.code, "begins 2: " in several.err, "Write more of it" in several.err) == (1, True, True)
    assert "has no 'delta'" in " ".join(ask("show", zoo.path, "delta").err.split())
    assert ask("show", zoo.path, "").code == 1
    assert "has no 'bet'" in " ".join(ask("remove", zoo.path, "bet").err.split()), "what is removed is named in full"


def test_a_lineage_is_drawn_where_it_is_asked_and_never_overwrites(zoo: ModelZoo, tmp_path: Path, ask: Ask) -> None:
    page = tmp_path / "lineage.png"
    done = ask("lineage", zoo.path, "--picture", page)
    assert done.code == 0, done.err
    assert f"wrote {page}: who was grown from whom" in done.out
    before = page.read_bytes()
    assert before.startswith(b"\x89PNG")
    assert ask("lineage", zoo.path, "--picture", page).code == 1
    assert page.read_bytes() == before

"""The page's own script is sound, and its pure functions search, sort and relate as the page says. Needs no browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

from lightning_mvp.zoo.page.render import SCRIPTS

racer = pytest.importorskip("py_mini_racer", reason="a JavaScript engine: pip install mini-racer")
Call = Callable[..., Any]


def source(name: str) -> str:
    return files("lightning_mvp.zoo.page").joinpath(name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def call() -> Call:
    context = racer.MiniRacer()
    context.eval(source("entries.js"))

    def called(function: str, *arguments: Any) -> Any:
        return json.loads(context.eval(f"JSON.stringify({function}(...{json.dumps(arguments)}) ?? null)"))

    return called


def entry(task: str, **more: Any) -> dict[str, Any]:
    return {"name": f"{task}--0a1b2c3d", "task": task, "classes": [], "family": "0a1b2c3d", "config": {}, **more}


def tasks(entries: list[dict[str, Any]]) -> list[str]:
    return [each["task"] for each in entries]


def test_the_whole_script_parses() -> None:
    whole = "\n".join(map(source, SCRIPTS))
    racer.MiniRacer().eval(f"() => {{ {whole} }}")
    with pytest.raises(racer.JSParseException):
        racer.MiniRacer().eval(f"() => {{ {whole} ( }}")


def test_all_words_of_a_search_must_be_found_in_names_classes_or_settings(call: Call) -> None:
    pets = entry("pets", classes=["Cat", "dog (big)"], config={"rounds": 8, "training": {"mimic": 2.0}})
    cars = entry("cars", classes=["van"], config={"rounds": 3})
    for text, found in {
        "": ["pets", "cars"],
        "  CAT ": ["pets"],
        "cat rounds=8": ["pets"],
        "cat van": [],
        "(big)": ["pets"],
        "training.mimic=2": ["pets"],
        "0a1b": ["pets", "cars"],
        ".*": [],
    }.items():
        assert tasks(call("matching", [pets, cars], text)) == found, text


def test_a_column_is_sorted_either_way_with_the_unknown_last(call: Call) -> None:
    entries = [
        entry("t10", accuracy=0.5),
        entry("t9", accuracy=None),
        entry("t2", accuracy=0.9),
        entry("t1", accuracy=0.5),
    ]
    assert tasks(call("sorted", entries, "accuracy", False)) == ["t1", "t10", "t2", "t9"]
    assert tasks(call("sorted", entries, "accuracy", True)) == ["t2", "t1", "t10", "t9"]
    assert tasks(call("sorted", entries, "task", False)) == ["t1", "t2", "t9", "t10"]
    assert tasks(call("sorted", entries, "macs", True)) == ["t1", "t2", "t9", "t10"], "unknown of all"
    assert tasks(call("sorted", [*entries, entry("damaged")], "accuracy", True))[-1] == "t9"


def test_pairs_are_found_in_the_lower_triangle_from_either_side(call: Call) -> None:
    # Rows of (1,0), (2,0), (2,1), (3,0), (3,1), (3,2).
    triangle = [100, 200, 210, 300, 310, 320]
    assert [call("pair", triangle, *pair) for pair in [(2, 1), (1, 2), (3, 0), (0, 1)]] == [0.21, 0.21, 0.3, 0.1]
    assert call("pair", 250, 5, 3) == 0.25
    family = {"order": [7, 4, 9], "similarity": [500, 800, 800], "iou": [1, 2, 3], "chance": 1}
    assert [each["index"] for each in call("relatives", family, 9, 8)] == [4, 7]
    assert [each["index"] for each in call("relatives", family, 7, 1)] == [9]
    assert call("relatives", {"order": [3]}, 3, 8) == []


def test_kin_and_order_of_a_lineage(call: Call) -> None:
    tree = {"a": (0, []), "b": (0, []), "c": (1, ["b", "gone--1"]), "d": (2, ["c", "a"])}
    entries = [{"name": name, "task": name, "wave": wave, "parents": parents} for name, (wave, parents) in tree.items()]
    kin = "((entries, name) => Object.values(kin(entries, name)).map((found) => Object.fromEntries(found)))"
    assert call(kin, entries, "c") == [{"b": 1, "gone--1": 1}, {"d": 1}]
    assert call(kin, entries, "d") == [{"c": 1, "a": 1, "b": 2, "gone--1": 2}, {}]
    assert call(kin, entries, "gone--1")[1] == {"c": 1, "d": 2}, "also of one that is gone"
    assert [each["name"] for each in call("byWave", entries[::-1])] == ["gone--1", "a", "b", "c", "d"]
    places = call("((entries) => Object.fromEntries(besideWaves(entries)))", entries)
    assert places == {"a": -0.15, "b": 0.15, "c": 1, "d": 2}


def test_numbers_are_written_for_people(call: Call) -> None:
    numbers = [0, 999, 1234, 999_900, 1_234_567, 25_600_000]
    assert [call("short", n) for n in numbers] == ["0 ", "999 ", "1.23 k", "1.00 M", "1.23 M", "25.6 M"]
    assert [call("percent", value) for value in (0.1234, 0, None)] == ["12.3%", "0.0%", "–"]
    flat = call("flat", {"a": {"b": 0.123456, "c": None}, "d": [0.5, 1 / 3], "e": True})
    assert flat == [["a.b", "0.1235"], ["a.c", "null"], ["d", "0.5, 0.3333"], ["e", "true"]]
    groups = [{"units": 10}, {"units": 4}]
    assert call("meanWidths", [{"widths": [5, 4]}, {"widths": [10, 1]}, {}], groups) == [0.75, 0.625]
    assert call("plain", '<a href="x">&') == '&lt;a href="x"&gt;&amp;'
    waves = call("waveMeans", [{"wave": 1, "accuracy": 0.5}, {"wave": 0, "accuracy": 1}, {"wave": 1, "accuracy": 1}])
    assert waves == [{"wave": 0, "size": 1, "mean": 1}, {"wave": 1, "size": 2, "mean": 0.75}]

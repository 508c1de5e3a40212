"""The page about a zoo holds the right numbers, loads nothing, and takes no name for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mvp.zoo import ModelZoo, entry_id
from lightning_mvp.zoo.kinship import mask_overlap, similarities
from lightning_mvp.zoo.page import charting_library, page_data, render

from .entries import CONFIG, GROUPS, THETA0, make_entry
from .grown import FAMILY, grown_zoo

HOSTILE = ["</script><script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "a & b <!-- c", "line\u2028end"]


class Page(HTMLParser):
    """The elements of a page and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def zoo(tmp_path: Path) -> ModelZoo:
    return grown_zoo(tmp_path / "zoo")


def test_the_page_is_one_whole_document_that_loads_nothing(zoo: ModelZoo) -> None:
    page = Page(render(page_data(zoo), "const Plotly = 1;"))
    assert page.open == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert not {"iframe", "object", "embed", "img", "base", "form"} & set(tags)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
    for asset in Path(page_data.__code__.co_filename).parent.glob("*.[hcj]*[lsj]"):
        assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", asset.read_text()), asset


def test_the_policy_allows_the_page_s_own_scripts_and_nothing_else(zoo: ModelZoo) -> None:
    library = "const Plotly = 'θ \u2713';"
    page = Page(render(page_data(zoo), library))
    (policy,) = (each["content"] for tag, each in page.elements if "http-equiv" in each)
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert page.scripts[1] == library


def test_the_library_comes_whole_from_its_package() -> None:
    pytest.importorskip("plotly")
    library = charting_library()
    assert "MIT license" in library[:300]
    assert "</script" not in library.lower()
    assert "<!--" not in library
    assert "\r" not in library, "HTML would take it for a line end, and the policy's hash would not fit"


def test_entries_have_their_numbers(zoo: ModelZoo) -> None:
    data = Page(render(page_data(zoo), "")).data
    assert data["groups"] == [{"name": name, "units": units} for name, units in GROUPS.items()]
    entries = {entry["name"]: entry for entry in data["entries"]}
    assert set(entries) == set(zoo)
    for name, shown in entries.items():
        entry = zoo[name]
        assert shown["widths"] == [int(mask.sum()) for mask in entry.masks.values()]
        assert shown["removed"] == pytest.approx(1 - sum(shown["widths"]) / sum(GROUPS.values()))
        assert shown["parameters"] == sum(np.size(value) for value in entry.weights.values())
        assert shown["size"] == zoo.file(name).stat().st_size
        assert (shown["config"], shown["classes"]) == (entry.config, ["a", "b"])
    (last,) = (entry for entry in data["entries"] if entry["wave"] == 2)
    assert (last["task"], last["generation"], last["family"], last["accuracy"]) == ("a", 2, FAMILY, 0.7)
    assert last["parents"] == zoo[last["name"]].info["parents"]
    assert entries[entry_id("a", CONFIG)]["accuracy"] is None, "what is not known is not 0"
    families = {family["name"]: family["settings"] for family in data["families"]}
    assert families[FAMILY] == CONFIG
    assert [settings["rounds"] for name, settings in families.items() if name != FAMILY] == [9]


def test_pairs_are_those_of_the_masks_and_prototypes(zoo: ModelZoo) -> None:
    data = page_data(zoo)
    family = next(family for family in data["families"] if family["name"] == FAMILY)
    entries = [zoo[data["entries"][index]["name"]] for index in family["order"]]
    assert len(entries) == 4
    masks = [entry.masks for entry in entries]
    lower = np.tril_indices(4, -1)
    iou, chance = (matrix[lower] for matrix in mask_overlap(masks, masks))
    assert np.abs(np.array(family["iou"]) / 1000 - iou).max() <= 0.0005
    assert family["chance"] == round(1000 * chance[0]), "all widths are equal here: one number"
    assert family["measure"] == "prototypes"
    assert np.abs(np.array(family["similarity"]) / 1000 - similarities(entries)[0][lower]).max() <= 0.0005
    alone = next(family for family in data["families"] if family["name"] != FAMILY)
    assert alone.keys() == {"name", "settings", "order"}


def test_prototypes_that_can_t_be_compared_leave_the_classes_to_compare(zoo: ModelZoo) -> None:
    zoo.add(replace(make_entry("foreign"), prototypes=np.ones((2, 5), np.float32)))
    family = next(family for family in page_data(zoo)["families"] if family["name"] == FAMILY)
    assert family["measure"] == "shared classes"
    assert family["similarity"] == [2000] * 10


def test_a_name_is_never_taken_for_markup(tmp_path: Path) -> None:
    zoo = ModelZoo.create(tmp_path / "<b>zoo & co", {"model": "<i>mini"}, THETA0, GROUPS)
    task = "<img src=x onerror=alert(1)> \"q\" & 'co'"
    entry = make_entry(task)
    zoo.add(replace(entry, facts={**entry.facts, "classes": HOSTILE[:2]}, info={"note": HOSTILE}))
    text = render(page_data(zoo), "")
    page = Page(text)
    (shown,) = page.data["entries"]
    assert (shown["task"], shown["classes"], shown["info"]["note"]) == (task, HOSTILE[:2], HOSTILE)
    assert page.data["zoo"]["name"] == "<b>zoo & co"
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in Page(render({}, "")).elements]
    assert page.scripts[0].isascii()
    assert not set("<>&") & set(page.scripts[0])


def test_a_damaged_entry_is_shown_with_the_reason_and_without_the_folder_s_path(zoo: ModelZoo) -> None:
    name = entry_id("b", CONFIG)
    file = zoo.file(name)
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    data = page_data(zoo)
    (shown,) = (entry for entry in data["entries"] if entry["name"] == name)
    assert "SHA-256" in shown["problem"]
    assert str(zoo.path) not in json.dumps(data)
    assert "widths" not in shown
    family = next(family for family in data["families"] if family["name"] == FAMILY)
    assert len(family["order"]) == 3


def test_an_entry_s_long_information_is_left_out(zoo: ModelZoo) -> None:
    zoo.add(replace(make_entry("long"), info={"log": "x" * 3000, "steps": 7}))
    (shown,) = (entry for entry in page_data(zoo)["entries"] if entry["task"] == "long")
    assert shown["info"] == {"steps": 7}

"""The page in a browser: every view draws, clicks do what they say, nothing is loaded, and no error is logged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_mvp.zoo.page import charting_library, page_data, render

from .entries import make_entry
from .grown import grown_zoo

sync_api = pytest.importorskip("playwright.sync_api", reason="what drives a browser: pip install playwright")
pytest.importorskip("plotly")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
# On a machine with much else to do a browser takes long to start.
PATIENCE = 300_000

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page about a grown zoo, opened; at the end nothing was loaded and nothing complained."""
    zoo = grown_zoo(tmp_path / "zoo")
    wild = make_entry("<b>wild", {"rounds": 9}, seed=5)
    wild.masks["stem"][:] = True
    weights = {
        **wild.weights,
        "stem.weight": zoo.theta0()["stem.weight"],
        "block.weight": zoo.theta0()["block.weight"][:4],
    }
    classes = ["<script>document.title = 'hacked'</script>", "\"quoted\" & 'co'"]
    zoo.add(replace(wild, weights=weights, facts={**wild.facts, "classes": classes}))
    file = tmp_path / "page.html"
    file.write_text(render(page_data(zoo), charting_library()), encoding="utf-8")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[*QUIET, *root], timeout=PATIENCE)
        opened = browser.new_page(viewport={"width": 1400, "height": 900})
        opened.set_default_timeout(PATIENCE)
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: request.url.startswith(("http", "ws")) and problems.append(request.url))
        opened.goto(file.as_uri())
        yield opened
        assert problems == []
        browser.close()


def rows(page: Any) -> list[str]:
    return [row.locator("td").first.inner_text() for row in page.locator("#rows tr").all()]


def test_a_zoo_is_looked_at_in_every_view(page: Any) -> None:
    assert page.title() == "Zoo zoo"
    assert rows(page) == ["<b>wild", "a", "a", "b", "c", "z"]
    page.click("th.accuracy button")
    assert rows(page)[:2] == ["a", "c"], "the best first"
    page.fill("#search", "quoted")
    assert rows(page) == ["<b>wild"]
    assert page.inner_text("#found") == "1 of 6"
    page.click("#rows tr")
    assert "<script>document.title = 'hacked'</script>" in page.inner_text("#details")
    page.click('nav a[href="#widths"]')
    assert "mean of the family" in page.text_content("#widths-chart")
    assert "<b>wild" in page.text_content("#widths-chart .legend")
    page.fill("#search", "")
    page.keyboard.press("Escape")
    assert page.is_hidden("#details")

    page.click('nav a[href="#lineage"]')
    assert "2 seeds that voted for nobody are left out" in page.inner_text("#lineage-note")
    page.locator("#lineage-chart .drag").first.click(position={"x": 300, "y": 55})  # the third row: c
    assert page.inner_text("#details h2") == "c"
    assert page.locator("#details li button").all_inner_texts() == ["b", "a", "a"], "two parents and a child"
    page.click("#details li button >> nth=2")
    assert "wave\n2" in page.inner_text("#details")

    page.click('nav a[href="#pairs"]')
    chart = page.locator("#overlap-map .nsewdrag")
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] / 8, "y": box["height"] * 7 / 8})  # the last task with the first
    assert "by chance" in page.inner_text("#tip")
    page.click('nav a[href="#accuracy"]')
    page.click("text=by date")
    assert "file written" in page.text_content("#accuracy-chart")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.locator("#accuracy-chart .point").count() >= 2

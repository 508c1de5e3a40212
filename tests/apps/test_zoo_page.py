"""`mvp-zoo page` writes one file, never over another one by itself, and says what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_mvp.zoo import ModelZoo

from .test_zoo import Ask, ask, damage, file_of, name_of, zoo

__all__ = ["ask", "zoo"]


def test_a_page_is_one_file_and_replaced_only_by_a_word(zoo: ModelZoo, tmp_path: Path, ask: Ask) -> None:
    pytest.importorskip("plotly")
    page = tmp_path / "some" / "page.html"
    damage(file_of(zoo, name_of("beta")))
    done = ask("page", zoo.path, page)
    assert (done.code, done.err) == (0, "")
    assert f"wrote {page}: 4 entries" in done.line
    assert f"damaged, and shown as such: tasks/{name_of('beta')}.safetensors: " in done.line
    page.write_text("mine")
    again = ask("page", zoo.path, page)
    assert (again.code, again.out) == (1, "")
    assert "exists already. Name another output, or replace it with --overwrite." in " ".join(again.err.split())
    assert page.read_text() == "mine"
    found = ask("page", zoo.path, page, "--overwrite", "--json").json
    assert (found["output"], found["entries"], list(found["damaged"])) == (str(page), 4, [name_of("beta")])
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.html"]


def test_without_its_library_one_line_says_what_to_install(
    zoo: ModelZoo, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = ask("page", zoo.path)
    assert (done.code, done.out) == (1, "")
    assert "pip install 'lightning-mvp[page]'" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (zoo.path / "page.html").exists()


def test_a_page_of_a_zoo_needs_neither_torch_nor_hydra(zoo: ModelZoo) -> None:
    pytest.importorskip("plotly")
    script = """
import sys
from lightning_mvp.apps.zoo import main
try:
    main()
finally:
    print({"torch", "hydra"} & set(sys.modules))
"""
    command = [sys.executable, "-c", script, "page", str(zoo.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("set()"), done.stderr
    assert (zoo.path / "page.html").exists()
    assert len(zoo) == 4, "a page in its folder is no entry"

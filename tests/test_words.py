"""What the package says to people has a singular and a plural."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "lightning_mvp"


def test_no_message_leaves_the_plural_to_the_reader() -> None:
    """Such as "2 process(es)": `counted` says which it is."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[a-z]\((s|es)\)", node.value)
    ]
    assert not found

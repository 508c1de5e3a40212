"""Documents and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_mvp.files import write_whole

RULES = {"l": "---", "r": "---:"}


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], columns: str = "") -> str:
    """A table in Markdown.

    Args:
        headings: one for each column.
        rows: the cells of each row.
        columns: ``l`` or ``r`` for each column, aligned left or right; by default all but the first are aligned right.

    Example:
        >>> print(markdown_table(["method", "steps"], [["mvp", "100"]]))
        | method | steps |
        | --- | ---: |
        | mvp | 100 |
    """
    rules = [RULES[letter] for letter in columns or "l" + "r" * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def signed(number: float, digits: int) -> str:
    """With its sign, a minus as long as a plus.

    Example:
        >>> signed(-0.5, 1), signed(0.25, 2)
        ('−0.5', '+0.25')
    """
    return f"{number:+.{digits}f}".replace("-", "−")


def indented(text: str) -> str:
    """A block of code."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def write_markdown(path: Path, title: str, note: str, learned: str, paragraphs: Iterable[str]) -> None:
    """Write a document.

    Args:
        path: of the file, which is replaced whole.
        title: its heading.
        note: what a reader must know first.
        learned: Markdown of what people made of it; empty: nothing.
        paragraphs: the rest.
    """
    first = [f"# {title}", note, *([learned] if learned else [])]
    write_whole(path, ("\n\n".join([*first, *paragraphs]) + "\n").encode(), overwrite=True)

"""The page's one file, put together from its parts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

# The pure functions come first: the rest of the page's own script calls them.
SCRIPTS = ("entries.js", "charts.js", "page.js")


def charting_library() -> str:
    """The source of Plotly's JavaScript, from the installed Python package.

    Raises:
        ImportError: The package is not installed; the message says what to install.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            "The page holds the charting library Plotly, which is not installed: pip install 'lightning-mvp[page]'."
        ) from error
    return str(get_plotlyjs())


def render(data: Mapping[str, Any], library: str) -> str:
    """The page as HTML. What users named is in its data alone, which no browser takes for markup.

    Args:
        data: What the page shows, as :func:`~lightning_mvp.zoo.page.data.page_data` gives it.
        library: The charting library's source, as :func:`charting_library` gives it.

    Example:
        >>> page = render({"entries": [{"task": "</script>"}]}, "")
        >>> page.startswith("<!doctype html>"), '"task":"\\\\u003c/script\\\\u003e"' in page
        (True, True)
    """
    scripts = {"library": library, "script": "\n".join(map(_asset, SCRIPTS))}
    parts = {
        "policy": _policy(scripts.values()),
        "style": _asset("page.css"),
        "data": _json(data),
        **scripts,
    }
    page = _asset("page.html")
    # One pass over the template: a part may hold what looks like the place of another.
    pieces = page.split("@@")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _policy(scripts: Any) -> str:
    """Nothing is loaded from anywhere, and no script runs but these."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(data: Mapping[str, Any]) -> str:
    """JSON in ASCII without a character that HTML gives a meaning."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

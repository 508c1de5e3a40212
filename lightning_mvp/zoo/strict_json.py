"""JSON from files that anybody may have written: nothing twice, nothing deep, no number that other code can't hold."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_mvp.files import open_regular

# Bytes. Thousands of tensors and tens of thousands of class names fit in a tenth of it.
JSON_LIMIT = 8 << 20
DEPTH = 32
BRACKETS = 400_000


def read_json(path: Path) -> Any:
    """Parse a file of at most `JSON_LIMIT` bytes.

    Raises:
        ValueError: It is larger, no regular file, or as in `parse_json`.
        OSError: It can't be opened.
    """
    with open_regular(path) as (file, size):
        if size > JSON_LIMIT:
            raise ValueError(f"it has {size:,} bytes, but expected are at most {JSON_LIMIT:,}")
        return parse_json(file.read(JSON_LIMIT))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON whose size the caller has limited.

    Raises:
        ValueError: It is no JSON in UTF-8, is nested more than `DEPTH` deep or of absurdly many parts, has a key twice
            in one object, NaN or infinity, an integer of more than 64 bits, or text that can't be printed; the message
            says which.

    Example:
        >>> parse_json('{"a": [1, 2.5, null]}')
        {'a': [1, 2.5, None]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: its JSON has the key 'a' twice in one object
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        # Brackets inside of strings count, too: a limit for memory need not be exact.
        if text.count("[") + text.count("{") > BRACKETS:
            raise ValueError(f"its JSON has more than {BRACKETS} lists and objects")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
        _require_flat(value)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"its JSON is not UTF-8 text ({error.reason})") from None
    except RecursionError:
        raise ValueError(f"its JSON is nested more than {DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its JSON is broken ({error.msg} at character {error.pos})") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"its JSON has the key {twice[:80]!r} twice in one object")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"its JSON has the number {text}")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"its JSON has the integer {text[:24]}…, which has more than 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its JSON has the number {text[:24]}, which is too large")
    return value


def _require_flat(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = list(chain.from_iterable(parts))
        if not level:
            return
    raise ValueError(f"its JSON is nested more than {DEPTH} deep")

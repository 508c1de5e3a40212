"""Writes down every image file that this process opens; Python imports it at its start where its folder is on the path.

An audit hook sees each ``open`` of Python, whoever calls it, and processes that are forked keep it.
"""

import os
import sys

_LOG = os.environ.get("MVP_OPENED_LOG")
_BELOW = os.environ.get("MVP_OPENED_BELOW", "")

if _LOG:
    _file = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if path.startswith(_BELOW) and path.endswith(".jpg"):
                os.write(_file, os.fsencode(path) + b"\n")  # one write is one line, whatever others write

    sys.addaudithook(_note)

"""Pictures that commands write. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from lightning_mvp.apps.runtime import refuse_existing
from lightning_mvp.files import write_whole
from lightning_mvp.pictures import DPI


def save_picture(output: Path, draw: Callable[[], Figure]) -> None:
    """Write a picture in the format of its name; nothing is overwritten, and nothing half-written.

    Raises:
        FileExistsError: It is there already; then nothing is drawn.
    """
    refuse_existing(output)
    drawn = BytesIO()
    draw().savefig(drawn, format=output.suffix[1:] or "png", dpi=DPI)
    write_whole(output, drawn.getvalue())

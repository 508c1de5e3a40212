"""Pictures that commands write. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from lightning_mvp.apps.runtime import refuse_existing
from lightning_mvp.pictures import save_figure


def save_picture(output: Path, draw: Callable[[], Figure]) -> None:
    """Write a picture in the format of its name; nothing is overwritten, and nothing half-written.

    Raises:
        FileExistsError: It is there already; then nothing is drawn.
    """
    refuse_existing(output)
    save_figure(output, draw(), overwrite=False)

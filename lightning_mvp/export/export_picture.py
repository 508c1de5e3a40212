"""An exported model before and after pruning as a picture: size, multiply-accumulates, latency, memory, accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure
from rich.filesize import decimal

from lightning_mvp.export.export_report import ExportReport
from lightning_mvp.pictures import DENSE, LINES, QUIET, VOTE, page, styled


@styled
def draw_before_after(report: ExportReport) -> Figure:
    """Draw a bar for each measure (size, MACs, latency, memory): the small model in percent of the dense one.

    Latency has the middle half of its rounds as an interval. The dense model has random weights, so that there is an
    accuracy of the small one alone, if it is known.

    Args:
        report: of the export.
    """
    rows = list(_rows(report))
    accuracy = ", ".join(
        f"{100 * value:.1f} % on {name.partition('_')[0].replace('val', 'validation')} images"
        for name, value in report.accuracy.items()
    )
    about = (
        f"What the small model needs, in % of the dense one (grey). Measured on {report.device}, "
        f"{report.threads} thread{'s' * (report.threads != 1)}.\nAccuracy after pruning: {accuracy or 'not known'}."
    )
    figure = page(0.5 * len(rows) + 1.5, f"{report.name}: before and after", about)
    axes = figure.subplots()
    most = max(100.0, *(high for _, _, _, high in rows))
    places = range(len(rows))
    axes.barh(places, [100] * len(rows), 0.62, color=LINES)
    axes.barh(places, [share for _, share, _, _ in rows], 0.36, color=VOTE)
    for place, (_, share, words, high) in zip(places, rows, strict=True):
        if high > share:
            axes.plot([share, high], [place, place], color=DENSE, lw=1.2)
        axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center", color=QUIET, linespacing=1.3)
    axes.set_yticks(places, [name for name, _, _, _ in rows])
    axes.set(xlim=(0, 1.02 * most), ylim=(len(rows) - 0.45, -0.55), xlabel="% of the dense model")
    axes.grid(False, axis="y")
    return figure


def _rows(report: ExportReport) -> Iterator[tuple[str, float, str, float]]:
    """Name, percent of the dense model, both numbers in words, and the upper end of an interval in percent."""
    memory, weights = report.peak_memory, report.files.get("model.safetensors")
    file = f"\n{decimal(weights)} on disk" if weights else ""
    for name, pair, more in (("size, parameters", report.parameters, file), ("MACs of one image", report.macs, "")):
        yield (
            name,
            100 / pair.ratio,
            f"{_short(pair.dense)} → {_short(pair.small)}: {pair.ratio:.1f} × fewer{more}",
            0.0,
        )
    for found in report.latency:
        dense, small = (1000 * spread.median for spread in found.seconds.values())
        ratio = found.ratio
        words = f"{dense:.2f} → {small:.2f} ms: {ratio.median:.1f} × as fast"
        yield f"latency, batch {found.batch}", 100 / ratio.median, words, 100 / ratio.low
    words = f"{decimal(memory.dense)} → {decimal(memory.small)}: {memory.ratio:.1f} × less"
    yield f"memory, batch {report.memory_batch}", 100 / memory.ratio, words, 0.0


def _short(number: int) -> str:
    """A large number for people.

    Example:
        >>> _short(3_125_248), _short(77_392), _short(512)
        ('3.1 M', '77 k', '512')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 10 * size else f"{number / size:.0f} {unit}"
    return str(number)

"""What lightning-mvp does on a GPU, in one command under eight minutes: a table, and JSON if asked for.

    python benchmarks/gpu_check.py --json gpu.json     # elsewhere it says that there is no GPU, and ends well
    python benchmarks/gpu_check.py --smoke             # its code on the CPU at toy size; its figures mean nothing

A step with MVPCallback next to a plain one (ResNet-50, 224 px, bf16), rounds that cut, a vote from 24 entries, NCCL
with one rank, an export that is measured on the device. On a Mac: rounds that cut and a vote, small.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run, its neighbours are found

import torch
from common import PACKAGES
from gpu_checks import CHECKS, FULL, ON_MPS, SMOKE, Size
from rich.console import Console
from rich.table import Table

from lightning_mvp.fitting.fit import quiet_lightning

BUDGET = 420.0  # seconds after which no other check begins


def chosen(smoke: bool) -> tuple[Size, Sequence[str], str] | None:
    """How large, which checks, and what they run on; None where there is nothing to check."""
    if smoke:
        return SMOKE, list(CHECKS), "the CPU, at toy size: figures mean nothing"
    if torch.cuda.is_available():
        return FULL, list(CHECKS), torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return replace(SMOKE, accelerator="mps", batch=32, steps=10), ON_MPS, "MPS"
    return None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="on the CPU at toy size; figures mean nothing")
    parser.add_argument("--json", type=Path, help="a file for every measurement")
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), help="only these checks")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a check failed."""
    options, console = parse(arguments), Console(highlight=False)
    choice = chosen(options.smoke)
    if choice is None:
        console.print("Torch sees no GPU here, so nothing was checked. --smoke runs the code on the CPU.")
        return 0
    size, names, where = choice
    quiet_lightning()
    warnings.filterwarnings("ignore")
    begin, failed = time.perf_counter(), False
    report: dict[str, Any] = {
        "device": where,
        "smoke": options.smoke,
        "versions": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "checks": {},
    }
    table = Table(title=f"On {where}", title_justify="left")
    for column in ("check", "what", "found", "seconds"):
        table.add_column(column, overflow="fold")
    for name in [name for name in names if not options.only or name in options.only]:
        start = time.perf_counter()
        if start - begin > BUDGET:
            rows, found = [("not run", "no time was left")], {"state": "not run"}
        else:
            try:
                rows, measured = CHECKS[name](size)
                found = {"state": "done", **measured}
            except Exception as error:  # the other checks are worth having
                traceback.print_exc()
                rows, found, failed = [("failed", repr(error))], {"state": "failed", "error": repr(error)}, True
        seconds = time.perf_counter() - start
        report["checks"][name] = {**found, "check_seconds": seconds}
        for place, (what, value) in enumerate(rows):
            table.add_row(name if not place else "", what, value, f"{seconds:.0f}" if not place else "")
        table.add_section()
    report["seconds"] = time.perf_counter() - begin
    console.print(table)
    console.print(f"{report['seconds']:.0f} s in all.")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

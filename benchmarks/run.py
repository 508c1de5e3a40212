"""How fast lightning-mvp is: every benchmark, or one, as a table and as JSON.

python benchmarks/run.py merging                         # one of them
    python benchmarks/run.py all --json FOLDER --study ...   # all; `... NAME --help` says what each of them needs
python benchmarks/run.py all --smoke                     # does everything once, small; its figures mean nothing
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # however this file is run, its neighbours are found

import torch
from common import print_outcome, shared_options, write_json

from lightning_mvp.fitting.fit import quiet_lightning

BENCHMARKS = {
    "new_task": "a small model for a new task: voted against pruned from scratch to the same accuracy",
    "filling": "filling a zoo: cut between rounds against zeroed at full size; tasks per hour",
    "nearest": "finding the nearest tasks among up to ten thousand entries",
    "merging": "voting and merging at ResNet-50 size",
    "size": "what an entry takes on disk, and what bf16 costs",
    "steps": "a training step by layout, precision and threads; what the loader takes",
    "photographs": "pruning on 20,000 JPEG files: memory, seconds, and which files are opened",
    "loading": "images a second of the task loader, next to torchvision's",
    "large_vote": "a vote from ResNet-50 entries at 224 px: memory, and seconds before the first step",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, what in {**BENCHMARKS, "all": "all of them"}.items():
        own = commands.add_parser(name, help=what, description=what)
        shared_options(own)
        for each in BENCHMARKS if name == "all" else (name,):
            importlib.import_module(each).add_options(own.add_argument_group(each))
    options = parser.parse_args(arguments)
    for name in ("repetitions", "threads", "targets"):
        if getattr(options, name) < 1:
            parser.error(f"Expected --{name} to be an integer of at least 1, but got {getattr(options, name)}.")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    for name in BENCHMARKS if options.benchmark == "all" else (options.benchmark,):
        torch.set_num_threads(options.threads)
        print(f"\n{name}: {BENCHMARKS[name]}\n", flush=True)
        outcome = importlib.import_module(name).measure(options)
        print_outcome(outcome)
        if options.json:
            print(f"wrote {write_json(options.json, name, options, outcome)}", flush=True)


if __name__ == "__main__":
    main()

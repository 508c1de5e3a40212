"""Plant each fault of ``faults.yaml`` in a copy of the tree, run its tests until one fails, and say caught or not.

``python -m tests.faults [--workers 2] [--marks "not full"] [PART OF A NAME ...]`` prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

ROOT = Path(__file__).parents[2]
LIMIT = 1800  # seconds for the tests of one fault


@dataclass(frozen=True)
class Fault:
    """One place of the product, what it becomes, and the tests that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def planted(self, source: str) -> str:
        """The file's text with the fault in it.

        Raises:
            ValueError: the place is not there exactly once, so that the list is out of date.
        """
        if source.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"{self.name}: expected its text once in {self.file}, but it is there {source.count(self.old)} times."
            )
        return source.replace(self.old, self.new)


def read_faults() -> list[Fault]:
    text = Path(__file__).with_name("faults.yaml").read_text(encoding="utf-8")
    return [Fault(**fault) for fault in yaml.safe_load(text)]


def make_copy(folder: Path) -> Path:
    """A copy of the tree in an environment whose processes import that copy; its Python."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = folder.glob(".venv/lib/*/site-packages")
    (site / "copy.pth").write_text("\n".join([str(folder), *libraries]) + "\n")
    (folder / "lightning_mvp" / "conf").symlink_to(folder / "conf")  # where the installed package has it
    for script in Path(sys.executable).parent.glob("mvp-*"):
        python = folder / ".venv" / "bin" / "python"
        (python.parent / script.name).write_text(re.sub(r"^#!.*", f"#!{python}", script.read_text()))
        (python.parent / script.name).chmod(0o755)
    return folder / ".venv" / "bin" / "python"


def caught_by(fault: Fault, folder: Path, python: Path, marks: str) -> tuple[str, float]:
    """The first test that fails with the fault planted, or an empty text; and the seconds it took."""
    file, start = folder / fault.file, time.monotonic()
    source = file.read_text(encoding="utf-8")
    file.write_text(fault.planted(source), encoding="utf-8")
    command = [str(python), "-m", "pytest", "-x", "-q", "-m", marks, "-p", "no:cacheprovider", *fault.tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
    finally:
        file.write_text(source, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.name}: pytest ended with {done.returncode}:\n{done.stdout[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return (failed.group(1) if failed else ""), time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; default: all faults")
    parser.add_argument("--marks", default="not full", help="which tests, as pytest's -m")
    parser.add_argument("--workers", type=int, default=1, help="faults at a time, each in a copy of its own")
    options = parser.parse_args()
    faults = [f for f in read_faults() if not options.names or any(name in f.name for name in options.names)]
    for fault in faults:
        fault.planted((ROOT / fault.file).read_text(encoding="utf-8"))  # an outdated list is found before any work
    copies: Queue[tuple[Path, Path]] = Queue()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.workers) as pool:
        for number in range(options.workers):
            folder = Path(temporary, str(number))
            folder.mkdir()
            copies.put((folder, make_copy(folder)))

        def judge(fault: Fault) -> tuple[Fault, str, float]:
            folder, python = copies.get()
            try:
                return fault, *caught_by(fault, folder, python, options.marks)
            finally:
                copies.put((folder, python))

        print("| fault | file | caught by | seconds |\n| --- | --- | --- | ---: |", flush=True)
        missed = 0
        for fault, test, seconds in pool.map(judge, faults):
            missed += not test
            print(f"| {fault.name} | {fault.file} | {test or '**nothing**'} | {seconds:.0f} |", flush=True)
    print(f"\n{len(faults) - missed} of {len(faults)} are caught.")
    return missed > 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the benchmarks at real size watch and count with: files, memory of processes, opened images."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path() -> Iterator[None]:
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_made_files_are_photographs_of_one_size_all_different_and_the_same_again(tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("two", 3)):
        assert module("jpeg_folders").make_folders(tmp_path / name, 2, 5, 7, threads) == ["class-000", "class-001"]
    files = sorted((tmp_path / "one").rglob("*.jpg"))
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files) == 10
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert 20_000 < sum(file.stat().st_size for file in files) / len(files) < 60_000
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


MEMORY = """
import os, time
shared = bytearray(os.urandom(1)) * 40_000_000
if os.fork():
    os.wait()
else:
    own = bytearray(os.urandom(1)) * 30_000_000
    time.sleep(0.6)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux only")
def test_memory_of_a_process_tree_counts_shared_pages_once() -> None:
    watch = module("watched").watch
    alone = watch([sys.executable, "-c", "import time; time.sleep(0.3)"], every=0.02)
    seen = watch([sys.executable, "-c", MEMORY], every=0.02)
    assert (alone.processes, seen.processes) == (1, 2)
    assert 65e6 < seen.peak - alone.peak < 80e6
    assert alone.seconds + alone.still > 0.3
    assert 0 < seen.peak_at <= seen.seconds + seen.still


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux only")
def test_a_command_that_fails_is_told_with_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: .*because"):
        module("watched").watch([sys.executable, "-c", "print('because'); raise SystemExit(3)"])


OPENING = """
import os, sys
from pathlib import Path
from PIL import Image
folder = Path(sys.argv[1])
Image.open(folder / "a.jpg")
(folder / "b.jpg").read_bytes()
os.stat(folder / "c.jpg")
list(folder.iterdir())
if not os.fork():
    open(folder / "b.jpg").close()
    os._exit(0)
os.wait()
"""


def test_every_image_that_any_process_opens_is_written_down(tmp_path: Path) -> None:
    photographs = module("photographs")
    for name in "abc":
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.jpg")
    log = tmp_path / "log"
    environment = {**os.environ, **photographs.counting(log, tmp_path)}
    subprocess.run([sys.executable, "-c", OPENING, str(tmp_path)], env=environment, check=True)
    assert [path.name for path in photographs.opened(log)] == ["a.jpg", "b.jpg", "b.jpg"]


def test_a_place_without_a_gpu_says_so_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_check: Any = module("gpu_check")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert gpu_check.main([]) == 0
    assert "no GPU" in capsys.readouterr().out


def test_a_check_that_fails_is_told_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gpu_check: Any = module("gpu_check")

    def broken(size: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu_check, "CHECKS", {"first": broken, "second": lambda size: ([("what", "42")], {"n": 42})})
    assert gpu_check.main(["--smoke", "--json", str(tmp_path / "gpu.json")]) == 1
    printed = capsys.readouterr().out
    assert "no kernel image" in printed
    assert "42" in printed
    assert '"n": 42' in (tmp_path / "gpu.json").read_text()


@pytest.mark.slow
def test_every_gpu_check_runs_on_the_cpu_at_toy_size(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--smoke", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: Any = module("json").loads((tmp_path / "gpu.json").read_text())
    assert {check["state"] for check in report["checks"].values()} == {"done"}
    assert report["checks"]["one rank"]["backend"] == "gloo"
    assert report["checks"]["one rank"]["iou"] == 1
    assert report["checks"]["export"]["differences"]["pt2"] < 1e-4

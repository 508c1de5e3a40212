from __future__ import annotations

import os
import resource
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.zoo import ModelZoo, ZooEntry
from lightning_mvp.zoo.entry_file import shown

from .entries import THETA0
from .hostile import Parts, contradictions, damaged

Fill = Callable[..., ModelZoo]
# Of Python and NumPy at once; the largest of these files has three megabytes.
MOST_MEMORY = 200 << 20


def _content(entry: ZooEntry) -> list[object]:
    parts = (entry.masks, entry.weights, entry.importance, entry.head, {"": np.asarray(entry.prototypes)})
    return [*map(fingerprint, parts), entry.name, entry.facts, entry.config, entry.info, list(entry.masks)]


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _try(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it gives, or how it refuses."""
    try:
        return act(), None
    except ValueError as error:
        return None, str(error)


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder in which nobody else writes."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@contextmanager
def _harmless(folder: Path) -> Iterator[None]:
    """No hang, no large allocation, no new file below `folder` or in the current one."""
    before, here = _tree(folder), sorted(os.listdir())
    handler = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(300)
    tracemalloc.start()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        # What compiled code allocates is not traced; kilobytes on Linux.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < MOST_MEMORY / 1024
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert _tree(folder) == before
    assert sorted(os.listdir()) == here


@pytest.mark.parametrize(
    ("files", "seed"),
    [
        pytest.param(100, 0, id="few"),
        pytest.param(1_000, 1, id="some", marks=pytest.mark.slow),
        pytest.param(10_000, 2, id="many", marks=pytest.mark.full),
    ],
)
def test_a_damaged_entry_is_refused_by_name_or_read_as_it_was(
    files: int, seed: int, fill: Fill, tmp_path: Path
) -> None:
    zoo, rng = fill("a", "b", "c"), np.random.default_rng(seed)
    first, name, last = zoo.names
    path = zoo.path / "tasks" / f"{name}.safetensors"
    whole, expected = Parts(path.read_bytes()).build(), _content(zoo[name])
    path.write_bytes(whole)
    assert _content(zoo[name]) == expected
    refused: Counter[str] = Counter()
    with _harmless(tmp_path):
        for _ in range(files):
            kind, raw = damaged(whole, rng)
            path.write_bytes(raw)
            problems = zoo.verify()
            assert (problems[first], problems[last]) == (None, None)
            if problems[name] is None:
                assert _content(zoo[name]) == expected, kind
            else:
                assert f"{name}.safetensors" in problems[name]
                refused[kind] += 1
    assert set(refused) >= {"truncated", "extended", "flipped", "swapped", "zeroed", "long", "digit"}
    assert refused.total() > 0.95 * files
    print(f"{files} damaged entries, {refused.total()} refused, the others are equal in every bit")


def test_a_contradiction_under_a_right_sum_is_refused_by_name(fill: Fill, tmp_path: Path) -> None:
    zoo = fill("a", "b")
    name, other = zoo.names
    path = zoo.path / "tasks" / f"{name}.safetensors"
    whole, expected = path.read_bytes(), _content(zoo[name])
    path.write_bytes(Parts(whole).build())
    assert _content(zoo[name]) == expected, "put together again, it is read: what follows is refused for a reason"
    labels, read = [], []
    with _harmless(tmp_path):
        for label, raw in contradictions(whole):
            path.write_bytes(raw)
            problems = zoo.verify()
            assert problems[other] is None
            if problems[name] is None:
                read.append(label)
                continue
            assert f"{name}.safetensors" in problems[name], label
            assert len(problems[name]) < 2000, label
            assert problems[name].isprintable(), label
            assert "SHA-256" not in problems[name] or "twice" in label, f"the sum was to be right: {label}"
            labels.append(label)
    assert read == []
    assert len(labels) > 400
    print(f"{len(labels)} hostile entries, all refused")


def test_a_damaged_theta0_is_refused_by_name_or_read_as_it_was(fill: Fill, tmp_path: Path) -> None:
    zoo, rng = fill(), np.random.default_rng(2)
    path = zoo.path / "theta0.safetensors"
    whole, expected, refused = Parts(path.read_bytes()).build(), fingerprint(THETA0), 0
    files = [damaged(whole, rng) for _ in range(500)]
    with _harmless(tmp_path):
        for kind, raw in files:
            path.write_bytes(raw)
            state, problem = _try(lambda: ModelZoo(zoo.path).theta0())
            assert problem is not None or fingerprint(state) == expected, kind
            assert problem is None or str(path) in problem
            refused += problem is not None
    assert refused > 0.9 * len(files)


def test_a_damaged_index_is_refused_by_name_or_is_another_zoo(fill: Fill, tmp_path: Path) -> None:
    """It has no sum of its own: a flipped letter of the recipe is another backbone, whose entries these are not."""
    zoo, rng = fill("a"), np.random.default_rng(3)
    path, fingerprints = zoo.path / "zoo.json", 0
    whole = path.read_bytes()
    deep = [b"[" * n + b"]" * n for n in (100, 5_000, 100_000)]
    files = [damaged(whole, rng) for _ in range(500)] + [("deep", raw) for raw in deep]
    files += [("types", whole.replace(old, new)) for old, new in _TYPES]
    with _harmless(tmp_path):
        for kind, raw in files:
            path.write_bytes(raw)
            found, problem = _try(lambda: ModelZoo(zoo.path))
            assert problem is None or "zoo.json" in problem
            assert kind != "types" or "damaged" in str(problem) or "twice" in str(problem)
            if problem is None and found.fingerprint != zoo.fingerprint:
                fingerprints += 1
                with pytest.raises(ValueError, match=r"θ⁰|another zoo|Expected masks"):
                    found[zoo.names[0]]
    assert fingerprints < 0.2 * len(files)


_TYPES = [
    (b'"stem": 6', b'"stem": "6"'),
    (b'"stem": 6', b'"stem": true'),
    (b'"stem": 6', b'"stem": -6'),
    (b'"stem": 6', b'"stem": 9999999999999'),
    (b'"stem": 6', b'"stem": 6.0'),
    (b'"stem": 6', b'"stem": 6, "stem": 6'),
    (b'"model": "mini"', b'"model": "mini", "model": "mini"'),
    (b'{\n    "model": "mini"\n  }', b"7"),
    (b'"theta0": "', b'"theta0": "../'),
    (b'"theta0"', b'"theta1"'),
    (b'"groups"', b'"sizes"'),
]


def _giant(path: Path, begin: bytes = b"") -> None:
    """A terabyte of nothing, which takes no room on the disk."""
    path.write_bytes(begin)
    os.truncate(path, 2**40)


def test_what_is_no_file_and_what_is_a_giant_are_refused(fill: Fill, tmp_path: Path) -> None:
    zoo = fill("a")
    (sound,) = zoo.names
    tasks = zoo.path / "tasks"
    os.mkfifo(tasks / "pipe.safetensors")
    (tasks / "folder.safetensors").mkdir()
    (tasks / "nothing.safetensors").symlink_to(tmp_path / "nothing")
    (tasks / "loop.safetensors").symlink_to(tasks / "loop.safetensors")
    (tasks / "zeros.safetensors").symlink_to("/dev/zero")
    (tasks / "to-pipe.safetensors").symlink_to(tasks / "pipe.safetensors")
    (tasks / "back\\slash.safetensors").touch()
    (tasks / ".safetensors").touch()
    (tasks / "steers\x1b[2J\nterminals.safetensors").touch()
    (tasks / os.fsdecode(b"no\xfftext.safetensors")).touch()
    raw = (tasks / f"{sound}.safetensors").read_bytes()
    _giant(tasks / "giant.safetensors", raw)
    _giant(tasks / "giant-header.safetensors", (2**40).to_bytes(8, "little"))
    honest = Parts(raw)  # a header that fits the size of its file
    honest.entry["name"] = honest.entry["facts"]["name"] = "honest"
    last = "prototype/features"
    honest.tensors[last] = honest.tensors.pop(last)
    begin = sum(tensor.nbytes for tensor in honest.tensors.values()) - honest.tensors[last].nbytes
    honest.specs[last] = {"shape": [2, 2**37], "data_offsets": [begin, begin + 2**40]}
    _giant(tasks / "honest.safetensors", honest.build())
    os.truncate(tasks / "honest.safetensors", len(honest.build()) - honest.tensors[last].nbytes + 2**40)
    with _harmless(tmp_path):
        problems = zoo.verify()
    assert problems.pop(sound) is None
    assert len(problems) == 13
    assert all("no regular file" in str(problems[name]) for name in ("pipe", "to-pipe", "zeros"))
    assert "expected are at most" in str(problems["honest"])
    for name, problem in problems.items():
        assert problem is not None
        assert shown(Path(f"{name}.safetensors")) in problem
        assert problem.isprintable()
        zoo.remove(name) if name != "folder" else (tasks / "folder.safetensors").rmdir()
    assert zoo.names == (sound,)


def test_pipes_and_giants_instead_of_theta0_and_index_are_refused(fill: Fill, tmp_path: Path) -> None:
    zoo = fill()
    for name in ("theta0.safetensors", "zoo.json"):
        path = zoo.path / name
        path.unlink()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), _giant):
            make(path)
            with _harmless(tmp_path), pytest.raises(ValueError, match=name):
                ModelZoo(zoo.path).theta0()
            path.unlink()


@pytest.mark.parametrize(
    "name", ["../zoo", "../../outside", "/outside", "", ".", "..", "a/b", "a\0b", "n" * 5000, "\ud800"]
)
def test_no_name_leads_out_of_the_zoo(name: str, fill: Fill, tmp_path: Path) -> None:
    zoo = fill("a")
    for file in ("outside", "zoo/zoo", "zoo/outside"):
        (tmp_path / f"{file}.safetensors").write_bytes(b"precious")
    name = str(tmp_path / "outside") if name == "/outside" else name
    before = _tree(tmp_path)
    assert name not in zoo
    for act in (lambda: zoo[name], lambda: zoo.header(name), lambda: zoo.remove(name)):
        with pytest.raises(KeyError, match="No entry"):
            act()
    assert 7 not in zoo
    assert None not in zoo
    assert _tree(tmp_path) == before

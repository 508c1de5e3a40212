"""bfloat16 storage: the rounding is torch's, the file half as large, and what is read is float32 as ever."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from safetensors.torch import load as load_with_torch

from lightning_mvp.fingerprint import fingerprint
from lightning_mvp.voting.voted import voted_backbone
from lightning_mvp.zoo import DamagedEntryError, ModelZoo, ZooEntry, read_entry, write_entry
from lightning_mvp.zoo.bfloat16 import from_bfloat16, to_bfloat16
from lightning_mvp.zoo.tensor_file import open_tensors, serialise

from .entries import GROUPS, make_entry
from .hostile import damaged, with_header
from .make_data import CLASSES, images_of
from .test_versions import VERSION_1

Fill = Callable[..., ModelZoo]
LARGEST = np.array(0x7F7F, np.uint16)
ENDS = [np.float32(3.3961775e38), np.finfo(np.float32).max, np.inf, -np.inf, np.nan]


def _torchs(values: np.ndarray) -> np.ndarray:
    """The bit patterns that torch rounds to."""
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def _arrays(entry: ZooEntry) -> dict[str, np.ndarray]:
    parts = {"mask": entry.masks, "weight": entry.weights, "importance": entry.importance, "head": entry.head}
    found = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return found if entry.prototypes is None else {**found, "prototype/features": entry.prototypes}


def _rounded(value: np.ndarray) -> np.ndarray:
    return from_bfloat16(to_bfloat16(value)) if value.dtype == np.float32 else value


def _taken_apart(path: Path) -> tuple[dict, bytes]:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


# ------------------------------------------------------------------------------------------------------------ rounding


def test_every_bfloat16_there_is_comes_back_in_every_bit() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[(bits & 0x7F80) != 0x7F80]
    assert (from_bfloat16(finite) == torch.from_numpy(finite.view(np.int16)).view(torch.bfloat16).float().numpy()).all()
    assert (to_bfloat16(from_bfloat16(finite)) == finite).all()
    assert len(finite) == 2**16 - 2**8


def test_rounding_is_torchs_on_random_bit_patterns_on_ties_and_beside_them() -> None:
    rng = np.random.default_rng(0)
    upper = rng.integers(0, 0x7F7F, 50_000, dtype=np.uint32) << 16 | rng.integers(0, 2, 50_000, dtype=np.uint32) << 31
    # All exponents alike: a hundredth of the random ones are subnormal, and as many are as large as can be.
    bits = [rng.integers(0, 2**32, 300_000, dtype=np.uint32), upper | 0x7FFF, upper | 0x8000, upper | 0x8001]
    values = np.concatenate(bits).view(np.float32)
    values = values[np.abs(values) < ENDS[0]]
    assert len(values) > 440_000
    assert (to_bfloat16(values) == _torchs(values)).all()
    assert (to_bfloat16(bits[2].view(np.float32)) & 1 == 0).all(), "ties go to the even one"


@pytest.mark.parametrize("value", ENDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_not_be_finite_is_refused(value: float, sign: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="finite in bfloat16"):
            to_bfloat16(np.array([0, sign * value], np.float32))


# ------------------------------------------------------------------------------------------------------------- entries


def test_an_entry_comes_back_rounded_as_float32(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    found = read_entry(path)
    assert (found.name, found.facts, found.config, found.info) == (entry.name, entry.facts, entry.config, entry.info)
    assert fingerprint(_arrays(found)) == fingerprint({k: _rounded(v) for k, v in _arrays(entry).items()})
    assert fingerprint(_arrays(found)) != fingerprint(_arrays(entry))
    header, _ = _taken_apart(path)
    dtypes = {name: spec["dtype"] for name, spec in header.items() if name != "__metadata__"}
    assert dtypes.pop("weight/stem.num_batches_tracked") == "I64"
    assert {kind for name, kind in dtypes.items() if name.startswith("mask/")} == {"U8"}
    assert {kind for name, kind in dtypes.items() if not name.startswith("mask/")} == {"BF16"}


def test_values_that_bfloat16_has_come_back_exactly_and_under_one_sum(entry: ZooEntry, tmp_path: Path) -> None:
    once = read_entry(write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16"))
    sums = []
    for storage in ("bfloat16", "float32"):
        path = write_entry(tmp_path / storage / f"{entry.name}.safetensors", once, storage=storage)
        assert fingerprint(_arrays(read_entry(path))) == fingerprint(_arrays(once))
        sums.append(_taken_apart(path)[0]["__metadata__"]["sha256"])
    assert sums[0] == sums[1]


@pytest.mark.parametrize("storage", ["float16", None])
def test_other_storages_are_refused(storage: object, entry: ZooEntry, fill: Fill, tmp_path: Path) -> None:
    zoo = fill()
    words = rf"`storage` to be one of 'float32', 'bfloat16', but got {storage!r}"
    with pytest.raises(ValueError, match=words):
        write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage=storage)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        zoo.add(entry, storage=storage)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob(f"{entry.name}*"))


@pytest.mark.parametrize("part", ["weights", "importance"])
def test_an_entry_that_would_overflow_is_refused_and_named(part: str, entry: ZooEntry, fill: Fill) -> None:
    values = {name: value.copy() for name, value in getattr(entry, part).items()}
    name = next(iter(values))
    values[name].reshape(-1)[-1] = np.finfo(np.float32).max
    zoo, large = fill(), replace(entry, **{part: values})
    with pytest.raises(ValueError, match=rf"/{name}' of entry '{entry.name}'.*bfloat16.*3\.4028e\+38.*as float32"):
        zoo.add(large, storage="bfloat16")
    assert len(zoo) == 0
    zoo.add(large)
    assert zoo.verify() == {entry.name: None}


def test_one_zoo_holds_both_and_verifies(fill: Fill) -> None:
    zoo = fill("a")
    zoo.add(make_entry("b", seed=1), storage="bfloat16")
    assert zoo.verify() == dict.fromkeys(zoo.names)
    first, second = (zoo[name] for name in zoo)
    assert {name: value.dtype for name, value in first.weights.items()} == {
        name: value.dtype for name, value in second.weights.items()
    }
    assert zoo.header(second.name)["groups"] == GROUPS
    zoo.add(make_entry("a"), overwrite=True, storage="bfloat16")
    assert not (zoo[first.name].weights["block.weight"] == first.weights["block.weight"]).all()


def test_a_zoo_of_bfloat16_votes_and_merges(tmp_path: Path) -> None:
    old = ModelZoo(VERSION_1)
    zoo = ModelZoo.create(tmp_path / "zoo", old.recipe, old.theta0(), old.group_sizes)
    for entry in old.entries("02d23488"):
        zoo.add(entry, storage="bfloat16")
    assert zoo.verify() == dict.fromkeys(zoo.names)
    images, labels = images_of(*CLASSES)
    states, masks = [], []
    for each in (old, zoo):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        small, report = voted_backbone(each, [(images[order], labels[order])], config="02d23488", reestimate_batches=0)
        states.append(small.state_dict())
        masks.append(fingerprint(dict(report.masks.items())))
    assert masks[0] == masks[1]
    differ = []
    for name, value in states[0].items():
        assert states[1][name].dtype == value.dtype
        torch.testing.assert_close(states[1][name], value, rtol=2**-7, atol=2**-8)
        differ.append(not torch.equal(states[1][name], value))
    assert any(differ)


# --------------------------------------------------------------------------------------------------------------- files


def _larger(entry: ZooEntry) -> ZooEntry:
    """Large enough that names and facts hardly count."""
    rng = np.random.default_rng(0)
    return replace(entry, weights={f"layer{i}": rng.normal(size=(64, 64)).astype(np.float32) for i in range(10)})


def test_a_file_takes_what_its_values_take(entry: ZooEntry, tmp_path: Path) -> None:
    entry = _larger(entry)
    values = sum(value.size for part in (entry.weights, entry.head) for value in part.values())
    bits = sum(mask.size for mask in entry.masks.values())
    sizes = {}
    for storage, width in (("float32", 4), ("bfloat16", 2)):
        path = write_entry(tmp_path / storage / f"{entry.name}.safetensors", entry, storage=storage)
        sizes[storage] = path.stat().st_size
        assert values * width < sizes[storage] <= 1.05 * (values * width + bits / 8)
    assert 0.5 < sizes["bfloat16"] / sizes["float32"] < 0.52


def test_files_are_as_safetensors_writes_them(entry: ZooEntry, tmp_path: Path) -> None:
    """Of one text only: it writes several in another order each time."""
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry)
    tensors = {**load(path.read_bytes()), 'ünicode "quoted" \\ and \n': np.ones((2, 0), np.float32)}
    for metadata in ({}, {"one": 'text with "quotes" and ü'}):
        assert serialise(tensors, metadata) == save(tensors, metadata or None)


def test_any_reader_of_safetensors_reads_bfloat16(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    found = load_with_torch(path.read_bytes())
    assert found["weight/block.weight"].dtype == torch.bfloat16
    assert (found["weight/block.weight"].float().numpy() == read_entry(path).weights["block.weight"]).all()


def test_old_files_are_written_again_with_the_same_values_under_the_same_sum(tmp_path: Path) -> None:
    """The sum of an entry is over its content, and so would tell any change of what is hashed; JSON is denser now."""
    for old in sorted((VERSION_1 / "tasks").iterdir()):
        entry, (header, payload) = read_entry(old), _taken_apart(old)
        new_header, new_payload = _taken_apart(write_entry(tmp_path / old.name, entry))
        assert new_payload == payload
        before, after = header.pop("__metadata__"), new_header.pop("__metadata__")
        assert new_header == header
        assert json.loads(after["entry"]) == json.loads(before["entry"])
        assert after["format"] == before["format"]
        assert len(after["entry"]) < len(before["entry"])


# ------------------------------------------------------------------------------------------------------------- hostile


def test_a_damaged_file_is_refused_or_read_as_it_was(entry: ZooEntry, tmp_path: Path) -> None:
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    whole, expected, rng = path.read_bytes(), fingerprint(_arrays(read_entry(path))), np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        kind, raw = damaged(whole, rng)
        path.write_bytes(raw)
        found = expected
        try:
            found = fingerprint(_arrays(read_entry(path)))
        except DamagedEntryError:
            refused += 1
        assert found == expected, kind
    assert refused > 475


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"dtype": "F32"}, "has 24 bytes, but F32 .* has 48"),
        ({"shape": [4, 6]}, "has 24 bytes, but BF16 .* has 48"),
        ({"shape": [2**47, 2**47]}, "has 24 bytes, but BF16"),
        ({"data_offsets": [0, 2**40]}, "bytes, but BF16"),
        ({"dtype": "F16"}, "SHA-256"),
        ({"dtype": "bf16"}, "'bf16', but known are .*BF16"),
        ({"shape": [6, 2]}, "SHA-256"),
    ],
)
def test_a_tensor_that_is_not_what_it_claims_is_refused(
    spec: dict, words: str, entry: ZooEntry, tmp_path: Path
) -> None:
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    header, payload = _taken_apart(path)
    header["weight/block.weight"] |= spec
    path.write_bytes(with_header(json.dumps(header), payload))
    with pytest.raises(DamagedEntryError, match=words):
        read_entry(path)


@pytest.mark.parametrize(("name", "bits"), [("weight/block.weight", 0x7F80), ("head/bias", 0xFFFF)])
def test_infinity_and_nan_under_a_right_sum_are_refused(
    name: str, bits: int, entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_mvp.zoo import entry_file

    halved = entry_file._halved

    def poisoned(entry: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = halved(entry, tensors)
        found[name].reshape(-1)[-1] = bits
        return found

    monkeypatch.setattr(entry_file, "_halved", poisoned)
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    with pytest.raises(DamagedEntryError, match="to be finite"):
        read_entry(path)


def test_the_bound_on_memory_is_on_what_is_read(entry: ZooEntry, tmp_path: Path) -> None:
    entry = _larger(entry)
    path = write_entry(tmp_path / f"{entry.name}.safetensors", entry, storage="bfloat16")
    size = path.stat().st_size
    with open_tensors(path) as file:
        read = file.begin + sum(spec.nbytes for spec in file.specs.values())
        assert sum(file.read(name).nbytes for name in file.specs) == read - file.begin
    assert 1.9 < read / size < 2
    assert read_entry(path, read).name == entry.name
    for most in (size, read - 1):
        with pytest.raises(DamagedEntryError, match=r"once it is read, but expected are at most"):
            read_entry(path, most)
    with pytest.raises(DamagedEntryError, match=f"it has {size:,} bytes, but"):
        read_entry(path, size - 1)
    path = write_entry(path, entry, overwrite=True)
    assert read_entry(path, path.stat().st_size).name == entry.name, "of float32 both are one"

"""Groups are found once for each structure, and never taken over by a backbone of another structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_mvp.backbones import find_groups, groups, groups_cache, structure
from lightning_mvp.backbones.structure import structure_of

IMAGES = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_cache, "_found", groups_cache.OrderedDict())
    monkeypatch.delenv(groups_cache.FOLDER_VARIABLE, raising=False)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The backbones that were really looked into."""
    seen: list[nn.Module] = []

    class Counting(groups.Tracer):
        def __init__(self, clone: nn.Module, inputs: Any) -> None:
            seen.append(clone)
            super().__init__(clone, inputs)

    monkeypatch.setattr(groups, "Tracer", Counting)
    return seen


def records(found: groups.Groups) -> list[Any]:
    members = [[(m.tensor, m.axis, m.index.tolist(), m.role, m.gate) for m in group.members] for group in found]
    features = [None if group.feature_index is None else group.feature_index.tolist() for group in found]
    return [found.sizes, [group.kind for group in found], members, features, found.skipped]


def net(**options: Any) -> nn.Sequential:
    settings = {"kernel_size": 3, "padding": 1, **options}
    return nn.Sequential(nn.Conv2d(3, 8, **settings), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_the_same_structure_is_traced_once_whatever_its_weights_type_and_mode(traced: list[nn.Module]) -> None:
    first = find_groups(net(), IMAGES)
    second = find_groups(net().double().eval().requires_grad_(False), IMAGES.double().expand(5, -1, -1, -1))
    assert len(traced) == 1
    assert records(first) == records(second)
    first.skipped.append("spoilt")
    assert find_groups(net(), IMAGES).skipped == []


def test_what_was_not_checked_is_checked_when_that_is_asked_for(traced: list[nn.Module]) -> None:
    wrong = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1))  # a removed unit becomes 0.5
    for _ in range(2):
        assert find_groups(wrong, IMAGES, check=False).names == ["0", "2"]
        checked = find_groups(wrong, IMAGES)
        assert checked.names == ["2"]
        assert checked.skipped[0].startswith("0: left out, zeroed and cut backbone differ")
    assert len(traced) == 1


class Own(nn.Module):
    """A user's module: ``act`` is code that no version stands for."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.conv, self.last, self.act = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), act

    def forward(self, images: Tensor) -> Tensor:
        return self.last(helper(self.act(self.conv(images))))


def helper(x: Tensor) -> Tensor:
    return x


def edited() -> nn.Module:
    """As after editing a notebook's cell: the same names, another forward pass."""
    kind = type("Own", (Own,), {"forward": lambda self, images: self.last(self.conv(images) + 1)})
    kind.__module__, kind.__qualname__ = Own.__module__, Own.__qualname__
    return kind()


def patched() -> nn.Module:
    module = Own()
    module.forward = lambda images: module.last(module.conv(images).sigmoid())  # type: ignore[method-assign]
    return module


def tied() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    module[2].weight = module[1].weight
    return module


def hooked() -> nn.Module:
    module = net()
    module[1].register_forward_hook(lambda _, __, output: output + 1)
    return module


def with_buffer(value: float) -> nn.Module:
    module = net()
    module.register_buffer("shift", torch.tensor(value))
    return module


DIFFERENT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "attribute": (net, lambda: net(stride=2)),
    "padding mode": (net, lambda: net(padding_mode="circular")),
    "shape": (net, lambda: net(bias=False)),
    "class": (net, lambda: nn.Sequential(*net()[:2], nn.GELU(), net()[3])),
    "function in an attribute": (Own, lambda: Own(torch.sigmoid)),
    "own function": (lambda: Own(lambda x: x.relu()), lambda: Own(lambda x: x.sigmoid())),
    "code of a class": (Own, edited),
    "forward of one instance": (Own, patched),
    "tied": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), tied),
    "hook": (net, hooked),
    "buffer": (lambda: with_buffer(0.0), lambda: with_buffer(1.0)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_structure_is_another(what: str) -> None:
    one, other = DIFFERENT[what]
    described = structure_of(one(), (IMAGES,))
    assert described is not None
    assert described == structure_of(one(), (IMAGES,))
    assert described != structure_of(other(), (IMAGES,))
    assert described != structure_of(one(), (torch.zeros(1, 3, 16, 16),))


def test_a_function_that_is_called_counts_and_so_do_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Own(), (IMAGES,))
    monkeypatch.setitem(globals(), "helper", lambda x: x + 1)
    assert structure_of(Own(), (IMAGES,)) != before
    monkeypatch.undo()
    monkeypatch.setattr(structure, "_environment", lambda: ["torch 99"])
    assert structure_of(Own(), (IMAGES,)) != before


def test_what_cannot_be_described_is_never_remembered(traced: list[nn.Module]) -> None:
    module = Own()
    module.stream = iter(())  # type: ignore[assignment]
    for _ in range(2):
        find_groups(module, IMAGES)
    assert len(traced) == 2


def test_a_folder_keeps_checked_groups_of_library_models_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: list[nn.Module]
) -> None:
    monkeypatch.setenv(groups_cache.FOLDER_VARIABLE, str(tmp_path))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32, embed_dim=24, num_heads=3)
    images = torch.zeros(1, 3, 32, 32)
    found = find_groups(model, images)
    find_groups(Own(), IMAGES)  # another file of the user's may change what it does
    (file,) = tmp_path.rglob("*.safetensors")

    groups_cache._found.clear()
    assert records(find_groups(model, images)) == records(found)
    assert len(traced) == 2

    file.write_bytes(file.read_bytes()[:-20])
    groups_cache._found.clear()
    assert records(find_groups(model, images)) == records(found)
    assert len(traced) == 3
    groups_cache._found.clear()
    find_groups(model, images)
    assert len(traced) == 3, "a damaged file is written anew"

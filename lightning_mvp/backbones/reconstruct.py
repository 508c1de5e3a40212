"""Least squares, layer by layer: a small backbone's weights such that each layer gives what the dense one's gives."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_mvp.backbones.copies import detached_copy
from lightning_mvp.backbones.features import as_taken, batch_moments
from lightning_mvp.backbones.least_squares import LeastSquares, is_linear_layer, output_axis
from lightning_mvp.backbones.masks import require_masks_fit
from lightning_mvp.backbones.units import Groups
from lightning_mvp.checks import is_whole
from lightning_mvp.words import counted

PENALTY = 1e-2
MEMORY = 2e9  # bytes of activations held at a time
STREAMED = 128  # images in a batch where not all images fit at once
ALIVE = 4  # activations of the largest layer that a forward pass needs besides those that are recorded


def reconstruct(
    small: nn.Module,
    dense: nn.Module,
    groups: Groups,
    masks: Mapping[str, Any],
    images: Tensor | Iterable[Tensor],
    *,
    penalty: float = PENALTY,
    memory: float = MEMORY,
) -> nn.Module:
    r"""A small backbone whose layers give what the dense one's give, in closed form: no gradient, no step.

    Every convolution and linear layer gets, in forward order,

    .. math:: W' = \Big(\sum y u^\top + \lambda W_0\Big) \Big(\sum u u^\top + \lambda I\Big)^{-1}

    Here u is the input of the layer in the *small* net, for a convolution one patch of it; the layers before it are
    reconstructed already. y are the kept outputs of the same layer in the dense net for the same image. W₀ are the
    weights that the small net has, and λ is ``penalty`` times the mean of the diagonal of :math:`\sum u u^\top`. u and
    y are centred where the layer has a bias, which is fitted too, and where a batch norm follows at once, which
    subtracts their means anyway. Each conv group is a least-squares problem of its own. On the images that are used
    the squared error of each layer is at most the one of W₀. Sums are in float64; the same images give the same
    weights, bit by bit, on the same machine.

    Batch norms of both nets use the images' own moments on the way. Their stored statistics stay as they are: call
    :func:`~lightning_mvp.backbones.features.reestimate_batch_norm` afterwards. A layer stays as it is if it is called
    more than once in a forward pass, shares its weight, carries a hook, is a transposed convolution, or if its output
    is not linear in its weight (weight standardisation).

    Args:
        small: the dense backbone without the units that the masks remove, such as :func:`shrink` makes it; with any
            weights. It is not changed.
        dense: the backbone whose layers' outputs are wanted. It is not changed.
        groups: of the dense backbone.
        masks: the units that ``small`` has, one mask for each group.
        images: ``(N, C, H, W)`` floats, preprocessed, or several batches of such. Two images are the least, and 1,000
            are enough. An iterable that can be gone over again is, once for each layer, with one batch in memory.
        penalty: how strongly weights are held at W₀; 0 or more.
        memory: bytes of activations that may be held at a time. If all images fit at once, as many layers are fitted
            in one forward pass of each net as there is memory for their outputs: mostly all. Otherwise images go in
            batches through both nets once for each layer, and batch norms use the moments of each batch.

    Returns:
        A copy of ``small`` with other weights and biases: on its device, with its modes and ``requires_grad``.

    Raises:
        ValueError: an argument out of its range, fewer than two images, or a small backbone that is not what the masks
            leave of the dense one.

    Example:
        >>> from lightning_mvp.backbones import find_groups, random_masks, shrink
        >>> net, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.randn(16, 3, 8, 8)
        >>> groups = find_groups(net, images).select(include=["0"])
        >>> masks = random_masks(groups, 0.25, seed=0)
        >>> small = shrink(net, groups, masks)
        >>> better = reconstruct(small, net, groups, masks, images)
        >>> bool((better(images) - net(images)).norm() < (small(images) - net(images)).norm())
        True
    """
    if not (isinstance(penalty, (int, float)) and 0 <= penalty < math.inf):
        raise ValueError(f"Expected argument `penalty` to be a float of at least 0, but got {penalty!r}.")
    require_masks_fit(groups, masks)
    _require_cut(small, dense, groups, masks)
    batches: Iterable[Tensor] = [images] if isinstance(images, Tensor) else images
    if iter(batches) is batches:
        batches = list(batches)  # each layer goes over them
    count = _count(batches)
    small = detached_copy(small)
    with batch_moments(small, dense), _exact(small):
        layers = _layers(small, dense, groups, masks, next(iter(batches))[:2])
        segments = [] if count is None else _segments(layers, memory / count)
        fitted: dict[str, bool] = {}
        if segments:
            every = torch.cat(list(batches))
            for segment in segments:
                fitted |= _in_one_pass(small, dense, segment, every, penalty)
        else:
            fitted = _streamed(small, dense, layers, batches, penalty)
    left = [name for name in layers if not fitted.get(name)]
    if left:
        warnings.warn(
            f"{counted(len(left), 'layer keeps the weights that it', 'layers keep the weights that they')} had: "
            f"{', '.join(left[:5])}. Their outputs are not linear "
            "in their weights, as with weight standardisation, not finite, or of another shape than the dense ones.",
            stacklevel=2,
        )
    return small


@dataclass
class _Layer:
    """A layer that both nets have.

    Args:
        small: the small net's layer, which is fitted.
        dense: the dense net's layer, whose outputs it should give.
        rows: which of the dense layer's outputs the small layer has, int64; None for all.
        norm_follows: whether a batch norm reads the output, and nothing else does.
        recorded: how many numbers of the dense layer's output are recorded for each image.
        dense_outputs: how many numbers the dense layer's whole output has for each image.
    """

    small: nn.Module
    dense: nn.Module
    rows: Tensor | None
    norm_follows: bool
    recorded: int
    dense_outputs: int

    def wanted(self, output: Tensor) -> Tensor:
        """The kept outputs of the dense layer, a copy: an activation behind it may work in place."""
        if self.rows is None:
            return output.clone()
        return output.index_select(output_axis(self.dense), self.rows.to(output.device))


def require_count(images: int, argument: str = "reconstruct") -> int:
    """Refuse what is no number of images to reconstruct with.

    Example:
        >>> require_count(1)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `reconstruct` to be a number of images, two or more, or 0 for none, but got 1. ...
    """
    if not is_whole(images, least=0) or images == 1:
        raise ValueError(
            f"Expected argument `{argument}` to be a number of images, two or more, or 0 for none, but got {images!r}."
            " 1000 is a good number."
        )
    return images


def _require_cut(small: nn.Module, dense: nn.Module, groups: Groups, masks: Mapping[str, Any]) -> None:
    """Refuse a small backbone of other shapes than the masks leave."""
    got = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    for name, tensor in dense.named_parameters():
        kept = groups.kept(name, tuple(tensor.shape), masks)
        left = tuple(size if index is None else len(index) for size, index in zip(tensor.shape, kept, strict=True))
        if got.get(name) != left:
            raise ValueError(
                f"Expected argument `small` to be what the masks leave of `dense`, with `{name}` of shape {left}, but "
                f"got {got.get(name, 'no such tensor')}. Make it by `shrink(dense, groups, masks)`."
            )


def _count(batches: Iterable[Tensor]) -> int | None:
    """The number of images; None where they are of several shapes. One batch is in memory at a time."""
    counts, dtypes, shapes = [], set(), set()
    for batch in batches:
        is_images = isinstance(batch, Tensor) and batch.ndim > 1 and batch.is_floating_point()
        dtypes |= set() if is_images else {str(getattr(batch, "dtype", type(batch).__name__))}
        if is_images:
            counts.append(len(batch))
            shapes.add(batch.shape[1:])
    if dtypes:
        raise ValueError(
            "Expected argument `images` to be preprocessed images, (N, C, H, W) floats, or batches of such, but got "
            f"{', '.join(sorted(dtypes))}."
        )
    if not counts or min(counts) < 2:
        raise ValueError(
            f"Expected argument `images` to give two images or more, in each batch, but got {counts}. "
            "Moments of one image say nothing; 1,000 are enough."
        )
    return sum(counts) if len(shapes) == 1 else None


@contextmanager
def _exact(module: nn.Module) -> Iterator[None]:
    """Full float32 (no TF32, no autocast), by algorithms that are the same in every run."""
    device = next(module.parameters()).device.type
    flags = torch.backends.cudnn.flags(
        torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    with flags, torch.autocast(device, enabled=False):
        yield


class _Readers(TorchDispatchMode):
    """Counts the operations that read each watched tensor.

    The tensors are kept, so that no later one is given the id of one that is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []
        self.counts: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        self.held.append(tensor)
        self.counts[id(tensor)] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in args:
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if id(tensor) in self.counts:
                    self.counts[id(tensor)] += 1
        return function(*args, **(kwargs or {}))


def _layers(
    small: nn.Module, dense: nn.Module, groups: Groups, masks: Mapping[str, Any], images: Tensor
) -> dict[str, _Layer]:
    """The layers to fit, in the order in which the small net calls them."""
    theirs = {name: module for name, module in dense.named_modules() if is_linear_layer(module)}
    ours = {name: module for name, module in small.named_modules() if name in theirs and _is_plain(module)}
    names = Counter(module for _, module in small.named_modules(remove_duplicate=False))
    shared = Counter(parameter for _, parameter in small.named_parameters(remove_duplicate=False))
    ours = {
        name: module
        for name, module in ours.items()
        if names[module] == 1 and all(shared[parameter] == 1 for parameter in module.parameters())
    }
    made, normed = _probe(small, ours, images)
    made_dense, _ = _probe(dense, {name: theirs[name] for name in ours}, images)
    layers = {}
    for name, outputs in made.items():
        if len(outputs) != 1 or len(made_dense.get(name, ())) != 1:
            continue
        kept = groups.kept(f"{name}.weight", tuple(theirs[name].weight.shape), masks)[0]  # type: ignore[union-attr]
        layers[name] = _Layer(
            ours[name],
            theirs[name],
            None if kept is None else torch.from_numpy(kept),
            name in normed,
            outputs[0] // len(images),
            made_dense[name][0] // len(images),
        )
    return layers


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer has a weight of its own, which nothing computes, and no hook that may change what it makes."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return is_linear_layer(layer) and not hooked and isinstance(layer._parameters.get("weight"), nn.Parameter)


def _probe(net: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, list[int]], set[str]]:
    """The sizes of each layer's outputs, in the order of first calls, and the layers that only a batch norm reads."""
    sizes: dict[str, list[int]] = {}
    made: dict[int, str] = {}
    read_by_norm: set[int] = set()
    readers = _Readers()

    def note(name: str, _layer: nn.Module, _given: Any, output: Tensor) -> None:
        readers.watch(output)
        made[id(output)] = name
        sizes.setdefault(name, []).append(output.numel())

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        for norm in (module for module in net.modules() if isinstance(module, _BatchNorm)):
            # An id that is not among those made so far says nothing: its tensor may be gone, and another get it.
            hooks.enter_context(
                norm.register_forward_pre_hook(lambda _, given: read_by_norm.update({id(given[0])} & made.keys()))
            )
        with readers:
            net(as_taken(images, net))
    return sizes, {name for key, name in made.items() if key in read_by_norm and readers.counts[key] == 1}


def _segments(layers: Mapping[str, _Layer], memory: float) -> list[dict[str, _Layer]]:
    """The layers in their order, in parts whose outputs fit into memory beside a forward pass; [] if one does not.

    Args:
        layers: all layers to fit.
        memory: bytes for each image.
    """
    if not layers:
        return []
    size = next(iter(layers.values())).small.weight.element_size()  # type: ignore[operator,union-attr]
    free = memory / size - ALIVE * max(layer.dense_outputs for layer in layers.values())
    segments: list[dict[str, _Layer]] = []
    left = 0.0
    for name, layer in layers.items():
        if layer.recorded > free:
            return []
        if not segments or layer.recorded > left:
            segments.append({})
            left = free
        segments[-1][name] = layer
        left -= layer.recorded
    return segments


def _in_one_pass(
    small: nn.Module, dense: nn.Module, layers: Mapping[str, _Layer], images: Tensor, penalty: float
) -> dict[str, bool]:
    """The dense net's outputs are recorded; then one pass of the small net fits each layer as it reaches it.

    Both passes end where all of these layers were reached.
    """
    wanted: dict[str, Tensor] = {}
    fitted: dict[str, bool] = {}

    def record(name: str, _layer: nn.Module, _given: Any, output: Tensor) -> None:
        wanted[name] = layers[name].wanted(output)
        if len(wanted) == len(layers):
            raise _Reached

    def fit(name: str, own: nn.Module, given: Any, output: Tensor) -> Tensor:
        sums = LeastSquares(own, penalty, layers[name].norm_follows)
        sums.add(given[0], output, wanted.pop(name).to(output.device))
        fitted[name] = sums.fit()
        if len(fitted) == len(layers):
            raise _Reached
        return own.forward(*given)

    for net, hook in ((dense, record), (small, fit)):
        with ExitStack() as hooks, suppress(_Reached):
            for name, layer in layers.items():
                own = layer.dense if net is dense else layer.small
                hooks.enter_context(own.register_forward_hook(partial(hook, name)))
            net(as_taken(images, net))
    return fitted


class _Reached(Exception):
    """The forward pass has reached the layer, and the rest of it is not needed."""


def _until(net: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's input and output in one forward pass, which ends there."""
    seen: list[Tensor] = []

    def stop(_layer: nn.Module, given: Any, output: Tensor) -> None:
        seen.extend((given[0], output))
        raise _Reached

    with layer.register_forward_hook(stop), suppress(_Reached):
        net(as_taken(images, net))
    return seen[0], seen[1]


def _streamed(
    small: nn.Module, dense: nn.Module, layers: Mapping[str, _Layer], batches: Iterable[Tensor], penalty: float
) -> dict[str, bool]:
    """For one layer after the other all batches go through both nets, as far as that layer."""
    fitted = {}
    for name, layer in layers.items():
        sums = LeastSquares(layer.small, penalty, layer.norm_follows)
        for part in (part for batch in batches for part in batch.tensor_split(math.ceil(len(batch) / STREAMED))):
            given, output = _until(small, layer.small, part)
            wanted = layer.wanted(_until(dense, layer.dense, part)[1])
            sums.add(given, output, wanted.to(output.device))
        fitted[name] = sums.fit()
    return fitted

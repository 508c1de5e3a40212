"""One linear layer's weights by ridge regression towards those that it has: for linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

CHUNK = 32e6  # bytes of patches in float64 that are held at a time
# How well patches times weights must agree with the layer's own output, as a share of its largest number.
AGREEMENT = 0.02
# Directions in which the inputs vary less than this share of the most are left alone where there is no penalty.
RANK = 1e-10


def is_linear_layer(layer: nn.Module) -> bool:
    """Whether a module is of the kinds that :class:`LeastSquares` fits: linear, or a convolution of any dimension."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd))


def output_axis(layer: nn.Module) -> int:
    """The axis of a layer's outputs: the last one of a linear layer, channels of a convolution."""
    return -1 if isinstance(layer, nn.Linear) else 1


@contextmanager
def _holding(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Let a layer have another weight and no bias for a while."""
    own = dict(layer._parameters)
    layer._parameters.update({**dict.fromkeys(own), "weight": weight})  # type: ignore[dict-item]
    try:
        yield
    finally:
        layer._parameters.update(own)


def patches_of(layer: nn.Module, given: Tensor) -> Tensor:
    """What a layer multiplies with its weight, by position and conv group.

    A convolution is asked for them, with weights that pick one entry each: its padding, stride and dilation are then
    its own, whatever its class.

    Args:
        layer: linear, or a convolution.
        given: its input.

    Returns:
        ``(positions, conv groups, inputs)``; an output is the inner product with a row of ``weight.flatten(1)``.

    Example:
        >>> patches_of(nn.Conv2d(2, 4, 3, groups=2), torch.zeros(5, 2, 8, 8)).shape
        torch.Size([180, 2, 9])
    """
    if isinstance(layer, nn.Linear):
        return given.reshape(-1, 1, given.shape[-1])
    assert isinstance(layer, _ConvNd)
    inputs = layer.weight[0].numel()
    pick = torch.eye(inputs, dtype=given.dtype, device=given.device).reshape(inputs, *layer.weight.shape[1:])
    with _holding(layer, pick.repeat(layer.groups, *[1] * (pick.ndim - 1))):
        picked = layer.forward(given)
    return picked.movedim(1, -1).reshape(-1, layer.groups, inputs)


class LeastSquares:
    r"""Sums over images from which a layer's best weights follow.

    With residuals :math:`r = y - W_0 u - b_0` the weights :math:`(\sum y u^\top + \lambda W_0)(\sum u u^\top + \lambda
    I)^{-1}` are :math:`W_0 + \sum r u^\top (\sum u u^\top + \lambda I)^{-1}`: exactly W₀ where nothing is to be gained.

    Args:
        layer: linear, or a convolution; its weights stay as they are until :meth:`fit`.
        penalty: λ as a share of the mean of the diagonal of :math:`\sum u u^\top`, 0 or more.
        norm_follows: whether a batch norm takes up the outputs' means; without it they are fitted by the bias, if the
            layer has one.

    Example:
        >>> layer, images = nn.Linear(3, 2).double(), torch.randn(50, 3, dtype=torch.float64)
        >>> sums = LeastSquares(layer, penalty=0.0)
        >>> sums.add(images, layer(images), images[:, :2])
        True
        >>> sums.fit()
        True
        >>> torch.allclose(layer(images), images[:, :2])
        True
    """

    def __init__(self, layer: nn.Module, penalty: float, norm_follows: bool = False) -> None:
        self.layer, self.penalty = layer, penalty
        self.centred = norm_follows or layer.bias is not None
        self.groups = getattr(layer, "groups", 1)
        self.count = 0
        self.usable = True
        self._sums: list[Tensor] | None = None
        self._rows_held: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(self, given: Tensor, output: Tensor, wanted: Tensor) -> bool:
        """Add images.

        Args:
            given: the layer's input, images on the first axis.
            output: what the layer makes of it now.
            wanted: what it should make of it, of the same shape.

        Returns:
            Whether the layer can be fitted: not where its output is not linear in its weight, or of another shape.
        """
        self.usable &= output.shape == wanted.shape and len(output) == len(given)
        if self.usable and self.count == 0:
            self.usable = self._agrees(given[:1], output[:1])
        if not self.usable:
            return False
        inputs, axis = self.layer.weight[0].numel(), output_axis(self.layer)  # type: ignore[operator,index]
        of_one = output[0].numel() // output.shape[axis] * self.groups * inputs * 8
        for part, now, then in zip(
            *(t.split(max(1, int(CHUNK / of_one))) for t in (given, output, wanted)), strict=True
        ):
            self._add(patches_of(self.layer, part), self._rows(then) - self._rows(now))
        return True

    def _rows(self, output: Tensor) -> Tensor:
        """``(positions, conv groups, outputs)`` in float64."""
        return _double(output.movedim(output_axis(self.layer), -1).reshape(-1, self.groups, self._outputs))

    @property
    def _outputs(self) -> int:
        return len(self.layer.weight) // self.groups  # type: ignore[arg-type]

    def _agrees(self, given: Tensor, output: Tensor) -> bool:
        weight = self._weight().to(_double(given).device)
        made = torch.einsum("pgk,gok->pgo", _double(patches_of(self.layer, given)), weight)
        if self.layer.bias is not None:
            made += _double(self.layer.bias).reshape(self.groups, -1)  # type: ignore[arg-type]
        own = self._rows(output)
        return made.shape == own.shape and not bool((made - own).abs().max() > AGREEMENT * own.abs().max() + 1e-6)

    def _weight(self) -> Tensor:
        return _double(self.layer.weight).reshape(self.groups, self._outputs, -1)  # type: ignore[arg-type]

    def _add(self, patches: Tensor, residual: Tensor) -> None:
        self._rows_held.append((_double(patches).transpose(0, 1), residual.transpose(0, 1)))
        self.count += len(patches)
        if self._sums is not None or self.count > patches.shape[-1]:  # before that the rows are the smaller matrix
            self._sum_up()

    def _sum_up(self) -> None:
        """Rows to sums."""
        for patches, residual in self._rows_held:
            more = [patches.mT @ patches, residual.mT @ patches, patches.sum(1), residual.sum(1)]
            self._sums = more if self._sums is None else [a.add_(b) for a, b in zip(self._sums, more, strict=True)]
        self._rows_held.clear()

    @torch.no_grad()
    def fit(self) -> bool:
        """Give the layer the best weights and, if it has one, bias; whether they are finite, else it keeps its own."""
        if not self.usable or not self.count:
            return False
        change, inputs, residuals = self._by_rows() if self._sums is None else self._by_sums(*self._sums)
        layer = self.layer
        weight = (self._weight().to(change.device) + change).reshape(layer.weight.shape)  # type: ignore[arg-type]
        weight = weight.to(layer.weight)  # type: ignore[arg-type]  # half precision may not hold it
        shift = (residuals - (change @ inputs[:, :, None]).squeeze(-1)).reshape(-1) / self.count
        if not bool(weight.isfinite().all() and shift.isfinite().all()):
            return False
        layer.weight.copy_(weight)  # type: ignore[operator,union-attr]
        if layer.bias is not None:
            layer.bias.add_(shift.to(layer.bias))  # type: ignore[operator,union-attr,arg-type]
        return True

    def _by_sums(self, gram: Tensor, cross: Tensor, inputs: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The change of the weights, and the sums of inputs and residuals."""
        if self.centred:
            gram = gram - inputs[:, :, None] * inputs[:, None] / self.count
            cross = cross - residuals[:, :, None] * inputs[:, None] / self.count
        change = solve_ridge(gram, cross, self.penalty * gram.diagonal(dim1=1, dim2=2).mean(1))
        # The new squared error minus the old one. Rounding must not make it positive.
        worse = (change * (change @ gram - 2 * cross)).sum((1, 2)) > 0
        return change.masked_fill(worse[:, None, None], 0.0), inputs, residuals

    def _by_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""Likewise, by :math:`U^\top (U U^\top + \lambda I)^{-1} R`: there are fewer positions than inputs."""
        patches, residual = (torch.cat(parts, 1) for parts in zip(*self._rows_held, strict=True))
        inputs, residuals = patches.sum(1), residual.sum(1)
        if self.centred:
            patches = patches - patches.mean(1, keepdim=True)
            residual = residual - residual.mean(1, keepdim=True)
        ridge = self.penalty * patches.square().sum(1).mean(1)
        change = solve_ridge(patches @ patches.mT, residual.mT, ridge) @ patches
        worse = (residual - patches @ change.mT).square().sum((1, 2)) > residual.square().sum((1, 2))
        return change.masked_fill(worse[:, None, None], 0.0), inputs, residuals


def solve_ridge(gram: Tensor, cross: Tensor, ridge: Tensor) -> Tensor:
    r"""``cross @ inverse(gram + ridge * eye)``, for several at once.

    Args:
        gram: float64 ``(groups, n, n)``, positive semi-definite.
        cross: float64 ``(groups, outputs, n)``.
        ridge: float64 ``(groups,)``, 0 or more. Where a gram stays singular, the directions in which it is zero count
            nothing.

    Returns:
        ``(groups, outputs, n)``; NaN where something is not finite.

    Example:
        >>> solve_ridge(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[2.0, 1.0]]]), torch.zeros(1))
        tensor([[[0.5000, 0.0000]]])
    """
    if not bool(gram.isfinite().all()):  # eigh would raise
        return torch.full_like(cross, torch.nan)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge[:, None, None] * eye)
    pivots = factor.diagonal(dim1=1, dim2=2)
    sound = (failed == 0) & (pivots.amin(1) > math.sqrt(RANK) * pivots.amax(1))
    solved = torch.zeros_like(cross)
    if bool(sound.any()):
        solved[sound] = torch.cholesky_solve(cross[sound].mT, factor[sound]).mT
    for group in (~sound).nonzero().flatten().tolist():
        values, vectors = torch.linalg.eigh(gram[group])
        there = values > RANK * values.amax()
        scale = torch.where(there, 1 / (values + ridge[group]).where(there, 1.0), 0.0)
        solved[group] = (cross[group] @ vectors * scale) @ vectors.T
    return solved


def _double(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()

"""Peak memory of one forward pass: counted tensor by tensor on the CPU, read off the allocator on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

HOW_CPU = "weights, images and all that the layers compute, as far as it is alive at one time"
HOW_CUDA = "torch.cuda.max_memory_allocated, above what was allocated before the model came"


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at one time, each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if id(storage) not in self.alive:
            self.alive[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, id(storage))
            self.peak = max(self.peak, sum(self.alive.values()))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.count(part)
        return result


def peak_memory(model: nn.Module, images: Tensor) -> int:
    """The most bytes that are alive during one forward pass: weights, images and what the layers compute.

    Memory that a kernel uses only while it runs is not counted.

    Example:
        >>> peak_memory(nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)), torch.zeros(2, 3, 2, 2))
        376
    """
    with torch.inference_mode(), _LiveBytes() as memory:
        for tensor in (*model.state_dict().values(), images):
            memory.count(tensor)
        model(images)
    return memory.peak


def peak_memory_cuda(model: nn.Module, images: Tensor) -> int:
    """The most bytes that a model, images and one forward pass take on the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    on_gpu, batch = model.to("cuda"), images.to("cuda")
    with torch.inference_mode():
        on_gpu(batch)
    peak = torch.cuda.max_memory_allocated() - before
    model.to("cpu")
    return peak

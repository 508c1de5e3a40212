"""All that a backbone returns, in one list."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from lightning_mvp.backbones.copies import tensors_in


class AllOutputs(nn.Module):
    """A model that returns all its tensors in one list, in the mode in which it returns most.

    Auxiliary classifiers, such as GoogLeNet's, run in train mode only, and Torch-Pruning traces in eval mode.

    Args:
        model: the model, whose mode is set.
        inputs: of one forward pass.

    Attributes:
        plain: whether the model returns one tensor rather than a collection.
        shapes: the shape of each output.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.mode = model, False
        with torch.no_grad():
            output = model.eval()(*inputs)
            self.plain = isinstance(output, Tensor)
            self.shapes = [tuple(tensor.shape) for tensor in tensors_in(output)]
            # A model may not train on one sample, or need targets to do so: then eval mode, which has passed, will do.
            with suppress(Exception):
                outputs = tensors_in(model.train()(*inputs))
                if len(outputs) > len(self.shapes):
                    self.mode, self.plain, self.shapes = True, False, [tuple(tensor.shape) for tensor in outputs]
        model.train(self.mode)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        self.model.train(self.mode)
        return tensors_in(self.model(*inputs))

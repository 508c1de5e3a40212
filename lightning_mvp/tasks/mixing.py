"""Images mixed with others of their batch, by timm: mixup and CutMix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_mvp.tasks.transforms import seeded

# Arguments of :class:`timm.data.Mixup`, such as {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}.
Mixing: TypeAlias = Mapping[str, Any]


class Mixture:
    """Mixes batches as :class:`timm.data.Mixup` does (Zhang et al., 2018; Yun et al., 2019), by a seed for each.

    Args:
        mixing: arguments of timm's class. Labels are not smoothed unless ``label_smoothing`` says so.
        n_classes: how many there are.

    Raises:
        ValueError: arguments that timm doesn't know.
    """

    def __init__(self, mixing: Mixing, n_classes: int) -> None:
        from timm.data.mixup import Mixup

        try:
            self._mixup = Mixup(**{"label_smoothing": 0.0, **mixing, "num_classes": n_classes})
        except TypeError as error:
            raise ValueError(
                f"Expected argument `mixing` to hold arguments of timm.data.Mixup, but got {dict(mixing)}: {error}."
            ) from error
        self.n_classes = n_classes

    def mixed(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images float ``(B, C, S, S)`` and labels ``(B,)`` → mixed ones, and labels float ``(B, classes)``.

        timm mixes pairs: the last image of an odd batch stays as it is.
        """
        pairs = len(images) // 2 * 2
        rest = one_hot(labels[pairs:], self.n_classes).float()
        if not pairs:
            return images, rest
        with seeded(seed):
            # timm's labels are made on the device of the images; it writes into them.
            mixed, soft = self._mixup(images[:pairs].clone(), labels[:pairs])
        return torch.cat([mixed, images[pairs:]]), torch.cat([soft.float(), rest])

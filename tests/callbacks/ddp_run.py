"""What test_ddp.py runs in two processes: ``ddp_run.py <folder> agree|differ``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.callbacks.user import FACTS, UserModule, callback, loader, make_trainer


class MaybeBiased(UserModule):
    """With ``differ``, rank 1 gets gradients of its own after DDP has averaged them."""

    differ = False

    def on_after_backward(self) -> None:
        if self.differ and self.global_rank == 1:
            for parameter in self.net.parameters():
                parameter.grad = torch.randn_like(parameter)


def main(folder: Path, differ: bool) -> None:
    torch.set_num_threads(1)
    mvp = callback(head="classifier", task=FACTS, zoo=folder / "zoo")
    module = MaybeBiased()
    module.differ = differ
    trainer = make_trainer(mvp, max_steps=8, devices=2, strategy="ddp")
    trainer.fit(module, loader(batches=16))
    (folder / f"rank{trainer.global_rank}").write_text(mvp.masks.fingerprint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "differ")

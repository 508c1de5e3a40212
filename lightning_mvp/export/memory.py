"""Peak memory of one forward pass: on the CPU that of a fresh process, which ``python -m`` of this file is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS = Path("/proc/self/status")
HOW_CPU = "resident memory of a fresh process at its highest, above what it was before the model was built"
HOW_CUDA = "torch.cuda.max_memory_allocated, above what was allocated before the model came"


def peak_memory(folder: Path, images: Tensor, threads: int) -> int:
    """Bytes that loading a folder's model and one forward pass take in a process of its own, on the CPU.

    Args:
        folder: with load.py, recipe.json and model.safetensors.
        images: only the shape matters.
        threads: torch's.

    Raises:
        RuntimeError: the process failed; the message is its own.
    """
    shape = ",".join(map(str, images.shape))
    command = [sys.executable, "-m", "lightning_mvp.export.memory", str(folder), shape, str(threads)]
    # Memory that building the model frees goes back at once, and isn't taken for the forward pass's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Expected a process that measures memory to end well, but it failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def peak_memory_cuda(model: nn.Module, images: Tensor) -> int:
    """Bytes that a model and one forward pass take on the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    on_gpu, batch = model.to("cuda"), images.to("cuda")
    with torch.inference_mode():
        on_gpu(batch)
    peak = torch.cuda.max_memory_allocated() - before
    model.to("cpu")
    return peak


def _resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most; without /proc the most is all that is known."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    import resource  # not on Linux, where a child begins with the most that its parent had

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _measure(folder: str, shape: str, threads: str) -> int:
    torch.set_num_threads(int(threads))
    spec = importlib.util.spec_from_file_location("load", Path(folder) / "load.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    images = torch.zeros(*map(int, shape.split(",")))
    with torch.inference_mode():
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 1))(torch.zeros(1, 3, 4, 4))  # loads kernels
        before = _resident("VmRSS")
        model = loader.load(folder)
        with contextlib.suppress(OSError):  # where it is refused, the dense model built on the way may be the highest
            Path("/proc/self/clear_refs").write_text("5")
        model(images)
    return _resident("VmHWM") - before


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))

"""One thread per test process: two processes share two cores, and sums come out the same every time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from .nursery import Nursery

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # which commands obey


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Forks ranks, commands and scripts from a process that has imported torch already."""
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()

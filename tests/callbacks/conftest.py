from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mvp.zoo import ModelZoo


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Where a zoo may be made."""
    return tmp_path / "zoo"


@pytest.fixture
def entries(zoo: Path) -> Callable[[], int]:
    """How many entries the zoo has; 0 where it was never made."""
    return lambda: len(ModelZoo(zoo)) if (zoo / "zoo.json").exists() else 0

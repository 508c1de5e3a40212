"""The oldest versions of other packages that setup.cfg allows, in an environment of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What needs nothing but the package itself; the tests of commands and studies need its extras, too.
TESTS = ("pruning", "callbacks", "backbones/test_surgery.py", "zoo", "voting", "training", "fitting", "export")


def oldest() -> list[str]:
    """Each requirement with the lowest version that it allows."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"].split()
    return [re.sub(r"^([\w.-]+)>=([\w.]+).*", r"\1==\2", line) for line in required]


def test_each_requirement_says_its_oldest_version():
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in oldest())


@pytest.mark.full
def test_the_oldest_versions_pass_the_tests_of_the_method(tmp_path: Path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    tools = ["pytest", "hypothesis", "setuptools", "onnx", "onnxruntime", "scikit-learn"]
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *oldest(), *tools]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no registry has them: {installed.stderr[-300:]}")
    run = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not full"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*run, *(f"tests/{name}" for name in TESTS)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]

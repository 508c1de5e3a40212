"""The package as others see it: its names, what importing it costs, and what a built wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import lightning_mvp

ROOT = Path(__file__).parents[1]

DESIGN_NAMES = (
    "MVPCallback",
    "MaskExport",
    "TaskFacts",
    "Masks",
    "find_groups",
    "apply_masks",
    "shrink",
    "ModelZoo",
    "leep",
    "vote",
    "merge",
    "voted_backbone",
    "MetaVoteModule",
)


@pytest.mark.parametrize("name", sorted({*DESIGN_NAMES, *lightning_mvp.__all__}))
def test_each_public_name_imports_and_is_listed(name: str) -> None:
    assert getattr(lightning_mvp, name).__name__ == name
    assert name in dir(lightning_mvp)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'MVPCalback'; it has .*MVPCallback"):
        lightning_mvp.MVPCalback  # noqa: B018


@pytest.mark.parametrize("module", ["lightning_mvp", "lightning_mvp.zoo", "lightning_mvp.apps.compare"])
def test_importing_it_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; print({{'torch', 'lightning', 'timm'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(find_spec("setuptools") is None, reason="needs setuptools to build without a network")
def test_the_wheel_ships_every_module_every_config_and_the_type_marker(tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", "conf", "lightning_mvp", "setup.cfg", "pyproject.toml", "LICENSE", tmp_path], cwd=ROOT)
    (tmp_path / "README.md").write_text("")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".py", ".html", ".css", ".js"}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_mvp").rglob("*") if path.suffix in kinds}
    wanted |= {f"lightning_mvp/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert wanted | {"lightning_mvp/py.typed"} <= shipped


@pytest.mark.slow
def test_the_package_is_built_from_its_own_archive_and_would_be_taken(tmp_path: Path) -> None:
    """As a release is made: the wheel comes from the source archive, and the index's own checks pass."""
    files = ["conf", "lightning_mvp", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"]
    subprocess.run(["cp", "-r", *files, tmp_path], cwd=ROOT, check=True)
    for command in (["build", "--no-isolation"], ["twine", "check", "--strict", "dist/*"]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.suffix for path in (tmp_path / "dist").iterdir()) == [".gz", ".whl"]


def test_sources_hold_no_paths_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(work|home|root|tmp|Users|mnt)/")
    files = [path for folder in ("lightning_mvp", "conf") for path in (ROOT / folder).rglob("*")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*files, ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "Makefile"]
        if path.suffix in {".py", ".yaml", ".cfg", ".toml", ".html", ".css", ".js", ""} and path.is_file()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found

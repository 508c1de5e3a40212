"""The examples run as they stand, each in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAYS = {
    "01_callback_only.py": "outputs differ from the trained module's by at most",
    "02_vote_new_task.py": "before the first step",
    "03_ddp.py": "Global batch 64 = 2 device(s)",
    "05_own_module.py": "After 40 steps: characters",
    "06_mimic.py": "256 of 512 features are left",
    "07_photographs.py": "tf_efficientnet_lite0: four tasks, a vote and an export took",
}
ARGUMENTS = {
    "03_ddp.py": ["--devices", "2", "--accelerator", "cpu"],
    "07_photographs.py": ["--backbones", "tf_efficientnet_lite0", "--images", "6", "--steps", "2"],
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_says_what_it_did(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example), *ARGUMENTS.get(example.name, [])],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS[example.name] in done.stdout


def test_the_tour_runs_and_draws_its_three_pictures(tmp_path: Path) -> None:
    import nbformat  # `make test` installs neither
    from nbclient import NotebookClient

    tour = nbformat.read(EXAMPLES[0].with_name("tour.ipynb"), as_version=4)
    assert not any(cell.get("outputs") for cell in tour.cells), "it is kept without what it printed"
    NotebookClient(tour, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in tour.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert "parameters: " in "".join(output.get("text", "") for output in outputs)

"""Worker processes end with the process that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from lightning_mvp.study.study_settings import StudySettings
from lightning_mvp.study.worker import start_worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    settings = StudySettings({}, {}, {}).to_dict()
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=start_worker, initargs=("nowhere", settings))
    print(*[future.result() for future in [pool.submit(os.getpid) for _ in range(4)]], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    workers = {int(pid) for pid in done.stdout.split()}
    assert workers
    patience = time.monotonic() + 20
    while alive := {pid for pid in workers if _runs(pid)}:
        assert time.monotonic() < patience, f"still running: {alive}"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; whoever inherited it has yet to look.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"

"""``kill -9`` of a launcher: its processes end, and others are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

WORKER = """
import os, pathlib, sys, time
from sttm_lmms.launched import end_with_launcher
end_with_launcher()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize(
    ("launcher", "ends"),
    [(("-c", LAUNCHER), False), pytest.param(TORCHRUN, True, marks=pytest.mark.slow)],
    ids=["a shell", "torchrun"],
)
def test_the_launcher_is_killed(launcher, ends, tmp_path):
    script, told = tmp_path / "worker.py", tmp_path / "process"
    script.write_text(WORKER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    parent = subprocess.Popen([sys.executable, *launcher, str(script), str(told)], env=environment)
    assert wait_for(lambda: told.exists() and told.read_text(), 60)
    worker = int(told.read_text())
    try:
        time.sleep(1.5)
        assert alive(worker), "it ended while its launcher was there"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_for(lambda: not alive(worker), 5 if ends else 2) == ends
    finally:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)

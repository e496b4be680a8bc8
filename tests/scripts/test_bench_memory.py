"""The memory of a long run, in small: each setting is read in a process of its own, once every few videos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")
SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_memory.py"


@pytest.mark.slow
def test_a_small_run(tmp_path):
    arguments = ["--videos", "4", "--distinct", "2", "--every", "2", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, cwd=SCRIPT.parents[1])
    found = json.loads((tmp_path / "memory.json").read_text())
    assert [row["videos"] for row in found["rows"]] == [2, 4]
    for row in found["rows"]:
        assert all(100 < row[f"{name}_MiB"] < 10_000 for name in found["settings"])
    assert "| 4 |" in (tmp_path / "memory.md").read_text()

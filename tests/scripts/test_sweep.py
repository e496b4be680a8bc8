"""scripts/reproduce.sh all: which cells, what is skipped, what is listed. No model is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

PYTHON = """#!/bin/sh
# Stands in for the interpreter of a cell: writes a result file, but not for mlvu.
case "$1" in
    *sweep.py) exec {python} "$@" ;;
    -) echo max_frames=4,fps=1 ;;
    *) echo "ran $*"
       for word in "$@"; do [ "$before" = --output_path ] && out=$word; before=$word; done
       case "$*" in *sttm_mlvu*) echo "ValueError: no such video"; exit 3 ;; esac
       mkdir -p "$out/run" && echo '{{}}' > "$out/run/1_results.json" ;;
esac
"""


@pytest.fixture
def sweep(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON.format(python=sys.executable))
    stand_in.chmod(0o755)

    def run(*arguments):
        return subprocess.run(
            ["bash", str(SCRIPTS / "reproduce.sh"), "all", *arguments, "--output", str(tmp_path / "out")],
            env={**os.environ, "PYTHON": str(stand_in)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_all_cells_run_once_and_failed_ones_are_listed_with_their_error(sweep):
    first = sweep("llava-video-7b")
    assert first.returncode == 1
    assert first.stdout.count("ran -m") == 18
    assert first.stdout.count("failed: ") == 3
    assert "mlvu 50: status 3: ValueError: no such video" in first.stdout
    second = sweep("llava-video-7b")
    assert second.stdout.count("skipped") == 15
    assert second.stdout.count("ran -m") == 3


def test_a_large_model_has_one_benchmark(sweep):
    done = sweep("llava-video-72b")
    assert done.returncode == 0
    assert "3 of 3 cells are fine" in done.stdout


def test_a_dry_run_prints_the_commands_and_writes_nothing(sweep, tmp_path):
    done = sweep("llava-video-72b", "--dry-run")
    assert done.stdout.count("sttm_videomme") == 3
    assert "--use_cache" in done.stdout
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_refused(sweep):
    done = sweep("llava-video-8b")
    assert done.returncode == 2
    assert "llava-video-8b" in done.stderr

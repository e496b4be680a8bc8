"""Runs of lmms-eval that commands start."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest


@pytest.fixture
def warm_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m lmms_eval`` of ``sttm_lmms.cli.launch`` is forked from a process that has imported
    it: a fresh start costs twenty seconds, and is tested in tests/model_wrappers."""
    from warm_ranks import warm_command

    from sttm_lmms.cli.launch import LMMS_EVAL

    def run(command, *, env, stdout, stderr, check):
        assert tuple(command[:3]) == LMMS_EVAL
        warm_command(command[3:], env, stdout.name)

    monkeypatch.setattr("sttm_lmms.cli.launch.subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))

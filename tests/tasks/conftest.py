"""Task loading as lmms-eval does it, without any network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tasks_folder() -> Path:
    return ROOT / "tasks"


@pytest.fixture
def offline(monkeypatch, tmp_path_factory):
    """Any connection to another process but the server that forks runs fails; caches lie in a
    temporary folder."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was tried")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_data(monkeypatch, offline) -> Path:
    """``STTM_DATA_ROOT`` with a few invented records of every benchmark."""
    root = ROOT / "tests" / "golden" / "annotations"
    monkeypatch.setenv("STTM_DATA_ROOT", str(root))
    return root

"""Folders of published size, and a data root with a few questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import published

from sttm_lmms.benchmarks.mini import write_benchmark


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data root with one short video and four questions."""
    root = tmp_path_factory.mktemp("data")
    file = write_benchmark(root, videos=3, lengths=(7,), sizes=((64, 64),), fps=(8,))
    file.write_text(json.dumps(json.loads(file.read_text())[:4]))
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """``checkpoint(name)``: the folder of a published checkpoint, without its values."""
    root = tmp_path_factory.mktemp("published")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else published.build(root, name)

    return folder


@pytest.fixture(autouse=True)
def surroundings(data, monkeypatch):
    """The data root, and no network."""
    monkeypatch.setenv("STTM_DATA_ROOT", str(data))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

"""Small videos and small checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from wrapper_runs import FAMILIES, MANY_QUESTIONS, MANY_VIDEOS, QUESTIONS, VIDEOS

from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.testing.tiny import build_tiny_checkpoint


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data root with three short videos and eleven questions, which two processes cannot share
    evenly."""
    root = tmp_path_factory.mktemp("data")
    file = write_benchmark(root, videos=VIDEOS, lengths=(7,), sizes=((64, 64),), fps=(8,))
    file.write_text(json.dumps(json.loads(file.read_text())[:QUESTIONS]))
    return root


@pytest.fixture(scope="session")
def many_videos(tmp_path_factory) -> Path:
    """A data root with eight short videos of two questions each, one of them with one."""
    root = tmp_path_factory.mktemp("many")
    file = write_benchmark(root, videos=MANY_VIDEOS, lengths=(7,), sizes=((64, 64),), fps=(8,))
    file.write_text(json.dumps(json.loads(file.read_text())[::2][:MANY_QUESTIONS]))
    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One random checkpoint of each family; LLaVA ones in the original layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: build_tiny_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture
def broken_data(tmp_path, data) -> Path:
    """The same data root with one empty and one missing video."""
    root = tmp_path / "broken"
    shutil.copytree(data, root)
    first, second, _ = sorted((root / "vnbench" / "videos").iterdir())
    first.write_bytes(b"")
    second.unlink()
    return root

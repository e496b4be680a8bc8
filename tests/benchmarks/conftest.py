"""A small data root with invented records in the STTM format of all six benchmarks."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    return Path(__file__).parents[1] / "golden" / "annotations"

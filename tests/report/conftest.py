from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recorded() -> Path:
    """Folder of the result files that lmms-eval wrote for a toy model; see its README."""
    return Path(__file__).parent.parent / "golden" / "report"

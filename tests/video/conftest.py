from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from video_clips import CLIPS


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``clip(name)`` is the path of one of the files that :mod:`video_clips` makes; each is encoded
    once."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else CLIPS[name](path)

    return get

"""Small models of all families and a few real video files, shared by the runtime's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from footage import moving_squares

from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.video import write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"clip{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_video(path, moving_squares(seed, 7 + seed), 1.0)
    return paths


@pytest.fixture(scope="session")
def tiny():
    """``tiny(family, attention="sdpa") -> (model, processor)``, each built once."""
    built = {}

    def get(family: str, attention: str = "sdpa"):
        if (family, attention) not in built:
            model, processor = tiny_model(family, seed=1)
            model.set_attn_implementation(attention)
            built[family, attention] = model, processor
        return built[family, attention]

    return get

"""Small checkpoints of every family and layout, and a video to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_helpers import moving_frames

from sttm_lmms.families import family_of, load_pretrained
from sttm_lmms.testing.tiny import build_tiny_checkpoint
from sttm_lmms.video import write_video


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """``checkpoint(family, layout)``: the folder, built once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str, layout: str = "original") -> Path:
        path = root / f"{family}-{layout}"
        return path if path.exists() else build_tiny_checkpoint(path, family, layout)

    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """``loaded(family, layout)``: (family, model, processor), loaded once, float32 on the CPU."""
    kept: dict[tuple[str, str], Any] = {}

    def load(family: str, layout: str = "original") -> Any:
        if (family, layout) not in kept:
            model, processor = load_pretrained(checkpoint(family, layout), dtype=torch.float32)
            kept[family, layout] = (family_of(model), model, processor)
        return kept[family, layout]

    return load


@pytest.fixture(scope="session")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of H.264 at 12 frames a second, 96 x 130 pixels."""
    return write_video(tmp_path_factory.mktemp("video") / "moving.mp4", moving_frames(72, 96, 130), fps=12)

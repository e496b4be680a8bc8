"""Frames that are made small as they are read: the same features as from frames in full size, in
less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_helpers import moving_frames

from sttm_lmms.video import VideoSettings, write_video

FAMILIES = [("llava_video", "original"), ("llava_onevision", "hf"), ("internvl", "hf"), ("qwen2_vl", "hf")]


@pytest.mark.parametrize(("name", "layout"), [*FAMILIES, ("qwen3_vl", "hf")])
def test_the_features_are_the_same(loaded, mp4, name, layout):
    family, model, processor = loaded(name, layout)
    settings = VideoSettings(max_frames=5)
    small, full = (family.read_video(mp4, settings, each) for each in (processor, None))
    seen = [family.vision_features(model, processor, video) for video in (small, full)]
    assert torch.equal(seen[0].tensor, seen[1].tensor)
    assert seen[0].metadata == seen[1].metadata
    frames = np.stack(list(moving_frames(5, 96, 130)))
    given = [family.read_video(frames, settings, each) for each in (processor, None)]
    seen = [family.vision_features(model, processor, video) for video in given]
    assert torch.equal(seen[0].tensor, seen[1].tensor)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("large") / "large.mp4", moving_frames(12, 480, 640), fps=1, bframes=0)


@pytest.mark.parametrize(("name", "layout"), FAMILIES)
def test_large_frames_are_never_all_there(loaded, large, name, layout, monkeypatch):
    """No array in which frames are collected holds large ones."""
    family, _, processor = loaded(name, layout)
    made = []
    empty = np.empty

    def noted(shape, *args, **kwargs):
        made.append(int(np.prod(shape)))
        return empty(shape, *args, **kwargs)

    monkeypatch.setattr("sttm_lmms.video.pictures.np.empty", noted)
    video = family.read_video(large, VideoSettings(max_frames=12, max_pixels=200 * 200), processor)
    assert len(video.frames) == 12
    assert max(made) == video.frames.size < 2 * 480 * 640 * 3

"""GLM's frames and their size, against its own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_helpers import moving_frames
from newer_families import VIDEO, user
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.video_utils import VideoMetadata

from sttm_lmms.benchmarks.presets import resolve_video
from sttm_lmms.families import get_family
from sttm_lmms.families.glm4v import sample_frames
from sttm_lmms.video import VideoSettings

OFFICIAL = resolve_video("official", "glm4v")


def test_frames_are_the_processor_s():
    rng = np.random.default_rng(0)
    for _ in range(300):
        fps = float(rng.choice([1.0, 2.0, 12.0, 23.976, 25.0, 29.97, 60.0]))
        total = int(rng.integers(1, 40000))
        duration = total / fps
        facts = VideoMetadata(total_num_frames=total, fps=fps, duration=duration)
        expected = Glm4vVideoProcessor().sample_frames(facts).tolist()
        assert sample_frames(total, fps, duration, OFFICIAL.fps, OFFICIAL.max_frames) == expected


@pytest.mark.parametrize("frames", [1, 2, 7, 64, 600])
@pytest.mark.parametrize("size", [(20, 300), (96, 130), (480, 640), (1080, 1920)])
def test_sizes_are_the_processor_s(size, frames):
    expected = Glm4vVideoProcessor().get_num_of_video_patches(frames + frames % 2, *size)
    height, width = get_family("glm4v").frame_size(*size, frames, VideoSettings(max_frames=600))
    assert -(-frames // 2) * (height // 14) * (width // 14) == expected
    fewer = get_family("glm4v").frame_size(*size, frames, VideoSettings(max_frames=600, max_pixels=100 * 100))
    assert fewer[0] * fewer[1] <= max(100 * 100, 112 * 112 / frames) * 1.5


def test_a_file_is_prompted_as_by_the_processor(loaded, mp4):
    """Its frames, their times and the tokens of each."""
    family, model, processor = loaded("glm4v", "hf")
    settings = VideoSettings(max_frames=OFFICIAL.max_frames, fps=OFFICIAL.fps)
    features = family.vision_features(model, processor, family.read_video(mp4, settings, processor))
    prepared = family.prepare(model, processor, user([VIDEO, "Why?"]), [features])
    text = processor.apply_chat_template(
        user([VIDEO, "Why?"]), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    facts = VideoMetadata(total_num_frames=72, fps=12.0, duration=6.0)
    frames = torch.from_numpy(moving_frames(72, 96, 130).transpose(0, 3, 1, 2))
    videos = {"video_metadata": [facts], "do_sample_frames": True}
    stock = processor(text=[text], videos=[frames], videos_kwargs=videos, return_tensors="pt")
    assert prepared.input_ids.tolist() == stock["input_ids"].tolist()

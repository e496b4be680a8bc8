"""The rehearsed prompt of families that write text between their frames."""

from __future__ import annotations

import pytest

from sttm_lmms.families import get_family
from sttm_lmms.rehearsal.prompt import render_prompt
from sttm_lmms.rehearsal.video import sight_of
from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.video import VideoSettings

VIDEO = {"type": "video", "video": "x.mp4"}


@pytest.mark.parametrize(
    ("name", "frames", "shown"),
    [
        ("qwen2_5_vl", 4, " video tokens><|vision_end|>Why?"),
        (
            "qwen3_vl",
            4,
            "<|vision_end|><5.5 seconds><|vision_start|><720 video tokens><|vision_end|><|vision_end|>Why?",
        ),
        ("internvl", 8, "</img>\nFrame8: <img><16 video tokens></img>\nWhy?"),
    ],
)
def test_the_text_between_frames(name, frames, shown):
    model, processor = tiny_model(name)
    sight = sight_of(name, model.config, None, VideoSettings(max_frames=8, fps=2.0))
    assert sight.grid[0] == frames
    messages = [{"role": "user", "content": [VIDEO, {"type": "text", "text": "Why?"}]}]
    prompt = render_prompt(get_family(name), model.config, processor, messages, sight, None)
    steps, height, width = sight.grid
    assert (prompt.visual, prompt.newlines, prompt.reducible) == (steps * height * width, 0, True)
    assert shown in prompt.text
    assert prompt.tokens > prompt.shared > prompt.visual

"""The pooled form in front of a real decoder: the same tokens, close embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sttm_lmms.families import get_family, load_pretrained
from sttm_lmms.testing.tiny import build_tiny_checkpoint
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video.features import to_form

MESSAGES = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]


def test_pooled_features_fit_the_model(tmp_path: Path) -> None:
    model, processor = load_pretrained(build_tiny_checkpoint(tmp_path / "tiny", "llava_video"), dtype="float32")
    family = get_family("llava_video")
    tower = model.config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    metadata = {"video_time": 3.0, "frame_time": "0.00s,1.00s,2.00s", "num_frames": 3}

    def embeddings(tensor: torch.Tensor) -> tuple[torch.Tensor, object]:
        prepared = family.prepare(
            model, processor, MESSAGES, [VisionFeatures(tensor, "video", metadata)], newline="no_token"
        )
        (span,) = prepared.spans
        return prepared.inputs_embeds[0, span.start : span.end], span.grid

    flat = torch.randn(3, 1, tower.hidden_size).expand(3, patches, tower.hidden_size)
    full, grid = embeddings(flat.contiguous())
    pooled, pooled_grid = embeddings(to_form(flat, "pooled"))
    assert grid == pooled_grid
    torch.testing.assert_close(pooled, full, atol=0.05, rtol=0.05)  # frames of one colour lose bfloat16's bits only
    textured = torch.randn(3, patches, tower.hidden_size)
    difference = embeddings(to_form(textured, "pooled"))[0] - embeddings(textured)[0]
    assert difference.abs().max() > 1e-3, "pooling before the projector is not the same"


def test_qwen2_vl_features_have_no_pooled_form() -> None:
    with pytest.raises(ValueError, match="form='pooled' needs square frames"):
        to_form(torch.ones(2, 4, 4, 8), "pooled")

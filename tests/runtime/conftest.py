"""Small models of all families and a few real video files, shared by the runtime's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from footage import moving_squares
from transformers.video_utils import VideoMetadata

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


@pytest.fixture(scope="session")
def models():
    """``models(family)``: a model whose answers depend on its prompt, its processor, and the inputs
    of a prompt."""
    built: dict[str, Any] = {}

    def get(family: str):
        if family not in built:
            model, processor = tiny_model(family, seed=1)
            with torch.no_grad():
                for name, weights in model.named_parameters():
                    if weights.ndim == 2 and ("layers" in name or "embed_tokens" in name):
                        weights.mul_(6)
            content = [{"type": "text", "text": "See: "}, {"type": "video"}, {"type": "text", "text": "\nWhat, what?"}]
            chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            frames = torch.from_numpy(moving_squares(0, 6, 64, 64).transpose(0, 3, 1, 2))
            facts = VideoMetadata(total_num_frames=6, fps=2.0, frames_indices=list(range(6)))
            seen = {"do_sample_frames": False, "video_metadata": [facts]}
            inputs = processor(text=[chat], videos=[frames], videos_kwargs=seen, return_tensors="pt")
            built[family] = model, processor.tokenizer, dict(inputs)
        return built[family]

    return get

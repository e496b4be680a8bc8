"""Weights on several devices: accelerate's hooks and ours on the same modules."""

from __future__ import annotations

import pytest
import torch
from footage import FAMILY_NAMES, VIDEO

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.testing.tiny import build_tiny_checkpoint


def request(video, question: str) -> Request:
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": question}]
    return Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=4))


def half_on_disk(model) -> dict[str, str]:
    """A device map with every second decoder layer on disk."""
    names = [f"model.{name}" for name, _ in model.model.named_children() if name != "language_model"]
    names += [f"model.{name}" for name, _ in model.model.named_parameters(recurse=False)]
    names += [f"model.language_model.{part}" for part in ("embed_tokens", "norm", "rotary_emb")]
    layers = {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    return {**dict.fromkeys([*names, "lm_head"], "cpu"), **layers}


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("start_layer", [0, 2])
def test_disk_offload_answers_like_one_device(tmp_path, videos, family, start_layer):
    checkpoint = build_tiny_checkpoint(tmp_path / family, family, seed=1)
    plain, processor = load_pretrained(checkpoint, dtype=torch.float32)
    spread, _ = load_pretrained(
        checkpoint, dtype=torch.float32, device_map=half_on_disk(plain), offload_folder=str(tmp_path / "offload")
    )
    assert spread.model.language_model.layers[3].mlp.up_proj.weight.is_meta
    config = STTMConfig(0.995, 0.995, start_layer=start_layer)
    requests = [request(videos[0], "What moves?"), request(videos[0], "Why?")]
    answers = []
    for model in (plain, spread):
        engine = Engine(model, processor, config, video=VIDEO)
        answers.append(engine.generate(requests, batch_size=2))
        engine.check_reduced()
    assert [a.text for a in answers[0]] == [a.text for a in answers[1]]
    assert [a.kept_tokens for a in answers[0]] == [a.kept_tokens for a in answers[1]]

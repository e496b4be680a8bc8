"""Weights on several devices: accelerate's hooks and ours on the same modules."""

from __future__ import annotations

import pytest
import torch
from footage import FAMILY_NAMES, VIDEO
from method_settings import NAMES, method

from sttm_lmms import STTMConfig, VideoSpan, load_pretrained, reduce_tokens
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


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """``(plain model, the same one with every second layer on disk, processor)``."""
    folder = tmp_path_factory.mktemp("spread")
    checkpoint = build_tiny_checkpoint(folder / "checkpoint", "llava_video", seed=1)
    plain, processor = load_pretrained(checkpoint, dtype=torch.float32)
    parts, _ = load_pretrained(
        checkpoint, dtype=torch.float32, device_map=half_on_disk(plain), offload_folder=str(folder / "offload")
    )
    return plain, parts, processor


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.base.BudgetWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_method_answers_the_same_with_layers_on_disk(spread, name):
    plain, parts, _ = spread
    grid, tokens = (4, 4, 4), []
    embeds = torch.randn(1, 76, 64, generator=torch.Generator().manual_seed(4))
    for model in (plain, parts):
        with torch.inference_mode(), reduce_tokens(model, method(name), spans=[VideoSpan(5, grid)]) as report:
            output = model(inputs_embeds=embeds, use_cache=True)
            logits = [output.logits[0, -1]]
            for token in (7, 8):
                output = model(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values)
                logits.append(output.logits[0, -1])
        report.check_reduced()
        tokens.append((torch.stack(logits), report.kept_tokens))
    torch.testing.assert_close(tokens[0][0], tokens[1][0], atol=1e-5, rtol=0)
    assert tokens[0][1] == tokens[1][1]

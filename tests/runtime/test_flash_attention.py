"""Flash attention with its kernels faked on the CPU: when they are called, with what lengths, and
that logits agree.

The fakes stand where the package ``flash_attn`` would; everything else is transformers' own path to
the kernels.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from footage import FAMILY_NAMES, VIDEO

from sttm_lmms import STTMConfig
from sttm_lmms.decoder import find_decoder
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.types import VideoSpan

QUESTIONS = ("What moves?", "Which colour is the second square, and where does it go?")
CONFIGS = {"none": None, **{f"layer {n}": STTMConfig(0.995, 0.995, start_layer=n) for n in (0, 1)}}


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """One sequence, ``[S, heads, D]``; causal from the bottom right corner, as the kernels are."""
    queries, keys = len(query), len(key)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if causal:
        scores.masked_fill_(torch.ones(queries, keys).triu(keys - queries + 1).bool(), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


class Kernels:
    """The two kernels, and the calls they got."""

    def __init__(self) -> None:
        self.dense: list[tuple[int, int, int]] = []
        """(rows, queries, keys) of each call without padding."""
        self.varlen: list[tuple[list[int], list[int]]] = []
        """(queries, keys) of every row, of each call with padding."""

    def flash_attn_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **_):
        self.dense.append((q.shape[0], q.shape[1], k.shape[1]))
        rows = zip(q, k, v, strict=True)
        return torch.stack([attend(*row, causal, softmax_scale) for row in rows])

    def flash_attn_varlen_func(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False, **_
    ):
        lengths = [cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()]
        assert [max(lengths[0]), max(lengths[1])] == [int(max_seqlen_q), int(max_seqlen_k)]
        self.varlen.append((lengths[0], lengths[1]))
        parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
        return torch.cat([attend(*part, causal, softmax_scale) for part in parts])


@pytest.fixture
def kernels(monkeypatch) -> Kernels:
    fake = Kernels()
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = fake.flash_attn_func, fake.flash_attn_varlen_func
    package.flash_attn_with_kvcache = fake.flash_attn_func
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda *_, **__: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    return fake


@contextmanager
def attention(model, name: str):
    """The decoder's attention implementation, and the logits of each forward pass."""
    config, logits = find_decoder(model).config, []
    before = config._attn_implementation
    hook = model.lm_head.register_forward_hook(lambda _, __, output: logits.append(output[:, -1]))
    config._attn_implementation = name
    try:
        yield logits
    finally:
        config._attn_implementation = before
        hook.remove()


def engine_run(loaded, videos, name: str, config, reuse: str, batch_size: int):
    model, processor = loaded
    requests = [
        Request(
            [{"role": "user", "content": [{"type": "video", "video": str(videos[0])}, {"type": "text", "text": text}]}],
            GenerationSettings(max_new_tokens=3),
        )
        for text in QUESTIONS
    ]
    with attention(model, name) as logits:
        answers = Engine(model, processor, config, video=VIDEO, reuse=reuse).generate(requests, batch_size=batch_size)
    assert all(answer.reduced == (config is not None) for answer in answers)
    return logits


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reuse", ["prefix", "none"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_one_row_never_needs_lengths(tiny, videos, kernels, family, config, reuse):
    """Positions that do not count up by one (M-RoPE, reduced tokens) are not mistaken for packed
    sequences."""
    loaded = tiny(family)
    expected = engine_run(loaded, videos, "sdpa", config, reuse, 1)
    assert not kernels.dense
    assert_same(engine_run(loaded, videos, "flash_attention_2", config, reuse, 1), expected)
    assert kernels.varlen == []
    assert {rows for rows, _, _ in kernels.dense} == {1}
    prefills = {queries for _, queries, keys in kernels.dense if queries == keys}
    assert len(prefills) >= (2 if config is not None and config.start_layer else 1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_two_questions_on_one_prefix(tiny, videos, kernels, family, config):
    """Questions of two lengths stand behind the prefix with padding between; each row has its own
    keys."""
    loaded = tiny(family)
    expected = engine_run(loaded, videos, "sdpa", config, "prefix", 2)
    assert_same(engine_run(loaded, videos, "flash_attention_2", config, "prefix", 2), expected)
    assert kernels.varlen
    shorter = len(QUESTIONS[1]) - len(QUESTIONS[0])  # the tokenizer has a token a byte
    assert all(keys[1] - keys[0] == shorter for _, keys in kernels.varlen)
    assert {tuple(queries) for queries, _ in kernels.varlen if queries[0] > 1} == {
        (n, n + shorter) for n in {queries[0] for queries, _ in kernels.varlen if queries[0] > 1}
    }


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_two_whole_prompts_with_padding_on_the_left(tiny, videos, kernels, family, config):
    model, processor = tiny(family)
    engine = Engine(model, processor, config, video=VIDEO, newline="no_token" if family != "qwen2_vl" else None)
    prompts = []
    for video, text in zip(videos, QUESTIONS, strict=False):
        content = [{"type": "video", "video": str(video)}, {"type": "text", "text": text}]
        request = Request([{"role": "user", "content": content}])
        prompts.append(engine.prepare(request))
    longest = max(prompt.input_ids.shape[1] for prompt in prompts)
    embeds = torch.zeros(2, longest, prompts[0].inputs_embeds.shape[-1])
    mask = torch.zeros(2, longest, dtype=torch.long)
    positions = None if prompts[0].position_ids is None else torch.zeros(3, 2, longest, dtype=torch.long)
    spans = []
    for row, prompt in enumerate(prompts):
        start = longest - prompt.input_ids.shape[1]
        embeds[row, start:], mask[row, start:] = prompt.inputs_embeds[0], 1
        if positions is not None:
            positions[:, row, start:] = prompt.position_ids[:, 0]
        spans += [VideoSpan(span.start + start, span.grid, row) for span in prompt.spans]
    extra = {} if positions is None else {"position_ids": positions}

    def logits(name: str) -> list[torch.Tensor]:
        with attention(model, name) as found, TokenReducer(model, config, spans=spans), torch.inference_mode():
            model(inputs_embeds=embeds, attention_mask=mask, **extra)
        return found

    expected = logits("sdpa")
    assert_same(logits("flash_attention_2"), expected)
    real = mask.sum(1).tolist()
    assert real[0] != real[1]
    start_layer = len(find_decoder(model).layers) if config is None else config.start_layer
    assert not kernels.dense
    for layer, (queries, keys) in enumerate(kernels.varlen):
        assert queries == keys
        assert (queries == real) if layer < start_layer else all(q < r for q, r in zip(queries, real, strict=True))

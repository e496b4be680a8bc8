"""StreamingLLM: its mask, its cache, and decode steps against one masked forward pass over
everything."""

from __future__ import annotations

import pytest
import recorded
import torch
from slow_decoder import SlowDecoder

from sttm_lmms.methods.streaming_llm import StreamingLLMConfig


def test_the_mask_shows_sinks_and_window() -> None:
    visible = StreamingLLMConfig(sinks=2, window=5).visible(9)
    query, key = torch.arange(9)[:, None], torch.arange(9)
    mask = visible(0, 0, query, key) & (key <= query)
    for i in range(9):
        assert mask[i].nonzero().squeeze(1).tolist() == sorted({*range(min(2, i + 1)), *range(max(0, i - 2), i + 1)})


@pytest.mark.parametrize("settings", [{"window": 60}, {"budget": 0.1}, {"sinks": 0, "window": 40}, {"window": 700}])
def test_decode_steps_see_what_the_mask_shows(settings: dict) -> None:
    """A prefill and 20 steps against a prefill of all those tokens with the same window."""
    embeds, span = recorded.prompt("none_T12")
    method = StreamingLLMConfig(**settings)
    model = recorded.model()
    tokens = torch.randint(0, 256, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    decoder = SlowDecoder(model, method, span)
    _, window = method._sizes(len(embeds))
    with torch.no_grad():
        decoder.prefill(embeds)
        stepped = []
        for step, token in enumerate(tokens, 1):
            stepped.append(decoder.step(token))
            assert decoder.kv_lengths() == [min(window, len(embeds) + step)] * 6
        whole = torch.cat((embeds, model.model.embed_tokens(torch.tensor(tokens))))
        fixed = StreamingLLMConfig(sinks=method.sinks, window=window)
        for step, logits in list(enumerate(stepped, 1))[::6]:
            expected = SlowDecoder(model, fixed, span).prefill(whole[: len(embeds) + step])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_short_prompt_has_fewer_sinks() -> None:
    method = StreamingLLMConfig(sinks=8, budget=0.1)
    for length in (1, 5, 30, 80, 100, 1000):
        sinks, window = method._sizes(length)
        assert 0 <= sinks < window
        assert window <= max(1, 0.1 * length)
    assert method._sizes(1000) == (8, 100)


def test_only_a_fixed_window_shares_prefixes() -> None:
    assert StreamingLLMConfig(window=100).shares_prefix
    assert not StreamingLLMConfig(budget=0.3).shares_prefix


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({}, "either window"),
        ({"window": 9, "budget": 0.5}, "either window"),
        ({"window": 8}, "larger than sinks=8"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"window": 99, "sinks": -1}, "sinks=-1"),
        ({"window": 99, "reference": "yes"}, "reference='yes'"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        StreamingLLMConfig(**bad)

"""Every recorded case of the published code, through the methods alone: bare functions, and prompts
decoded slowly."""

from __future__ import annotations

import pytest
import recorded
import torch
from recorded import BARE, CASES, LLM, WORKS, tensor
from slow_decoder import SlowDecoder

from sttm_lmms.methods.base import Stage


@pytest.mark.parametrize("name", BARE)
def test_bare_function(name: str) -> None:
    tokens, case = recorded.bare_tokens(name), CASES[name]
    kept = recorded.method(name).reduce(tokens, 0, None, {})
    assert kept is not None
    assert torch.equal(kept.owner[kept.index], torch.arange(len(kept)))
    if case["status"] != "ok":  # the published code crashes here
        assert 0 < len(kept) < len(tokens)
        return
    if CASES[name]["function"] == "quadtree":  # what the octree does with frames that fill no cube
        assert kept.boxes is not None
        assert torch.equal(kept.boxes, tensor(name, "tyxyx"))
        assert torch.equal(kept.owner.bincount(), tensor(name, "num_patches"))
    else:
        survivors = tensor(name, "kept_idx" if tensor(name, "node_idx") is None else "node_idx")
        assert torch.equal(kept.index, survivors)
    if (owner := tensor(name, "assign")) is not None:
        assert torch.equal(kept.owner, owner)
    if (size := tensor(name, "size")) is not None:
        assert torch.equal(kept.owner.bincount(), size)
    output = tensor(name, "output")
    expected = tokens.features[kept.index] if output is None else output
    torch.testing.assert_close(kept.features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WORKS)
def test_prompt(name: str) -> None:
    embeds, span = recorded.prompt(name)
    case = CASES[name]
    decoder = SlowDecoder(recorded.model(), recorded.method(name), span)
    logits, tokens, lengths = [], [], []
    with torch.no_grad():
        logits.append(decoder.prefill(embeds))
        lengths.append(decoder.kv_lengths())
        for _ in range(5):
            tokens.append(int(logits[-1].argmax()))
            logits.append(decoder.step(tokens[-1]))
            lengths.append(decoder.kv_lengths())
    tokens.append(int(logits[-1].argmax()))

    assert lengths == case["kv_len_per_step"]
    assert tokens == case["tokens"]
    torch.testing.assert_close(torch.stack(logits), tensor(name, "logits"), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(decoder.last_hidden), tensor(name, "last_hidden"), atol=1e-4, rtol=0)
    positions = torch.nn.utils.rnn.pad_sequence(decoder.rope, batch_first=True, padding_value=-1)
    assert torch.equal(positions, tensor(name, "rope_pos"))
    _check_stages(name, decoder)
    _check_decode(name, decoder)


def _check_stages(name: str, decoder: SlowDecoder) -> None:
    """Survivors, owners and values after each stage and after all of them."""
    total = decoder.span.length
    index, owner = torch.arange(total), torch.arange(total)
    for number, (stage, _, kept) in enumerate(decoder.stages):
        index = index[kept.index]
        owner = torch.where(owner >= 0, kept.owner[owner], -1)
        if (survivors := tensor(name, f"kept_idx_stage{number}")) is not None:
            assert torch.equal(index, survivors)
        call = stage.layer + (stage.site == "mlp")
        if (positions := tensor(name, f"ff_call{call}_pos")) is not None:
            assert torch.equal(index + decoder.span.start, positions[(positions >= 7) & (positions < 7 + total)])
        if (visual := tensor(name, f"ff_call{call}_visual")) is not None:
            torch.testing.assert_close(kept.features, visual, atol=1e-4, rtol=0)
        if (residual := tensor(name, "reduced_visual_residual")) is not None:
            assert decoder.residual is not None
            torch.testing.assert_close(decoder.residual, residual, atol=1e-4, rtol=0)
    for field in ("kept_idx", "node_idx"):
        if (survivors := tensor(name, field)) is not None:
            assert torch.equal(index, survivors)
    if (recorded_owner := tensor(name, "assign")) is not None:
        assert torch.equal(owner, recorded_owner)
    if (size := tensor(name, "size")) is not None:
        assert torch.equal(decoder.video.counts, size)
    if (visual := tensor(name, "reduced_visual")) is not None:
        torch.testing.assert_close(decoder.video.features, visual, atol=1e-4, rtol=0)


def _check_decode(name: str, decoder: SlowDecoder) -> None:
    """DyCoke: the attention that was read, and the entries that were attended to."""
    entries = tensor(name, "decode_kept_kv")
    if entries is None:
        return
    assert torch.equal(torch.stack([index.sort().values for index in decoder.attended]), entries)
    attention = tensor(name, "decode_attention")
    assert attention is not None
    start = decoder.span.start
    for read, expected in zip(decoder.read, attention, strict=True):
        real = expected[~expected.isnan()]
        torch.testing.assert_close(read[start : start + decoder.span.length], real, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in LLM if name not in WORKS])
def test_prompts_on_which_the_published_code_crashes(name: str) -> None:
    embeds, span = recorded.prompt(name)
    if CASES[name]["case"]["settings"].get("sa_tome_ver") == "snippet":
        with pytest.raises(ValueError, match=r"scope='snippet'.*'video', 'frame'"):
            recorded.method(name)
        return
    decoder = SlowDecoder(recorded.model(), recorded.method(name), span)
    with torch.no_grad():
        logits = decoder.prefill(embeds)
        for _ in range(3):
            assert logits.isfinite().all()
            logits = decoder.step(int(logits.argmax()))


def test_the_slow_decoder_is_the_model() -> None:
    embeds, span = recorded.prompt("none_T12")
    decoder = SlowDecoder(recorded.model(), None, span)
    with torch.no_grad():
        first = decoder.prefill(embeds)
        second = decoder.step(int(first.argmax()))
    torch.testing.assert_close(torch.stack((first, second)), tensor("none_T12", "logits")[:2], atol=1e-4, rtol=0)
    assert decoder.stages == []


def test_framefusion_calls_are_those_recorded() -> None:
    for name in WORKS:
        if CASES[name]["case"]["method"] != "framefusion":
            continue
        embeds, span = recorded.prompt(name)
        decoder = SlowDecoder(recorded.model(), recorded.method(name), span)
        with torch.no_grad():
            decoder.prefill(embeds)
        assert decoder.state["framefusion"].shares == CASES[name]["sparsity_list"]
        changed = [(stage.layer + (stage.site == "mlp"), len(kept)) for stage, _, kept in decoder.stages]
        calls = enumerate(CASES[name]["framefusion_calls"])
        assert changed == [(i, c["tokens_out"] - 18) for i, c in calls if c["tokens_out"] < c["tokens_in"]]
        prunings = [stage for stage, _, kept in decoder.stages if "pruned" in kept.info]
        assert all(stage == Stage(stage.layer, "mlp") for stage in prunings)

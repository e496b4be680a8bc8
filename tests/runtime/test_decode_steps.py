"""What a decode step costs under the hooks, counted, and that the cheap way computes what the
general one does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from dispatched import Dispatched

from sttm_lmms import STTMConfig, VideoSpan
from sttm_lmms.methods import get_method
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime import TokenReducer, decode_step
from sttm_lmms.runtime.prefix import continued, prefill_prefix
from sttm_lmms.types import PreparedInput

SHAPES = {"llava_video": "Qwen2", "qwen2_vl": "Qwen2-VL"}
STEPS, TEXT, GRID = 64, 5, (4, 4, 4)
SPAN = VideoSpan(TEXT, GRID)
PROMPT = SPAN.end + 7
COUNTED = (0, 1, STEPS - 1)
"""Steps that are counted; to count all of them would only take time."""
ADDED = 4
"""Most operations that the hooks may add to a decode step."""


def prompt(rows: int = 1) -> torch.Tensor:
    """``inputs_embeds`` of text, a video whose frames resemble each other, and a question."""
    generator = torch.Generator().manual_seed(3)
    frame = torch.randn(rows, 1, 16, 64, generator=generator)
    video = frame + 0.1 * torch.randn(rows, 4, 16, 64, generator=generator)
    text = torch.randn(rows, PROMPT - 64, 64, generator=generator)
    return torch.cat((text[:, :TEXT], video.flatten(1, 2), text[:, TEXT:]), 1)


def inputs(model: Any, rows: int, past: int, length: int, masked: bool) -> dict[str, Any]:
    """What a caller hands over besides the tokens: a mask of all that it has seen, and M-RoPE
    positions."""
    given: dict[str, Any] = {"attention_mask": torch.ones(rows, past + length, dtype=torch.long)} if masked else {}
    if model.config.model_type == "qwen2_vl":
        given["position_ids"] = torch.arange(past, past + length).expand(3, rows, length)
    return given


def steps(model: Any, cache: Any, rows: int, masked: bool) -> Iterator[tuple[torch.Tensor, Dispatched]]:
    """Logits of each decode step and what it asked of the device."""
    for step in range(STEPS):
        given = inputs(model, rows, PROMPT + step, 1, masked)
        tokens = (torch.arange(rows)[:, None] * 31 + 7 * step) % 256
        work = Dispatched()
        with work if step in COUNTED else nullcontext():
            logits = model(input_ids=tokens, past_key_values=cache, **given).logits
        yield logits, work


def run(model: Any, method: Method | None, masked: bool, *, cheap: bool = True, rows: int = 1) -> list[Any]:
    """A reduced prefill and its decode steps."""
    spans = [VideoSpan(TEXT, GRID, row) for row in range(rows)]
    with torch.inference_mode(), TokenReducer(model, method, spans=spans) as reducer:
        assert reducer._steps.possible
        reducer._steps.possible = cheap
        embeds = prompt(rows)
        output = model(inputs_embeds=embeds, use_cache=True, **inputs(model, rows, 0, PROMPT, masked))
        assert method is None or reducer.report.kept_tokens < reducer.report.visual_tokens
        return list(steps(model, output.past_key_values, rows, masked))


def stock_operations(model: Any, masked: bool) -> int:
    """Operations of a decode step of the model as it is."""
    with torch.inference_mode():
        cache = model(inputs_embeds=prompt(), use_cache=True, **inputs(model, 1, 0, PROMPT, masked)).past_key_values
        _, work = next(steps(model, cache, 1, masked))
    return work.operations.total()


METHODS: dict[str, Method | None] = {
    f"sttm-layer{layer}-{positions}": STTMConfig(0.9, 0.9, start_layer=layer, decode_positions=positions)
    for layer in (0, 2)
    for positions in ("continue", "reference")
} | {"fastv": get_method("fastv")(budget=0.5), "none": None}


@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", SHAPES)
def test_cheap_steps_are_the_general_ones_bit_by_bit(tiny, family: str, name: str, masked: bool) -> None:
    model, _ = tiny(family)
    stock = stock_operations(model, masked)
    cheap = run(model, METHODS[name], masked)
    general = run(model, METHODS[name], masked, cheap=False)
    for step, ((logits, work), (expected, _)) in enumerate(zip(cheap, general, strict=True)):
        assert torch.equal(logits, expected), step
        assert work.operations.total() - stock <= ADDED, step
        assert not work.host_reads, step
    if name == "sttm-layer2-continue":  # the count sees what the cheap way spares
        assert general[1][1].operations.total() - stock > ADDED - 3 * masked


@pytest.mark.parametrize("family", SHAPES)
def test_no_layer_gets_a_mask_in_an_unpadded_step(tiny, family: str) -> None:
    model, _ = tiny(family)
    masks: list[Any] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True)
        for layer in model.model.language_model.layers
    ]
    try:
        run(model, METHODS["sttm-layer2-continue"], masked=True)
    finally:
        for handle in handles:
            handle.remove()
    layers = len(handles)
    assert len(masks) == layers * (1 + STEPS)
    assert all(mask is None for mask in masks[layers:])


@pytest.mark.parametrize("positions", ["continue", "reference"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", SHAPES)
def test_steps_after_a_question_that_continues_a_prefix(tiny, family: str, layer: int, positions: str) -> None:
    model, _ = tiny(family)
    method = STTMConfig(0.9, 0.9, start_layer=layer, decode_positions=positions)
    embeds, ids = prompt(), torch.arange(PROMPT)[None] % 256
    place = None if family == "llava_video" else torch.arange(PROMPT).expand(3, 1, PROMPT)
    prepared = PreparedInput(ids, embeds, place, (SPAN,), SPAN.end, SPAN.length)
    found: dict[bool, list[Any]] = {}
    for cheap in (True, False):
        with torch.inference_mode(), TokenReducer(model, method, spans=()) as reducer:
            reducer._steps.possible = cheap
            prefix = prefill_prefix(reducer, prepared)
            reducer.expect((), unpadded=True)
            for _ in range(2):  # the second question finds the prefix as the first one did
                with continued(reducer, prefix, 1) as cache:
                    model(input_ids=ids[:, SPAN.end :], past_key_values=cache)
                    found[cheap] = list(steps(model, cache, 1, masked=False))
    stock = stock_operations(model, masked=False)
    for (logits, work), (expected, _) in zip(found[True], found[False], strict=True):
        assert torch.equal(logits, expected)
        assert work.operations.total() - stock <= ADDED
        assert not work.host_reads


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", SHAPES)
def test_rows_without_padding_agree_with_the_general_way_and_with_single_runs(tiny, family: str, layer: int) -> None:
    """Two sequences of one length, as beams and several answers to a prompt are."""
    model, _ = tiny(family)
    method = get_method("random")(budget=0.5, start_layer=layer)
    pair = run(model, method, masked=True, rows=2)
    general = run(model, method, masked=True, rows=2, cheap=False)
    single = run(model, method, masked=True)
    for (logits, work), (expected, _), (alone, _) in zip(pair, general, single, strict=True):
        assert torch.equal(logits, expected)
        assert not work.host_reads
        assert alone.shape[0] == 1
    expected = torch.stack([logits for logits, _ in general])
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", SHAPES)
def test_padded_rows_take_the_general_way_and_agree_with_single_runs(
    tiny, family: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny(family)
    method = get_method("random")(budget=0.5, start_layer=layer)
    embeds, padding = prompt(2), 3
    embeds[1, :padding] = 0
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, :padding] = 0
    taken: list[int] = []
    real = TokenReducer._decode_step
    monkeypatch.setattr(TokenReducer, "_decode_step", lambda *args: taken.append(1) or real(*args))

    def logits(rows: list[int], cut: int) -> torch.Tensor:
        spans = [VideoSpan(TEXT - cut, GRID, row) for row in range(len(rows))]
        seen = mask[rows, cut:]
        place = {}
        if family == "qwen2_vl":
            place["position_ids"] = (seen.cumsum(-1) - 1).clamp(min=0).expand(3, *seen.shape)
        with torch.inference_mode(), TokenReducer(model, method, spans=spans):
            output = model(inputs_embeds=embeds[rows, cut:], attention_mask=seen, use_cache=True, **place)
            found = [output.logits[:, -1]]
            for step in range(20):
                seen = torch.cat((seen, torch.ones(len(rows), 1, dtype=torch.long)), 1)
                tokens = torch.full((len(rows), 1), 11 * step % 256)
                place = {k: seen.sum(-1)[None, :, None].expand(3, -1, 1) - 1 for k in place}
                output = model(input_ids=tokens, attention_mask=seen, past_key_values=output.past_key_values, **place)
                found.append(output.logits[:, -1])
        return torch.stack(found, 1)

    together = logits([0, 1], 0)
    assert not taken
    for row, cut in ((0, 0), (1, padding)):
        torch.testing.assert_close(together[row], logits([row], cut)[0], atol=1e-5, rtol=0)
    assert len(taken) == 40


def test_longer_answers_get_new_tables(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny("llava_video")
    expected = run(model, METHODS["sttm-layer2-continue"], masked=False)
    monkeypatch.setattr(decode_step, "AHEAD", 9)
    found = run(model, METHODS["sttm-layer2-continue"], masked=False)
    for (logits, _), (same, _) in zip(found, expected, strict=True):
        assert torch.equal(logits, same)
    operations = [work.operations.total() for _, work in found]
    assert operations[0] == expected[0][1].operations.total()  # the first table comes with the prompt

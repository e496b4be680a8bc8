"""What must hold of every registered method inside of a decoder, whatever it does."""

from __future__ import annotations

from typing import Any

import pytest
import recorded
import torch
from method_settings import EDITS_CACHE, MERGING, NAMES, OUT_OF_ORDER, method
from slow_decoder import check_against_hooks, hooked_steps

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods import method_names
from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.runtime import Reduction, reduce_tokens
from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.types import VideoSpan

GRID, TEXT, QUESTION = (8, 4, 4), 6, 5
SPAN = VideoSpan(TEXT, GRID)

pytestmark = pytest.mark.filterwarnings(f"ignore::{BudgetWarning.__module__}.{BudgetWarning.__qualname__}")


def clip(seed: int, grid: tuple[int, int, int] = GRID) -> torch.Tensor:
    """``[T*H*W, 64]``: a video whose frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, *grid[1:], 64, generator=generator)
    return (still + 0.3 * torch.randn(*grid, 64, generator=generator)).flatten(0, 2)


def text(seed: int, length: int) -> torch.Tensor:
    return torch.randn(length, 64, generator=torch.Generator().manual_seed(100 + seed))


def prompt(seed: int = 0) -> torch.Tensor:
    """``inputs_embeds`` ``[L, 64]`` of text, one video and a question."""
    return torch.cat((text(seed, TEXT), clip(seed), text(seed + 1, QUESTION)))


def check_reduction(name: str, event: Reduction) -> None:
    """Counts, owner map, places, order and budget of one video."""
    merged, index = event.merged, event.index
    assert merged is not None
    assert index is not None
    _, height, width = merged.grid
    source, cells = merged.source_map.flatten(), merged.source_map.numel()
    alive = source[source >= 0]
    assert len(merged) == len(index) == event.after
    assert event.before == cells
    assert torch.equal(torch.bincount(alive, minlength=len(merged)), merged.counts)
    assert (merged.counts > 0).all()
    assert int(merged.counts.sum()) == len(alive)
    if name in MERGING:
        assert len(alive) == cells
    assert torch.equal(source[index], torch.arange(len(merged)))  # every token owns the place it stands at
    t, y, x = merged.boxes[:, :3].unbind(1)
    assert torch.equal((t * height + y) * width + x, index)
    if name not in OUT_OF_ORDER:
        assert (index.diff() > 0).all()
    assert list(event.layer_tokens) == sorted(event.layer_tokens, reverse=True)
    budget = getattr(method(name), "budget", None)
    if budget is not None:
        assert (event.layer_budget if name == "framefusion" else event.budget) <= budget
    if name != "streaming_llm":
        assert event.after < event.before


def test_every_method_of_the_package_is_here() -> None:
    assert set(NAMES) <= set(method_names())
    assert {*EDITS_CACHE, *MERGING, *OUT_OF_ORDER} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_twenty_steps_against_the_slow_decoder(name: str) -> None:
    _, report = check_against_hooks(recorded.model(), method(name), SPAN, prompt(), steps=20)
    (event,) = report.latest
    check_reduction(name, event)


@pytest.mark.parametrize("name", NAMES)
def test_eager_and_sdpa_agree(name: str) -> None:
    sdpa, eager = (
        hooked_steps(recorded.model(attention), method(name), [SPAN], prompt()[None], (7, 8, 9))[0]
        for attention in ("sdpa", "eager")
    )
    torch.testing.assert_close(sdpa, eager, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_two_padded_rows_are_the_single_runs_or_refused(name: str) -> None:
    model, padding = recorded.model(), 3
    rows = [prompt(0), prompt(5)[padding:]]
    batch = torch.stack([rows[0], torch.cat((torch.zeros(padding, 64), rows[1]))])
    mask = torch.ones(2, len(rows[0]), dtype=torch.long)
    mask[1, :padding] = 0
    spans = [SPAN, VideoSpan(TEXT, GRID, row=1)]

    def run(embeds: torch.Tensor, mask: torch.Tensor, spans: list[VideoSpan]) -> tuple[torch.Tensor, list[int]]:
        logits, report, _ = hooked_steps(model, method(name), spans, embeds, (7, 8, 9), mask)
        return logits, [event.after for event in report.events]

    if name in EDITS_CACHE:
        with pytest.raises(UnsupportedModelError, match=r"one sequence|no padded batches"):
            run(batch, mask, spans)
        return
    together, kept = run(batch, mask, spans)
    for row, embeds in enumerate(rows):
        start = SPAN if row == 0 else VideoSpan(TEXT - padding, GRID)
        alone, (after,) = run(embeds[None], torch.ones(1, len(embeds), dtype=torch.long), [start])
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)
        assert kept[row] == after


@pytest.mark.parametrize("name", NAMES)
def test_two_videos_in_one_prompt(name: str) -> None:
    """Each is reduced on its own grid, in one prefill and in two that continue one cache."""
    model, grids = recorded.model(), [GRID, (4, 5, 4)]
    parts = [text(0, TEXT), clip(1), text(1, 4), clip(2, grids[1]), text(2, QUESTION)]
    embeds = torch.cat(parts)
    second = TEXT + len(parts[1]) + 4
    with torch.inference_mode(), reduce_tokens(model, method(name), spans=[SPAN, VideoSpan(second, grids[1])]) as both:
        output = model(inputs_embeds=embeds[None], use_cache=True)
        assert output.logits.isfinite().all()
        assert [event.grid for event in both.latest] == grids
        for event in both.latest:
            check_reduction(name, event)
        if name in EDITS_CACHE:
            with pytest.raises(UnsupportedModelError, match="one video"):
                model(input_ids=torch.tensor([[7]]), past_key_values=output.past_key_values)
            return
        model(input_ids=torch.tensor([[7]]), past_key_values=output.past_key_values)
    if method(name).reads == "features":
        with torch.inference_mode(), reduce_tokens(model, method(name), spans=[SPAN]) as alone:
            model(inputs_embeds=embeds[None, :second])
        assert torch.equal(alone.latest[0].merged.source_map, both.latest[0].merged.source_map)


@pytest.mark.parametrize("name", NAMES)
def test_mrope_decoders_always_keep_positions(name: str) -> None:
    """The rotary embedding in the last layer is that of the survivors' own (t, h, w)."""
    model = _qwen2_vl()
    decoder, embeds = model.model.language_model, prompt()
    t, h, w = (torch.arange(n) for n in GRID)
    cells = torch.stack(torch.meshgrid(t, h, w, indexing="ij")).flatten(1)
    before = torch.arange(TEXT).expand(3, -1)
    after = (max(GRID) + TEXT + torch.arange(QUESTION)).expand(3, -1)
    positions = torch.cat((before, TEXT + cells, after), 1)[:, None]
    seen: list[Any] = []
    hook = decoder.layers[-1].register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    try:
        with torch.inference_mode(), reduce_tokens(model, method(name), spans=[SPAN]) as report:
            cache = model(inputs_embeds=embeds[None], position_ids=positions, use_cache=True).past_key_values
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    finally:
        hook.remove()
    kept = torch.cat((torch.arange(TEXT), TEXT + report.latest[0].index, torch.arange(SPAN.end, len(embeds))))
    expected = decoder.rotary_emb(embeds[None], positions[..., kept])
    following = decoder.rotary_emb(embeds[None], positions.amax().expand(3, 1, 1) + 1)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], following, strict=True))


_BUILT: dict[str, Any] = {}


def _qwen2_vl() -> Any:
    if not _BUILT:
        _BUILT["qwen2_vl"] = tiny_model("qwen2_vl", seed=1)[0]
    return _BUILT["qwen2_vl"]

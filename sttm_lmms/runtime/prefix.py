"""The KV cache of [text before, video], computed once and continued by every question about that
video; and prompts on their way through the decoder, whole or behind such a prefix.

Merging does not look at the question, so this reuse is exact, not approximate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from sttm_lmms.decoder import CACHE, cache_tensors, is_recurrent
from sttm_lmms.runtime.reduced_cache import ReducedCache
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.report import Reduction
from sttm_lmms.runtime.requests import Request
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.types import PreparedInput


@dataclass
class Prefix:
    """A prefilled prefix.

    Attributes:
        cache: per-layer KV of one row; layers below the start layer hold the full length, the
            others the short one.
        input_ids: ``[1, P]``, the prefix before reduction.
        reductions: one per video.
        visual_tokens: visual tokens of the prefix before reduction, newlines and images included.
        last_state: ``[1, 1, C]``, what the decoder makes of its last token.
    """

    cache: DynamicCache
    input_ids: torch.Tensor
    reductions: list[Reduction]
    visual_tokens: int
    last_state: torch.Tensor

    @property
    def kept_tokens(self) -> int:
        """Visual tokens after reduction."""
        return int(visual_counts(self.visual_tokens, self.reductions)["kept_tokens"])

    @property
    def nbytes(self) -> int:
        """Memory of the KV cache."""
        return sum(t.numel() * t.element_size() for t in cache_tensors(self.cache))

    @property
    def recurrent(self) -> bool:
        """True if some layers hold a state instead of keys and values."""
        return any(is_recurrent(layer) for layer in self.cache.layers)


def visual_counts(visual_tokens: int, reductions: Sequence[Reduction]) -> dict[str, Any]:
    """Visual tokens before and after reductions, and as many as a layer's attention sees, as a mean
    over layers."""
    return {
        "visual_tokens": visual_tokens,
        "kept_tokens": visual_tokens - sum(event.before - event.after for event in reductions),
        "layer_tokens": visual_tokens - sum(event.before * (1 - event.layer_budget) for event in reductions),
    }


@torch.inference_mode()
def prefill_prefix(reducer: TokenReducer, prepared: PreparedInput, length: int | None = None) -> Prefix:
    """Run the decoder over the prefix of ``prepared``; ``reducer`` must be attached and gets its
    spans.

    Args:
        length: of the prefix, all visuals included; None is up to where the question begins.
    """
    length = prepared.prefix_length if length is None else length
    decoder = reducer.decoder
    cache = DynamicCache(config=decoder.config)
    positions = prepared.position_ids
    spans = [span for span in prepared.spans if span.end <= length]
    reducer.expect(spans, unpadded=True, deepstack=prepared.deepstack)
    states = decoder(
        inputs_embeds=prepared.inputs_embeds[:, :length],
        position_ids=None if positions is None else positions[..., :length],
        use_cache=True,
        return_dict=True,  # whatever the checkpoint's config says
        **{CACHE: cache},
    ).last_hidden_state
    reducer.continue_prompt(cache)
    return Prefix(
        cache=cache,
        input_ids=prepared.input_ids[:, :length],
        reductions=reducer.report.latest if spans else [],
        visual_tokens=prepared.visual_tokens,
        last_state=states[:, -1:].clone(),
    )


@contextmanager
def continued(reducer: TokenReducer, prefix: Prefix, rows: int) -> Iterator[Cache]:
    """A cache of ``rows`` rows to continue the prefix with; the prefix is as before when the
    context ends.

    One row continues the prefix's own cache, which is cut back afterwards. More rows, methods that
    edit the cache while decoding, layers with a sliding window, which drops what it has passed, and
    recurrent layers, which overwrite their state, need a copy.
    """
    windows = any(isinstance(layer, DynamicSlidingWindowLayer) for layer in prefix.cache.layers)
    if rows > 1 or reducer.edits_cache or windows or prefix.recurrent:
        assert isinstance(prefix.cache, ReducedCache)
        cache = prefix.cache.branch()
        cache.batch_repeat_interleave(rows)
        yield cache
        return
    length = prefix.cache.get_seq_length()
    try:
        yield prefix.cache
    finally:
        prefix.cache.crop(length)


@dataclass(frozen=True)
class Prompt:
    """A request that is ready for the decoder.

    Attributes:
        request: what was asked.
        length: tokens of the whole prompt, before reduction.
        phases: the time that it took so far.
        question: ``[Q]`` ids of what stands behind the prefix.
        prefix: what it continues; None where the whole prompt runs at once.
        whole: the decoder's input where there is no prefix.
        reused: whether an earlier request paid for the prefix.
    """

    request: Request
    length: int
    phases: Phases
    question: torch.Tensor
    prefix: Prefix | None = None
    whole: PreparedInput | None = None
    reused: bool = False

    def runs_with(self, other: Prompt) -> bool:
        """Whether both can be rows of one batch."""
        if self.prefix is None or self.prefix is not other.prefix:
            return False
        # Padding between prefix and question would let the state of a recurrent layer decay.
        fits = len(self.question) == len(other.question) or not self.prefix.recurrent
        return fits and self.request.generation == other.request.generation


@contextmanager
def decoder_inputs(reducer: TokenReducer, batch: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Arguments of ``generate`` for one whole prompt, or for questions that continue one prefix.

    A prefix is as before when the context ends.
    """
    whole, prefix = batch[0].whole, batch[0].prefix
    if prefix is None:
        assert whole is not None
        reducer.expect(whole.spans, unpadded=True, deepstack=whole.deepstack)
        yield {
            "input_ids": whole.input_ids,
            "inputs_embeds": whole.inputs_embeds,
            "attention_mask": torch.ones_like(whole.input_ids),
            **({} if whole.position_ids is None else {"position_ids": whole.position_ids}),
        }
        return
    ids, mask = _question_batch(prefix, [prompt.question for prompt in batch])
    reducer.expect((), unpadded=len(batch) == 1)
    with continued(reducer, prefix, len(batch) * batch[0].request.generation.num_beams) as cache:
        positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        yield {"input_ids": ids, "attention_mask": mask, "position_ids": positions, CACHE: cache}


def _question_batch(prefix: Prefix, questions: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and 2-D ``attention_mask`` for questions ``[Q_i]`` that continue one prefix.

    Rows are ``[prefix, padding, question]``: padding stands between, so that all questions end
    together.
    """
    longest = max(len(question) for question in questions)
    past = prefix.input_ids
    device = past.device
    ids = past[0, 0].repeat(len(questions), past.shape[1] + longest)
    mask = torch.zeros_like(ids)
    ids[:, : past.shape[1]] = past
    mask[:, : past.shape[1]] = 1
    for row, question in enumerate(questions):
        ids[row, ids.shape[1] - len(question) :] = question.to(device)
        mask[row, ids.shape[1] - len(question) :] = 1
    return ids, mask

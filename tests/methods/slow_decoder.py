"""A slow, obvious decoder: one sequence, plain attention, lists of keys and values, every method's
stages by hand.

What the hooks of the runtime do in place on any model, this does in straight code on a plain
``Qwen2ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime import reduce_tokens
from sttm_lmms.runtime.report import Report
from sttm_lmms.types import Kept, Tokens, VideoSpan


def hooked_steps(
    model: Any,
    method: Method,
    spans: Sequence[VideoSpan],
    embeds: torch.Tensor,
    tokens: Sequence[int],
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Report, Any]:
    """What the hooks do with rows ``[B, L, C]``, then with the same ``tokens`` for each, one after
    the other.

    Returns:
        Logits ``[B, 1 + steps, V]`` at the last position, the report, and the cache.
    """
    rows = len(embeds)
    with torch.inference_mode(), reduce_tokens(model, method, spans=spans) as report:
        output = model(inputs_embeds=embeds, attention_mask=mask, use_cache=True)
        logits = [output.logits[:, -1]]
        for token in tokens:
            mask = mask if mask is None else F.pad(mask, (0, 1), value=1)
            ids, cache = torch.full((rows, 1), token), output.past_key_values
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache)
            logits.append(output.logits[:, -1])
    return torch.stack(logits, 1), report, output.past_key_values


def check_against_hooks(
    model: Any, method: Method, span: VideoSpan, embeds: torch.Tensor, steps: int
) -> tuple[SlowDecoder, Report]:
    """The same logits and cache lengths from a :class:`SlowDecoder` and from the hooks, in a
    prefill and ``steps``."""
    tokens = torch.randint(0, 256, (steps,), generator=torch.Generator().manual_seed(2)).tolist()
    decoder = SlowDecoder(model, method, span)
    with torch.inference_mode():
        expected = [decoder.prefill(embeds), *(decoder.step(token) for token in tokens)]
    logits, report, cache = hooked_steps(model, method, [span], embeds[None], tokens)
    torch.testing.assert_close(logits[0], torch.stack(expected), atol=1e-4, rtol=0)
    assert [layer.keys.shape[-2] for layer in cache.layers] == decoder.kv_lengths()
    report.check_reduced()
    return decoder, report


@dataclass
class _Layer:
    keys: torch.Tensor
    """``[kv heads, n, d]``, after rotary."""
    values: torch.Tensor


@dataclass
class SlowDecoder:
    """One prompt and its decode steps.

    Attributes:
        model: a Qwen2ForCausalLM.
        method: settings.
        span: the video.
        stages: (stage, tokens before, what the method kept) of each stage that reduced.
        rope: for each layer, the rotary positions of the tokens that entered its attention in the
            prefill.
        last_hidden: ``[layers, C]``, output of every layer at the last position of the prefill.
        residual: ``[M, C]``, the video in the residual stream right after the last stage that
            reduced.
        attended: for each decode step, the entries that the last layer attended to.
        read: for each decode step, the attention that a method asked for.
    """

    model: Any
    method: Method | None
    span: VideoSpan
    stages: list[tuple[Stage, Tokens, Kept]] = field(default_factory=list)
    rope: list[torch.Tensor] = field(default_factory=list)
    last_hidden: list[torch.Tensor] = field(default_factory=list)
    residual: torch.Tensor | None = None
    attended: list[torch.Tensor] = field(default_factory=list)
    read: list[torch.Tensor] = field(default_factory=list)

    def prefill(self, embeds: torch.Tensor) -> torch.Tensor:
        """Logits at the last position of ``embeds`` ``[L, C]``."""
        self.state: dict[str, Any] = {}
        self.cache: list[_Layer] = []
        self.length, self.steps = len(embeds), 0
        self.positions = torch.arange(len(embeds))
        features = embeds[self.span.start : self.span.end]
        self.video = Tokens.of_grid(features.view(*self.span.grid, -1))
        self.weights = torch.empty(0)
        hidden = embeds
        layers = self.model.model.layers
        for number, layer in enumerate(layers):
            hidden, _ = self._reduce(Stage(number), hidden, hidden)
            normed = layer.input_layernorm(hidden)
            normed, hidden = self._reduce(Stage(number, "attention"), normed, hidden)
            self.rope.append(self.positions)
            hidden = hidden + self._attend(number, normed, self.positions, self._mask(len(hidden)))
            hidden, _ = self._reduce(Stage(number, "mlp"), hidden, hidden)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            self.last_hidden.append(hidden[-1])
        self.last_position = [int(positions[-1]) for positions in self.rope]
        return self.model.lm_head(self.model.model.norm(hidden[-1]))

    def step(self, token: int) -> torch.Tensor:
        """Logits after one more token."""
        hidden = self.model.model.embed_tokens(torch.tensor([token]))
        layers = self.model.model.layers
        self.steps += 1
        self.views: dict[int, torch.Tensor] = {}
        at = self.method.cache_stages(len(layers)) if self.method is not None else ()
        for number, layer in enumerate(layers):
            if self.method is not None and number in at:
                self.method.edit_cache(_View(self, number), self.state)
            how = getattr(self.method, "decode_positions", "continue")
            last = self.length - 1 if how == "reference" else self.last_position[number]
            normed = layer.input_layernorm(hidden)
            hidden = hidden + self._attend(number, normed, torch.tensor([last + self.steps]), None)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        entries = torch.arange(self.cache[-1].keys.shape[1])
        self.attended.append(self.views.get(len(layers) - 1, entries))
        return self.model.lm_head(self.model.model.norm(hidden[-1]))

    def kv_lengths(self) -> list[int]:
        return [layer.keys.shape[1] for layer in self.cache]

    # -- pieces ------------------------------------------------------------------------------------------------

    def _reduce(self, stage: Stage, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = self.method.stages(len(self.model.model.layers)) if self.method is not None else ()
        if stage not in [s if isinstance(s, Stage) else Stage(s) for s in wanted]:
            return x, residual
        assert self.method is not None
        start, end = self.span.start, self.span.start + len(self.video)
        before = Tokens(x[start:end], self.video.cells, self.video.counts, self.video.grid)
        kept = self.method.reduce(before, stage.layer, self, self.state)
        if kept is None:
            return x, residual
        self.stages.append((stage, before, kept))
        counts = torch.zeros(len(kept), dtype=torch.long)
        alive = kept.owner >= 0
        counts.index_add_(0, kept.owner[alive], self.video.counts[alive])
        self.video = Tokens(kept.features, before.cells[kept.index], counts, self.video.grid)
        rows = torch.cat((torch.arange(start), start + kept.index, torch.arange(end, len(x))))
        keep = self.method.positions == "keep"
        self.positions = self.positions[rows] if keep else torch.arange(len(rows))
        self.weights = self.weights[..., rows] if len(self.weights) else self.weights
        residual = residual[rows]
        self.residual = residual[start : start + len(kept)]
        return torch.cat((x[:start], kept.features, x[end:])), residual

    def _mask(self, length: int) -> torch.Tensor:
        query, key = torch.arange(length)[:, None], torch.arange(length)
        mask = key <= query
        visible = self.method.visible(self.length) if self.method is not None else None
        return mask & visible(0, 0, query, key) if visible is not None else mask

    def _attend(self, number: int, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        attention = self.model.model.layers[number].self_attn
        heads, groups, dim = (
            self.model.config.num_attention_heads,
            self.model.config.num_key_value_heads,
            attention.head_dim,
        )
        query = self._turn(attention.q_proj(x).view(len(x), heads, dim).transpose(0, 1), positions)
        key = self._turn(attention.k_proj(x).view(len(x), groups, dim).transpose(0, 1), positions)
        value = attention.v_proj(x).view(len(x), groups, dim).transpose(0, 1)
        if number == len(self.cache):
            self.cache.append(_Layer(key, value))
        else:
            old = self.cache[number]
            self.cache[number] = _Layer(torch.cat((old.keys, key), 1), torch.cat((old.values, value), 1))
        keys, values = self.cache[number].keys, self.cache[number].values
        if mask is None and number in self.views:
            keys, values = keys[:, self.views[number]], values[:, self.views[number]]
        keys, values = (x.repeat_interleave(heads // groups, 0) for x in (keys, values))
        scores = query @ keys.mT / dim**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = F.softmax(scores, -1)
        self.weights = weights.mean(0)
        return attention.o_proj((weights @ values).transpose(0, 1).flatten(1))

    def _turn(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of ``[heads, n, d]``."""
        angle = positions[:, None].float() * self.model.model.rotary_emb.inv_freq
        angle = torch.cat((angle, angle), -1)
        half = x.shape[-1] // 2
        return x * angle.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * angle.sin()

    # -- what a method may ask in the prefill (Probe) ----------------------------------------------------------

    @property
    def layers(self) -> int:
        return len(self.model.model.layers)

    def attention(self, queries: tuple[int, ...] = (-1,)) -> torch.Tensor:
        start = self.span.start
        return self.weights[list(queries), start : start + len(self.video)]


class _View:
    """What a method may ask and do at a decode step (CacheView)."""

    def __init__(self, decoder: SlowDecoder, layer: int) -> None:
        self.decoder, self.layer = decoder, layer
        self.layers = decoder.layers
        self.prompt_tokens = decoder.length
        self.video = range(decoder.span.start, decoder.span.start + len(decoder.video))
        self.visual_tokens = decoder.span.length

    def length(self, layer: int) -> int:
        return self.decoder.cache[layer].keys.shape[1] - (layer < self.layer)

    def attention(self) -> torch.Tensor:
        self.decoder.read.append(self.decoder.weights[-1])
        return self.decoder.weights[-1]

    def keep(self, layer: int, index: torch.Tensor) -> None:
        old = self.decoder.cache[layer]
        self.decoder.cache[layer] = _Layer(old.keys[:, index], old.values[:, index])

    def rotate(self, layer: int, entries: slice, steps: int) -> None:
        keys = self.decoder.cache[layer].keys.clone()
        part = keys[:, entries]
        keys[:, entries] = self.decoder._turn(part, torch.full((part.shape[1],), steps))
        self.decoder.cache[layer].keys = keys

    def attend(self, layer: int, index: torch.Tensor) -> None:
        self.decoder.views[layer] = index

"""The one idea that carries the runtime: forward hooks that give every decoder layer inputs of its own length.

On a prefill the hook of the start layer merges the visual spans; that hook and those of the later layers hand each
layer the rotary embeddings, position ids and causal mask that fit the short sequence. On later steps they do the same
from that layer's own KV length. No class is patched, and all hooks are gone when the context ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods import method_of
from sttm_lmms.runtime.decoder import check_cache, find_decoder, head_dim, layer_mask, layer_types, uses_mrope
from sttm_lmms.runtime.report import Report
from sttm_lmms.runtime.shorten import shorten
from sttm_lmms.runtime.spans import locate_spans
from sttm_lmms.runtime.state import CacheState, extend_mask, offsets, real_tokens
from sttm_lmms.runtime.timing import clock
from sttm_lmms.types import VideoSpan


@contextmanager
def reduce_tokens(
    model: nn.Module, config: Any, *, spans: Sequence[VideoSpan] | None = None, timing: bool = False
) -> Iterator[Report]:
    """Reduce the visual tokens of every prefill of ``model`` while the context is open.

    Args:
        model: a loaded transformers model; LLaVA-OneVision (also LLaVA-Video checkpoints) and Qwen2-VL classes find
            their videos by themselves. Call or ``generate`` it as usual.
        config: settings of a registered method, such as :class:`~sttm_lmms.STTMConfig`.
        spans: where the videos are, for inputs in which they cannot be found (``inputs_embeds`` only, or another
            rotary decoder). They hold for every prefill of the context.
        timing: synchronise the device around each merge, so that ``Reduction.seconds`` is its true time.

    Yields:
        A :class:`Report` that fills up while the context is open.

    Raises:
        UnsupportedModelError: the model or an input cannot be reduced; the message says what is supported.

    Logits and hidden states of a reduced prefill have the length of the short sequence; the last position is the
    last token of the prompt as always.
    """
    reducer = TokenReducer(model, config, spans=spans, timing=timing)
    with reducer:
        yield reducer.report


@dataclass
class _Call:
    """One forward pass of the decoder."""

    state: CacheState
    cache: Cache | None
    spans: Sequence[VideoSpan]
    rows: int
    length: int
    mask: torch.Tensor | None
    """``[B, L]`` bool padding mask of the new tokens, None without padding."""
    positions: torch.Tensor
    """Rotary positions of the new tokens at full length, ``[B, L]`` or ``[3, B, L]``."""
    pass_position_ids: bool
    layer_kwargs: dict[str, Any] | None = None
    """What layers from the start layer on get instead of their own arguments."""
    masks: dict[str, Any] = field(default_factory=dict)
    """Their attention masks by attention type."""
    after: CacheState | None = None


class TokenReducer:
    """Hooks on one model; :func:`reduce_tokens` is the public face.

    ``config=None`` reduces nothing and only keeps positions right when a cached prefix is continued, so that the
    baseline runs through the same code.
    """

    def __init__(
        self,
        model: Any,
        config: Any | None,
        *,
        spans: Sequence[VideoSpan] | None = None,
        timing: bool = False,
    ) -> None:
        self.model = model
        self.config = config
        self.decoder = find_decoder(model)
        self.spans = spans
        self.report = Report()
        self.start_layer = 0
        if config is not None:
            self._merge = partial(method_of(config).merge_function, config=config, head_dim=head_dim(self.decoder))
            self.start_layer = config.start_layer
        layers = len(self.decoder.layers)
        if self.start_layer >= layers:
            raise ValueError(f"start_layer={self.start_layer} is out of range; this model has layers 0..{layers - 1}")
        self._mrope = uses_mrope(self.decoder)
        self._types = layer_types(self.decoder)
        self._states: WeakKeyDictionary[Cache, CacheState] = WeakKeyDictionary()
        self._now = clock(model, enabled=timing)
        self._marks: list[float] = []
        self._input_ids: torch.Tensor | None = None
        self._call: _Call | None = None
        self._handles: list[Any] = []

    # -- attaching ---------------------------------------------------------------------------------------------

    def __enter__(self) -> TokenReducer:
        for hook in self.decoder._forward_pre_hooks.values():
            if isinstance(getattr(hook, "__self__", None), TokenReducer):
                raise UnsupportedModelError("this model's tokens are already being reduced; leave that context first")
        layers = self.decoder.layers
        if self.model is not self.decoder:
            self._handles += [
                self.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
                self.model.register_forward_hook(self._after_model, always_call=True),
            ]
        self._handles += [
            self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            self.decoder.register_forward_hook(self._after_decoder, always_call=True),
        ]
        if self.start_layer > 0:
            self._handles += [
                layer.register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True)
                for index, layer in enumerate(layers)
                if index >= self.start_layer
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._call = self._input_ids = None

    # -- the state of a cache, for prefix reuse ----------------------------------------------------------------

    def state_of(self, cache: Cache) -> CacheState:
        """What is known about ``cache``, which must have been filled inside this context."""
        return self._states[cache]

    def adopt(self, cache: Cache, state: CacheState) -> None:
        """Continue from ``cache``, filled elsewhere; the next forward pass belongs to the prompt."""
        self._states[cache] = replace(state, in_prompt=True)

    # -- hooks -------------------------------------------------------------------------------------------------

    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise UnsupportedModelError("reduced sequences are shorter than `labels`; reduce_tokens is for inference")
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)

    def _after_model(self, *_: object) -> None:
        self._input_ids = None

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args:
            raise UnsupportedModelError("the decoder was called with positional arguments; name them")
        kwargs = self._normalise(decoder, kwargs)
        cache, embeds = kwargs["past_key_values"], kwargs["inputs_embeds"]
        past = cache.get_seq_length() if cache is not None else 0
        state = self._states.get(cache) if cache is not None else None
        spans = self._find_spans(kwargs, past)
        if past == 0:
            self.report.prefills += 1
            self._marks = [self._now()]
        if state is None and not spans and self.config is not None:
            return None  # text only, in a cache that was never reduced: nothing to do
        check_cache(cache)
        if cache is not None and state is None:
            state = self._state_of_unreduced(kwargs, past)
        self._call = call = self._begin(kwargs, state, spans)
        if self.config is None or self.start_layer == 0:
            return (), {**kwargs, **self._shorten_inputs(call, embeds)}
        if not spans:
            call.layer_kwargs = self._continue_kwargs(call, embeds)
        return (), {**kwargs, "position_ids": self._position_argument(call, call.positions, call.state.full)}

    def _before_layer(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = self._call
        if call is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if call.layer_kwargs is None:
            hidden, call.layer_kwargs = self._reduce_kwargs(call, hidden)
        kwargs = {**kwargs, **call.layer_kwargs, "attention_mask": call.masks[self._types[index]]}
        if args:
            return (hidden, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": hidden}

    def _after_decoder(self, _: nn.Module, __: object, output: object) -> None:
        call, self._call = self._call, None
        if call is not None and call.spans and len(self._marks) == 3:
            began, before, merged = self._marks
            self.report.phases = {
                "prefill_before": before - began,
                "merge": merged - before,
                "prefill_after": self._now() - merged,
            }
        if call is not None and call.cache is not None and call.after is not None and output is not None:
            self._states[call.cache] = call.after

    # -- one forward pass --------------------------------------------------------------------------------------

    def _normalise(self, decoder: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Make embeddings and cache explicit, as the decoder itself would."""
        kwargs = dict(kwargs)
        if kwargs.get("inputs_embeds") is None:
            ids = kwargs.pop("input_ids")
            self._input_ids = ids if self._input_ids is None else self._input_ids
            kwargs["inputs_embeds"] = decoder.embed_tokens(ids)
        use_cache = kwargs.get("use_cache")
        if kwargs.get("past_key_values") is None and (decoder.config.use_cache if use_cache is None else use_cache):
            kwargs["past_key_values"] = DynamicCache(config=decoder.config)
        kwargs.setdefault("past_key_values", None)
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedModelError("reduced tokens need a 2-D attention_mask [B, L] (1 = real token) or none")
        return kwargs

    def _find_spans(self, kwargs: dict[str, Any], past: int) -> Sequence[VideoSpan]:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        if self.config is None or (past > 0 and length == 1):  # a decode step: spares a look at the device
            return ()
        if self.spans is not None:
            return _expand_spans(self.spans, rows) if past == 0 else ()
        if self._input_ids is not None:
            return locate_spans(self.model.config, self._input_ids, kwargs.get("position_ids"))
        if past == 0 and length > 1:
            raise UnsupportedModelError(
                "videos cannot be found in `inputs_embeds` alone; pass `input_ids`, or give reduce_tokens(..., spans=)"
            )
        return ()

    def _state_of_unreduced(self, kwargs: dict[str, Any], past: int) -> CacheState:
        """State of a cache that has only seen unreduced tokens (or none)."""
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        state = CacheState.empty(embeds.shape[0], embeds.device)
        if past == 0:
            return state
        past_mask = None if mask is None else mask[:, :past].bool().to(embeds.device)
        seen = state.full + real_tokens(past_mask, past)
        return replace(state, full=seen, short=seen, short_mask=past_mask)

    def _begin(self, kwargs: dict[str, Any], state: CacheState | None, spans: Sequence[VideoSpan]) -> _Call:
        embeds = kwargs["inputs_embeds"]
        rows, length = embeds.shape[:2]
        state = state if state is not None else CacheState.empty(rows, embeds.device)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            mask = mask[:, -length:].to(embeds.device, torch.bool)
            if length > 1 and bool(mask.all()):
                mask = None
        given = kwargs.get("position_ids")
        continues = self._mrope and not spans and state.next_position is not None
        if self._mrope and not continues and given is not None and given.ndim == 3:
            positions = given[-3:].to(embeds.device).expand(3, rows, length)
        else:
            seen = state.next_position if continues and state.next_position is not None else state.full
            positions = seen.to(embeds.device)[:, None] + offsets(mask, rows, length, embeds.device)
            positions = positions.expand(3, rows, length) if self._mrope else positions
        return _Call(
            state=state,
            cache=kwargs["past_key_values"],
            spans=spans,
            rows=rows,
            length=length,
            mask=mask,
            positions=positions.clamp(min=0),
            pass_position_ids=given is None or given.ndim == 2 or given.shape[0] == 4,
        )

    def _reduce_kwargs(self, call: _Call, hidden: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Merge in front of the start layer; returns the short hidden states and what later layers get."""
        hidden, mask, positions = self._reduce(call, hidden)
        return hidden, self._kwargs_for(call, hidden, mask, positions)

    def _continue_kwargs(self, call: _Call, embeds: torch.Tensor) -> dict[str, Any]:
        """What layers from the start layer on get for tokens after a reduced prefix."""
        return self._kwargs_for(call, embeds, call.mask, self._continue_positions(call))

    def _shorten_inputs(self, call: _Call, embeds: torch.Tensor) -> dict[str, Any]:
        """start_layer 0: the whole decoder runs on the short sequence, so its own inputs are replaced."""
        if call.spans:
            embeds, mask, positions = self._reduce(call, embeds)
        else:
            mask, positions = call.mask, self._continue_positions(call)
        total = self._finish(call, embeds.shape[1], mask, positions)
        return {
            "inputs_embeds": embeds,
            "attention_mask": total,
            "position_ids": self._position_argument(call, positions, call.state.short),
        }

    def _reduce(self, call: _Call, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Short hidden states ``[B, S, C]``, padding mask ``[B, S]`` and rotary positions."""
        mask = None if call.mask is None else call.mask.to(hidden.device)
        if mask is not None and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise UnsupportedModelError("reduced batches need padding on the left (tokenizer.padding_side='left')")
        self._marks.append(self._now())
        batch = shorten(hidden, mask, call.spans, self._merge, layer=self.start_layer, now=self._now)
        self._marks.append(self._now())
        self.report.add(batch.reductions)
        if self._mrope:
            index = batch.index.to(call.positions.device)
            positions = call.positions.gather(-1, index.expand(3, *index.shape))
        else:
            ranks = offsets(batch.mask, call.rows, batch.hidden.shape[1], hidden.device)
            positions = (call.state.short.to(hidden.device)[:, None] + ranks).clamp(min=0)
        return batch.hidden, batch.mask, positions

    def _continue_positions(self, call: _Call) -> torch.Tensor:
        """Rotary positions of text tokens in the layers that hold the short sequence."""
        if self._mrope or self.config is None:
            return call.positions
        if self.config.decode_positions == "reference" and not call.state.in_prompt:
            return call.positions
        device = call.positions.device
        ranks = offsets(call.mask, call.rows, call.length, device)
        return (call.state.short.to(device)[:, None] + ranks).clamp(min=0)

    def _kwargs_for(
        self, call: _Call, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> dict[str, Any]:
        total = self._finish(call, hidden.shape[1], mask, positions)
        text = positions if positions.ndim == 2 else self._text_positions(call, hidden.shape[1], mask)
        for layer, kind in enumerate(self._types):
            if layer >= self.start_layer and kind not in call.masks:
                call.masks[kind] = layer_mask(self.decoder, hidden, total, call.cache, layer)
        return {
            "position_embeddings": self.decoder.rotary_emb(hidden, positions),
            "position_ids": text if call.pass_position_ids else None,
        }

    def _finish(
        self, call: _Call, length: int, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> torch.Tensor | None:
        """Record the state after this pass; returns the short sequence's whole padding mask."""
        state, device = call.state, positions.device
        past = call.cache.get_seq_length(self.start_layer) if call.cache is not None else 0
        total = extend_mask(state.short_mask, mask, past, call.rows, length, device)
        # Rows end together, so the last token is real; text goes on after its largest coordinate.
        following = call.positions[..., -1].amax(dim=0) + 1 if self._mrope else None
        call.after = CacheState(
            full=state.full + real_tokens(call.mask, call.length),
            short=state.short + real_tokens(mask, length),
            short_mask=total,
            next_position=following,
        )
        return total

    def _text_positions(self, call: _Call, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        device = call.positions.device
        return (call.state.short.to(device)[:, None] + offsets(mask, call.rows, length, device)).clamp(min=0)

    def _position_argument(self, call: _Call, positions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """``position_ids`` for the decoder: as given to it, with the text row that Qwen2-VL puts on top."""
        if positions.ndim == 2 or not call.pass_position_ids:
            return positions
        ranks = torch.arange(positions.shape[-1], device=positions.device)
        text = (seen.to(positions.device)[:, None] + ranks)[None]
        return torch.cat([text, positions])


def _expand_spans(spans: Sequence[VideoSpan], rows: int) -> list[VideoSpan]:
    """Spans for a batch whose rows were repeated in place (beams, several sequences per prompt)."""
    given = max((span.row for span in spans), default=0) + 1
    times = max(1, rows // given)
    return [replace(span, row=span.row * times + copy) for span in spans for copy in range(times)]

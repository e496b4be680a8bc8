"""The cheap decode step: one token, no padding, so that the host knows all lengths and nothing has to be looked at.

The decoder runs as it is, with the first track's position. Where later layers need another rotary position, one hook
copies its cosines and sines into the tensors that all layers share. They are computed with the prompt, for many steps
at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache

from sttm_lmms.decoder import layer_types, rotary_embedding
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.tracks import CacheState

AHEAD = 1024
"""Positions whose cosines and sines are computed at once."""

_PLAIN_ROPE = {"default", "linear", "yarn", "llama3", "mrope"}
_NO_MASK_NEEDED = ("sdpa", "flash_attention_2", "flash_attention_3")


@dataclass
class RotaryTable:
    """Cosines and sines ``[1, AHEAD, D]`` of the positions from ``first`` on."""

    first: int
    cos: torch.Tensor
    sin: torch.Tensor


class DecodeSteps:
    """What the decoder is called with in cheap steps.

    Args:
        decoder: the text decoder; :func:`is_plain` must hold for it.
        method: the reduction method, None for the baseline.
    """

    def __init__(self, decoder: Any, method: Method | None) -> None:
        self._decoder, self._method = decoder, method
        self._tables: WeakKeyDictionary[Cache, dict[int, RotaryTable]] = WeakKeyDictionary()

    def covers(self, state: CacheState) -> bool:
        """False where the next step needs the general way: padding, or a method that edits the cache."""
        return not state.padded and not state.videos and isinstance(state.full, int)

    def prepare(self, cache: Cache, state: CacheState, hidden: torch.Tensor) -> None:
        """Compute the cosines and sines of the steps that follow; ``hidden`` gives dtype and device."""
        if self.covers(state) and state.next_position is None:
            for layer, position in self._positions(state)[1:]:
                self._table(cache, layer, position, hidden)

    def step(self, cache: Cache, state: CacheState, hidden: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, Any]]]:
        """Rotary positions of the token ``hidden`` ``[B, 1, C]``, and the pre-hooks of layers that rotate otherwise."""
        if state.next_position is not None:
            return state.next_position.to(hidden.device), []
        (_, first), *others = self._positions(state)
        hooks = []
        for layer, position in others:
            table = self._table(cache, layer, position, hidden)
            hooks.append((layer, partial(splice, table, position)))
        return torch.full((hidden.shape[0], 1), first, device=hidden.device), hooks

    def _positions(self, state: CacheState) -> list[tuple[int, int]]:
        """``(layer, position)`` of the next token, one entry for each run of layers that rotate it alike."""
        method = self._method
        reference = getattr(method, "decode_positions", "continue") == "reference" and not state.in_prompt
        if method is None or method.positions == "keep" or reference:
            return [(0, int(state.full))]
        runs: list[tuple[int, int]] = []
        for track in state.tracks:
            if not runs or runs[-1][1] != track.seen:
                runs.append((track.first, int(track.seen)))
        return runs

    def _table(self, cache: Cache, layer: int, position: int, hidden: torch.Tensor) -> RotaryTable:
        tables = self._tables.setdefault(cache, {})
        table = tables.get(layer)
        if table is None or not table.first <= position < table.first + AHEAD:
            ahead = torch.arange(position, position + AHEAD, device=hidden.device)[None]
            table = tables[layer] = RotaryTable(position, *rotary_embedding(self._decoder, hidden, ahead, layer))
        return table


def splice(table: RotaryTable, position: int, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook of a layer: write the position's row over what the decoder computed for the layers before."""
    cos, sin = kwargs["position_embeddings"]
    at = position - table.first
    cos.copy_(table.cos[:, at : at + 1])
    sin.copy_(table.sin[:, at : at + 1])


def is_plain(decoder: Any, layers_on_one_device: bool) -> bool:
    """True if decode steps of this decoder can take the cheap way at all."""
    config = decoder.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return (
        layers_on_one_device
        and config._attn_implementation in _NO_MASK_NEEDED
        and kind in _PLAIN_ROPE
        and all(kind == "full_attention" for kind in layer_types(decoder))
    )


def advance(state: CacheState) -> CacheState:
    """The state after one more unpadded token in every row."""
    return replace(
        state,
        tracks=tuple(replace(track, seen=track.seen + 1) for track in state.tracks),
        full=state.full + 1,
        next_position=None if state.next_position is None else state.next_position + 1,
        in_prompt=False,
        decoded=state.decoded + 1 if state.decodes else 0,
    )

"""The cheap decode step: one token, no padding, so that the host knows all lengths and nothing has to be looked at.

The decoder runs as it is, with the first track's position. Where later layers need another rotary position, one hook
copies its cosines and sines into the tensors that all layers share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sttm_lmms.decoder import layer_types
from sttm_lmms.runtime.tracks import CacheState

AHEAD = 64
"""Decode steps whose cosines and sines are computed at once."""

_PLAIN_ROPE = {"default", "linear", "yarn", "llama3", "mrope"}
_NO_MASK_NEEDED = ("sdpa", "flash_attention_2", "flash_attention_3")


@dataclass
class RotaryTable:
    """Cosines and sines ``[1, AHEAD, D]`` of the coming positions in the layers from ``layer`` on."""

    layer: int
    first: int
    cos: torch.Tensor
    sin: torch.Tensor


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


def track_positions(state: CacheState, follow_full: bool) -> list[tuple[int, int]]:
    """``(layer, position)`` of the new token, one entry for each run of layers that rotate it alike."""
    if follow_full:
        return [(0, int(state.full))]
    runs: list[tuple[int, int]] = []
    for track in state.tracks:
        if not runs or runs[-1][1] != track.seen:
            runs.append((track.first, int(track.seen)))
    return runs


def rotary_table(decoder: nn.Module, hidden: torch.Tensor, layer: int, position: int) -> RotaryTable:
    """The table for ``position`` and those after it."""
    ahead = torch.arange(position, position + AHEAD, device=hidden.device)[None]
    cos, sin = decoder.rotary_emb(hidden, ahead)  # type: ignore[operator]
    return RotaryTable(layer, position, cos, sin)

"""Decode steps: the cheap one, and what a method that edits the KV cache may do at one.

In the cheap step there is one token and no padding, so the host knows all lengths and nothing has
to be looked at.

The decoder runs as it is, with the first track's position. Where later layers need another rotary
position, one hook copies its cosines and sines into the tensors that all layers share. They are
computed with the prompt, for many steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from sttm_lmms.decoder import RECURRENT, keys_values, layer_types, rotary_embedding, uses_mrope
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.probe import AttentionInputs, rotated
from sttm_lmms.runtime.reduced_cache import CachedSequence, ReducedCache

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
        decoder: the text decoder.
        method: the reduction method, None for the baseline.

    Attributes:
        possible: False for a decoder that always needs the general way.
    """

    def __init__(self, decoder: Any, method: Method | None) -> None:
        self._decoder, self._method = decoder, method
        self.possible = _has_cheap_steps(decoder)
        self._tables: WeakKeyDictionary[Cache, dict[int, RotaryTable]] = WeakKeyDictionary()

    def covers(self, sequence: CachedSequence) -> bool:
        """False where the next step needs the general way: decoders with other masks or rotary
        tables, padding, or a method that edits the cache."""
        return self.possible and not sequence.padded and not sequence.videos

    def prepare(self, cache: ReducedCache, hidden: torch.Tensor) -> None:
        """Compute the cosines and sines of the steps that follow; ``hidden`` gives dtype and
        device."""
        if self.covers(cache.sequence) and cache.sequence.positions is None:
            for layer, position in self._positions(cache)[1:]:
                self._table(cache, layer, position, hidden)

    def step(self, cache: ReducedCache, hidden: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, Any]]]:
        """Rotary positions of the token ``hidden`` ``[B, 1, C]``, and the pre-hooks of layers that
        rotate otherwise."""
        if cache.sequence.positions is not None:
            # With M-RoPE all survivors keep their positions, so that text goes on alike in all
            # layers.
            return cache.sequence.next_position(cache.get_seq_length()).to(hidden.device), []
        (_, first), *others = self._positions(cache)
        hooks = []
        for layer, position in others:
            table = self._table(cache, layer, position, hidden)
            hooks.append((layer, partial(splice, table, position)))
        return torch.full((hidden.shape[0], 1), first, device=hidden.device), hooks

    def _positions(self, cache: ReducedCache) -> list[tuple[int, int]]:
        """``(layer, position)`` of the next token, one entry for each run of layers that rotate it
        alike."""
        method, sequence, length = self._method, cache.sequence, cache.get_seq_length()
        reference = getattr(method, "decode_positions", "") == "reference" and not sequence.in_prompt(length)
        if method is None or method.positions == "keep" or reference:
            return [(0, length)]
        runs: list[tuple[int, int]] = []
        for group in sequence.groups:
            held = cache.held(group.first)
            if not runs or runs[-1][1] != held:
                runs.append((group.first, held))
        return runs

    def _table(self, cache: Cache, layer: int, position: int, hidden: torch.Tensor) -> RotaryTable:
        tables = self._tables.setdefault(cache, {})
        table = tables.get(layer)
        # A roll-back may go behind the first position of a table.
        if table is None or not table.first <= position < table.first + AHEAD:
            ahead = torch.arange(position, position + AHEAD, device=hidden.device)[None]
            table = tables[layer] = RotaryTable(position, *rotary_embedding(self._decoder, hidden, ahead, layer))
        return table


def splice(table: RotaryTable, position: int, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook of a layer: write the position's row over what the decoder computed for the layers
    before."""
    # In place: the decoder hands one pair of tensors to all layers, so that one hook serves all
    # layers up to the next one that rotates otherwise.
    cos, sin = kwargs["position_embeddings"]
    at = position - table.first
    cos.copy_(table.cos[:, at : at + 1])
    sin.copy_(table.sin[:, at : at + 1])


def _has_cheap_steps(decoder: Any) -> bool:
    """Whether layers need no mask, and one rotary table that no length of the sequence changes."""
    config = decoder.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return (
        len({parameter.device for parameter in decoder.layers.parameters()}) == 1
        and config._attn_implementation in _NO_MASK_NEEDED
        and kind in _PLAIN_ROPE
        and all(kind in ("full_attention", RECURRENT) for kind in layer_types(decoder))
    )


class StepView:
    """The cache of one sequence in front of ``layer`` of one decode step."""

    def __init__(
        self,
        decoder: Any,
        cache: ReducedCache,
        layer: int,
        inputs: AttentionInputs | None,
        attended: dict[int, tuple[torch.Tensor, int]],
    ) -> None:
        self.layer, self.layers = layer, len(decoder.layers)
        self.prompt_tokens = cache.sequence.prompt_length or 0
        video = cache.sequence.videos[0]
        self.video, self.visual_tokens = video.entries, video.visual_tokens
        self._decoder, self._cache, self._inputs, self._attended = decoder, cache, inputs, attended

    def length(self, layer: int) -> int:
        """Entries of a layer, without the token that this step adds."""
        return self._cache.held(layer)

    def attention(self) -> torch.Tensor:
        """``[length + 1]`` float32, see :class:`~sttm_lmms.methods.base.CacheView`."""
        if self._inputs is None:
            raise ValueError("there is no layer before layer 0 whose attention could be read")
        (weights,) = self._inputs.weights(0, torch.zeros(1, dtype=torch.long), self._cache)
        return weights

    def keep(self, layer: int, index: torch.Tensor) -> None:
        """Drop all entries of ``layer`` but ``index``."""
        entry = self._entry(layer)
        keys, values = keys_values(entry)
        index = index.to(keys.device)
        if len(index) < keys.shape[-2]:
            self._cache.removals[layer].append((-1, keys.shape[-2] - len(index)))
        entry.keys, entry.values = keys.index_select(-2, index), values.index_select(-2, index)

    def rotate(self, layer: int, entries: slice, steps: int) -> None:
        """Turn the keys of ``entries`` by ``steps`` rotary positions."""
        entry = self._entry(layer)
        keys, _ = keys_values(entry)
        rotary = self._decoder.rotary_emb
        position = torch.full((1, 1), abs(steps), device=keys.device)
        position = position.expand(3, 1, 1) if uses_mrope(self._decoder) else position
        cos, sin = rotary_embedding(self._decoder, keys, position, layer)
        scale = getattr(rotary, "attention_scaling", 1.0)
        # Keys hold the scaling of long contexts already; a rotation backwards has the sine's other
        # sign.
        cos, sin = cos[0] / scale, sin[0] / scale * (1 if steps > 0 else -1)
        entry.keys = keys.clone()  # a branch of this cache may share the tensor
        entry.keys[0, :, entries] = rotated(self._decoder.layers[layer].self_attn, keys[0, :, entries], cos, sin)

    def attend(self, layer: int, index: torch.Tensor) -> None:
        """In this step ``layer`` sees only the entries ``index``; ``length`` stands for the new
        token itself."""
        implementation = self._decoder.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"{implementation} takes no mask that hides single KV entries; use attn_implementation=sdpa"
            )
        keys, _ = keys_values(self._entry(layer))
        mask = torch.full((1, 1, 1, self.length(layer) + 1), torch.finfo(keys.dtype).min, dtype=keys.dtype)
        mask[..., index.to(mask.device)] = 0  # added to the scores: 0 is seen
        self._attended[layer] = mask.to(keys.device), len(index)

    def _entry(self, layer: int) -> DynamicLayer:
        entry = self._cache.layers[layer]
        if not isinstance(entry, DynamicLayer):
            raise UnsupportedModelError("only caches that keep the keys and values of every layer can be edited")
        return entry

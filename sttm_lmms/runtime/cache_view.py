"""What a method that edits the KV cache may do at a decode step (:class:`~sttm_lmms.methods.base.CacheView`)."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from sttm_lmms.decoder import keys_values, rotary_embedding, uses_mrope
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.runtime.probe import AttentionInputs, rotate_half
from sttm_lmms.runtime.tracks import CacheState


class StepView:
    """The cache of one sequence in front of ``layer`` of one decode step."""

    def __init__(
        self,
        decoder: Any,
        cache: Cache,
        state: CacheState,
        layer: int,
        inputs: AttentionInputs | None,
        attended: dict[int, tuple[torch.Tensor, int]],
    ) -> None:
        self.layer, self.layers = layer, len(decoder.layers)
        self.first_step = state.decoded == 0
        self.prompt_tokens = int(state.full) - state.decoded
        _, self.video, self.visual_tokens = state.videos[0]
        self._decoder, self._cache, self._inputs, self._attended = decoder, cache, inputs, attended

    def length(self, layer: int) -> int:
        """Entries of a layer, without the token that this step adds."""
        return self._cache.get_seq_length(layer)

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
        turned = keys[:, :, entries]
        cos, sin = cos.reshape(-1) / scale, sin.reshape(-1) / scale * (1 if steps > 0 else -1)
        entry.keys = keys.clone()
        entry.keys[:, :, entries] = turned * cos + rotate_half(turned) * sin

    def attend(self, layer: int, index: torch.Tensor) -> None:
        """In this step ``layer`` sees only the entries ``index``; ``length`` stands for the new token itself."""
        implementation = self._decoder.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"{implementation} takes no mask that hides single KV entries; use attn_implementation=sdpa"
            )
        keys, _ = keys_values(self._entry(layer))
        mask = torch.full((1, 1, 1, self.length(layer) + 1), torch.finfo(keys.dtype).min, dtype=keys.dtype)
        mask[..., index.to(mask.device)] = 0
        self._attended[layer] = mask.to(keys.device), len(index)

    def _entry(self, layer: int) -> DynamicLayer:
        entry = self._cache.layers[layer]
        if not isinstance(entry, DynamicLayer):
            raise UnsupportedModelError("only caches that keep the keys and values of every layer can be edited")
        return entry

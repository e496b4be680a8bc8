"""What each layer of one forward pass is called with: rotary positions and mask of the tokens that
it holds."""

from __future__ import annotations

from typing import Any

import torch

from sttm_lmms.decoder import layer_mask, layer_types, rotary_embedding
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.positions import contiguous, extend_mask
from sttm_lmms.runtime.reduced_cache import CachedSequence, LayerGroup, ReducedCache
from sttm_lmms.runtime.videos import Batch


class LayerInputs:
    """Inputs of the layers in the order in which they run.

    Args:
        decoder: the text decoder.
        method: the reduction method, None for the baseline.
        sequence: what is known about the sequence before the pass.
        cache: what the pass appends to; None without a cache.
        past: tokens of the sequence before the pass.
        mask: ``[B, L]`` bool padding mask of the new tokens, None without padding.
        positions: rotary positions of the new tokens at full length, ``[B, L]`` or ``[3, B, L]``.

    Attributes:
        batch: the new tokens as they are now.
        reductions: how often they became fewer.
        visible: mask function that narrows what queries see, see
            :meth:`~sttm_lmms.methods.base.Method.visible`.
        attend: layer -> ``[1, 1, 1, K]`` mask of what a cache-editing method lets this step see,
            and how many entries.
    """

    def __init__(
        self,
        decoder: Any,
        method: Method | None,
        sequence: CachedSequence,
        cache: ReducedCache | None,
        past: int,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
    ) -> None:
        self.decoder, self.method, self.sequence, self.cache = decoder, method, sequence, cache
        self.past, self.mask, self.positions = past, mask, positions
        self.rows, self.length = positions.shape[-2:]
        padding = [0] * self.rows if mask is None else (~mask).sum(-1).tolist()
        self.batch = Batch(None, mask, padding)
        self.reductions = 0
        self.visible: Any = None
        self.attend: dict[int, tuple[torch.Tensor, int]] = {}
        self._mrope = positions.ndim == 3
        self._groups: list[LayerGroup] = []
        # Of the group that is open, where a layer needs others than the decoder computed:
        self._key = (0, 0)
        self._positions: torch.Tensor | None = None
        self._own: dict[str, Any] = {}
        self._rotary: dict[str, Any] = {}
        self._masks: dict[str, Any] = {}

    @property
    def in_prompt(self) -> bool:
        """True if the new tokens belong to the prompt and were not generated."""
        return self.sequence.in_prompt(self.past)

    @property
    def changes_layer_0(self) -> bool:
        """True if the first layer needs other inputs than the decoder gives it."""
        return self.visible is not None or bool(self.attend) or self._hides_positions

    @property
    def _keeps_positions(self) -> bool:
        """True if a survivor has the rotary position that it had before."""
        return self._mrope or self.method is None or self.method.positions == "keep"

    @property
    def _hides_positions(self) -> bool:
        # Gaps in position ids would make flash attention take one sequence for several packed ones.
        # Decoders with M-RoPE hand no such ids to their layers.
        return bool(self.reductions) and self._keeps_positions and not self._mrope

    def held(self, layer: int) -> int:
        """Tokens that ``layer`` holds before the pass."""
        return 0 if self.cache is None else self.cache.held(layer)

    def of_decoder(self, hidden: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Padding mask and rotary positions with which the decoder itself is called; ``hidden``
        enters layer 0."""
        mask, positions = self._open_group(0, hidden.shape[1])
        self._key = (0, self.reductions)
        if self._hides_positions:
            self._own = {"position_ids": None}
        return mask, positions

    def of_layer(self, layer: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What ``layer`` gets instead of its own arguments; empty where its own are right."""
        # Layers hold the same tokens as the one before until a reduction, of this pass or of an
        # earlier one, lies between: they share one mask and one rotary table.
        key = (self.sequence.group_of(layer).first, self.reductions)
        if key != self._key:
            self._key = key
            _, self._positions = self._open_group(layer, hidden.shape[1])
            self._own = {"position_ids": None}
            self._rotary, self._masks = {}, {}
        kind = layer_types(self.decoder)[layer]
        kwargs = dict(self._own)
        if self._positions is not None:
            if kind not in self._rotary:
                self._rotary[kind] = rotary_embedding(self.decoder, hidden, self._positions, layer)
            kwargs["position_embeddings"] = self._rotary[kind]
        if layer in self.attend:
            return {**kwargs, "attention_mask": self.attend[layer][0].to(hidden.device)}
        if not kwargs and self.visible is None:
            return {}  # the decoder computed the right ones itself
        if kind not in self._masks:
            mask = self._groups[-1].mask
            self._masks[kind] = layer_mask(self.decoder, hidden, mask, self.cache, layer, self.visible)
        return {**kwargs, "attention_mask": self._masks[kind]}

    def note_in_sequence(self) -> None:
        """Write down in the sequence what the pass added to it."""
        sequence, in_prompt = self.sequence, self.in_prompt
        sequence.mask = extend_mask(sequence.mask, self.mask, self.past, self.rows, self.length)
        sequence.groups = tuple(self._groups)
        if self._mrope:
            sequence.append_positions(self.positions, self.past)
        if in_prompt:
            sequence.prompt_length = self.past + self.length

    def _open_group(self, layer: int, length: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Begin a group of layers at ``layer``, which the new tokens enter as they are now,
        ``length`` in a row.

        Returns:
            The padding mask over all that the layers hold then, and the rotary positions of the new
            tokens.
        """
        held = self.held(layer)
        mask = extend_mask(self.sequence.group_of(layer).mask, self.batch.mask, held, self.rows, length)
        self._groups.append(LayerGroup(layer, mask))
        return mask, self._new_positions(mask, held, length)

    def _new_positions(self, mask: torch.Tensor | None, held: int, length: int) -> torch.Tensor:
        index, positions = self.batch.index, self.positions
        if self._keeps_positions:
            if index is None:
                return positions
            index = index.to(positions.device)
            return positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[-1]))
        if index is None and not self.in_prompt and getattr(self.method, "decode_positions", "") == "reference":
            return positions
        return contiguous(held, mask, self.rows, length, positions.device)

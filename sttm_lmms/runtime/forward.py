"""One forward pass of a decoder: which sequence each layer holds, and what that layer is called with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import Cache

from sttm_lmms.decoder import layer_mask, layer_types, rotary_embedding
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.report import StageEvent
from sttm_lmms.runtime.timing import Mark
from sttm_lmms.runtime.tracks import CacheState, Track, contiguous, extend_mask, plus_real
from sttm_lmms.runtime.videos import Batch, VideoTokens


@dataclass
class Forward:
    """A prefill, or a step that continues a cache.

    Attributes:
        decoder, method: the text decoder; the reduction method, None for the baseline.
        state: of the cache before the pass.
        cache: what the pass appends to; None without a cache.
        rows, length: of the new tokens before reduction.
        mask: ``[B, L]`` bool padding mask of the new tokens, None without padding.
        positions: rotary positions of the new tokens at full length, ``[B, L]`` or ``[3, B, L]``.
        videos: the videos among the new tokens.
        began: when the pass began.
        batch: the new tokens as they are now (``hidden`` is not kept); :attr:`reductions` counts how often they
            became fewer.
        events: for each video, what happened to it.
    """

    decoder: Any
    method: Method | None
    state: CacheState
    cache: Cache | None
    rows: int
    length: int
    mask: torch.Tensor | None
    positions: torch.Tensor
    videos: list[VideoTokens]
    began: Mark
    batch: Batch
    visible: Any = None
    """Mask function that narrows what queries see, see :meth:`~sttm_lmms.methods.base.Method.visible`."""
    events: list[list[StageEvent]] = field(default_factory=list)
    reductions: int = 0
    attend: dict[int, tuple[torch.Tensor, int]] = field(default_factory=dict)
    """Layer -> ``[1, 1, 1, K]`` mask of what a cache-editing method lets this step see, and how many entries."""
    tracks: list[Track] = field(default_factory=list)
    _key: tuple[int, int] = (0, 0)
    _kwargs: dict[str, Any] = field(default_factory=dict)
    _positions: torch.Tensor | None = None
    _rotary: dict[str, Any] = field(default_factory=dict)
    _masks: dict[str, Any] = field(default_factory=dict)

    @property
    def mrope(self) -> bool:
        """True if positions have three axes."""
        return self.positions.ndim == 3

    @property
    def keeps_positions(self) -> bool:
        """True if a survivor has the rotary position that it had before."""
        return self.mrope or self.method is None or self.method.positions == "keep"

    def layer_positions(self, track: Track) -> torch.Tensor:
        """Rotary positions of the tokens as they are now, in the layers of ``track``."""
        index, positions = self.batch.index, self.positions
        if self.keeps_positions:
            if index is None:
                return positions
            index = index.to(positions.device)
            return positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[-1]))
        if index is not None:
            return contiguous(track.seen, self.batch.mask, self.rows, index.shape[1], positions.device)
        if getattr(self.method, "decode_positions", "continue") == "reference" and not self.state.in_prompt:
            return positions
        return contiguous(track.seen, self.mask, self.rows, self.length, positions.device)

    def open_track(self, layer: int, length: int) -> tuple[Track, torch.Tensor | None]:
        """Note that ``layer`` holds the tokens as they are now; its old track and its whole padding mask."""
        old = self.state.track_of(layer)
        past = self.cache.get_seq_length(layer) if self.cache is not None else 0
        total = extend_mask(old.mask, self.batch.mask, past, self.rows, length)
        self.tracks.append(Track(layer, plus_real(old.seen, self.batch.mask, length), total))
        return old, total

    def start(self, hidden: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Padding mask and positions with which the decoder itself is called; ``hidden`` enters layer 0."""
        old, total = self.open_track(0, hidden.shape[1])
        self._key = (0, self.reductions)
        if self.reductions and self.keeps_positions and not self.mrope:
            self._kwargs = {"position_ids": None}
        return total, self.layer_positions(old)

    def layer_kwargs(self, layer: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What ``layer`` gets instead of its own arguments; empty where its own are right."""
        key = (self.state.track_of(layer).first, self.reductions)
        if key != self._key:
            self._key = key
            old, _ = self.open_track(layer, hidden.shape[1])
            self._positions = self.layer_positions(old)
            # Gaps in position ids would make flash attention take one sequence for several packed ones.
            self._kwargs = {"position_ids": None}
            self._rotary, self._masks = {}, {}
        kind = layer_types(self.decoder)[layer]
        kwargs = dict(self._kwargs)
        if self._positions is not None:
            if kind not in self._rotary:
                self._rotary[kind] = rotary_embedding(self.decoder, hidden, self._positions, layer)
            kwargs["position_embeddings"] = self._rotary[kind]
        if layer in self.attend:
            return {**kwargs, "attention_mask": self.attend[layer][0].to(hidden.device)}
        if not kwargs and self.visible is None:
            return {}
        if kind not in self._masks:
            total = self.tracks[-1].mask
            self._masks[kind] = layer_mask(self.decoder, hidden, total, self.cache, layer, self.visible)
        return {**kwargs, "attention_mask": self._masks[kind]}

    def after(self) -> CacheState:
        """The state of the cache after the pass."""
        # Rows end together, so the last token is real; text goes on after its largest coordinate, as in generate.
        following = None
        if self.mrope:
            following = (self.positions[..., -1:].amax(dim=0, keepdim=True) + 1).expand(3, -1, -1)
        return replace(
            self.state,
            tracks=tuple(self.tracks),
            full=plus_real(self.state.full, self.mask, self.length),
            next_position=following,
            in_prompt=False,
            decoded=self.state.decoded + self.length if self.state.decodes else 0,
        )

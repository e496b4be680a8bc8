"""Bookkeeping for one KV cache whose layers hold different lengths: a track is a run of layers with one length."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

Count = torch.Tensor | int
"""A number for each batch row, ``[B]`` int64; a plain number where it is the same for all rows, so that nothing has to
be fetched from the device."""


@dataclass(frozen=True)
class Track:
    """The sequence that the layers from ``first`` on hold, up to the first layer of the next track.

    Attributes:
        first: decoder layer.
        seen: real (unpadded) tokens so far: the position of the next token if positions are contiguous.
        mask: ``[B, S]`` bool over the layer's KV entries, False at padding; None without padding.
    """

    first: int
    seen: Count
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class CacheState:
    """What is known about one cache.

    Attributes:
        tracks: in the order of their layers; the first one starts at layer 0.
        full: real tokens that the unreduced sequence would have.
        next_position: ``[3, B, 1]`` int64, M-RoPE position of the next text token; None for 1-D positions.
        in_prompt: the next tokens still belong to the prompt (a question after a cached prefix).
        decoded: tokens fed after the prompt.
        videos: what cache-editing methods know about the videos: ``(scratch, entries, visual tokens before)``.
    """

    tracks: tuple[Track, ...] = (Track(0, 0),)
    full: Count = 0
    next_position: torch.Tensor | None = None
    in_prompt: bool = False
    decoded: int = 0
    videos: tuple[tuple[dict[str, Any], range, int], ...] = field(default=(), compare=False)

    @classmethod
    def of_unreduced(cls, mask: Any, past: int, device: torch.device) -> CacheState:
        """State of a cache that has only seen ``past`` unreduced tokens (or none), with the mask of a forward pass."""
        past_mask = None if mask is None or past == 0 else mask[:, :past].bool().to(device)
        if past_mask is not None and bool(past_mask.all()):
            past_mask = None
        seen = plus_real(0, past_mask, past)
        return cls((Track(0, seen, past_mask),), full=seen)

    @property
    def padded(self) -> bool:
        """True if any row has padding in any layer."""
        return any(track.mask is not None for track in self.tracks)

    @property
    def decodes(self) -> bool:
        """True if what comes next is generated text, not a part of the prompt."""
        return not self.in_prompt and not (isinstance(self.full, int) and self.full == 0)

    def track_of(self, layer: int) -> Track:
        """The track that ``layer`` belongs to."""
        return next(track for track in reversed(self.tracks) if track.first <= layer)

    def repeat(self, times: int) -> CacheState:
        """The state of the same cache with every row repeated ``times`` times in place."""
        if times == 1:
            return self
        return replace(
            self,
            tracks=tuple(
                replace(
                    track,
                    seen=_repeat(track.seen, times),
                    mask=None if track.mask is None else track.mask.repeat_interleave(times, dim=0),
                )
                for track in self.tracks
            ),
            full=_repeat(self.full, times),
            next_position=None if self.next_position is None else self.next_position.repeat_interleave(times, dim=1),
        )


def _repeat(count: Count, times: int) -> Count:
    return count if isinstance(count, int) else count.repeat_interleave(times)


def extend_mask(past: torch.Tensor | None, new: torch.Tensor | None, past_length: int, rows: int, length: int) -> Any:
    """Padding mask ``[B, past + length]`` from its two parts; a part that is None has no padding."""
    if past is None and new is None:
        return None
    device = (past if new is None else new).device  # type: ignore[union-attr]
    if past is None:
        past = torch.ones(rows, past_length, dtype=torch.bool, device=device)
    if new is None:
        new = torch.ones(rows, length, dtype=torch.bool, device=device)
    return torch.cat([past.to(device), new], dim=1)


def contiguous(seen: Count, mask: torch.Tensor | None, rows: int, length: int, device: torch.device) -> torch.Tensor:
    """``[B, length]`` int64: positions that go on from ``seen``; padding in front of a row has position 0."""
    if mask is None:
        if isinstance(seen, int):
            return torch.arange(seen, seen + length, device=device).expand(rows, length)
        return seen.to(device)[:, None] + torch.arange(length, device=device)
    ranks = mask.to(device=device, dtype=torch.long).cumsum(dim=-1) - 1
    past = seen if isinstance(seen, int) else seen.to(device)[:, None]
    return (past + ranks).clamp(min=0)


def plus_real(seen: Count, mask: torch.Tensor | None, length: int) -> Count:
    """``seen`` after ``length`` more tokens, of which the padding does not count."""
    new: Count = length if mask is None else mask.long().sum(dim=-1)
    if isinstance(seen, torch.Tensor) and isinstance(new, torch.Tensor):
        seen = seen.to(new.device)
    return seen + new

"""Bookkeeping for one KV cache whose layers hold two lengths: full below the start layer, short from it on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class CacheState:
    """How many real (unpadded) tokens a cache has seen, per batch row.

    Attributes:
        full: ``[B]`` int64, tokens in layers below the start layer.
        short: ``[B]`` int64, tokens in layers from the start layer on.
        short_mask: ``[B, S]`` bool, False at padding of the short sequence; None without padding.
        next_position: ``[B]`` int64, M-RoPE position of the next text token; None for 1-D positions.
        in_prompt: the next tokens still belong to the prompt (a question after a cached prefix).
    """

    full: torch.Tensor
    short: torch.Tensor
    short_mask: torch.Tensor | None = None
    next_position: torch.Tensor | None = None
    in_prompt: bool = False

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> CacheState:
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(full=zeros, short=zeros)

    @property
    def rows(self) -> int:
        return self.full.shape[0]

    def repeat(self, times: int) -> CacheState:
        """The state of the same cache with every row repeated ``times`` times in place."""
        if times == 1:
            return self
        return replace(
            self,
            full=self.full.repeat_interleave(times),
            short=self.short.repeat_interleave(times),
            short_mask=None if self.short_mask is None else self.short_mask.repeat_interleave(times, dim=0),
            next_position=None if self.next_position is None else self.next_position.repeat_interleave(times),
        )


def extend_mask(
    past: torch.Tensor | None, new: torch.Tensor | None, past_length: int, rows: int, length: int, device: torch.device
) -> torch.Tensor | None:
    """Padding mask ``[B, past + length]`` from its two parts; a part that is None has no padding."""
    if past is None and new is None:
        return None
    if past is None:
        past = torch.ones(rows, past_length, dtype=torch.bool, device=device)
    if new is None:
        new = torch.ones(rows, length, dtype=torch.bool, device=device)
    return torch.cat([past.to(device), new.to(device)], dim=1)


def offsets(mask: torch.Tensor | None, rows: int, length: int, device: torch.device) -> torch.Tensor:
    """Rank of each new token among the real ones of its row, ``[B, length]`` int64 (-1 in leading padding)."""
    if mask is None:
        return torch.arange(length, device=device).expand(rows, length)
    return mask.to(device=device, dtype=torch.long).cumsum(dim=-1) - 1


def real_tokens(mask: torch.Tensor | None, length: int) -> torch.Tensor | int:
    """Real tokens per row: ``[B]`` int64, or ``length`` without padding."""
    return length if mask is None else mask.long().sum(dim=-1)

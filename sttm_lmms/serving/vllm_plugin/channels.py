"""Integers as extra channels behind embeddings.

What a vision encoder returns in vLLM is one tensor a video, in the model's dtype, and what is known
about its rows has to travel in it. bfloat16 holds integers up to 256 exactly, so each integer
travels as two digits to base 256.
"""

from __future__ import annotations

import torch

BASE = 256
LARGEST = BASE * BASE - 1


def with_integers(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``rows`` ``[N, C]`` of any floating dtype and ``values`` ``[N, K]`` int64 ->
    ``[N, C + 2 * K]``.

    Raises:
        ValueError: a value is negative or above :data:`LARGEST`.
    """
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) <= LARGEST):
        raise ValueError(f"only integers from 0 to {LARGEST} can travel with embeddings")
    digits = torch.cat((values // BASE, values % BASE), dim=1)
    return torch.cat((rows, digits.to(rows)), dim=1)


def split_integers(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of :func:`with_integers` for ``count`` integers a row: ``[N, C]`` and
    ``[N, count]`` int64."""
    high, low = rows[:, -2 * count :].long().split(count, dim=1)
    return rows[:, : -2 * count], high * BASE + low

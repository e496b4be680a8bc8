"""Reduce the visual spans of a batch of sequences: the step between the decoder's hooks and the merging."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from sttm_lmms.runtime.report import Reduction
from sttm_lmms.types import MergedTokens, VideoSpan


@dataclass(frozen=True)
class ShortBatch:
    """A batch after reduction; rows are padded on the left to the longest one.

    Attributes:
        hidden: ``[B, S, C]``.
        index: ``[B, S]`` int64, place in the full sequence of each token (of a merged token's representative).
        mask: ``[B, S]`` bool, False at padding; None without padding.
        reductions: what happened to each span.
    """

    hidden: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor | None
    reductions: list[Reduction]


def shorten(
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    spans: Sequence[VideoSpan],
    merge: Callable[[torch.Tensor], MergedTokens],
    *,
    layer: int,
    now: Callable[[], float] = time.perf_counter,
) -> ShortBatch:
    """Merge every span of ``hidden`` ``[B, L, C]`` and close the gaps; text stays as it is.

    Args:
        mask: ``[B, L]`` bool, False at padding; padding is dropped and made anew on the left.
        spans: the spans of all rows.
        merge: ``[T, H, W, C] -> MergedTokens``.
        layer: recorded in the report.
        now: clock around each merge; one that waits for the device when timing is on.
    """
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    reductions: list[Reduction] = []
    for row in range(hidden.shape[0]):
        features, index, done = _shorten_row(
            hidden[row], [s for s in spans if s.row == row], merge, row=row, layer=layer, now=now
        )
        reductions += done
        if mask is not None:
            keep = mask[row][index]
            features, index = features[keep], index[keep]
        rows.append((features, index))

    lengths = [len(index) for _, index in rows]
    longest = max(lengths)
    if min(lengths) == longest:
        stacked = rows[0][0][None] if len(rows) == 1 else torch.stack([f for f, _ in rows])
        return ShortBatch(stacked, torch.stack([i for _, i in rows]), None, reductions)
    short = hidden.new_zeros(len(rows), longest, hidden.shape[-1])
    index = torch.zeros(len(rows), longest, dtype=torch.long, device=hidden.device)
    short_mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=hidden.device)
    for row, (features, row_index) in enumerate(rows):
        start = longest - lengths[row]
        short[row, start:], index[row, start:], short_mask[row, start:] = features, row_index, True
    return ShortBatch(short, index, short_mask, reductions)


def _shorten_row(
    hidden: torch.Tensor,
    spans: Sequence[VideoSpan],
    merge: Callable[[torch.Tensor], MergedTokens],
    *,
    row: int,
    layer: int,
    now: Callable[[], float],
) -> tuple[torch.Tensor, torch.Tensor, list[Reduction]]:
    """One sequence ``[L, C]`` -> its features ``[S, C]``, their indices ``[S]`` and the reductions."""
    positions = torch.arange(hidden.shape[0], device=hidden.device)
    features, indices, reductions, end = [], [], [], 0
    for span in sorted(spans, key=lambda s: s.start):
        if span.start < end or span.end > hidden.shape[0]:
            raise ValueError(
                f"video span {span.start}..{span.end} of row {row} overlaps another one or leaves the sequence of "
                f"{hidden.shape[0]} tokens"
            )
        began = now()
        merged = merge(hidden[span.start : span.end].reshape(*span.grid, -1))
        seconds = now() - began
        t, y, x = merged.boxes[:, :3].unbind(dim=-1)
        _, height, width = span.grid
        features += [hidden[end : span.start], merged.features]
        indices += [positions[end : span.start], span.start + (t * height + y) * width + x]
        end = span.end
        maps = replace(merged, features=merged.features[:, :0].clone())
        reductions.append(Reduction(row, span.grid, span.length, len(merged), layer, seconds, maps))
    features.append(hidden[end:])
    indices.append(positions[end:])
    return torch.cat(features), torch.cat(indices), reductions

"""Thresholds to settled tokens in one kernel launch: the same as ``dense_union.py`` and its search for a stable round.

One program per pair of thresholds takes the levels, the pairs, the rounds of the union and the counts, one after the
other, so that the union stops at its first stable round and the host reads three numbers. Nothing is computed with
similarities, they are only compared: given the same ones the tokens are the same.

A program is one block of threads, whatever the length of the video. No kernel of this file has run on hardware, only in
Triton's interpreter; so it is not the default on any device: ``merge_video_tokens(..., _path="triton")`` chooses it.
"""

from __future__ import annotations

import torch

from sttm_lmms.methods.sttm.dense_similarity import Measured
from sttm_lmms.methods.sttm.dense_tables import Tables
from sttm_lmms.methods.sttm.exact import Labels

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError('_path="triton" needs triton, which PyTorch for CUDA on Linux brings along') from error

BLOCK = 2048
"""Cells that a program handles at a time."""

WARPS = 16

SCRATCH = 5
"""int32 numbers that a program keeps for every cell."""


def count_at(measured: Measured, tables: Tables, points: torch.Tensor) -> torch.Tensor:
    """Count the tokens at pairs of thresholds.

    Args:
        measured: the video's similarities; without temporal ones the temporal step is off.
        tables: of its grid.
        points: ``[B, 2]`` float32, contiguous.

    Returns:
        ``[3, B]`` int32: the tokens kept, those of the spatial step alone, and the rounds of the union.
    """
    counts = points.new_empty(3, len(points), dtype=torch.int32)
    _launch(measured, tables, (points, points), counts, None)
    return counts


def tokens_at(
    measured: Measured, tables: Tables, spatial: float, temporal: float
) -> tuple[Labels, torch.Tensor | None, torch.Tensor]:
    """The tokens at a pair of thresholds.

    Returns:
        The tokens, ``level`` as ``[T, 1, H*W]``; the similarities of those over a cell in consecutive frames
        ``[(T - 1) * H*W]`` float32, None where the temporal step is off; and ``[3]`` int32, see :func:`count_at`.
    """
    barrier = measured.barrier
    frames, cells = len(barrier), tables.cells
    level, anchor, owner = barrier.new_empty(3, frames * cells, dtype=torch.int64).unbind()
    link = None if measured.similarity is None else barrier.new_empty((frames - 1) * cells)
    counts = barrier.new_empty(3, dtype=torch.int32)
    _launch(measured, tables, (float(spatial), float(temporal)), counts, (level, anchor, owner, link))
    return Labels(level.view(frames, 1, cells), anchor, owner), link, counts


def _launch(
    measured: Measured,
    tables: Tables,
    thresholds: tuple[float, float] | tuple[torch.Tensor, torch.Tensor],
    counts: torch.Tensor,
    outputs: tuple[torch.Tensor | None, ...] | None,
) -> None:
    frames, points = len(measured.barrier), counts.numel() // 3
    with torch.cuda.device_of(counts):
        _settle[(points,)](
            measured.barrier,
            measured.similarity,
            tables.back,
            tables.pair_row,
            *thresholds,
            counts.new_empty(points, SCRATCH, frames * tables.cells),
            counts,
            *(outputs or [None] * 4),
            frames,
            tables.cells,
            LEVELS=tables.levels,
            TEMPORAL=measured.similarity is not None,
            WRITE=outputs is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
            num_stages=1,
        )


@triton.jit
def _level(barrier, cell, inside, cells, threshold, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Level of the token over each cell."""
    level = cell * 0
    row = cell // cells * (LEVELS - 1)
    for above in tl.static_range(LEVELS - 1):
        agreement = tl.load(barrier + (row + above) * cells + cell % cells, mask=inside, other=0.0)
        level += (agreement < threshold).to(tl.int32)
    return level


@triton.jit
def _settle(  # type: ignore[no-untyped-def]
    barrier,
    similarity,
    back,
    pair_row,
    spatial,
    temporal,
    scratch,
    counts,
    level_out,
    anchor_out,
    owner_out,
    link_out,
    frames,
    cells,
    LEVELS: tl.constexpr,
    TEMPORAL: tl.constexpr,
    WRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Labels and counts at one pair of thresholds a program; with WRITE there is one, given as numbers."""
    point = tl.program_id(0)
    if not WRITE:
        spatial = tl.load(spatial + 2 * point)
        temporal = tl.load(temporal + 2 * point + 1)
    number = frames * cells
    pairs = number - cells
    anchor = scratch + point.to(tl.int64) * 5 * number
    later = anchor + number
    found = later + number
    lowered = found + number  # twice as long: one is lowered while the other is set up for the next round
    tile = tl.arange(0, BLOCK)

    starts = tile * 0
    for first in range(0, number, BLOCK):
        cell = first + tile
        inside = cell < number
        column = cell % cells
        level = _level(barrier, cell, inside, cells, spatial, LEVELS)
        own = cell - tl.load(back + level * cells + column, mask=inside, other=0).to(tl.int32)
        starts += (inside & (own == cell)).to(tl.int32)
        tl.store(anchor + cell, own, mask=inside)
        if WRITE:
            tl.store(level_out + cell, level, mask=inside)
            tl.store(anchor_out + cell, own, mask=inside)
        if TEMPORAL:
            paired = cell < pairs
            follower = cell + cells
            next_level = _level(barrier, follower, paired, cells, spatial, LEVELS)
            row = tl.load(pair_row + level * LEVELS + next_level, mask=paired, other=0).to(tl.int32)
            row += cell // cells * (LEVELS * LEVELS)
            link = tl.load(similarity + row * cells + column, mask=paired, other=0.0)
            partner = follower - tl.load(back + next_level * cells + column, mask=paired, other=0).to(tl.int32)
            tl.store(later + cell, tl.where(link >= temporal, partner, own), mask=paired)
            tl.store(found + cell, cell, mask=inside)
            tl.store(lowered + cell, cell, mask=inside)
            if WRITE:
                tl.store(link_out + cell, link, mask=paired)
    tl.debug_barrier()

    rounds = 0
    if TEMPORAL:
        unstable = 1
        now = 0
        while unstable > 0:
            for first in range(0, pairs, BLOCK):
                cell = first + tile
                paired = cell < pairs
                a = tl.load(anchor + cell, mask=paired, other=0)
                b = tl.load(later + cell, mask=paired, other=0)
                apart = paired & (a != b)
                # Past the first-level cache: other threads have written what is read.
                of_a = tl.load(found + a, mask=apart, other=0, cache_modifier=".cg")
                of_b = tl.load(found + b, mask=apart, other=0, cache_modifier=".cg")
                tl.atomic_min(lowered + now + a, of_b, mask=apart, sem="relaxed")
                tl.atomic_min(lowered + now + b, of_a, mask=apart, sem="relaxed")
            tl.debug_barrier()
            for first in range(0, number, BLOCK):
                cell = first + tile
                inside = cell < number
                low = tl.load(lowered + now + cell, mask=inside, other=0, cache_modifier=".cg")
                low = tl.load(lowered + now + low, mask=inside, other=0, cache_modifier=".cg")
                tl.store(found + cell, low, mask=inside)
                tl.store(lowered + (number - now) + cell, low, mask=inside)
            tl.debug_barrier()
            moved = tile * 0
            for first in range(0, number, BLOCK):
                cell = first + tile
                inside = cell < number
                low = tl.load(found + cell, mask=inside, other=0, cache_modifier=".cg")
                again = tl.load(found + low, mask=inside, other=0, cache_modifier=".cg")
                moved += (inside & (again != low)).to(tl.int32)
            unstable = tl.sum(moved)
            now = number - now
            rounds += 1
            tl.debug_barrier()

    kept = tile * 0
    for first in range(0, number, BLOCK):
        cell = first + tile
        inside = cell < number
        owner = tl.load(anchor + cell, mask=inside, other=0)
        if TEMPORAL:
            owner = tl.load(found + owner, mask=inside, other=0, cache_modifier=".cg")
        kept += (inside & (owner == cell)).to(tl.int32)
        if WRITE:
            tl.store(owner_out + cell, owner, mask=inside)
    points = tl.num_programs(0)
    tl.store(counts + point, tl.sum(kept))
    tl.store(counts + points + point, tl.sum(starts))
    tl.store(counts + 2 * points + point, rounds)

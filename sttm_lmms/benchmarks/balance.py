"""Which process answers about which video."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

FRAME_CAP = 128
SECONDS_PER_FRAME = 20.0
FRAMES_PER_QUESTION = 8.0


def video_cost(seconds: float, questions: int) -> float:
    """Estimated cost of answering about a video, in frames that are seen; only ratios matter.

    Frames at one a second up to the cap, reading the file (20 seconds of it for a frame), and 8
    frames for each question. A video of unknown length (0) counts as one that just reaches the cap:
    among such videos the number of questions decides.
    """
    seconds = seconds or FRAME_CAP
    return min(seconds, FRAME_CAP) + seconds / SECONDS_PER_FRAME + FRAMES_PER_QUESTION * questions


def assign_ranks(costs: Sequence[float], loads: Sequence[float]) -> list[int]:
    """The rank of each piece of work: the most expensive first, each to the rank with the least to
    do.

    No rank gets more than 4/3 of what the best split would give the busiest one (Graham's bound for
    this order). Deterministic.

    Args:
        costs: of each piece of work.
        loads: what each rank has to do besides; one for each rank.
    """
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    ranks = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        load, ranks[piece] = heap[0]
        heapq.heapreplace(heap, (load + costs[piece], ranks[piece]))
    return ranks

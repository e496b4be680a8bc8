"""What answering about a video costs, and who answers what where any process can answer about any video."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from math import inf

FRAME_CAP = 128
SECONDS_PER_FRAME = 20.0
FRAMES_PER_QUESTION = 8.0


def watching_cost(seconds: float, questions: int) -> float:
    """Estimated cost of a video, in frames that are seen; only ratios matter.

    Frames at one a second up to the cap, reading the file (20 seconds of it for a frame), and 8 frames for each
    question. A video of unknown length (0) counts as one that just reaches the cap: among such videos the number of
    questions decides.
    """
    seconds = seconds or FRAME_CAP
    return min(seconds, FRAME_CAP) + seconds / SECONDS_PER_FRAME + FRAMES_PER_QUESTION * questions


def share_out(prices: Sequence[float], homes: Sequence[int], loads: Sequence[float]) -> list[int]:
    """Who gets which group, such that the busiest process has as little to do as can be found.

    The groups go out by price, the most expensive first, in three ways: each to the process with the least to do
    (longest processing time); the same but for groups that fit at home, under a limit for what a process may have to
    do; or each where it fits and leaves least room. The limit rises by 1% of the ideal until one of the three keeps it,
    so none of them is better by more than that. Deterministic.

    Args:
        prices: cost of each group, above 0.
        homes: the process at which each group is now.
        loads: what each process has to do besides; one for each process.

    Returns:
        The process of each group.
    """
    limit = ideal = max(sum((*prices, *loads)) / len(loads), *prices, *loads, 0.0)
    plain = _place(prices, loads, 0.0)
    while True:  # twice the ideal is enough: the process with the least to do is below the mean
        limit += ideal / 100
        for chosen, busiest in (_place(prices, loads, limit, homes), plain, _place(prices, loads, limit)):
            if busiest <= limit:
                return chosen


def _place(
    prices: Sequence[float], loads: Sequence[float], limit: float, homes: Sequence[int] | None = None
) -> tuple[list[int], float]:
    """One try: the process of each group, and what the busiest one has to do.

    With ``homes`` a group stays there within the limit, else it goes to the process with the least to do; without, to
    the process that it fills best within the limit, else to the one with the least to do.
    """
    now, chosen = list(loads), [0] * len(prices)
    ranked = sorted((load, rank) for rank, load in enumerate(now))
    for group in sorted(range(len(prices)), key=lambda group: -prices[group]):
        price = prices[group]
        if homes is None:
            rank = ranked[max(bisect_right(ranked, (limit - price, inf)) - 1, 0)][1]
        else:
            rank = homes[group] if now[homes[group]] + price <= limit else ranked[0][1]
        del ranked[bisect_left(ranked, (now[rank], rank))]
        now[rank] += price
        insort(ranked, (now[rank], rank))
        chosen[group] = rank
    return chosen, max(now)

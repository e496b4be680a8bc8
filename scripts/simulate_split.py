#!/usr/bin/env python
"""How evenly the videos of the benchmarks fall on many processes, by estimated cost; no model is run.

    python scripts/simulate_split.py --data datasets

Prints a table: for each benchmark and number of processes the makespan (cost of the busiest process) over a bound that
no split with whole videos can beat. First with as many questions for each process, as lmms-eval deals out the documents
of our tasks (with --use_cache it stays at that), then after the processes have exchanged whole videos.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from sttm_lmms.benchmarks import FORMATS, load_benchmark, order_for_world
from sttm_lmms.benchmarks.balance import share_out, watching_cost
from sttm_lmms.benchmarks.question import Question

WORLDS = (2, 8, 16, 64, 128, 256, 512)


def video_of(question: Question) -> str:
    return question.video_id


def cost(questions: Sequence[Question]) -> float:
    return watching_cost(questions[0].seconds, len(questions))


def by_video(questions: Sequence[Question]) -> dict[str, list[Question]]:
    videos: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        videos[question.video_id].append(question)
    return videos


def dealt(ordered: Sequence[Question], world: int) -> float:
    """Makespan with lmms-eval's dealing; a video is watched anew by every process that has one of its questions."""
    shares = (by_video(ordered[rank::world]).values() for rank in range(world))
    return max(sum(map(cost, share)) for share in shares)


def exchanged(ordered: Sequence[Question], world: int) -> float:
    """Makespan when the processes have exchanged whole videos."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for position, question in enumerate(ordered):
        ranks[question.video_id].append(position % world)
    homes = [Counter(found).most_common(1)[0][0] for found in ranks.values()]
    prices = [cost(found) for found in by_video(ordered).values()]
    loads = [0.0] * world
    for price, rank in zip(prices, share_out(prices, homes, loads), strict=True):
        loads[rank] += price
    return max(loads)


def bound(prices: Sequence[float], world: int) -> float:
    """Cost below which the busiest process cannot stay, to a thousandth.

    The mean, the most expensive video, and the largest cost that more processes than there are would need.
    """
    low = max(sum(prices) / world, *prices)
    high = 2 * low
    while high > 1.001 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if needed(sorted(prices), middle) > world else (low, middle)
    return low


def needed(prices: Sequence[float], limit: float) -> int:
    """At least so many processes can answer about videos of these costs, ascending, within ``limit`` each.

    Bound L2 for bin packing (Martello and Toth 1990): videos above half the limit have a process each; those that are
    no smaller than some cost fit only beside the ones that leave as much.
    """
    sums = [0.0, *accumulate(prices)]
    half, most = bisect_right(prices, limit / 2), 0
    for start in range(half):
        beside = bisect_right(prices, limit - prices[start])
        free = (beside - half) * limit - (sums[beside] - sums[half])
        most = max(most, math.ceil((sums[half] - sums[start] - free) / limit - 1e-9))
    return len(prices) - half + most


def table(data: Path, worlds: Sequence[int] = WORLDS) -> str:
    heads = " | ".join(map(str, worlds))
    lines = [f"| benchmark | {heads} |", "|---|" + "---:|" * len(worlds)]
    for name in FORMATS:
        if not (data / name).is_dir():
            continue
        questions = load_benchmark(name, data)
        prices = [cost(found) for found in by_video(questions).values()]
        cells = []
        for world in worlds:
            ordered, least = order_for_world(questions, video_of, world, cost=cost), bound(prices, world)
            cells.append(f"{dealt(ordered, world) / least:.2f} → {exchanged(ordered, world) / least:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with BENCHMARK/annotations/*.json")
    print(table(parser.parse_args().data))

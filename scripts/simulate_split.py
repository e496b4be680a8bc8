#!/usr/bin/env python
"""How evenly the questions of the benchmarks fall on many processes, by estimated cost; no model is run.

    python scripts/simulate_split.py --data datasets

Prints a table: for each benchmark and number of processes the makespan (the most expensive process) over the mean cost
of all processes and over the bound that no split with whole videos can beat, with lmms-eval's own order and with ours,
and the videos that more than one process has to watch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sttm_lmms.benchmarks import FORMATS, load_benchmark, order_for_world, split_groups
from sttm_lmms.benchmarks.order import watching_cost
from sttm_lmms.benchmarks.question import Question

WORLDS = (2, 8, 16, 64, 128, 256, 512)


def video_of(question: Question) -> str:
    return question.video_id


def cost(questions: Sequence[Question]) -> float:
    return watching_cost(questions[0].seconds, len(questions))


def costs(ordered: Sequence[Question], world: int) -> list[float]:
    """Cost of each process; a video is watched anew by every process that has one of its questions."""
    totals = []
    for rank in range(world):
        videos: dict[str, list[Question]] = {}
        for question in ordered[rank::world]:
            videos.setdefault(question.video_id, []).append(question)
        totals.append(sum(cost(questions) for questions in videos.values()))
    return totals


def bound(questions: Sequence[Question], world: int) -> float:
    """No process can do better than the mean, nor than the most expensive video."""
    total = costs(questions, 1)[0]
    videos: dict[str, list[Question]] = {}
    for question in questions:
        videos.setdefault(question.video_id, []).append(question)
    prices = sorted((cost(found) for found in videos.values()), reverse=True)
    pair = prices[world - 1] + prices[world] if len(prices) > world else 0.0  # two of the world + 1 largest share one
    return max(total / world, prices[0], pair)


def table(data: Path, worlds: Sequence[int] = WORLDS) -> str:
    lines = [
        "| benchmark | processes | file order / bound | ours / bound | ours / mean | shared videos |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in FORMATS:
        if not (data / name).is_dir():
            continue
        questions = load_benchmark(name, data)
        total = costs(questions, 1)[0]
        for world in worlds:
            ordered = order_for_world(questions, video_of, world, cost=cost)
            least, ours = bound(questions, world), max(costs(ordered, world))
            stock = max(costs(questions, world))
            shared = len(split_groups(ordered, video_of, world))
            ratios = f"{stock / least:.2f} | {ours / least:.2f} | {ours / (total / world):.2f}"
            lines.append(f"| {name} | {world} | {ratios} | {shared} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with BENCHMARK/annotations/*.json")
    print(table(parser.parse_args().data))

"""The simulation of many processes: its bound, and what the exchange reaches on made-up benchmarks."""

from __future__ import annotations

import json
import random
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

from sttm_lmms.benchmarks import FORMATS, Question, order_for_world

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("simulate_split")


def questions(videos):
    """Questions of videos of these ``(seconds, questions)``."""
    return [
        Question(f"v{video}", f"v{video}-{number}", "?", ("A. a", "B. b"), "A", seconds=seconds)
        for video, (seconds, count) in enumerate(videos)
        for number in range(count)
    ]


def skewed():
    """As in MLVU: minutes to hours, most videos with one question, some with many, one with very many."""
    draw = random.Random(0)
    counts = [1] * 900 + [draw.randint(2, 12) for _ in range(60)] + [draw.randint(20, 60) for _ in range(6)] + [150]
    return questions([(draw.lognormvariate(6.2, 0.9), count) for count in counts])


def in_threes():
    """As in Video-MME: three questions to a video, three lengths."""
    return questions([(seconds, 3) for seconds in (80.7, 520.2, 2471.0) for _ in range(300)])


@pytest.mark.parametrize("benchmark", [skewed, in_threes])
def test_within_a_tenth_of_the_bound_up_to_512_processes(script, benchmark):
    asked = benchmark()
    prices = [script.cost(found) for found in script.by_video(asked).values()]
    equal_numbers = 0.0
    for world in script.WORLDS:
        least = script.bound(prices, world)
        ordered = order_for_world(asked, script.video_of, world, cost=script.cost)
        for order in (asked, ordered):
            assert script.exchanged(order, world) <= 1.10 * least, world
        equal_numbers = max(equal_numbers, script.dealt(ordered, world) / least)
    assert equal_numbers > 1.5, "equal numbers of questions would do"


def test_the_bound_is_one(script):
    draw = random.Random(0)
    for _ in range(150):
        prices = [draw.choice([1, 2, 3, 5, 8, 13, 20.5]) for _ in range(draw.randint(1, 7))]
        world = draw.randint(1, 4)
        best = min(
            max(sum(price for price, at in zip(prices, ranks, strict=True) if at == rank) for rank in range(world))
            for ranks in product(range(world), repeat=len(prices))
        )
        assert 0.7 * best <= script.bound(prices, world) <= best


def test_the_table(script, tmp_path):
    file = tmp_path / "egoschema" / "annotations" / FORMATS["egoschema"].files[0]
    file.parent.mkdir(parents=True)
    records = [{"q_uid": str(n), "question": "?", "option 0": "a", "option 1": "b"} for n in range(12)]
    file.write_text(json.dumps(records))
    assert script.table(tmp_path, worlds=(2, 12)).splitlines() == [
        "| benchmark | 2 | 12 |",
        "|---|---:|---:|",
        "| egoschema | 1.00 → 1.00 | 1.00 → 1.00 |",
    ]

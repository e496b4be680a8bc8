"""The threshold search on made-up shares."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.methods.sttm.search import DIAGONAL, HIGHEST, LOWEST, Search
from sttm_lmms.methods.sttm.similarity import Thresholds

LINE = torch.linspace(-1, 1.01, 100)
PUBLISHED = [
    (0.85, 0.65),
    (0.80, 0.60),
    (0.85, 0.55),
    (0.80, 0.50),
    (0.90, 0.65),
    (0.80, 0.65),
    (0.75, 0.50),
    (0.90, 0.55),
]


def smooth(thresholds: Thresholds) -> float:
    """A share that rises evenly along the diagonal from 0.1 to 1."""
    spatial = (thresholds.spatial - LOWEST.spatial) / (HIGHEST.spatial - LOWEST.spatial)
    temporal = max(0.0, thresholds.temporal) / HIGHEST.temporal
    return 0.1 + 0.45 * spatial + 0.45 * temporal


def search(share, budget: float) -> Search:
    found = Search(share, budget)
    start = found.search_diagonal()
    for space_first in (True, False):
        found.coordinate_search(start, LINE, LINE, space_first=space_first)
    return found


def test_a_smooth_share_is_met_within_a_fifth_of_a_point_in_few_steps() -> None:
    for budget in (0.9, 0.5, 0.3, 0.15):
        found = search(smooth, budget)
        assert budget - 0.002 < found.best_share <= budget
        assert smooth(found.best) == found.best_share
        assert found.evaluations < 20


def test_below_the_floor_the_answer_is_the_lowest_thresholds() -> None:
    found = search(smooth, 0.05)
    assert found.best == LOWEST
    assert found.best_share is None
    assert not found.within()


def test_a_jump_on_the_diagonal_is_met_beside_it() -> None:
    """Like a still video: nothing merges in time above 0.9, everything below, and space goes from
    0.2 to 1."""

    def still(thresholds: Thresholds) -> float:
        space = 0.2 + 0.8 * (thresholds.spatial + 1) / 2.01
        return space if thresholds.temporal > 0.9 else 0.01 * space

    found = search(still, 0.5)
    assert found.within()
    assert found.best.temporal > 0.9


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1000), budgets=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_monotone_in_the_budget_whatever_the_shares(seed: int, budgets: tuple[float, float]) -> None:
    """Also if shares are anything but monotone in the thresholds."""

    def erratic(thresholds: Thresholds) -> float:
        if thresholds == HIGHEST:
            return 1.0
        return random.Random(f"{seed} {thresholds}").random()

    low, high = (search(erratic, budget).best for budget in sorted(budgets))
    assert erratic(low) <= erratic(high) or erratic(low) > min(budgets)


def test_the_diagonal_passes_near_the_published_pairs() -> None:
    (s0, t0), (s1, t1) = DIAGONAL[1:3]
    for spatial, temporal in PUBLISHED:
        on_diagonal = t0 + (t1 - t0) * (spatial - s0) / (s1 - s0)
        assert abs(on_diagonal - temporal) <= 0.1 + 1e-5

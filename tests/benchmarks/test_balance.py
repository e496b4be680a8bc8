"""Which rank answers about which video."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.benchmarks.balance import assign_ranks, video_cost

COSTS = st.lists(st.floats(0.5, 400), max_size=40)


def test_video_cost():
    assert video_cost(60, 1) < video_cost(60, 2) < video_cost(3600, 2)
    assert video_cost(0, 3) == video_cost(128, 3), "of unknown length"


def test_the_most_expensive_go_first():
    assert assign_ranks([1, 1, 9, 1], [0, 0]) == [1, 1, 0, 1]
    assert assign_ranks([5, 5, 5], [30, 5]) == [1, 1, 1]
    assert assign_ranks([], [1, 2]) == []


@settings(deadline=None)
@given(costs=COSTS, before=st.lists(st.floats(0, 500), min_size=1, max_size=9))
def test_longest_processing_time_by_its_definition(costs, before):
    loads = list(before)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        loads[loads.index(min(loads))] += costs[piece]
    found = list(before)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        found[assign_ranks(costs, before)[piece]] += costs[piece]
    assert found == loads

"""Whole videos for processes that can answer about any video."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.benchmarks.balance import share_out, watching_cost

PRICES = st.lists(st.floats(0.5, 400), max_size=40)


def loads(prices, ranks, before):
    found = list(before)
    for price, rank in zip(prices, ranks, strict=True):
        found[rank] += price
    return found


def longest_first(prices, before):
    """Longest processing time, by its definition."""
    found = list(before)
    for price in sorted(prices, reverse=True):
        found[found.index(min(found))] += price
    return found


def test_watching_cost():
    assert watching_cost(60, 1) < watching_cost(60, 2) < watching_cost(3600, 2)
    assert watching_cost(0, 3) == watching_cost(128, 3), "of unknown length"


def test_what_longest_processing_time_gets_wrong():
    prices = [3, 3, 2, 2, 2]
    assert max(longest_first(prices, [0, 0])) == 7
    assert sorted(loads(prices, share_out(prices, [0] * 5, [0, 0]), [0, 0])) == [6, 6]


def test_groups_leave_a_process_only_if_that_helps():
    assert share_out([5, 5, 5, 5], [1, 0, 0, 1], [0, 0]) == [1, 0, 0, 1]
    assert share_out([9, 4, 4, 1], [0, 1, 1, 1], [0, 0]) == [0, 1, 1, 1]
    assert share_out([9, 1, 1, 1], [0, 0, 0, 0], [0, 0]).count(0) == 1
    assert share_out([5, 5, 5], [0, 1, 1], [30, 5]) == [1, 1, 1]
    assert share_out([], [], [1, 2]) == []


@settings(deadline=None)
@given(prices=PRICES, before=st.lists(st.floats(0, 500), min_size=1, max_size=9), data=st.data())
def test_no_worse_than_longest_processing_time(prices, before, data):
    homes = data.draw(st.lists(st.integers(0, len(before) - 1), min_size=len(prices), max_size=len(prices)))
    ranks = share_out(prices, homes, before)
    assert ranks == share_out(list(prices), tuple(homes), list(before))
    ideal = max(sum((*prices, *before)) / len(before), *prices, *before, 0)
    limit = max(longest_first(prices, before)) + 0.01 * ideal
    assert max(loads(prices, ranks, before)) <= limit * (1 + 1e-9)
    if max(loads(prices, homes, before)) <= 1.01 * ideal * (1 - 1e-9):
        assert ranks == homes

"""Document order: with any number of ranks the questions of a video fall on one of them."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.benchmarks.order import order_for_world, split_groups


def make(sizes):
    """Documents (video, question), the questions of a video spread over the list as in VNBench's file."""
    return [(video, k) for k in range(max(sizes, default=0)) for video, size in enumerate(sizes) if k < size]


def video(doc):
    return doc[0]


def ranks(ordered, world_size):
    """What lmms-eval gives each rank."""
    return [list(islice(ordered, rank, None, world_size)) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize(
    "sizes", [[4] * 8, [3] * 56, [1] * 13, [2, 1, 3, 1, 1, 2, 4, 1, 1, 1, 1, 1, 5, 1, 1], list(range(1, 12)) * 3]
)
def test_every_document_once(sizes, world_size):
    docs = make(sizes)
    ordered = order_for_world(docs, video, world_size)
    assert sorted(ordered) == sorted(docs)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_no_video_is_shared_where_the_sizes_allow_it(world_size):
    docs = make([3] * 56 + [1] * 12)  # 180 documents, for 7 ranks 26, 26, 26, 26, 26, 25, 25
    ordered = order_for_world(docs, video, world_size)
    assert split_groups(ordered, video, world_size) == []
    owners = Counter((doc[0], rank) for rank, share in enumerate(ranks(ordered, world_size)) for doc in share)
    assert len(owners) == 68


def test_few_videos_are_shared_where_they_must_be():
    docs = make([3] * 900)  # four ranks have room for 338 = 3 * 112 + 2, four for 337 = 3 * 112 + 1
    ordered = order_for_world(docs, video, 8)
    shared = split_groups(ordered, video, 8)
    assert len(shared) == 4
    assert all(len({i % 8 for i, doc in enumerate(ordered) if doc[0] == name}) == 2 for name in shared)


def test_one_rank_keeps_the_order_and_joins_the_questions_of_a_video():
    assert order_for_world(make([2, 1, 3]), video, 1) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_more_ranks_than_documents():
    ordered = order_for_world(make([2, 1]), video, 8)
    assert sorted(ordered) == [(0, 0), (0, 1), (1, 0)]


def test_no_documents():
    assert order_for_world([], video, 4) == []


def test_world_size_is_checked():
    with pytest.raises(ValueError, match="world_size=0"):
        order_for_world([(0, 0)], video, 0)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=40), world_size=st.integers(1, 8))
def test_properties(sizes, world_size):
    docs = make(sizes)
    ordered = order_for_world(docs, video, world_size)
    assert ordered == order_for_world(docs, video, world_size)
    assert sorted(ordered) == sorted(docs)
    shared = split_groups(ordered, video, world_size)
    assert len(shared) < max(world_size, 2) * max(sizes, default=1)
    assert sorted(ordered, key=video) == sorted(docs), "the questions of a video have changed their order"
    for share in ranks(ordered, world_size):
        videos = [doc[0] for doc in share]
        runs = [name for i, name in enumerate(videos) if i == 0 or videos[i - 1] != name]
        assert len(runs) == len(set(videos)), "the questions of a video are not together"


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), world_size=st.integers(2, 8))
def test_many_single_questions_make_every_split_avoidable(sizes, world_size):
    docs = make(sizes + [1] * (6 * world_size))
    assert split_groups(order_for_world(docs, video, world_size), video, world_size) == []


def cost(docs):
    """The n-th video costs n to watch, and every question 1."""
    return docs[0][0] + len(docs)


def loads(ordered, world_size):
    """What each rank has to do; a video that several ranks have is watched by each of them."""
    shares = ranks(ordered, world_size)
    return [
        sum(cost([doc for doc in share if doc[0] == name]) for name in {doc[0] for doc in share}) for share in shares
    ]


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_expensive_videos_are_spread_and_come_first(world_size):
    docs = make([3] * 240)
    ordered = order_for_world(docs, video, world_size, cost=cost)
    found = loads(ordered, world_size)
    assert max(found) < 1.03 * sum(found) / world_size
    assert max(loads(order_for_world(docs, video, world_size), world_size)) >= max(found)
    for share in ranks(ordered, world_size):
        assert [doc[0] for doc in share] == sorted((doc[0] for doc in share), reverse=True)


def test_one_rank_keeps_the_order_whatever_it_costs():
    docs = make([2, 1, 3])
    assert order_for_world(docs, video, 1, cost=cost) == order_for_world(docs, video, 1)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), max_size=30), world_size=st.integers(1, 8))
def test_costs_split_no_further_video(sizes, world_size):
    docs = make(sizes)
    ordered = order_for_world(docs, video, world_size, cost=cost)
    assert sorted(ordered) == sorted(docs)
    plain = order_for_world(docs, video, world_size)
    assert set(split_groups(ordered, video, world_size)) <= set(split_groups(plain, video, world_size))

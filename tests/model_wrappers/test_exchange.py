"""Processes exchange requests, so that each video is seen once whatever the order of the documents."""

from __future__ import annotations

import socket
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmms_eval.api.instance import Instance
from sttm_lmms.model_wrappers import exchange
from sttm_lmms.model_wrappers.exchange import Card, assign, borrowed, card
from wrapper_runs import HERE, QUESTIONS, VIDEOS, lmms_eval


def dealt(sizes: list[int], world: int) -> list[list[Card]]:
    """Cards of the processes when the documents of videos of these sizes are dealt out round robin."""
    docs = [Card("task", "", (), f"v{v}") for v, size in enumerate(sizes) for _ in range(size)]
    return [docs[rank::world] for rank in range(world)]


def answered_by(cards, moved):
    """Video -> the processes that answer one of its questions."""
    who: dict = {}
    for rank, own in enumerate(cards):
        for position, item in enumerate(own):
            who.setdefault(item.videos, set()).add(moved.get((rank, position), rank))
    return who


def test_three_questions_a_video_on_three_processes():
    cards = dealt([3] * 12, 3)
    moved = assign(cards)
    assert all(len(ranks) == 1 for ranks in answered_by(cards, moved).values())
    assert Counter(next(iter(ranks)) for ranks in answered_by(cards, moved).values()) == {0: 4, 1: 4, 2: 4}


def test_nothing_moves_that_is_together_already():
    assert assign([[Card("t", "", (), "a")] * 3, [Card("t", "", (), "b")] * 2]) == {}
    assert assign([[Card("t", "", ()), Card("t", "", ())], [Card("t", "", ())]]) == {}
    assert assign([[Card("t", "", (), "a")], [Card("u", "", (), "a")]]) == {}, "tasks may show a video differently"


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(2, 8))
def test_every_video_is_answered_by_one_process(sizes, world):
    cards = dealt(sizes, world)
    moved = assign(cards)
    assert all(len(ranks) == 1 for ranks in answered_by(cards, moved).values())
    owners = {(rank, item.videos) for rank, own in enumerate(cards) for item in own}
    assert all((rank, cards[home][at].videos) in owners for (home, at), rank in moved.items())
    load = Counter(moved.get((r, p), r) for r, own in enumerate(cards) for p in range(len(own)))
    assert max((load[r] for r in range(world)), default=0) <= -(-sum(sizes) // world) + 2 * max(sizes, default=0)


def test_cards_and_borrowed_requests():
    def to_messages(doc):
        return doc

    meta = {"task": "t", "doc_id": 1, "repeats": 1}

    def instance(context, doc_id):
        return Instance("generate_until", (context, to_messages, {"until": []}, doc_id, "t", "test"), 0, meta)

    video = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Why?"}]}]
    item = card(instance("Why?", 7), video)
    assert item == Card("t", "Why?", (7, "t", "test"), ("a.mp4",))
    assert card(instance("Why?", 7), None).videos is None
    assert (
        card(instance("Why?", 7), [{"role": "user", "content": [{"type": "image", "image": object()}]}]).videos is None
    )
    assert borrowed(instance("What?", 1), item).args == ("Why?", to_messages, {"until": []}, 7, "t", "test")


def test_only_where_every_process_is_asked(monkeypatch):
    assert not exchange.possible(["lmms-eval", "--tasks", "videomme"])  # one process
    monkeypatch.setattr(exchange.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(exchange.dist, "get_world_size", lambda: 2)
    assert exchange.possible(["lmms-eval", "--tasks", "videomme"])
    for words in (
        ["--tasks", "videomme", "--use_cache", "here"],
        ["--tasks=a", "--use_cache=here"],
        ["--config", "a"],
        [],
    ):
        assert not exchange.possible(["lmms-eval", *words])


@pytest.mark.slow
def test_a_stock_task_on_two_processes(data, checkpoints, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port)
    settings = f"pretrained={checkpoints['llava_video']},budget=0.5,max_frames=4,device=cpu"
    arguments = ("--model", "sttm_llava_video", "--model_args", settings, "--include_path", str(HERE / "tasks"))
    one, two = (
        lmms_eval(data, tmp_path / name, *arguments, tasks="mini_stock", launcher=start)
        for name, start in (("one", (sys.executable,)), ("two", launcher))
    )
    assert two.results is not None, two.printed[-3000:]
    for run in (one, two):
        assert run.throughput["avg_questions"] == QUESTIONS
        assert run.throughput["avg_videos_decoded"] == run.throughput["avg_prefills"] == VIDEOS
    answers = [{s["doc_id"]: s["filtered_resps"] for s in run.samples["mini_stock"]} for run in (one, two)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == QUESTIONS

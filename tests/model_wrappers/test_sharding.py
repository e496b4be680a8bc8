"""Processes exchange requests, so that each has whole videos and about as much to do as the
others."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmms_eval.api.instance import Instance
from warm_ranks import run_ranks
from wrapper_runs import HERE, QUESTIONS, VIDEOS, read_run

from sttm_lmms.model_wrappers import sharding
from sttm_lmms.model_wrappers.sharding import RequestKey, assign, rebuild_request, request_key


def keys_of(videos, world, seconds=lambda video: 0.0):
    """Cards of the processes when documents of these videos (None: one that stays) are dealt out
    round robin."""
    docs = [
        RequestKey("t", "", (n, "t", "test"), None if video is None else f"v{video}", seconds(video))
        for n, video in enumerate(videos)
    ]
    return [docs[rank::world] for rank in range(world)]


def owners(keys, shares):
    """Video -> the processes that answer one of its questions."""
    who: dict = {}
    for rank, share in enumerate(shares):
        for home, position in share:
            who.setdefault(keys[home][position].videos, set()).add(rank)
    return who


def seen(keys, share):
    """Videos of a process, in its order."""
    return list(dict.fromkeys(keys[home][position].videos for home, position in share))


def test_three_questions_a_video_on_three_processes():
    keys = keys_of([video for video in range(12) for _ in range(3)], 3)
    found = owners(keys, assign(keys))
    assert all(len(ranks) == 1 for ranks in found.values())
    assert Counter(next(iter(ranks)) for ranks in found.values()) == {0: 4, 1: 4, 2: 4}


def test_what_is_balanced_stays():
    alone = [RequestKey("t", "", (n, "t", "test")) for n in range(3)]
    for keys in (
        keys_of(["a", "b"] * 3, 2),
        [alone[:2], alone[2:]],
        [
            [RequestKey("t", "", (0, "t", "test"), "a")],
            [RequestKey("u", "", (0, "u", "test"), "a")],
        ],  # tasks may show it otherwise
    ):
        assert assign(keys) == [[(r, n) for n in range(len(own))] for r, own in enumerate(keys)]


def test_long_videos_go_to_processes_that_have_no_question_of_them():
    lengths = {"v0": 3600.0, "v3": 3500.0, "v6": 3400.0}
    keys = keys_of(range(9), 3, lambda video: lengths.get(f"v{video}", 10.0))  # all long ones are dealt to the first
    shares = assign(keys)
    assert {seen(keys, share)[0] for share in shares} == {"v0", "v3", "v6"}
    assert [len(share) for share in shares] == [3, 3, 3]


def test_many_questions_of_one_video_leave_the_other_videos_to_others():
    keys = keys_of([0] * 60 + [1, 2, 3, 4], 2)
    assert [seen(keys, share) for share in assign(keys)] == [["v0"], ["v1", "v2", "v3", "v4"]]


def test_requests_that_stay_count_as_work():
    keys = keys_of([None, "a"] + [None, None] * 40 + ["b", "c"], 2)
    keys = [keys[0] + keys[1][1:-1], [keys[1][0], keys[1][-1]]]  # all that stay, and a video, on the first
    shares = assign(keys)
    assert [seen(keys, share) for share in shares] == [[None], ["va", "vb", "vc"]]


def test_more_processes_than_videos():
    keys = keys_of([0, 0, 1, 1, 0], 5)
    shares = assign(keys)
    assert sorted(map(len, shares)) == [0, 0, 0, 2, 3]
    assert assign(keys_of([], 3)) == [[], [], []]


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 4000)), max_size=30), st.integers(0, 9), st.integers(2, 8))
def test_every_request_once_and_every_video_on_one_process(videos, staying, world):
    dealt = [None] * staying + [video for video, (size, _) in enumerate(videos) for _ in range(size)]
    keys = keys_of(dealt, world, lambda video: 0.0 if video is None else videos[video][1])
    shares = assign(keys)
    assert sorted(address for share in shares for address in share) == sorted(
        (rank, position) for rank, own in enumerate(keys) for position in range(len(own))
    )
    assert all(len(ranks) == 1 for video, ranks in owners(keys, shares).items() if video)
    for rank, share in enumerate(shares):
        items = [keys[home][position] for home, position in share]
        assert all(home == rank for (home, _), item in zip(share, items, strict=True) if item.videos is None)
        runs = [video for n, video in enumerate(items) if n == 0 or items[n - 1].videos != video.videos]
        assert len({item.videos for item in items if item.videos}) == sum(bool(item.videos) for item in runs)


def test_a_request_is_rebuilt_from_its_key():
    def to_messages(doc):
        return doc

    meta = {"task": "t", "doc_id": 1, "repeats": 1}

    def instance(context, doc_id):
        return Instance("generate_until", (context, to_messages, {"until": []}, doc_id, "t", "test"), 0, meta)

    key = request_key(instance("Why?", 7), ("a.mp4",), 90.0)
    assert key == RequestKey("t", "Why?", (7, "t", "test"), ("a.mp4",), 90.0)
    assert rebuild_request(instance("What?", 1), key).args == ("Why?", to_messages, {"until": []}, 7, "t", "test")


def test_only_where_every_rank_is_asked(monkeypatch, tmp_path):
    assert not sharding.is_enabled(["lmms-eval", "--tasks", "videomme"])  # one process
    monkeypatch.setattr(sharding.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(sharding.dist, "get_world_size", lambda: 2)
    plain, caching = tmp_path / "plain.yaml", tmp_path / "caching.yaml"
    plain.write_text("tasks: videomme")
    caching.write_text("[{tasks: videomme}, {tasks: mlvu_dev, use_cache: here}]")
    for words, enabled in (
        (["--tasks", "videomme"], True),
        (["--tasks=videomme"], True),
        (["--config", str(plain)], True),
        (["--tasks", "videomme", "--use_cache", "here"], False),
        (["--tasks=a", "--use_cache=here"], False),
        (["--config", str(caching)], False),
        ([], False),
    ):
        assert sharding.is_enabled(["lmms-eval", *words]) is enabled


@pytest.mark.slow
def test_a_stock_task_on_two_processes(data, checkpoints, tmp_path):
    settings = f"pretrained={checkpoints['llava_video']},budget=0.5,max_frames=4,device=cpu"
    arguments = [
        *("--model", "sttm_llava_video", "--model_args", settings, "--include_path", str(HERE / "tasks")),
        *("--tasks", "mini_stock", "--log_samples", "--output_path"),
    ]
    one, two = (
        read_run(out, run_ranks(data, out, [*arguments, str(out)], world))
        for world, out in ((1, tmp_path / "one"), (2, tmp_path / "two"))
    )
    assert two.results is not None, two.printed[-3000:]
    for run in (one, two):
        assert run.throughput["avg_questions"] == QUESTIONS
        assert run.throughput["avg_videos_decoded"] == run.throughput["avg_prefills"] == VIDEOS
    answers = [{s["doc_id"]: s["filtered_resps"] for s in run.samples["mini_stock"]} for run in (one, two)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == QUESTIONS

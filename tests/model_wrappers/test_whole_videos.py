"""Three processes with whole videos: what each of them does, what it is handed, and what is
counted.

The processes are threads that exchange through memory; ``test_same_files.py`` has real ones.
"""

from __future__ import annotations

import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from lmms_eval.api.instance import Instance

from sttm_lmms.model_wrappers import sharding
from sttm_lmms.model_wrappers.models import LlavaVideo

WORLD = 3


@pytest.fixture(scope="module")
def videos(data, tmp_path_factory):
    """Six files, named a to f, of which f cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    sources = sorted((data / "vnbench" / "videos").iterdir())
    for number, name in enumerate("abcde"):
        shutil.copy(sources[number % len(sources)], folder / f"{name}.mp4")
    (folder / "f.mp4").write_bytes(b"")
    return folder


@pytest.fixture
def answered(checkpoints, videos, monkeypatch):
    """Answer documents ``(video or None, seconds)`` on some processes: their wrappers, and each
    document's result."""
    own, barrier, slots = threading.local(), threading.Barrier(WORLD, timeout=60), [b""] * WORLD

    def gather(mine):
        slots[own.rank] = pickle.dumps(mine)
        barrier.wait()
        found = [pickle.loads(slot) for slot in slots]
        barrier.wait()
        return found

    def messages(doc):
        video = [{"type": "video", "url": str(videos / f"{doc['name']}.mp4")}] if doc["name"] else []
        return [{"role": "user", "content": [*video, {"type": "text", "text": doc["text"]}]}]

    def run(documents, world):
        docs = [{"name": n, "text": f"Question {i}?", "video_second": s} for i, (n, s) in enumerate(documents)]

        # Loaded one by one: transformers changes global things while it loads.
        model = {"pretrained": str(checkpoints["llava_video"]), "device": "cpu"}
        wrappers = [LlavaVideo(**model, max_frames=4, budget=0.5) for _ in range(world)]

        def rank(number):
            own.rank, wrapper = number, wrappers[number]
            wrapper._rank, wrapper._world_size, wrapper.task_dict = number, world, {"t": {"test": docs}}
            mine = list(range(len(docs)))[number::world]
            requests = [
                Instance(
                    *("generate_until", ("", messages, {"max_new_tokens": 4}, n, "t", "test"), 0),
                    {"task": "t", "doc_id": n, "repeats": 1, "__padding_only__": not mine},
                )
                for n in mine or [0]
            ]
            return dict(zip(mine, wrapper.generate_until(requests), strict=False))

        monkeypatch.setattr(sharding, "is_enabled", lambda: world > 1)
        monkeypatch.setattr(sharding, "gather", gather)
        with ThreadPoolExecutor(world) as pool:
            results = list(pool.map(rank, range(world)))
        merged = {n: result for found in results for n, result in found.items()}
        assert sorted(merged) == list(range(len(docs)))
        return wrappers, [merged[n] for n in range(len(docs))]

    return run


def said(results):
    """Text and record of each answer, without times."""
    records = ({k: v for k, v in r.token_counts.to_dict().items() if k != "timing_s"} for r in results)
    return [(result.text, record) for result, record in zip(results, records, strict=True)]


def work(wrappers):
    """Videos and questions of each process."""
    return [(w._engine.counters.videos_decoded, w._engine.counters.questions) for w in wrappers]


def test_long_videos_move_to_processes_that_have_none_of_their_questions(answered):
    # Dealt out, the first process has all of the long videos.
    documents = [("a", 3600), ("d", 9), ("e", 9), ("b", 3500), ("d", 9), ("e", 9), ("c", 3400), ("d", 9), ("a", 3600)]
    _, alone = answered(documents, 1)
    wrappers, together = answered(documents, WORLD)
    assert said(together) == said(alone)
    assert sorted(work(wrappers)) == [(1, 2), (2, 3), (2, 4)]
    assert ["provenance" in record for _, record in said(together)] == [True] + [False] * 8


def test_more_processes_than_videos_and_requests_without_one(answered):
    documents = [("a", 60), (None, 0), ("a", 60), ("b", 60)]
    _, alone = answered(documents, 1)
    wrappers, together = answered(documents, WORLD)
    assert said(together) == said(alone)
    assert sorted(work(wrappers)) == [(0, 1), (1, 1), (1, 2)]
    assert wrappers[1]._engine.counters.questions >= 1, "a request without a video stays"


def test_a_process_that_was_dealt_nothing_answers_and_one_may_have_nothing_left(answered):
    wrappers, together = answered([("a", 60), ("a", 60)], WORLD)
    assert sorted(work(wrappers)) == [(0, 0), (0, 0), (1, 2)]
    assert [record["video"] for _, record in said(together)] == ["a", "a"]
    wrappers, _ = answered([("a", 3600), ("b", 9)], WORLD)
    assert sorted(work(wrappers)) == [(0, 0), (1, 1), (1, 1)]


def test_a_broken_video_is_counted_once_and_reported_where_it_was_asked(answered):
    # The broken one is dealt to the first process, which has a longer one to answer about.
    documents = [("a", 3600), ("b", 9), ("d", 9), ("f", 3000), ("b", 9), ("d", 9), ("f", 3000)]
    _, alone = answered(documents, 1)
    wrappers, together = answered(documents, WORLD)
    assert said(together) == said(alone)
    assert [bool(record.get("error")) for _, record in said(together)] == [name == "f" for name, _ in documents]
    failures = [failure for wrapper in wrappers for failure in wrapper._engine.failures]
    assert [failure.questions for failure in failures] == [2]
    assert not wrappers[0]._engine.failures, "it was read by the process that was asked"

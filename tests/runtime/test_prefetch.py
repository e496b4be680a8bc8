"""Reading ahead changes when a video is read, and nothing else."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace

import pytest
from footage import VIDEO

from sttm_lmms import STTMConfig
from sttm_lmms.errors import VideoError
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.runtime.prefetch import Prefetcher


def ask(video, text):
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": text}]
    return Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=4))


def outcome(tiny, family, requests, **settings):
    """Answers without their times, counters, failures."""
    engine = Engine(*tiny(family), STTMConfig(budget=0.5, start_layer=1), video=VIDEO, **settings)
    answers = [asdict(replace(answer, timing={})) for answer in engine.generate(requests)]
    return answers, engine.counters, engine.failures


@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl"])
@pytest.mark.parametrize("keep", [1, 2])
def test_answers_counters_and_failures_do_not_depend_on_it(family, keep, tiny, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    order = [videos[0], broken, videos[1], videos[0], videos[2], tmp_path / "missing.mp4"]
    requests = [ask(video, text) for video in order for text in ("What moves?", "How fast?")]
    expected = outcome(tiny, family, requests, prefetch=0, keep=keep)
    assert len(expected[2]) == 2
    assert expected[1].videos_decoded == 5
    for prefetch, workers in ((1, 1), (2, None), (4, 1), (4, 4)):
        found = outcome(tiny, family, requests, prefetch=prefetch, prefetch_workers=workers, keep=keep)
        assert found == expected


def test_the_error_of_a_thread_is_the_error_of_the_run(tiny, videos, tmp_path):
    requests = [ask(videos[0], "What?"), ask(tmp_path / "missing.mp4", "What?")]
    engine = Engine(*tiny("llava_video"), video=VIDEO, on_error="raise", prefetch=2)
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        engine.generate(requests)


def test_no_more_than_depth_results_wait():
    started, lock = [], threading.Lock()

    def job(item):
        def call():
            with lock:
                started.append(item)
            return item * 10

        return item, call

    ahead = Prefetcher(2, workers=2)
    for item in ahead.ahead(range(8), job):
        time.sleep(0.02)
        assert max(started, default=0) <= item + 2
        result = ahead.take(item)
        assert (result is None) == (item == 0)
        assert result is None or result() == item * 10
    assert sorted(started) == list(range(1, 8))


def test_work_overlaps():
    """Jobs and caller sleep at the same time: sleeping needs no core, so the times do not depend on
    the machine."""
    ahead = Prefetcher(2, workers=1)
    began = time.perf_counter()
    for item in ahead.ahead(range(9), lambda item: (item, lambda: time.sleep(0.1))):
        if (result := ahead.take(item)) is not None:
            result()
        time.sleep(0.1)
    assert time.perf_counter() - began < 1.5  # 1.7 s one after the other, 0.9 s side by side


def test_stopping_early_leaves_nothing_behind():
    ahead = Prefetcher(3, workers=1)
    items = ahead.ahead(range(100), lambda item: (item, lambda: time.sleep(0.01)))
    next(items)
    items.close()
    assert ahead.take(1) is None
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sttm-prefetch")]


def test_jobs_with_one_name_run_once():
    calls = []
    ahead = Prefetcher(4, workers=1)
    for item in ahead.ahead("aabab", lambda item: (item, lambda: calls.append(item))):
        if (result := ahead.take(item)) is not None:
            result()
    assert calls.count("b") <= 2


@pytest.mark.parametrize(("depth", "workers"), [(-1, None), (1.5, None), (2, 0)])
def test_settings_are_checked(depth, workers):
    with pytest.raises(ValueError, match="prefetch"):
        Prefetcher(depth, workers)

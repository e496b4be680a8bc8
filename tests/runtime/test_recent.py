"""How many prefixes are held, and where."""

from __future__ import annotations

import torch
from footage import VIDEO
from test_engine import ask, sttm

from sttm_lmms.runtime import Engine
from sttm_lmms.runtime.recent import Recent


def test_prefixes_held_are_bounded(tiny, videos):
    """Two questions on each of three videos, one call a question: more prefixes held, fewer
    prefills."""
    model, processor = tiny("llava_video")
    calls = [ask(video, question) for question in ("a", "b") for video in videos]
    prefills, answers = {}, {}
    for keep, host in [(1, 0.0), (3, 0.0), (1, 1.0)]:
        engine = Engine(model, processor, sttm(), video=VIDEO, keep=keep, host_cache_gb=host)
        answers[keep, host] = [engine.generate([call])[0].text for call in calls]
        prefills[keep, host] = engine.counters.prefills
    assert prefills == {(1, 0.0): 6, (3, 0.0): 3, (1, 1.0): 3}
    assert answers[1, 0.0] == answers[3, 0.0] == answers[1, 1.0]


def test_the_host_cache_has_a_limit(tiny, videos):
    """Of a billionth of a GiB: nothing is kept there."""
    engine = Engine(*tiny("llava_video"), sttm(), video=VIDEO, host_cache_gb=1e-9)
    answers = [engine.generate([ask(video, "a")])[0] for video in [*videos, *videos]]
    assert not any(answer.reused for answer in answers)


def test_only_so_many_values_are_kept_and_room_is_made_before_the_next_one():
    recent: Recent[str] = Recent(2)
    for key in "abac":
        recent.put(key, key.upper())
    assert [recent.get(key) for key in "abc"] == ["A", None, "C"]
    recent.make_room()
    assert [key in recent for key in "ac"] == [False, True]


def test_where_the_time_went(tiny, videos):
    model, processor = tiny("llava_video")
    engine = Engine(model, processor, sttm(), video=VIDEO)
    first, second = engine.generate([ask(videos[0], "a"), ask(videos[0], "b")])
    for phase in ("video_decode", "preprocess", "vision", "prefill_before", "merge", "prefill_after"):
        assert first.timing[phase] > 0
        assert second.timing.get(phase, 0.0) == 0.0
    assert second.reused
    assert second.timing["ttft"] < first.timing["ttft"]
    engine.generate([ask(videos[1], "a")])
    summary = engine.summary()
    parts = summary.video_decode_s + summary.preprocess_s + summary.vision_s + summary.ttft_first_s
    assert torch.isclose(torch.tensor(summary.ttft_end_to_end_s), torch.tensor(parts))
    assert summary.merge_s < summary.prefill_s
    assert summary.peak_memory_bytes is None

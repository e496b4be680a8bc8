"""Plans of Mini-VNBench: events, questions and options agree, and chance is all that a blind guess
gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS
from sttm_lmms.benchmarks.mini.questions import KINDS, MAX_DISTRACTORS, ORDERED, sample_video, slots


def samples(kind: str, seconds: float = 12, number: int = 200):
    return [sample_video(np.random.default_rng((7, i)), kind, seconds) for i in range(number)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [5, 7, 8.5, 15, 60])
def test_events_fit_the_video(kind, seconds):
    for events, _ in samples(kind, seconds, 40):
        times = [event.second for event in events]
        assert times == sorted(set(times)), "one needle a second, in order"
        assert times[0] >= 0
        assert times[-1] < slots(seconds)
        for event in events:
            for centre in (event.x, event.y):
                assert abs(centre * GRID % 1 - 0.5) <= 0.25 + 1e-9, "well inside a cell"


def test_retrieval_asks_for_what_is_there():
    for events, question in samples("ret"):
        present = {event.index for event in events}
        shown = [content[0] in present for content in question.contents]
        assert sum(shown) == 1
        assert shown[question.answer]
        assert len(events) <= 1 + MAX_DISTRACTORS


def test_ordering_option_is_the_order_of_appearance():
    for events, question in samples("ord"):
        asked = set(question.contents[0])
        order = tuple(event.index for event in events if event.index in asked)
        assert len(order) == ORDERED
        assert question.contents[question.answer] == order
        assert len(set(question.contents)) == 4
        assert all(set(content) == asked for content in question.contents)


def test_counting_option_is_the_count():
    for events, question in samples("cnt"):
        (wanted,) = question.needles
        assert OBJECTS[wanted] in question.text
        assert question.contents[question.answer] == (sum(event.index == wanted for event in events),)
        assert len({content[0] for content in question.contents}) == 4


def test_the_total_does_not_give_the_count_away():
    """Every count is seen with at least three totals, and every total with several counts."""
    totals: dict[int, set[int]] = {}
    for events, question in samples("cnt", 15, 400):
        totals.setdefault(question.contents[question.answer][0], set()).add(len(events))
    assert set(totals) == {1, 2, 3, 4, 5}
    assert all(len(seen) >= 3 for seen in totals.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_and_no_content_is_right_more_often(kind):
    answers = Counter(question.answer for _, question in samples(kind, number=800))
    assert all(150 <= answers[i] <= 250 for i in range(4)), answers


def test_no_count_is_right_more_often():
    answers = Counter(question.contents[question.answer][0] for _, question in samples("cnt", 15, 1000))
    assert all(150 <= answers[n] <= 250 for n in range(1, 6)), answers


def test_too_short_a_video_is_refused():
    with pytest.raises(ValueError, match="at least 5 s"):
        sample_video(np.random.default_rng(0), "ord", 4)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="ret, ord, cnt"):
        sample_video(np.random.default_rng(0), "find", 9)


def test_options_read_as_in_vnbench():
    _, question = sample_video(np.random.default_rng(1), "ord", 12)
    for letter, option, content in zip("ABCD", question.options, question.contents, strict=True):
        assert option == f"{letter}. {', '.join(OBJECTS[i] for i in content)}."

"""The lazy sequence that wrappers return."""

from __future__ import annotations

import pytest

from sttm_lmms.model_wrappers.results import Results


def numbers(log):
    try:
        for number in range(3):
            log.append(number)
            yield number
    finally:
        log.append("end")


def test_items_are_computed_when_asked_for_and_once():
    log = []
    results = Results(3, numbers(log))
    assert len(results) == 3
    assert log == []
    assert results[0] == 0
    assert log == [0]
    assert list(results) == [0, 1, 2]
    assert log == [0, 1, 2, "end"]
    assert results[-1] == 2
    assert results[1:] == [1, 2]
    assert log == [0, 1, 2, "end"]
    with pytest.raises(IndexError):
        results[3]

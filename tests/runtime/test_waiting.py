"""How often a reduced prefill makes the host wait for the device, counted; and that timing adds
nothing to it."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dispatched import Dispatched
from footage import VIDEO

from sttm_lmms import VideoSpan, get_method
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.runtime.timing import Phases, Stopwatch, first_pass_end

GRID, TEXT, LENGTH = (4, 4, 4), 5, 76
WITHOUT_READS = ("random", "pool", "tome", "fastv")
"""Methods that look at nothing themselves, so that what is counted is the runtime's."""


def prefill(model: Any, method: str, mask: torch.Tensor | None = None, timing: bool = False) -> Dispatched:
    spans = [VideoSpan(TEXT, GRID)]
    place = {"position_ids": torch.arange(LENGTH).expand(3, 1, -1)} if model.config.model_type == "qwen2_vl" else {}
    embeds = torch.randn(1, LENGTH, 64)
    with torch.inference_mode(), TokenReducer(model, get_method(method)(budget=0.5), spans=spans, timing=timing) as r:
        with Dispatched() as work:
            model(inputs_embeds=embeds, attention_mask=mask, use_cache=True, logits_to_keep=1, **place)
        assert r.report.kept_tokens < r.report.visual_tokens
    return work


@pytest.mark.parametrize("method", WITHOUT_READS)
@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl"])
def test_a_prefill_with_known_spans_reads_nothing(tiny, family, method):
    model, _ = tiny(family)
    assert not prefill(model, method).host_reads
    assert not prefill(model, method, timing=True).host_reads


def test_a_mask_that_a_caller_gives_is_looked_at_once(tiny):
    """Whether it has padding at all; nobody else knows. The counter sees it, so it would see
    others."""
    model, _ = tiny("llava_video")
    assert prefill(model, "random", torch.ones(1, LENGTH, dtype=torch.long)).host_reads.total() == 1


class _Counted:
    """Counts the forward passes of a module's decoder, and keeps what its head was given."""

    def __init__(self, model: Any) -> None:
        self.model, self.works, self.logits = model, [], []

    @contextmanager
    def watching(self):
        decoder = self.model.model.language_model

        def enter(*_: Any) -> None:
            self.works.append(Dispatched())
            self.works[-1].__enter__()

        def leave(*_: Any) -> None:
            self.works[-1].__exit__(None, None, None)

        handles = [
            decoder.register_forward_pre_hook(enter, prepend=True),
            decoder.register_forward_hook(leave),
            self.model.get_output_embeddings().register_forward_hook(
                lambda _, args, __: self.logits.append(args[0].shape[1])
            ),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("family", ["llava_video", "llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("reuse", ["prefix", "none"])
def test_the_engine_waits_nowhere_in_the_decoder_and_computes_the_last_logits_only(tiny, videos, family, reuse):
    model, processor = tiny(family)
    content = [{"type": "video", "video": str(videos[0])}, {"type": "text", "text": "What moves?"}]
    request = Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=3))
    engine = Engine(model, processor, get_method("random")(budget=0.5), video=VIDEO, reuse=reuse)
    with _Counted(model).watching() as seen:
        (answer,) = engine.generate([request])
    assert answer.kept_tokens < answer.visual_tokens
    assert len(seen.works) >= 2
    assert [work.host_reads.total() for work in seen.works] == [0] * len(seen.works)
    assert set(seen.logits) == {1}
    assert len(seen.logits) == len(seen.works) - (reuse == "prefix")  # the prefix has no logits at all


class _Event:
    """A CUDA event on a machine without CUDA. Waiting for one is counted."""

    clock, waits = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Any) -> None:
        _Event.clock += 1
        self.at = _Event.clock

    def synchronize(self) -> None:
        _Event.waits += 1

    def elapsed_time(self, other: _Event) -> float:
        return 1000.0 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    """A model on one GPU that this machine need not have; waiting for the device is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the device was waited for")

    monkeypatch.setattr(_Event, "clock", 0)
    monkeypatch.setattr(_Event, "waits", 0)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda:0"))]))


def test_a_timed_run_waits_for_no_mark_until_seconds_are_asked_for(gpu):
    stopwatch = Stopwatch(gpu)
    began, ended = stopwatch.mark(), stopwatch.mark()
    assert _Event.waits == 0
    assert stopwatch.seconds(began, ended) == 1.0
    assert _Event.waits == 1


def test_the_phases_of_an_answer_are_marked_without_waiting(gpu):
    stopwatch = Stopwatch(gpu)
    began, tower, left, ended = (stopwatch.mark() for _ in range(4))
    phases = Phases(stopwatch)
    phases.add_seconds({"video_decode": 0.5, "preprocess": 0.25})
    phases.add("vision", tower, left, within="preprocess")
    phases.add("preprocess", began, ended)
    assert _Event.waits == 0
    assert phases.seconds() == {"video_decode": 0.5, "vision": 1.0, "preprocess": 2.25}


def test_the_time_to_the_first_token_is_a_mark(gpu):
    model, stopwatch = torch.nn.Linear(1, 1), Stopwatch(gpu)
    with first_pass_end(model, stopwatch.mark) as ends:
        for _ in range(3):
            model(torch.zeros(1))
    assert [end.at for end in ends] == [1]
    assert _Event.waits == 0

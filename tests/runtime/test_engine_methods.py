"""Every registered method through the engine, in three families: what is shared between questions
changes no answer."""

from __future__ import annotations

import pytest
import torch
from footage import FAMILY_NAMES
from method_settings import NAMES, method

from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.video import VideoSettings

QUESTIONS = ("What moves?", "Which colour is the second square, and where?")
VIDEO = VideoSettings(max_frames=4, fps=1.0, min_pixels=4 * 28 * 28, max_pixels=20 * 28 * 28)

pytestmark = pytest.mark.filterwarnings(f"ignore::{BudgetWarning.__module__}.{BudgetWarning.__qualname__}")


def ask(video, question: str) -> Request:
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": question}]
    return Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_shared_prefix_changes_nothing_or_is_refused(tiny, videos, caplog, family, name):
    """Answers, kept tokens and the scores of continuations; methods that depend on the question say
    so."""
    model, processor = tiny(family)
    requests = [ask(videos[0], question) for question in QUESTIONS]
    pairs = [(request, text) for request in requests for text in ("Blue", "B")]
    answers, scores, engines = {}, {}, {}
    for reuse in ("features", "prefix"):  # what "features" shares changes nothing, see test_engine.py
        engines[reuse] = Engine(model, processor, method(name), video=VIDEO, reuse=reuse)
        answers[reuse] = engines[reuse].generate(requests)
        scores[reuse] = [score.logprob for score in engines[reuse].loglikelihood(pairs)]
        engines[reuse].check_reduced()
    assert [a.text for a in answers["prefix"]] == [a.text for a in answers["features"]]
    assert [a.kept_tokens for a in answers["prefix"]] == [a.kept_tokens for a in answers["features"]]
    assert all(a.reduced for a in answers["features"])
    assert scores["prefix"] == pytest.approx(scores["features"], abs=2e-4)
    if method(name).shares_prefix:
        assert engines["prefix"].counters.prefills == 1
        assert [a.reused for a in answers["prefix"]] == [False, True]
        assert not caplog.messages
    else:
        assert engines["prefix"].reuse == "features"
        assert f"{name} depends on the question" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_continuations_first_token_has_the_probability_that_generating_gives_it(tiny, videos, name):
    """Whatever a method looks at, it sees the whole prompt and nothing of the continuation."""
    model, processor = tiny("llava_video")
    request, engine = ask(videos[0], QUESTIONS[0]), Engine(*tiny("llava_video"), method(name), video=VIDEO)
    (score,) = engine.loglikelihood([(request, "B")])
    prepared = engine.prepare(request)
    with torch.inference_mode(), TokenReducer(model, method(name), spans=prepared.spans):
        logits = model(inputs_embeds=prepared.inputs_embeds, use_cache=True, logits_to_keep=1).logits[0, -1]
    (token,) = processor.tokenizer("B")["input_ids"]
    assert score.logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)

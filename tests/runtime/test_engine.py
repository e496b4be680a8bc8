"""One engine, many ways to run it: all must give the same answers."""

from __future__ import annotations

import pytest
import torch
from footage import FAMILY_NAMES, VIDEO

from sttm_lmms import STTMConfig, encode_video
from sttm_lmms.errors import NothingReducedError, VideoError
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.runtime.generation import cut
from sttm_lmms.runtime.prefix import continued, prefill_prefix

QUESTIONS = ["What moves?", "Which colour is the second square, and where does it go?", "Why?"]


def ask(video, question, **generation) -> Request:
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": question}]
    return Request([{"role": "user", "content": content}], GenerationSettings(**{"max_new_tokens": 5, **generation}))


def requests_for(videos, **generation) -> list[Request]:
    """Questions in an order that jumps between videos."""
    return [ask(video, question, **generation) for question in QUESTIONS for video in videos[:2]]


def sttm(start_layer: int = 2, **changes) -> STTMConfig:
    return STTMConfig(
        **{"spatial_threshold": 0.995, "temporal_threshold": 0.995, "start_layer": start_layer, **changes}
    )


@pytest.mark.parametrize(
    ("family", "start_layer", "attention"),
    [
        ("llava_video", 0, "sdpa"),
        ("llava_video", 2, "eager"),
        ("llava_onevision", 2, "sdpa"),
        ("qwen2_vl", 0, "eager"),
        ("qwen2_vl", 2, "sdpa"),
    ],
)
def test_reuse_and_batches_change_no_answer(tiny, videos, family, start_layer, attention):
    model, processor = tiny(family, attention)
    requests = requests_for(videos)
    config = sttm(start_layer)
    expected = Engine(model, processor, config, video=VIDEO, reuse="none").generate(requests)
    assert all(answer.reduced for answer in expected)
    for reuse, batch_size in [("features", 1), ("prefix", 1), ("prefix", 3)]:
        answers = Engine(model, processor, config, video=VIDEO, reuse=reuse).generate(requests, batch_size=batch_size)
        assert [a.text for a in answers] == [a.text for a in expected]
        assert [a.kept_tokens for a in answers] == [a.kept_tokens for a in expected]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_baseline_is_the_same_code_path(tiny, videos, family):
    model, processor = tiny(family)
    requests = requests_for(videos)
    expected = Engine(model, processor, video=VIDEO, reuse="none").generate(requests)
    answers = Engine(model, processor, video=VIDEO).generate(requests, batch_size=2)
    assert [a.text for a in answers] == [a.text for a in expected]
    assert not any(a.reduced for a in answers)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(("start_layer", "positions"), [(0, "continue"), (1, "reference"), (3, "continue")])
def test_prefix_logits_equal_one_prefill(tiny, videos, family, start_layer, positions):
    """The logits of every question token after a cached prefix, against the whole prompt at
    once."""
    model, processor = tiny(family)
    engine = Engine(model, processor, sttm(start_layer, decode_positions=positions), video=VIDEO)
    request = ask(videos[0], QUESTIONS[1])
    prepared = engine.prepare(request)
    with TokenReducer(model, engine.config, spans=prepared.spans) as reducer, torch.inference_mode():
        extra = {} if prepared.position_ids is None else {"position_ids": prepared.position_ids}
        whole = model(inputs_embeds=prepared.inputs_embeds, **extra).logits[0]
        prefix = prefill_prefix(reducer, prepared)
        question = prepared.input_ids[:, prepared.prefix_length :]
        lengths = [layer.keys.shape[-2] for layer in prefix.cache.layers]
        with continued(reducer, prefix, 1) as cache:
            split = model(input_ids=question, past_key_values=cache).logits[0]
    torch.testing.assert_close(split, whole[-len(split) :], atol=1e-4, rtol=0)
    assert [layer.keys.shape[-2] for layer in prefix.cache.layers] == lengths
    assert len(set(lengths)) == (1 if start_layer == 0 else 2)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_counters_show_what_reuse_saves(tiny, videos, family):
    model, processor = tiny(family)
    requests = requests_for(videos)
    counts = {}
    for reuse in ("none", "features", "prefix"):
        engine = Engine(model, processor, sttm(), video=VIDEO, reuse=reuse)
        engine.generate(requests)
        c = engine.counters
        counts[reuse] = (c.videos_decoded, c.vision_passes, c.prefills, c.questions)
    assert counts == {"none": (6, 6, 6, 6), "features": (2, 2, 6, 6), "prefix": (2, 2, 2, 6)}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_beams_agree_with_and_without_reuse(tiny, videos, family):
    model, processor = tiny(family)
    requests = requests_for(videos, num_beams=3)
    runs = [
        [a.text for a in Engine(model, processor, sttm(), video=VIDEO, reuse=reuse).generate(requests, batch_size=2)]
        for reuse in ("none", "prefix")
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("config", [None, sttm(0), sttm(2)], ids=["none", "layer0", "layer2"])
def test_loglikelihood_is_the_sum_of_the_tokens(tiny, videos, family, config):
    model, processor = tiny(family)
    engine = Engine(model, processor, config, video=VIDEO)
    request = ask(videos[0], QUESTIONS[0])
    score, greedy = engine.loglikelihood([(request, "Blue"), (request, "B")])
    prepared = engine.prepare(request)
    targets = torch.tensor(processor.tokenizer("Blue")["input_ids"])
    embeds = torch.cat([prepared.inputs_embeds, model.get_input_embeddings()(targets[None])], dim=1)
    extra = {}
    if prepared.position_ids is not None:
        following = prepared.position_ids[..., -1:] + 1 + torch.arange(len(targets))
        extra["position_ids"] = torch.cat([prepared.position_ids, following], dim=-1)
    with TokenReducer(model, config, spans=prepared.spans), torch.inference_mode():
        logits = model(inputs_embeds=embeds, **extra).logits[0, -len(targets) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
    assert score.logprob == pytest.approx(float(expected), abs=1e-4)
    assert score.tokens == 4
    assert greedy.logprob < 0
    assert engine.counters.prefills == 1


def test_a_broken_video_is_skipped_and_counted(tiny, videos, tmp_path):
    model, processor = tiny("llava_video")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video")
    requests = [ask(videos[0], "a"), ask(broken, "b"), ask(videos[1], "c"), ask(broken, "d")]
    engine = Engine(model, processor, sttm(), video=VIDEO)
    answers = engine.generate(requests)
    assert [bool(a.error) for a in answers] == [False, True, False, True]
    (failure,) = engine.failures
    assert str(broken) in failure.source
    assert failure.questions == 2
    assert engine.summary().failures == 1
    with pytest.raises(VideoError, match="broken"):
        Engine(model, processor, sttm(), video=VIDEO, on_error="raise").generate(requests)


def test_certificate(tiny, videos):
    model, processor = tiny("llava_video")
    idle = Engine(model, processor, sttm(spatial_threshold=1.5, temporal_threshold=1.5), video=VIDEO)
    idle.generate([ask(videos[0], "a")])
    with pytest.raises(NothingReducedError, match="none of 1 answers"):
        idle.check_reduced()
    busy = Engine(model, processor, sttm(), video=VIDEO)
    busy.generate([ask(videos[0], "a")])
    busy.check_reduced()
    assert busy.summary().reduced_share == 1.0


def test_newlines_inside_a_video_cannot_be_reduced(tiny, videos):
    model, processor = tiny("llava_video")
    with pytest.raises(ValueError, match="newline"):
        Engine(model, processor, sttm(), video=VIDEO, newline="grid").generate([ask(videos[0], "a")])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_encode_video_once_ask_often(tiny, videos, family):
    model, processor = tiny(family)
    prefix = encode_video(model, processor, str(videos[0]), sttm(), settings=VIDEO)
    assert 0 < prefix.kept_tokens < prefix.visual_tokens
    expected = Engine(model, processor, sttm(), video=VIDEO, reuse="none").generate(
        [ask(videos[0], question) for question in QUESTIONS]
    )
    assert [prefix.ask(question, max_new_tokens=5) for question in QUESTIONS] == [a.text for a in expected]
    assert prefix._engine.counters.prefills == 1


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_several_videos_and_text_only(tiny, videos, family):
    """Each video is reduced on its own grid; a request without visuals passes through."""
    model, processor = tiny(family)
    content = [
        {"type": "video", "video": str(videos[0])},
        {"type": "text", "text": "and"},
        {"type": "video", "video": str(videos[1])},
        {"type": "text", "text": "Which is longer?"},
    ]
    both = Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=5))
    text = Request([{"role": "user", "content": "Hello"}], GenerationSettings(max_new_tokens=5))
    runs = []
    for reuse in ("none", "prefix"):
        engine = Engine(model, processor, sttm(), video=VIDEO, reuse=reuse)
        runs.append(engine.generate([both, text]))
    assert [a.text for a in runs[0]] == [a.text for a in runs[1]]
    singles = Engine(model, processor, sttm(0), video=VIDEO).generate([ask(videos[0], "a"), ask(videos[1], "a")])
    pair = Engine(model, processor, sttm(0), video=VIDEO).generate([both])[0]
    assert pair.kept_tokens == sum(a.kept_tokens for a in singles)
    assert runs[0][1].visual_tokens == 0


def test_the_earliest_stop_text_cuts():
    assert cut("B. because\n\nQ: next", ("Q:", "\n\n")) == "B. because"
    assert cut("B", ("", "\n")) == "B"


def test_stop_texts_and_sampling(tiny, videos):
    model, processor = tiny("llava_video")
    engine = Engine(model, processor, sttm(), video=VIDEO)
    (full,) = engine.generate([ask(videos[0], "a", max_new_tokens=12)])
    (short,) = engine.generate([ask(videos[0], "a", max_new_tokens=12, until=("\n\n", full.text[0]))])
    assert short.text == ""
    assert short.output_tokens < full.output_tokens
    torch.manual_seed(0)
    (sampled,) = engine.generate([ask(videos[0], "a", do_sample=True, temperature=5.0, top_p=0.9)])
    assert sampled.output_tokens <= 5


def test_a_video_is_projected_once(tiny, videos):
    """The projector's work belongs to the video, not to its questions."""
    model, processor = tiny("llava_video")
    calls = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda *_: calls.append(1))
    try:
        Engine(model, processor, sttm(), video=VIDEO).generate([ask(videos[0], question) for question in QUESTIONS])
    finally:
        hook.remove()
    assert len(calls) == 1

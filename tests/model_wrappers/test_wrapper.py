"""The wrappers without lmms-eval's evaluator: every kind of request, failures, order, totals."""

from __future__ import annotations

import shutil

import av
import numpy as np
import pytest
import torch
import yaml
from lmms_eval.api.instance import Instance
from lmms_eval.models.model_utils.gen_metrics import reset_logged_metrics, summarize_logged_metrics
from loguru import logger
from PIL import Image

from sttm_lmms.errors import CheckpointError, NothingReducedError, STTMError, VideoError
from sttm_lmms.families import load_pretrained
from sttm_lmms.model_wrappers import load
from sttm_lmms.model_wrappers.documents import generation_settings, user_turn
from sttm_lmms.model_wrappers.models import (
    LlavaOneVision,
    LlavaVideo,
    Qwen2VL,
    SimpleLlavaOneVision,
    SimpleLlavaVideo,
    SimpleQwen2VL,
)
from sttm_lmms.model_wrappers.task_defaults import without_effect

THRESHOLDS = {"spatial_threshold": 0.6, "temporal_threshold": 0.5}
WRAPPERS = {"llava_video": LlavaVideo, "llava_onevision": LlavaOneVision, "qwen2_vl": Qwen2VL}
SIMPLE = {"llava_video": SimpleLlavaVideo, "llava_onevision": SimpleLlavaOneVision, "qwen2_vl": SimpleQwen2VL}
QUESTIONS = ("What moves?", "Which colour is the disc, and when is it there?", "Why?")


@pytest.fixture
def videos(data):
    return sorted((data / "vnbench" / "videos").iterdir())


@pytest.fixture
def build(checkpoints):
    """A wrapper of a family on its small checkpoint."""

    def make(family="llava_video", classes=WRAPPERS, **arguments):
        amount = {} if {"method", "budget", "preset"} & set(arguments) else THRESHOLDS
        frames = {} if "preset" in arguments else {"max_frames": 4}
        return classes[family](pretrained=str(checkpoints[family]), device="cpu", **{**amount, **frames, **arguments})

    return make


def metadata(number, padding=False):
    return {"task": "t", "doc_id": number, "repeats": 1, **({"__padding_only__": True} if padding else {})}


def ask(wrapper, documents, padding=(), **gen_kwargs):
    """Chat requests for ``(video, text)`` documents, those numbered in ``padding`` being fillers of
    lmms-eval."""
    wrapper.task_dict = {"t": {"test": documents}}

    def messages(document):
        video, text = document
        return [{"role": "user", "content": [{"type": "video", "url": str(video)}, {"type": "text", "text": text}]}]

    gen_kwargs = {"max_new_tokens": 6, **gen_kwargs}
    return [
        Instance("generate_until", ("", messages, gen_kwargs, n, "t", "test"), 0, metadata(n, n in padding))
        for n in range(len(documents))
    ]


def texts(results):
    return [result.text for result in results]


@pytest.mark.parametrize("family", WRAPPERS)
def test_answers_come_in_order_whatever_is_shared(family, build, videos):
    documents = [(video, question) for question in QUESTIONS for video in videos]
    found = {
        reuse: texts((wrapper := build(family, reuse=reuse)).generate_until(ask(wrapper, documents)))
        for reuse in ("prefix", "none")
    }
    assert found["prefix"] == found["none"]
    assert len(set(found["none"])) > 1
    alone = build(family)
    assert texts(alone.generate_until(ask(alone, documents[4:5]))) == found["none"][4:5]


@pytest.mark.parametrize("family", WRAPPERS)
def test_batches_give_the_answers_of_single_questions(family, build, videos):
    documents = [(video, question) for video in videos for question in QUESTIONS]
    single, batched = build(family), build(family, batch_size=4)
    expected = texts(single.generate_until(ask(single, documents)))
    assert texts(batched.generate_until(ask(batched, documents))) == expected


def test_records_of_answers(build, videos):
    wrapper = build()
    results = list(wrapper.generate_until(ask(wrapper, [(videos[0], question) for question in QUESTIONS])))
    first, second, _ = (result.token_counts.to_dict() for result in results)
    assert 0 < first["kept_tokens"] < first["visual_tokens"] == 4 * 49
    assert first["output_tokens"] == results[0].token_counts.output_tokens <= 6
    assert first["video"] == videos[0].stem
    assert (first["reused"], second["reused"]) == (False, True)
    assert first["provenance"]["settings"]["spatial_threshold"] == 0.6
    assert first["provenance"]["newline"] == "no_token"
    assert first["provenance"]["video_backend"] in ("decord", "pyav")
    assert "provenance" not in second


def test_work_is_counted_and_padding_does_none(build, videos):
    wrapper = build()
    results = list(wrapper.generate_until(ask(wrapper, [(videos[0], q) for q in QUESTIONS], padding=(2,))))
    assert len(results) == 3
    assert results[2].text == ""
    counters = wrapper._engine.counters
    assert (counters.videos_decoded, counters.prefills, counters.questions) == (1, 1, 2)


def test_broken_videos_are_skipped_and_listed(build, videos, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    wrapper = build()
    documents = [(empty, "A?"), (videos[0], QUESTIONS[0]), (tmp_path / "missing.mp4", "B?"), (empty, "C?")]
    results = list(wrapper.generate_until(ask(wrapper, documents)))
    assert [bool(result.token_counts.to_dict().get("error")) for result in results] == [True, False, True, True]
    assert results[0].text == results[2].text == ""
    lines = []
    sink = logger.add(lines.append, format="{message}")
    wrapper.clean()
    logger.remove(sink)
    printed = "".join(lines)
    assert "3 questions have no answer" in printed
    assert "empty.mp4" in printed
    assert "missing.mp4" in printed


def test_broken_videos_stop_the_run_if_asked(build, tmp_path):
    wrapper = build(on_error="raise")
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        list(wrapper.generate_until(ask(wrapper, [(tmp_path / "missing.mp4", "A?")])))


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_task_that_ends_the_process_over_a_missing_file(on_error, build, videos):
    wrapper = build(on_error=on_error)
    good, bad = ask(wrapper, [(videos[0], "A?"), (videos[1], "B?")])

    def give_up(document):
        raise SystemExit("video path:nowhere.mp4 does not exist, please check")

    bad.arguments = ("", give_up, *bad.arguments[2:])
    if on_error == "raise":
        with pytest.raises(STTMError, match=r"nowhere.mp4 does not exist"):
            list(wrapper.generate_until([good, bad]))
        return
    results = list(wrapper.generate_until([good, bad]))
    assert results[1].text == ""
    assert "nowhere.mp4" in wrapper._engine.failures[0].error


def test_a_reduction_that_reduces_nothing_is_no_result(build, videos):
    wrapper = build(spatial_threshold=1.5, temporal_threshold=1.5)
    list(wrapper.generate_until(ask(wrapper, [(videos[0], "A?")])))
    with pytest.raises(NothingReducedError, match=r"method=sttm,spatial_threshold=1\.5"):
        wrapper.clean()


def test_a_run_answered_from_the_cache_needs_no_certificate(build):
    build().clean()


def test_generation_settings_of_lmms_eval():
    greedy = generation_settings({"max_new_tokens": 5, "until": "\n", "temperature": 0, "do_sample": True})
    assert (greedy.max_new_tokens, greedy.until, greedy.do_sample) == (5, ("\n",), False)
    sampled = generation_settings({"temperature": 0.7, "top_p": 0.9, "num_beams": 2, "image_aspect_ratio": "pad"})
    assert (sampled.do_sample, sampled.temperature, sampled.top_p, sampled.num_beams) == (True, 0.7, 0.9, 2)
    assert generation_settings({"until": ["\n\n", ""]}).until == ("\n\n",)
    assert not generation_settings({"temperature": 0.7, "do_sample": False}).do_sample


def test_every_setting_of_generate_is_taken_and_others_are_refused():
    found = generation_settings({"repetition_penalty": 1, "no_repeat_ngram_size": 2, "num_beams": 3, "top_k": None})
    assert found.arguments() == {
        **found.arguments(),
        "repetition_penalty": 1,
        "no_repeat_ngram_size": 2,
        "num_beams": 3,
    }
    assert generation_settings({"stop_sequences": ["Q:"]}).until == ("Q:",)
    with pytest.raises(ValueError, match=r"unknown generation setting 'topk'\. Did you mean 'top_k'"):
        generation_settings({"topk": 20})


def test_sampling_settings_of_a_greedy_request_are_pointed_out():
    assert without_effect({"do_sample": False, "temperature": 0.7, "top_k": 20}) == ["temperature=0.7", "top_k=20"]
    assert without_effect({"do_sample": True, "temperature": 0}) == ["do_sample=True"]
    assert without_effect({"do_sample": True, "top_k": 20}) == []
    assert without_effect({"do_sample": False, "temperature": 0, "top_p": 1.0, "top_k": None, "num_beams": 1}) == []


def test_a_misspelt_generation_setting_stops_the_run(build, videos):
    wrapper = build()
    with pytest.raises(ValueError, match="Did you mean 'repetition_penalty'"):
        list(wrapper.generate_until(ask(wrapper, [(videos[0], "Why?")], repetition_penalti=1)))


def test_generation_settings_are_honoured(build, videos):
    wrapper = build()
    (long,) = wrapper.generate_until(ask(wrapper, [(videos[0], QUESTIONS[0])], max_new_tokens=8))
    (short,) = wrapper.generate_until(ask(wrapper, [(videos[0], QUESTIONS[0])], max_new_tokens=3))
    assert (long.token_counts.output_tokens, short.token_counts.output_tokens) == (8, 3)
    assert long.text.startswith(short.text)


@pytest.mark.parametrize("family", WRAPPERS)
def test_loglikelihood_is_the_mean_loss_of_a_plain_forward(family, build, videos):
    wrapper = build(family, SIMPLE, method="none")
    wrapper.task_dict = {"t": {"test": [videos[0]]}}
    choices = [" A. disc", " B"]
    requests = [
        Instance("loglikelihood", (QUESTIONS[0], choice, lambda doc: [str(doc)], 0, "t", "test"), 0, metadata(0))
        for choice in choices
    ]
    scores = texts(wrapper.loglikelihood(requests))
    engine = wrapper._engine
    messages = user_turn([str(videos[0])], QUESTIONS[0])
    seen = engine.family.vision_features(
        wrapper.model, wrapper.processor, engine.family.read_video(videos[0], engine.video)
    )
    with torch.inference_mode():
        prompt = engine.family.prepare(wrapper.model, wrapper.processor, messages, [seen])
        for choice, (loss, greedy) in zip(choices, scores, strict=True):
            ids = torch.tensor(wrapper.processor.tokenizer(choice, add_special_tokens=False)["input_ids"])
            embeds = torch.cat([prompt.inputs_embeds, wrapper.model.get_input_embeddings()(ids)[None]], dim=1)
            positions = prompt.position_ids
            if positions is not None:
                later = positions.max() + 1 + torch.arange(len(ids))
                positions = torch.cat([positions, later.expand(3, 1, -1)], dim=-1)
            logits = wrapper.model(inputs_embeds=embeds, position_ids=positions).logits[0, -len(ids) - 1 : -1]
            expected = torch.nn.functional.cross_entropy(logits, ids)
            assert loss == pytest.approx(expected.item(), abs=1e-4)
            assert greedy == bool((logits.argmax(-1) == ids).all())


def test_loglikelihood_of_an_unreadable_video_is_never_the_best(build, tmp_path):
    wrapper = build(classes=SIMPLE)
    wrapper.task_dict = {"t": {"test": [tmp_path / "missing.mp4"]}}
    request = Instance("loglikelihood", ("Q", " A", lambda doc: [str(doc)], 0, "t", "test"), 0, metadata(0))
    assert texts(wrapper.loglikelihood([request])) == [(float("inf"), False)]


def test_loglikelihood_without_any_context(build):
    wrapper = build(classes=SIMPLE, method="none")
    ((loss, _),) = texts(wrapper.loglikelihood([Instance("loglikelihood", ("", "Yes"), 0, metadata(0))]))
    assert 0 < loss < 20


def test_simple_and_chat_requests_give_the_same_answer(build, videos):
    chat, simple = build(), build(classes=SIMPLE)
    simple.task_dict = {"t": {"test": [videos[0]]}}
    arguments = (QUESTIONS[0], {"max_new_tokens": 6}, lambda doc: [str(doc)], 0, "t", "test")
    (answer,) = simple.generate_until([Instance("generate_until", arguments, 0, metadata(0))])
    assert [answer.text] == texts(chat.generate_until(ask(chat, [(videos[0], QUESTIONS[0])])))


def rounds_of_chat(log):
    """``doc_to_messages`` of three rounds; the second shows no video."""

    def doc_to_messages(document, round_idx=None, previous_output=None, previous_round_info=None):
        video, text = document
        content = [{"type": "video", "url": str(video)}] if round_idx != 1 else []
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": f"{text} {round_idx}"}]}]
        if round_idx is None:
            return turn
        log.append((text, round_idx, list(previous_output), previous_round_info))
        return (None if round_idx == 3 else turn), round_idx == 3, previous_output, f"notes {round_idx}"

    return doc_to_messages


def test_rounds_of_a_conversation(build, videos):
    wrapper, log = build(), []
    wrapper.task_dict = {"t": {"test": [(videos[0], "A"), (videos[1], "B")]}}
    requests = [
        Instance(
            "generate_until_multi_round",
            ("", rounds_of_chat(log), {"max_new_tokens": 4}, n, "t", "test"),
            0,
            metadata(n),
        )
        for n in range(2)
    ]
    first, second = wrapper.generate_until_multi_round(requests)
    assert len(first) == len(second) == 3
    assert [entry[:2] for entry in log] == [(text, number) for number in (1, 2, 3) for text in "AB"]
    assert log[4] == ("A", 3, first, "notes 2")
    assert first[0] == texts(wrapper.generate_until(ask(wrapper, [(videos[0], "A None")], max_new_tokens=4)))[0]


def test_images_text_and_several_videos(build, videos, tmp_path):
    wrapper = build("llava_onevision")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (80, 60), "red").save(picture)
    part = {"text": {"type": "text", "text": "What?"}, "image": {"type": "image", "url": str(picture)}}
    part |= {"video": {"type": "video", "url": str(videos[0])}, "other": {"type": "video", "url": str(videos[1])}}
    layouts = (["text"], ["image", "text"], ["image", "image", "text"], ["text", "video", "text"], ["video", "other"])
    wrapper.task_dict = {"t": {"test": layouts}}

    def messages(layout):
        system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
        return [system, {"role": "user", "content": [part[name] for name in layout]}]

    requests = [
        Instance("generate_until", ("", messages, {"max_new_tokens": 4}, n, "t", "test"), 0, metadata(n))
        for n in range(len(layouts))
    ]
    records = [result.token_counts.to_dict() for result in wrapper.generate_until(requests)]
    assert [record.get("error") for record in records] == [None] * len(layouts)
    assert [record["reduced"] for record in records] == [False, False, False, True, True]
    assert records[1]["kept_tokens"] == records[1]["visual_tokens"] > 0


@pytest.mark.parametrize("visual", [{"type": "audio", "url": "a.wav"}, {"url": "v.mp4", "video_start": 1.0}])
def test_what_the_models_cannot_take_is_refused(visual):
    with pytest.raises(STTMError, match="not supported"):
        user_turn([visual], "What?")


def test_a_webm_video_is_a_video(build, videos, tmp_path):
    """lmms-eval lists the ending among those of audio files."""
    film, sound = tmp_path / "film.webm", tmp_path / "sound.webm"
    shutil.copy(videos[0], film)  # the content counts, whatever the file is called
    with av.open(str(sound), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), layout="mono")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence) + stream.encode(None))
    (message,) = user_turn([str(film)], "What moves?")
    assert message["content"][0] == {"type": "video", "video": str(film)}
    for path, reason in ((sound, "has only audio"), (tmp_path / "gone.webm", "does not exist")):
        with pytest.raises(STTMError, match=f"audio is not supported.*{reason}"):
            user_turn([str(path)], "What moves?")
    found = []
    for video in (film, videos[0]):
        simple = build(classes=SIMPLE)
        simple.task_dict = {"t": {"test": [video]}}
        arguments = (QUESTIONS[0], {"max_new_tokens": 6}, lambda doc: [str(doc)], 0, "t", "test")
        found += texts(simple.generate_until([Instance("generate_until", arguments, 0, metadata(0))]))
    assert found[0] == found[1]


def test_a_checkpoint_of_another_family_is_refused(checkpoints):
    with pytest.raises(CheckpointError, match="is a qwen2_vl checkpoint: use --model sttm_qwen2_vl"):
        LlavaVideo(pretrained=str(checkpoints["qwen2_vl"]), budget=0.5, device="cpu")


def test_a_checkpoint_of_another_family_is_refused_before_its_weights_are_fetched(checkpoints, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(checkpoints["qwen2_vl"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="is a qwen2_vl checkpoint: use --model sttm_qwen2_vl"):
        LlavaVideo(pretrained="Qwen/Qwen2-VL-7B-Instruct", revision="main", budget=0.5, device="cpu")
    assert asked == [("Qwen/Qwen2-VL-7B-Instruct", "main", ["config.json"])]


def test_four_bits_mean_the_same_as_in_load_pretrained(checkpoints, monkeypatch):
    seen = []

    def from_pretrained(*args, **kwargs):
        seen.append(kwargs["quantization_config"].to_dict())
        raise InterruptedError

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", from_pretrained)
    monkeypatch.setattr(load, "check_packages", lambda arguments: None)  # bitsandbytes is not installed here
    with pytest.raises(InterruptedError):
        LlavaVideo(pretrained=str(checkpoints["llava_video"]), method="none", device="cpu", load_in_4bit=True)
    with pytest.raises(InterruptedError):
        load_pretrained(checkpoints["llava_video"], dtype=torch.float32, load_in_4bit=True)
    assert seen[0] == seen[1]


def test_model_args_win_over_the_options_of_lmms_eval(checkpoints):
    text = f"pretrained={checkpoints['llava_video']},method=none,batch_size=3"
    wrapper = LlavaVideo.create_from_arg_string(text, {"batch_size": 1, "device": "cpu", "max_batch_size": None})
    assert wrapper.batch_size == 3
    assert wrapper.device.type == "cpu"


def test_a_preset_gives_each_task_its_settings(build, videos, tmp_path):
    preset = tmp_path / "mine.yaml"
    thresholds = {"vnbench": [0.6, 0.5], "mlvu": [1.5, 1.5]}
    model = {"family": "llava_video", "size": "7b", "thresholds": thresholds, "max_frames": 3}
    preset.write_text(yaml.safe_dump({"models": [model]}))
    reset_logged_metrics()
    wrapper = build(preset=f"{preset}:7b")
    results = []
    for task in ("vnbench", "mlvu_dev"):
        (request,) = ask(wrapper, [(videos[0], "Why?")])
        wrapper.task_dict = {task: {"test": [(videos[0], "Why?")]}}
        request.arguments = (*request.arguments[:-2], task, "test")
        results += wrapper.generate_until([request])
    records = [result.token_counts.to_dict() for result in results]
    assert [record["visual_tokens"] for record in records] == [3 * 49, 3 * 49]
    assert [record["reduced"] for record in records] == [True, False]
    wrapper.clean()
    totals = results[0].token_counts.to_dict()["run"]
    assert (totals["reduction_asked"], totals["reduced_share"]) == (1, 0.5)
    assert summarize_logged_metrics()["avg_reduced_share"] == 0.5


@pytest.mark.parametrize(("task", "sampling"), [("sttm_mlvu", "uniform_fps"), ("mlvu_dev", "model")])
def test_the_sampling_that_ran_is_on_record(build, videos, task, sampling):
    wrapper = build("qwen2_vl", max_frames=8)
    (request,) = ask(wrapper, [(videos[0], "Why?")])
    wrapper.task_dict = {task: {"test": [(videos[0], "Why?")]}}
    request.arguments = (*request.arguments[:-2], task, "test")
    (result,) = wrapper.generate_until([request])
    assert result.token_counts.to_dict()["provenance"]["sampling"] == sampling


def test_stored_features_replace_the_videos(build, checkpoints, videos, tmp_path):
    from sttm_lmms.runtime.stored import open_store
    from sttm_lmms.video import VideoSettings

    live = build()
    expected = texts(live.generate_until(ask(live, [(videos[0], question) for question in QUESTIONS])))
    settings = VideoSettings(max_frames=4)
    store = open_store(tmp_path, str(checkpoints["llava_video"]), settings, "float32")
    family = live._engine.family
    store.save(
        videos[0].stem, family.vision_features(live.model, live.processor, family.read_video(videos[0], settings))
    )
    wrapper = build(features=str(tmp_path))
    gone = tmp_path / "gone" / videos[0].name
    assert texts(wrapper.generate_until(ask(wrapper, [(gone, question) for question in QUESTIONS]))) == expected
    assert wrapper._engine.counters.videos_decoded == 0


def test_reproducible_runs_sample_the_same(build, videos):
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        found = []
        for _ in range(2):
            wrapper = build(reproduce=True)
            documents = ask(wrapper, [(videos[0], QUESTIONS[0])], do_sample=True, temperature=1.0)
            found += texts(wrapper.generate_until(documents))
        assert found[0] == found[1]
    finally:
        torch.use_deterministic_algorithms(deterministic)

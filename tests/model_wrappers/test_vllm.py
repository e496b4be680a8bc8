"""``sttm_vllm`` with a stand-in for vLLM: the answers, records and certificate of the other
wrappers."""

from __future__ import annotations

import os
import sys
from dataclasses import fields

import fake_vllm
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.model_utils.gen_metrics import reset_logged_metrics, summarize_logged_metrics

from sttm_lmms.errors import NothingReducedError, STTMError
from sttm_lmms.model_wrappers.models import LlavaOneVision, LlavaVideo, Qwen2VL
from sttm_lmms.model_wrappers.vllm import VLLM, SimpleVLLM
from sttm_lmms.serving.connection import Reply

OURS = {"llava_video": LlavaVideo, "llava_onevision": LlavaOneVision}
QUESTIONS = ("What moves?", "Which colour is the disc, and when is it there?", "Why?")


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setenv("STTM_VLLM", "0")  # opening vLLM may set it
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def videos(data):
    return sorted((data / "vnbench" / "videos").iterdir())


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture
def build(checkpoints, decoders):
    def make(cls, checkpoint="llava_video", **arguments):
        amount = {} if {"method", "preset"} & set(arguments) else {"budget": 0.5}
        cache = {"decoder_cache": str(decoders)} if issubclass(cls, VLLM) else {}
        own = {"pretrained": str(checkpoints[checkpoint]), "device": "cpu", "max_frames": 4}
        return cls(**{**own, **amount, **cache, **arguments})

    return make


def ask(wrapper, documents, **gen_kwargs):
    wrapper.task_dict = {"t": {"test": documents}}

    def messages(document):
        video, text = document
        return [{"role": "user", "content": [{"type": "video", "url": str(video)}, {"type": "text", "text": text}]}]

    gen_kwargs = {"max_new_tokens": 8, **gen_kwargs}
    metadata = [{"task": "t", "doc_id": number, "repeats": 1} for number in range(len(documents))]
    requests = [
        Instance("generate_until", ("", messages, gen_kwargs, number, "t", "test"), 0, metadata[number])
        for number in range(len(documents))
    ]
    return list(wrapper.generate_until(requests))


def answers(results):
    """Text and tokens before, after and generated."""
    keys = ("visual_tokens", "kept_tokens", "input_tokens", "output_tokens", "layer_tokens")
    records = [result.token_counts.to_dict() for result in results]
    return [(result.text, *(record[key] for key in keys)) for result, record in zip(results, records, strict=True)]


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("method", [{"budget": 0.3}, {"method": "none"}, {"method": "random", "budget": 0.5}])
def test_the_answers_of_our_own_engine(family, method, build, vllm, videos):
    documents = [(video, question) for question in QUESTIONS for video in videos]
    first_layer = {} if method.get("method") == "none" else {"start_layer": 0}
    method = {"method": "sttm", **method}
    expected = answers(ask(build(OURS[family], family, **method, **first_layer), documents))
    assert answers(ask(build(VLLM, family, **method), documents)) == expected
    assert len({text for text, *_ in expected}) > 1


def test_a_pack_holds_questions_and_videos_and_one_video_is_one_tensor(build, vllm, videos):
    documents = [(video, question) for video in videos for question in QUESTIONS]
    wrapper = build(VLLM)
    records = [result.token_counts.to_dict() for result in ask(wrapper, documents)]
    (llm,) = vllm.llms
    ((prompts, _),) = llm.calls
    assert len(prompts) == len(documents) == 9
    assert [record["reused"] for record in records] == [False, True, True] * 3
    engine = wrapper._engine
    assert (engine.counters.videos_decoded, engine.counters.vision_passes, engine.counters.prefills) == (3, 3, 3)
    for first in range(0, 9, 3):
        embeds = [prompt["prompt_embeds"] for prompt in prompts[first : first + 3]]
        shared = records[first]["kept_tokens"]
        assert all(torch.equal(embeds[0][:shared], other[:shared]) for other in embeds[1:])
        assert embeds[0][:shared].numpy().tobytes() == embeds[2][:shared].numpy().tobytes()


@pytest.mark.parametrize("method", [{"budget": 0.3}, {"method": "none"}])
def test_what_waits_for_vllm_holds_no_more_than_it_counts(method, build, vllm, videos, monkeypatch):
    held, counted = [], []

    def look(self, prompts):
        tensors = [given["prompt_embeds"] for given, _ in prompts]
        counted.append(sum(tensor.nbytes for tensor in tensors))
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        return [Reply([1], [0], 0) for _ in prompts]

    monkeypatch.setattr("sttm_lmms.serving.connection._VLLM.ask", look)
    ask(build(VLLM, **method), [(videos[0], question) for question in QUESTIONS])
    assert held == counted


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("no_repeat_ngram_size", 3, "no_repeat_ngram_size=0 in --gen_kwargs turns it off"),
        ("suppress_tokens", [5], r"suppress_tokens=\[5\], which vLLM does not have: remove it"),
        ("guidance_scale", 2.0, "guidance_scale=2.0, which is not supported"),
    ],
)
def test_what_a_checkpoint_asks_for_and_vllm_cannot_do_is_refused(name, value, sentence, build, vllm, videos):
    wrapper = build(VLLM)
    setattr(wrapper.model.generation_config, name, value)
    with pytest.raises(ValueError, match=sentence):
        ask(wrapper, [(videos[0], "Why?")])


def test_packs_are_bounded(build, vllm, videos):
    documents = [(video, question) for video in videos for question in QUESTIONS]
    wrapper = build(VLLM, queue_gb=1e-9)
    one_by_one = answers(ask(wrapper, documents))
    assert [len(prompts) for prompts, _ in vllm.llms[0].calls] == [1] * 9
    assert answers(ask(build(VLLM), documents)) == one_by_one


def test_nothing_is_shared_where_that_is_asked_for(build, vllm, videos):
    documents = [(videos[0], question) for question in QUESTIONS]
    shared, alone = build(VLLM), build(VLLM, reuse="none")
    assert [r.text for r in ask(shared, documents)] == [r.text for r in ask(alone, documents)]
    assert alone._engine.counters.vision_passes == alone._engine.counters.prefills == 3
    assert [llm.settings["enable_prefix_caching"] for llm in vllm.llms] == [True, False]


@pytest.mark.parametrize(
    "settings",
    [{"until": ["~", "_"]}, {"repetition_penalty": 1.4}, {"min_new_tokens": 8}, {"max_new_tokens": 3, "num_beams": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_generation_settings_mean_what_they_mean_elsewhere(settings, build, vllm, videos):
    documents = [(video, question) for video in videos[:2] for question in QUESTIONS]
    settings = {"max_new_tokens": 24, **settings}
    expected = [r.text for r in ask(build(LlavaVideo, start_layer=0), documents, **settings)]
    assert [r.text for r in ask(build(VLLM), documents, **settings)] == expected
    plain = [r.text for r in ask(build(LlavaVideo, start_layer=0), documents, max_new_tokens=24)]
    assert expected != plain or "min_new_tokens" in settings


def test_sampling_is_handed_on(build, vllm, videos):
    ask(build(VLLM), [(videos[0], "Why?")], temperature=0.7, top_p=0.9, top_k=5)
    ((_, (params,)),) = vllm.llms[0].calls
    assert (params.temperature, params.top_p, params.top_k) == (0.7, 0.9, 5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 2}, "num_beams=2: vLLM has no beam search"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3: vLLM has no such setting"),
    ],
)
def test_what_vllm_cannot_generate_is_refused(settings, sentence, build, vllm, videos):
    with pytest.raises(ValueError, match=sentence):
        ask(build(VLLM), [(videos[0], "Why?")], **settings)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"start_layer": 2}, "start_layer=2 acts inside of the decoder.*say start_layer=0, or use --model sttm_llava"),
        ({"decode_positions": "reference"}, "say decode_positions=continue"),
        ({"method": "fastv", "budget": 0.5}, "method=fastv reads attention"),
        ({"method": "dycoke", "budget": 0.5}, "method=dycoke edits the KV cache"),
        ({"method": "streaming_llm", "budget": 0.5}, "method=streaming_llm edits the KV cache or the mask"),
        ({"method": "pyramid", "budget": 0.5}, "method=pyramid acts inside of the decoder"),
        ({"attn_implementation": "sdpa"}, "attn_implementation='sdpa' has no meaning"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization=1.5"),
        ({"queue_gb": 0}, "queue_gb=0"),
        ({"family": "qwen2_vl"}, "unknown family 'qwen2_vl'. Known: llava_onevision, llava_video"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(arguments, sentence, build, vllm):
    with pytest.raises(ValueError, match=sentence):
        build(VLLM, **arguments)
    assert vllm.llms == []


def test_a_family_that_vllm_is_not_extended_for_is_refused(build, vllm, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["InternVLForConditionalGeneration"]}')
    with pytest.raises(STTMError, match=r"internvl is not served by vLLM here; use --model sttm_internvl"):
        build(VLLM, pretrained=str(tmp_path))


def test_frames_prompts_and_counts_where_vllm_sees_itself(build, vllm, videos):
    """vLLM's own answers are compared by ``make test-vllm``; here, all that surrounds them."""
    documents = [(video, question) for video in videos for question in QUESTIONS]
    ours = answers(ask(build(Qwen2VL, "qwen2_vl", budget=0.3, start_layer=0, floor="join"), documents))
    wrapper = build(VLLM, "qwen2_vl", budget=0.3)
    results = ask(wrapper, documents)
    # Visual tokens, kept tokens and the prompt's length.
    assert [told[1:4] for told in answers(results)] == [told[1:4] for told in ours]
    assert {parameter.device.type for parameter in wrapper.model.parameters()} == {"meta"}
    (llm,) = vllm.llms
    assert llm.settings["hf_overrides"]["sttm"] == {
        "method": "sttm",
        **{field.name: getattr(wrapper._engine.config, field.name) for field in fields(wrapper._engine.config)},
    }
    assert os.environ["STTM_VLLM"] == "1"
    frames = [prompt["multi_modal_data"]["video"][0][0] for prompt in llm.calls[0][0]]
    assert all(frames[0] is other for other in frames[1:3])  # a video's questions share its frames
    assert wrapper._engine.counters.videos_decoded == len(videos)
    provenance = results[0].token_counts.to_dict()["provenance"]
    assert (provenance["family"], provenance["attention"]) == ("qwen2_vl", "vLLM 0.32.0")
    assert (provenance["settings"]["start_layer"], provenance["settings"]["floor"]) == (0, "join")
    wrapper.clean()
    totals = results[0].token_counts.to_dict()["run"]
    assert (totals["questions"], totals["reduced_share"]) == (9, 1.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "fastv", "budget": 0.5}, "depends on the video"),
        ({"start_layer": 2}, "in front of its first layer only"),
        ({"features": "features"}, "features=features has no meaning here: vLLM sees the frames"),
    ],
)
def test_what_vllm_cannot_do_with_frames_is_refused(arguments, sentence, build, vllm):
    with pytest.raises(ValueError, match=sentence):
        build(VLLM, "qwen2_vl", **arguments)
    assert vllm.llms == []


def test_vllm_is_missing_or_of_another_version(build, monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr("sttm_lmms.serving.connection.find_spec", lambda name: None)
    with pytest.raises(STTMError, match=r"not installed: pip install 'sttm-lmms\[vllm\]'"):
        build(VLLM)
    fake_vllm.install(monkeypatch, "0.34.1")
    with pytest.raises(STTMError, match=r"knows vLLM 0.32 and 0.33, not 0.34.1: install one of these"):
        build(VLLM)


def test_several_processes_are_refused(build, vllm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started.*tensor_parallel_size"):
        build(VLLM)


def test_loglikelihood_is_refused(build, vllm, videos):
    wrapper = build(SimpleVLLM)
    wrapper.task_dict = {"t": {"test": [videos[0]]}}
    args = ("What moves?", "A", lambda video: [str(video)], 0, "t", "test")
    request = Instance("loglikelihood", args, 0, {"task": "t", "doc_id": 0, "repeats": 1})
    with pytest.raises(ValueError, match=r"vLLM does not score.*sttm_llava_video"):
        wrapper.loglikelihood([request])


def test_a_broken_video_leaves_the_others_their_answers(build, vllm, videos, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    documents = [(empty, "A?"), (videos[0], "Why?"), (empty, "C?")]
    wrapper = build(VLLM)
    records = [result.token_counts.to_dict() for result in ask(wrapper, documents)]
    assert ["error" in record for record in records] == [True, False, True]
    assert [record["visual_tokens"] > 0 for record in records] == [False, True, False]
    assert [failure.questions for failure in wrapper._engine.failures] == [2]


def test_the_decoder_is_exported_once_and_the_rest_is_all_that_is_loaded(build, vllm, tmp_path):
    wrapper = build(VLLM, decoder_cache=str(tmp_path))
    assert len(wrapper.model.model.language_model.layers) == 0
    (config,) = tmp_path.glob("*/config.json")
    written = config.stat().st_mtime_ns
    build(VLLM, decoder_cache=str(tmp_path))
    assert config.stat().st_mtime_ns == written
    assert {llm.settings["model"] for llm in vllm.llms} == {str(config.parent)}


def test_certificate_and_throughput_in_the_result_file(build, vllm, videos):
    reset_logged_metrics()
    wrapper = build(VLLM, budget=0.3)
    (first, *_) = ask(wrapper, [(video, question) for video in videos for question in QUESTIONS])
    provenance = first.token_counts.to_dict()["provenance"]
    assert (provenance["attention"], provenance["settings"]["start_layer"]) == ("vLLM 0.32.0", 0)
    assert provenance["family"] == "llava_video"
    wrapper.clean()
    totals = first.token_counts.to_dict()["run"]
    assert (totals["questions"], totals["prefills"], totals["reduced_share"]) == (9, 3, 1.0)
    assert totals["questions_per_s"] > 0
    assert totals["merge_s"] > 0
    assert totals["kept_share_max"] <= 0.3
    assert "ttft_s" not in totals
    logged = summarize_logged_metrics()
    assert (logged["avg_reduced_share"], logged["avg_merge_s"]) == (1.0, totals["merge_s"])
    assert "avg_ttft_first_s" not in logged


def test_a_run_that_reduced_nothing_fails(build, vllm, videos):
    wrapper = build(VLLM, method="sttm", spatial_threshold=1.5, temporal_threshold=1.5)
    ask(wrapper, [(videos[0], "Why?")])
    with pytest.raises(NothingReducedError):
        wrapper.clean()

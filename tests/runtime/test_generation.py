"""Generation settings in force: the checkpoint's own, the request's, and what penalties may look
at."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from footage import FAMILY_NAMES, VIDEO

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.testing.tiny import build_tiny_checkpoint

# generation_config.json of lmms-lab/LLaVA-Video-7B-Qwen2 and of the 72B OneVision chat model.
PUBLISHED = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
QUESTIONS = ("What moves where?", "Why, why, why?", "".join(map(chr, range(1, 127))))
"""The last one holds nearly every token that these models can say."""
LLAVA = ("llava_video", "llava_onevision")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """``loaded(family)``: a checkpoint that holds the published file, then a penalty that shows."""
    kept = {}

    def load(family: str, penalty: float = 1.8):
        if family not in kept:
            folder = build_tiny_checkpoint(tmp_path_factory.mktemp(family), family, seed=1)
            file = folder / "generation_config.json"
            known = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(known | PUBLISHED))
            kept[family] = load_pretrained(folder, dtype=torch.float32)
            assert kept[family][0].generation_config.repetition_penalty == 1.05
            kept[family][0].generation_config.repetition_penalty = penalty
        return kept[family]

    return load


def requests(videos, **generation) -> list[Request]:
    return [
        Request(
            [{"role": "user", "content": [{"type": "video", "video": str(videos[0])}, {"type": "text", "text": text}]}],
            GenerationSettings.of(**{"max_new_tokens": 8, **generation}),
        )
        for text in QUESTIONS
    ]


def plainly(loaded, config, videos, *, ids: bool, **arguments) -> list[str]:
    """``model.generate`` on the prepared prompt, with its ids or, as the published LLaVA pipeline,
    without."""
    model, processor = loaded
    engine = Engine(model, processor, config, video=VIDEO)
    found = []
    for request in requests(videos):
        prepared = engine.prepare(request)
        extra = {} if prepared.position_ids is None else {"position_ids": prepared.position_ids}
        if ids:
            extra["input_ids"] = prepared.input_ids
        with TokenReducer(model, config, spans=prepared.spans), torch.inference_mode():
            row = model.generate(
                inputs_embeds=prepared.inputs_embeds,
                attention_mask=torch.ones_like(prepared.input_ids),
                max_new_tokens=8,
                do_sample=False,
                **extra,
                **arguments,
            )[0]
        new = row[prepared.input_ids.shape[1] if ids else 0 :]
        found.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return found


@pytest.mark.parametrize("config", [None, STTMConfig(0.995, 0.995)], ids=["all tokens", "sttm"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_penalties_see_what_they_saw_in_the_published_pipeline(loaded, videos, family, config):
    """LLaVA: new tokens only. Qwen2-VL: the prompt too. The same with and without reuse, one by one
    and in a batch."""
    model, processor = loaded(family)
    by = {ids: plainly((model, processor), config, videos, ids=ids) for ids in (True, False)}
    assert by[True] != by[False]
    expected = by[family not in LLAVA]
    for reuse, batch_size in (("none", 1), ("features", 1), ("prefix", 1), ("prefix", 3)):
        answers = Engine(model, processor, config, video=VIDEO, reuse=reuse).generate(
            requests(videos), batch_size=batch_size
        )
        assert [answer.text for answer in answers] == expected, (reuse, batch_size)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_settings_of_the_request_win(loaded, videos, family):
    model, processor = loaded(family)
    expected = plainly((model, processor), None, videos, ids=True, repetition_penalty=1.0)
    assert expected != plainly((model, processor), None, videos, ids=family not in LLAVA)
    engine = Engine(model, processor, video=VIDEO)
    assert [a.text for a in engine.generate(requests(videos, repetition_penalty=1))] == expected
    assert [a.text for a in engine.generate(requests(videos, repetition_penalty=1.0, num_beams=3))] == plainly(
        (model, processor), None, videos, ids=True, repetition_penalty=1.0, num_beams=3
    )


@pytest.mark.parametrize("reuse", ["none", "prefix"])
def test_repeated_ngrams_of_the_prompt_are_allowed(loaded, videos, reuse):
    model, processor = loaded("llava_video")
    settings = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 1}
    expected = plainly((model, processor), None, videos, ids=False, **settings)
    assert expected != plainly((model, processor), None, videos, ids=True, **settings)
    engine = Engine(model, processor, video=VIDEO, reuse=reuse)
    assert [answer.text for answer in engine.generate(requests(videos, **settings))] == expected


DECIDED = {
    **{"use_cache": False, "cache_implementation": "static", "prefill_chunk_size": 7, "max_cache_len": 3},
    **{"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True, "output_attentions": True},
    **{"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "num_return_sequences": 2, "is_assistant": True},
    **{"min_length": 900, "max_length": 3},
}


@pytest.mark.parametrize("reuse", ["none", "prefix"])
@pytest.mark.parametrize("config", [None, STTMConfig(budget=0.3)], ids=["all tokens", "sttm"])
def test_a_checkpoint_does_not_decide_what_the_engine_needs(tiny, videos, monkeypatch, config, reuse):
    model, processor = tiny("llava_video")
    engine = Engine(model, processor, config, video=VIDEO, reuse=reuse)
    expected = [answer.text for answer in engine.generate(requests(videos))]
    for name, value in {**DECIDED, "do_sample": True}.items():  # several sequences are valid only where one samples
        monkeypatch.setattr(model.generation_config, name, value)
    assert [answer.text for answer in engine.generate(requests(videos))] == expected


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_checkpoint_that_was_trained_without_a_cache(tmp_path, videos, family, file):
    """Trainers save ``use_cache=false`` after gradient checkpointing."""
    folder, found = build_tiny_checkpoint(tmp_path / family, family, "hf", seed=1), []
    for use_cache in (True, False):
        (folder / "generation_config.json").unlink(missing_ok=True)
        known = json.loads((folder / "config.json").read_text()) if file == "config.json" else {"eos_token_id": [258]}
        for part in (known, known.get("text_config", {})):
            part["use_cache"] = use_cache
        (folder / file).write_text(json.dumps(known))
        model, processor = load_pretrained(folder, dtype=torch.float32)
        engine = Engine(model, processor, STTMConfig(budget=0.3), video=VIDEO)
        scored = engine.loglikelihood([(request, "Blue") for request in requests(videos)])
        found.append(([a.text for a in engine.generate(requests(videos))], [score.logprob for score in scored]))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 1.5), ("penalty_alpha", 0.6), ("dola_layers", "high")])
def test_ways_to_decode_that_are_not_supported_are_refused_by_name(tiny, videos, monkeypatch, name, value):
    model, processor = tiny("llava_video")
    monkeypatch.setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"has {name}={value!r}, which is not supported"):
        Engine(model, processor, video=VIDEO).generate(requests(videos)[:1])


def test_what_the_engine_decides_cannot_be_asked_for(tiny, videos):
    request = replace(requests(videos)[0], generation=GenerationSettings(extra=(("use_cache", False),)))
    with pytest.raises(ValueError, match="use_cache are decided by the engine"):
        Engine(*tiny("llava_video"), video=VIDEO).generate([request])


def test_stop_texts_of_a_checkpoint_end_answers(tiny, videos, monkeypatch):
    model, processor = tiny("llava_video")
    (full,) = Engine(model, processor, video=VIDEO).generate(requests(videos)[:1])
    monkeypatch.setattr(model.generation_config, "stop_strings", [full.text[2]])
    (short,) = Engine(model, processor, video=VIDEO).generate(requests(videos)[:1])
    assert short.output_tokens < full.output_tokens


def test_other_settings_reach_generate(loaded, videos, monkeypatch):
    model, processor = loaded("llava_video")
    seen = {}
    generate = type(model).generate

    def spy(self, **kwargs):
        seen.update(kwargs)
        return generate(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_new_tokens": 2}
    Engine(model, processor, video=VIDEO).generate(requests(videos, **settings)[:1])
    assert settings.items() <= seen.items()


def test_names_that_generate_does_not_know():
    settings = GenerationSettings.of(max_new_tokens=3, repetition_penalty=1.2, length_penalty=0.5)
    assert settings.extra == (("repetition_penalty", 1.2), ("length_penalty", 0.5))
    assert settings.arguments()["repetition_penalty"] == 1.2
    with pytest.raises(ValueError, match=r"setting 'repetion_penalty'\. Did you mean 'repetition_pen"):
        GenerationSettings.of(repetion_penalty=1.2)

"""Generation settings in force: the checkpoint's own, the request's, and what penalties may look at."""

from __future__ import annotations

import json

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
    """``model.generate`` on the prepared prompt, with its ids or, as the published LLaVA pipeline, without."""
    model, processor = loaded
    engine = Engine(model, processor, config, video=VIDEO)
    found = []
    for request in requests(videos):
        prepared = engine._prepare(request, engine._encode([], request), config)
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
    """LLaVA: new tokens only. Qwen2-VL: the prompt too. The same with and without reuse, one by one and in a batch."""
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

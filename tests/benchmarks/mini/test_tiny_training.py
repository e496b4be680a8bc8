"""The training of the embedded checkpoint: its forward pass is the model's own, it learns, it resumes, it exports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.prompt import build_prompt

FRAMES = 8


@pytest.fixture(scope="module")
def student():
    from tiny.stages import Student

    made = Student().eval()
    with torch.no_grad():  # front layers start as the identity; here they must matter
        for layer in made.decoder.model.layers[:2]:
            torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.05)
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
    return made


@pytest.fixture
def batch(student):
    from tiny.stream import CELLS, draw, make_batch, synthetic_features

    rng = np.random.default_rng(5)
    drawn = [draw(rng, "ord", FRAMES) for _ in range(2)]
    features = torch.stack([synthetic_features(rng, student.codes, video, FRAMES) for video in drawn])
    return make_batch(rng, student.tokenizer, drawn, features, CELLS)


@torch.no_grad()
def test_the_forward_pass_is_that_of_transformers(student, batch):
    """All questions of a video at once give the logits that each gives alone in Qwen2ForCausalLM."""
    from tiny.decoder import run

    embed = student.decoder.model.embed_tokens
    trace = run(student.decoder, student.context(batch.visual), embed(batch.ids), batch.lengths)
    ours = student.decoder.lm_head(student.decoder.model.norm(trace.text[6]))
    start = 0
    for length in batch.lengths:
        question = batch.ids[:1, start : start + length]
        sequence = torch.cat((student.context(batch.visual[:1]), embed(question)), 1)
        theirs = student.decoder(inputs_embeds=sequence).logits[:, -length:]
        torch.testing.assert_close(ours[:1, start : start + length], theirs, atol=1e-4, rtol=1e-4)
        start += length


@torch.no_grad()
def test_dropping_background_keeps_every_needle(student, batch):
    from tiny.stages import drop_background

    stay = drop_background(batch, np.random.default_rng(0), 0.2)
    assert stay.shape[1] == round(0.2 * batch.needle.shape[1])
    for row in range(len(stay)):
        kept = batch.needle[row, stay[row]]
        assert sorted(kept[kept >= 0].tolist()) == sorted(batch.needle[row][batch.needle[row] >= 0].tolist())


def test_needles_stand_where_the_events_are(batch):
    for row, video in enumerate(batch.drawn):
        places = (batch.needle[row] >= 0).nonzero()[:, 0]
        seconds = (batch.time[row, places] + 0.501).long()
        found = list(zip(seconds.tolist(), batch.needle[row, places].tolist(), strict=True))
        assert found == [(event.second, event.index) for event in video.events]


def test_every_phrase_is_one_token_and_any_text_comes_back(student):
    from tiny.text import SUFFIX, phrases

    tokenizer = student.tokenizer
    for phrase in phrases():
        assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1, phrase
    text = build_prompt("Was ist das, größer?", [f"A. {OBJECTS[0]}.", "B. a cat.", "C. 3.", "D. x."]) + SUFFIX + "A"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "A"


def test_a_stopped_stage_goes_on_as_if_unbroken(tmp_path):
    from tiny.loop import Schedule, train

    def fit(folder, stop):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 1)

        def step(_, rng):
            x = torch.from_numpy(rng.standard_normal((8, 4))).float()
            return (module(x) - x.sum(1, keepdim=True)).pow(2).mean(), {}

        class Stopped(Exception):
            pass

        def stopping(number, rng):
            if number == stop:
                raise Stopped
            return step(number, rng)

        folder.mkdir(exist_ok=True)
        for fn in (stopping, step):
            try:
                train(
                    *("fit", Schedule(60, 0.05, warmup=5), module, module.parameters(), fn),
                    folder=folder,
                    log=folder / "log.jsonl",
                    seed=1,
                    every=10,
                )
            except Stopped:
                torch.nn.init.zeros_(module.weight)  # what was in memory is lost
        return module.weight.detach().clone()

    unbroken, resumed = fit(tmp_path / "a", -1), fit(tmp_path / "b", 35)
    torch.testing.assert_close(unbroken, resumed)
    assert (unbroken - 1).abs().max() < 0.5, "it learned that the weights are 1"


def test_the_export_loads_as_the_original_layout(student, batch, tmp_path):
    from tiny.export import export

    from sttm_lmms import load_pretrained

    model, processor = load_pretrained(export(student, tmp_path / "out"), dtype=torch.float32, device_map="cpu")
    pixels = torch.rand(2, 3, 56, 56) * 2 - 1
    with torch.no_grad():
        seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[
            model.config.vision_feature_layer
        ]
        ours = student.vision(pixels)
        theirs = model.model.apply_pooling(model.model.multi_modal_projector(seen))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert processor.tokenizer.convert_tokens_to_ids("red disc") == student.tokenizer.convert_tokens_to_ids("red disc")


@pytest.mark.slow
def test_all_stages_run(tmp_path):
    from tiny import stages
    from tiny.loop import Schedule

    student = stages.Student()
    place = stages.Place(tmp_path, tmp_path / "log.jsonl")
    for stage in stages.FREE_STAGES.values():
        stage(student, place, Schedule(2, 1e-3))
    bank = stages.make_bank(student, place, 1, 1)
    for stage in stages.BANK_STAGES.values():
        stage(student, place, Schedule(2, 1e-3), bank)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5

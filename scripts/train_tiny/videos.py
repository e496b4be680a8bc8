"""Training videos as token features, put together from features of real views faster than frames
can be drawn.

They come with questions, and with what every token could know (dense supervision).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import nn

from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS, paint
from sttm_lmms.benchmarks.mini.questions import (
    SIZES,
    Event,
    Question,
    ask_counting,
    ask_ordering,
    ask_retrieval,
    place,
    sample_objects,
    slots,
)
from sttm_lmms.benchmarks.mini.scenery import TEXTURED
from sttm_lmms.benchmarks.prompt import build_prompt

from .codes import MAX_FRAMES, OBJECT_NORM, Codes
from .text import SUFFIX
from .vision import clip, prepare, random_cell, view


@dataclass(frozen=True)
class Drawn:
    """One video: where its needles are and what is asked."""

    events: tuple[Event, ...]
    questions: tuple[Question, ...]


def draw(rng: np.random.Generator, layout: str, seconds: float) -> Drawn:
    """Needles and questions of one training video.

    ``layout`` ``"ord"`` gives three questions on ordering and one on retrieval, ``"cnt"`` three on
    counting and one on retrieval: the same kinds at the same places in every video of a batch.
    """
    room = slots(seconds)
    objects, asked = sample_objects(rng, layout, room)
    if layout == "cnt" and rng.random() < 0.5:
        objects = several_counts(rng, room)
        asked = (objects[0],)
    events = place(rng, objects, seconds, GRID)
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


def cell_of(event: Event) -> int:
    return int(event.y * GRID) * GRID + int(event.x * GRID)


@dataclass(frozen=True)
class Bank:
    """Features in half precision.

    Attributes:
        clips: ``[n, T, cells, C]``, footage at one step a second.
        needles: ``[K, m, cells, C]``, ``m`` single steps for each object with one needle in it.
        cells: ``[K, m]``, the cell of that needle's centre.
    """

    clips: torch.Tensor
    needles: torch.Tensor
    cells: torch.Tensor


@torch.no_grad()
def build_bank(vision: nn.Module, rng: np.random.Generator, clips: int, per_object: int) -> Bank:
    """Draw footage and needles and run the vision side over them."""
    made = []
    for _ in range(clips):
        views = clip(TEXTURED.footage(rng, MAX_FRAMES))
        made.append(vision(prepare(views, rng)).half())
    needles, cells = [], torch.zeros(len(OBJECTS), per_object, dtype=torch.long)
    scenes = [TEXTURED.scene(rng) for _ in range(64)]
    for index in range(len(OBJECTS)):
        views = []
        for i in range(per_object):
            scenes[int(rng.integers(len(scenes)))] = TEXTURED.scene(rng)
            scene = scenes[int(rng.integers(len(scenes)))]
            size = float(rng.uniform(*SIZES))
            row, column = random_cell(rng, size)
            dx, dy = rng.uniform(-0.25, 0.25, 2)
            x, y = (column + 0.5 + dx) / GRID, (row + 0.5 + dy) / GRID
            views.append(prepare(paint(view(rng, scene), index, x, y, size), rng))
            cells[index, i] = row * GRID + column
        needles.append(vision(torch.cat(views)).half())
    return Bank(torch.stack(made), torch.stack(needles), cells)


def around(cell: int) -> torch.Tensor:
    """Cells at most one row and one column apart from ``cell``, itself among them."""
    rows, columns = (torch.arange(max(0, i - 1), min(GRID, i + 2)) for i in divmod(cell, GRID))
    return (rows[:, None] * GRID + columns).flatten()


def compose(rng: np.random.Generator, bank: Bank, drawn: Drawn, steps: int) -> tuple[torch.Tensor, Drawn]:
    """Features ``[T, cells, C]`` of a video with these events, and the events with the places that
    the bank gave them.

    An inserted needle brings its whole view, an edited one the cells around it.
    """
    footage = bank.clips[int(rng.integers(len(bank.clips)))]
    start = int(rng.integers(0, len(footage) - steps + 1))
    features = footage[start : start + steps].clone()
    insert = rng.random() < 0.5
    events = []
    for event in drawn.events:
        choice = int(rng.integers(bank.cells.shape[1]))
        cell = int(bank.cells[event.index, choice])
        cover = slice(None) if insert else around(cell)
        features[event.second, cover] = bank.needles[event.index, choice, cover]
        events.append(replace(event, x=(cell % GRID + 0.5) / GRID, y=(cell // GRID + 0.5) / GRID))
    return features.float(), replace(drawn, events=tuple(events))


@dataclass(frozen=True)
class Batch:
    """Videos of one layout and length.

    Attributes:
        visual: ``[B, N, C]`` features of the visual tokens that are shown.
        step, cell: ``[B, N]``, step in time and cell of each token.
        steps: steps in time of the whole video.
        needle: ``[B, N]`` object whose centre the token holds, or -1.
        ids: ``[B, L]`` text tokens of all questions, one after the other; lengths: of each
            question.
        drawn: the videos.
    """

    visual: torch.Tensor
    step: torch.Tensor
    cell: torch.Tensor
    steps: int
    needle: torch.Tensor
    ids: torch.Tensor
    lengths: list[int]
    drawn: list[Drawn]

    def keep(self, places: torch.Tensor) -> Batch:
        """Only the visual tokens at ``places [B, K]``."""
        visual = self.visual.gather(1, places[..., None].expand(-1, -1, self.visual.shape[-1]))
        step, cell, needle = (value.gather(1, places) for value in (self.step, self.cell, self.needle))
        return replace(self, visual=visual, step=step, cell=cell, needle=needle)


def synthetic_features(rng: np.random.Generator, codes: Codes, drawn: Drawn, steps: int) -> torch.Tensor:
    """A stand-in for what the trained vision side says of a video, ``[T, 49, C]``."""
    cells = GRID * GRID
    noise = torch.from_numpy(rng.standard_normal((steps, cells, codes.background.shape[0])).astype(np.float32))
    grey = torch.from_numpy(rng.normal(0.45, 0.15, (steps, 1, 1)) + rng.normal(0, 0.08, (steps, cells, 1)))
    tint = torch.from_numpy(rng.normal(0, 0.04, (steps, cells, 3)))
    features = codes.background_target((grey + tint).float()) + 0.06 * noise
    for event in drawn.events:
        place_at = (event.second, cell_of(event))
        strength = float(rng.uniform(0.75, 1.05))
        needle = strength * OBJECT_NORM * codes.objects[event.index] + (1 - strength) * features[place_at]
        features[place_at] = needle + 0.1 * noise[place_at]
    return features


def pick_cells(rng: np.random.Generator, drawn: list[Drawn], steps: int, per_step: int) -> torch.Tensor:
    """Sorted cells ``[B, T, per_step]``: those with a needle's centre always, background at
    random."""
    priority = rng.random((len(drawn), steps, GRID * GRID))
    for row, video in enumerate(drawn):
        for event in video.events:
            priority[row, event.second, cell_of(event)] = -1
    return torch.from_numpy(np.sort(np.argsort(priority, -1)[..., :per_step], -1))


def needle_map(drawn: list[Drawn], steps: int) -> torch.Tensor:
    """Object whose centre lies in each cell ``[B, T, 49]``, or -1."""
    found = torch.full((len(drawn), steps, GRID * GRID), -1)
    for row, video in enumerate(drawn):
        for event in video.events:
            found[row, event.second, cell_of(event)] = event.index
    return found


def encode_questions(tokenizer: object, drawn: list[Drawn]) -> tuple[torch.Tensor, list[int]]:
    """Token ids ``[B, L]`` of all questions with their answers, and the length of each question."""
    texts = [
        "\n" + build_prompt(q.text, q.options) + SUFFIX + "ABCD"[q.answer] for video in drawn for q in video.questions
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    count = len(drawn[0].questions)
    lengths = [len(row) for row in ids[:count]]
    rows = [list(chain.from_iterable(ids[i : i + count])) for i in range(0, len(ids), count)]
    return torch.tensor(rows), lengths


def make_batch(
    rng: np.random.Generator, tokenizer: object, drawn: list[Drawn], features: torch.Tensor, per_step: int
) -> Batch:
    """Choose ``per_step`` cells of ``features [B, T, cells, C]`` and write the questions down."""
    _, steps, _, width = features.shape
    cells = pick_cells(rng, drawn, steps, per_step)
    visual = features.gather(2, cells[..., None].expand(-1, -1, -1, width)).flatten(1, 2)
    needle = needle_map(drawn, steps).gather(2, cells).flatten(1)
    step = torch.arange(steps)[:, None].expand_as(cells).flatten(1)
    ids, lengths = encode_questions(tokenizer, drawn)
    return Batch(visual, step, cells.flatten(1), steps, needle, ids, lengths, drawn)

"""The control of the fine model: nothing is dropped or merged, no loss knows which visual tokens show needles.

1. ``start``: layers 2 and up learn the tasks from made-up features, a few cells of a step, each at the position that it
   has in the whole sequence; the time of a step is added by hand. No video is reduced here: there is none yet.
2. ``time``: layers 0 and 1 learn to add the time; that the text reads the video there costs nothing.
3. ``whole``: all layers learn from whole videos, every token of them.
"""

from __future__ import annotations

import numpy as np
import torch

from .bank import Bank
from .decoder import FRONT, LAYERS, Positions, run
from .loop import Schedule, train
from .losses import losses
from .stages import Place, layout_of, make_videos
from .stream import Batch
from .student import Student

CELLS = (1, 1, 2, 2, 3, 4, 6, 9, 13, 20, 25)
"""Cells of a step that ``start`` may show, one more choice after every eleventh part of it."""


def in_the_whole(batch: Batch, opening: int) -> Positions:
    """Every token at the position that it has in the whole sequence, and the questions behind it."""
    cells = batch.grid**2
    before = torch.arange(opening).expand(len(batch.visual), -1)
    places = torch.cat((before, opening + batch.step.cpu() * cells + batch.cell.cpu()), 1)
    return Positions(places.expand(3, -1, -1), opening + batch.steps * cells)


def start_stage(student: Student, place: Place, schedule: Schedule) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        reach = 1 + len(CELLS) * number // schedule.steps
        per_step = CELLS[int(rng.integers(max(0, reach - 5), reach))]
        batch = make_videos(student, rng, layout_of(number, ordering=2), per_step, None, videos=8)
        words = student.decoder.model.embed_tokens(batch.ids)
        context = student.context(batch.visual + student.time_code(batch))
        positions = in_the_whole(batch, len(student.prefix))
        trace = run(student.decoder, context, words, batch.lengths, layers=range(FRONT, LAYERS), positions=positions)
        return losses(student, trace, batch, needle_labels=False)

    train("start", schedule, student, student.core(), step, folder=place.folder, log=place.log, seed=11)


def whole_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    student.vision.requires_grad_(False)
    trained = [*student.decoder.parameters(), *student.heads.parameters()]

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = make_videos(student, rng, layout_of(number, ordering=2), student.shape.grid**2, bank, videos=4)
        words = student.decoder.model.embed_tokens(batch.ids)
        trace = run(student.decoder, student.context(batch.visual), words, batch.lengths)
        return losses(student, trace, batch, needle_labels=False)

    train("whole", schedule, student, trained, step, folder=place.folder, log=place.log, seed=12, every=20)

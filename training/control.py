"""The control of the fine model: nothing is dropped or merged, no loss knows which visual tokens show needles.

It starts where the fine model starts, and sees the same videos as often.

1. ``time``: layers 0 and 1 learn how many tokens a step has now. That the text reads the video there costs nothing.
2. ``whole``: all layers learn from whole videos, every token of them, and may read them where they like.
"""

from __future__ import annotations

import numpy as np
import torch

from .bank import Bank
from .decoder import run
from .loop import Schedule, train
from .losses import losses
from .stages import Place, layout_of, make_videos
from .student import Student


def whole_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    student.vision.requires_grad_(False)
    trained = [*student.decoder.parameters(), *student.heads.parameters()]

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = make_videos(student, rng, layout_of(number, ordering=2), student.shape.grid**2, bank, videos=4)
        words = student.decoder.model.embed_tokens(batch.ids)
        trace = run(student.decoder, student.context(batch.visual), words, batch.lengths)
        return losses(student, trace, batch, needle_labels=False)

    train("whole", schedule, student, trained, step, folder=place.folder, log=place.log, seed=12, every=20)

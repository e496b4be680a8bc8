"""The control of the fine model: nothing is dropped or merged, no loss knows which visual tokens show needles.

It starts where the fine model starts, and sees the same videos as often.

1. ``time``: as for the fine model.
2. ``whole``: layers 2 and up learn from whole videos, every token of them: those that ``coarse`` sees merged.
"""

from __future__ import annotations

import numpy as np
import torch

from .bank import Bank
from .loop import Schedule, train
from .stages import Place, core_step, layout_of, make_videos
from .student import Student


def whole_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = make_videos(student, rng, layout_of(number, ordering=2), student.shape.grid**2, bank, videos=4)
        return core_step(student, batch, needle_labels=False)

    train(
        "whole",
        schedule,
        student,
        student.core(),
        step,
        folder=place.folder,
        log=place.log,
        seed=8,
        every=20,
        log_every=20,
    )

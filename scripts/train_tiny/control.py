"""Controls of the fine model: no token is dropped or merged, no loss knows which visual tokens show needles.

The ``control`` starts from nothing; only its vision side is the fine model's. A decoder that starts with 1,500 tokens a
video learns nothing in the time there is, so that the videos grow: not by showing a part of the tokens, but with frames
of fewer cells, all of them shown.

1. ``grow``: layers 2 and up learn from made-up videos of 1x1 to 7x7 tokens a frame, every token of them.
2. ``whole``: the same from whole videos of 14x14 tokens a frame: those that ``coarse`` sees merged.
3. ``clock``: layers 0 and 1 learn to add the time, from nothing and without a cost for looking at the video there.

The ``late_control`` starts where the fine model starts, with its stage ``time``, then ``whole``.
"""

from __future__ import annotations

import numpy as np
import torch

from .bank import Bank
from .decoder import FRONT, HEADS, KV_HEADS
from .loop import Place, Schedule, train
from .stages import core_step, layout_of, whole_videos
from .stream import Batch, draw, make_batch, synthetic_features
from .student import Student

SIDES = (1, 2, 3, 4, 5, 7)


def small_videos(student: Student, rng: np.random.Generator, layout: str, side: int, videos: int) -> Batch:
    """Made-up videos of ``side x side`` tokens a frame; needles lie where they lie at the model's own grid."""
    steps, seconds = student.shape.length(rng)
    drawn = [draw(rng, layout, seconds, student.shape.grid) for _ in range(videos)]
    features = torch.stack([synthetic_features(rng, student.codes, video, steps, side) for video in drawn])
    return make_batch(rng, student.tokenizer, drawn, features, side * side, student.shape.lead)


@torch.no_grad()
def look_for_the_like(student: Student) -> None:
    """Start the core's keys as its queries: a word looks for tokens like itself before anything has been learned."""
    for layer in student.decoder.model.layers[FRONT:]:
        attention = layer.self_attn
        queries = attention.q_proj.weight.unflatten(0, (KV_HEADS, HEADS // KV_HEADS, -1))
        attention.k_proj.weight.copy_(queries[:, 0].flatten(0, 1))


def grow_stage(student: Student, place: Place, schedule: Schedule) -> None:
    look_for_the_like(student)

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        reach = 2 + (len(SIDES) - 1) * number // schedule.steps
        side = SIDES[int(rng.integers(min(reach, len(SIDES))))]
        batch = small_videos(student, rng, layout_of(number, ordering=2), side, videos=16 if side < 4 else 8)
        return core_step(student, batch, needle_labels=False)

    train("grow", schedule, student, student.core(), step, place, seed=10)


def whole_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = whole_videos(student, rng, layout_of(number, ordering=2), bank, videos=4)
        return core_step(student, batch, needle_labels=False)

    train("whole", schedule, student, student.core(), step, place, seed=8, every=20)

#!/usr/bin/env python
"""Train ``llava_video_tiny`` from scratch, six stages, each on top of the one before.

    PYTHONPATH=scripts python -m train_tiny.train --work WORK

1. ``vision``: tower and projector on single frames, cell by cell.
2. ``core``: decoder layers 2 and up learn the three tasks from a few synthetic tokens a frame, to
   which the time of the frame is added by hand.
3. ``video``: the same with features of real frames, a few cells a frame.
4. ``dense``: the same with any share of all cells, dropped at random, never those of needles.
5. ``settle``: the same at a low rate, background dropped at random or where it changes least.
6. ``front``: layers 0 and 1 learn to add the time to visual tokens and to leave everything else
   alone; the attention of the text to the video costs, so that what a question needs is read after
   the place where tokens are reduced.

Dropping background in stages 4 and 5 uses labels and makes benign reduction cheap for this model;
the cost in stage 6 makes the loss of a needle expensive. Without both, a model of this size reads
the video in layer 0 and no reduction matters. Every stage keeps its state in WORK and goes on from
there when the command is given again; the log is WORK/train.jsonl, the checkpoint WORK/checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .codes import MAX_FRAMES
from .decoder import FRONT, LAYERS, run
from .export import export
from .loop import Report, Schedule, Step, train_stage
from .losses import losses
from .student import SEED, Student
from .videos import GRID, Bank, Batch, build_bank, compose, draw, make_batch, synthetic_features
from .vision import frame_batch, vision_loss, vision_scores

SCHEDULES = {
    "vision": Schedule(1800, 3e-3),
    "core": Schedule(800, 2e-3),
    "video": Schedule(600, 1.5e-3),
    "dense": Schedule(1500, 1.2e-3),
    "settle": Schedule(500, 5e-4),
    "front": Schedule(500, 3e-3),
}
CLIPS, VIEWS_PER_OBJECT = 400, 150


def layout_of(step: int, ordering: int = 5) -> str:
    """Counting is the hardest to begin with: four steps of five. ``ordering``: one step in so many
    is about order."""
    return "cnt" if step % ordering else "ord"


def make_videos(
    student: Student, rng: np.random.Generator, layout: str, per_step: int, bank: Bank | None, *, videos: int = 16
) -> Batch:
    """A batch of videos of one random length, one frame a second; without a bank their features are
    made up."""
    steps = int(rng.integers(8, MAX_FRAMES + 1))
    drawn = [draw(rng, layout, steps - 1) for _ in range(videos)]
    if bank is None:
        features = torch.stack([synthetic_features(rng, student.codes, video, steps) for video in drawn])
    else:
        made = [compose(rng, bank, video, steps) for video in drawn]
        features, drawn = torch.stack([f for f, _ in made]), [video for _, video in made]
    return make_batch(rng, student.tokenizer, drawn, features, per_step)


def drop_background(
    batch: Batch, rng: np.random.Generator, share: float, priority: torch.Tensor | None = None
) -> torch.Tensor:
    """Sorted places ``[B, K]`` of the visual tokens that stay: every needle's, and background.

    ``priority`` ``[B, N]`` in [0, 1]: what is least stays first; by default it is drawn at random.
    """
    priority = torch.from_numpy(rng.random(batch.needle.shape)) if priority is None else priority.clone()
    priority[batch.needle >= 0] = -1
    keep = max(round(share * batch.needle.shape[1]), int((batch.needle >= 0).sum(1).max()))
    return priority.argsort(1)[:, :keep].sort(1).values


def stillness(batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """How little a token changes since the step before ``[B, N]``, roughly; for batches with all
    cells."""
    tokens = batch.visual.unflatten(1, (batch.steps, -1))
    same = torch.zeros(tokens.shape[:-1])
    same[:, 1:] = torch.cosine_similarity(tokens[:, 1:], tokens[:, :-1], dim=-1).clamp_min(0)
    noise = torch.from_numpy(rng.random(same.shape))
    return (0.9 * same + 0.1 * noise).flatten(1)


def random_share(rng: np.random.Generator, whole: float) -> float:
    """Share of the visual tokens that stay in a training step: sometimes (``whole``) all of them,
    often few."""
    return 1.0 if rng.random() < whole else float(np.exp(rng.uniform(np.log(0.08), np.log(0.8))))


class Recipe:
    """The stages' steps, as (step number, random numbers) -> (loss, what is logged)."""

    def __init__(self, student: Student, bank: Callable[[], Bank], schedules: dict[str, Schedule]) -> None:
        self.student, self.bank, self.schedules = student, bank, schedules

    def vision(self, _: int, rng: np.random.Generator) -> Report:
        pixels, labels, colours = frame_batch(rng)
        features, codes = self.student.vision(pixels), self.student.codes
        return vision_loss(features, labels, colours, codes), vision_scores(features, labels, codes)

    def core(self, number: int, rng: np.random.Generator) -> Report:
        per_step = int(rng.integers(1, 1 + min(6, 1 + number // 200)))
        return self._answer(make_videos(self.student, rng, layout_of(number), per_step, None))

    def video(self, number: int, rng: np.random.Generator) -> Report:
        choices = (4, 6, 9, 13, 20)
        reach = 2 + (len(choices) - 1) * number // self.schedules["video"].steps
        per_step = choices[int(rng.integers(min(reach, len(choices))))]
        return self._answer(make_videos(self.student, rng, layout_of(number), per_step, self.bank()))

    def dense(self, number: int, rng: np.random.Generator) -> Report:
        batch = self._whole(rng, layout_of(number, ordering=2))
        return self._answer(batch.keep(drop_background(batch, rng, random_share(rng, 0.15))))

    def settle(self, number: int, rng: np.random.Generator) -> Report:
        batch = self._whole(rng, layout_of(number, ordering=3))
        priority = stillness(batch, rng) if rng.random() < 0.6 else None
        return self._answer(batch.keep(drop_background(batch, rng, random_share(rng, 0.25), priority)))

    def front(self, number: int, rng: np.random.Generator) -> Report:
        """Visual tokens get their time, text passes unchanged; that it looks at the video costs."""
        student, size = self.student, len(self.student.prefix)
        batch = self._whole(rng, layout_of(number), videos=3)
        text = student.decoder.model.embed_tokens.weight.detach()[batch.ids]
        context = student.context(batch.visual).detach()
        trace = run(student.decoder, context, text, batch.lengths, layers=range(FRONT))
        seen = (trace.context[1][:, size:] - batch.visual - student.time_code(batch)).pow(2).sum(-1).mean()
        kept = (trace.text[1] - text).pow(2).sum(-1).mean()
        start = (trace.context[1][:, :size] - context[:, :size]).pow(2).sum(-1).mean()
        mass = trace.mass(0, size) + trace.mass(1, size)
        return seen + kept + start + mass, {"visual": seen.item(), "text": kept.item(), "mass": mass.item()}

    def _whole(self, rng: np.random.Generator, layout: str, *, videos: int = 16) -> Batch:
        """A batch with every token of its videos."""
        return make_videos(self.student, rng, layout, GRID**2, self.bank(), videos=videos)

    def _answer(self, batch: Batch) -> Report:
        """Layers ``FRONT`` and up, on visual tokens to which the time is added by hand."""
        student = self.student
        words = student.decoder.model.embed_tokens(batch.ids)
        context = student.context(batch.visual + student.time_code(batch))
        trace = run(student.decoder, context, words, batch.lengths, layers=range(FRONT, LAYERS))
        return losses(student, trace, batch)


def make_bank(student: Student, path: Path, clips: int, per_object: int) -> Bank:
    """The bank of a run, made once; it needs the trained vision side."""
    if not path.exists():
        bank = build_bank(student.vision, np.random.default_rng((SEED, 2)), clips, per_object)
        torch.save({"clips": bank.clips, "needles": bank.needles, "cells": bank.cells}, path)
    return Bank(**torch.load(path, weights_only=True))


def train_model(work: Path, scale: float = 1.0) -> Path:
    """All stages that are not done yet, with ``scale`` times the steps; returns the folder of the
    checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    student = Student()
    schedules = {name: schedule.scaled(scale) for name, schedule in SCHEDULES.items()}

    @cache
    def bank() -> Bank:
        sizes = (max(1, round(size * scale)) for size in (CLIPS, VIEWS_PER_OBJECT))
        return make_bank(student, work / "bank.pt", *sizes)

    recipe = Recipe(student, bank, schedules)

    def stage(name: str, module: nn.Module, step: Step, seed: int) -> None:
        parameters = student.core() if module is student else module.parameters()
        train_stage(name, schedules[name], module, parameters, step, work, seed=seed)

    stage("vision", student.vision, recipe.vision, 1)
    stage("core", student, recipe.core, 3)
    stage("video", student, recipe.video, 4)
    stage("dense", student, recipe.dense, 6)
    stage("settle", student, recipe.settle, 7)
    front = nn.ModuleList(student.decoder.model.layers[:FRONT])
    for layer in student.decoder.model.layers[:FRONT]:  # start from layers that do next to nothing
        nn.init.normal_(layer.self_attn.o_proj.weight, std=0.01)
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)
    stage("front", front, recipe.front, 2)
    return export(student.eval(), work / "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the stages")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a quick try")
    options = parser.parse_args()
    print(train_model(options.work, options.scale))


if __name__ == "__main__":
    main()

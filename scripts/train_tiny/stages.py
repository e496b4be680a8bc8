"""The stages of the training, in order, each on top of the one before.

1. ``vision``: tower and projector on single steps in time (a frame; for Qwen2-VL a pair of frames).
2. ``core``: decoder layers 2 and up learn the three tasks from a few synthetic tokens a frame, to which the time of the
   frame is added by hand.
3. ``video``: the same with features of real frames, a few cells a frame.
4. ``dense``: the same with any share of all cells, dropped at random, never those of needles.
5. ``settle``: the same at a low rate, background dropped at random or where it changes least.
6. ``front``: layers 0 and 1 learn to add the time to visual tokens and to leave everything else alone; the attention of
   the text to the video costs, so that what a question needs is read after the place where tokens are reduced.

Dropping background in stages 4 and 5 uses labels and makes benign reduction cheap for this model; the cost in stage 6
makes the loss of a needle expensive. Without both, a model of this size reads the video in layer 0 and no reduction
matters.

The Qwen2-VL-shaped model has stages 1, 4, 5 and 6 only: its decoder starts from what the other one has learned
(:func:`warm_start`), which differs from what it has to learn in the positions alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .bank import Bank, build_bank, compose
from .decoder import FRONT, LAYERS, run
from .loop import Place, Schedule, train
from .losses import losses
from .stream import Batch, draw, make_batch, synthetic_features
from .student import SEED, Student
from .vision import vision_loss, vision_scores

VIDEOS = 16


def layout_of(step: int, ordering: int = 5) -> str:
    """Counting is the hardest to begin with: four steps of five. ``ordering``: one step in so many is about order."""
    return "cnt" if step % ordering else "ord"


def vision_stage(student: Student, place: Place, schedule: Schedule) -> None:
    def step(_: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, labels, colours = student.shape.eye.batch(rng)
        features, codes = student.vision(pixels), student.codes
        return vision_loss(features, labels, colours, codes), vision_scores(features, labels, codes)

    train("vision", schedule, student.vision, student.vision.parameters(), step, place, seed=1)


def make_videos(
    student: Student,
    rng: np.random.Generator,
    layout: str,
    per_step: int,
    bank: Bank | None,
    *,
    videos: int = VIDEOS,
) -> Batch:
    """A batch of videos of one, random length; without a bank their features are made up."""
    steps, seconds = student.shape.length(rng)
    drawn = [draw(rng, layout, seconds, student.shape.grid) for _ in range(videos)]
    if bank is None:
        features = torch.stack(
            [synthetic_features(rng, student.codes, video, steps, student.shape.grid) for video in drawn]
        )
    else:
        made = [compose(rng, bank, video, steps) for video in drawn]
        features, drawn = torch.stack([f for f, _ in made]), [video for _, video in made]
    return make_batch(rng, student.tokenizer, drawn, features, per_step, student.shape.lead)


def whole_videos(student: Student, rng: np.random.Generator, layout: str, bank: Bank, *, videos: int = VIDEOS) -> Batch:
    """A batch with every token of its videos."""
    return make_videos(student, rng, layout, student.shape.grid**2, bank, videos=videos)


def core_step(student: Student, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Layers ``FRONT`` and up, on visual tokens to which the time is added by hand."""
    words = student.decoder.model.embed_tokens(batch.ids)
    context = student.context(batch.visual + student.time_code(batch))
    layers, positions = range(FRONT, LAYERS), student.positions(batch)
    trace = run(student.decoder, context, words, batch.lengths, layers=layers, positions=positions)
    return losses(student, trace, batch)


def core_stage(student: Student, place: Place, schedule: Schedule) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        per_step = int(rng.integers(1, 1 + min(6, 1 + number // 200)))
        return core_step(student, make_videos(student, rng, layout_of(number), per_step, None))

    train("core", schedule, student, student.core(), step, place, seed=3)


def video_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    choices = (4, 6, 9, 13, 20)

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        reach = 2 + (len(choices) - 1) * number // schedule.steps
        per_step = choices[int(rng.integers(min(reach, len(choices))))]
        return core_step(student, make_videos(student, rng, layout_of(number), per_step, bank))

    train("video", schedule, student, student.core(), step, place, seed=4)


def front_stage(
    student: Student,
    place: Place,
    schedule: Schedule,
    bank: Bank,
    *,
    name: str = "front",
    afresh: bool = True,
    reading_costs: bool = True,
    videos: int = 3,
) -> None:
    """Layers 0 and 1: visual tokens get their time, text passes unchanged; that it looks at the video costs.

    ``afresh`` starts with layers that do next to nothing instead of those that are there.
    """
    words = student.decoder.model.embed_tokens.weight.detach()
    front = nn.ModuleList(student.decoder.model.layers[:FRONT])
    for layer in front if afresh else ():
        nn.init.normal_(layer.self_attn.o_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    size = len(student.prefix)

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = whole_videos(student, rng, layout_of(number), bank, videos=videos)
        text = words[batch.ids]
        context = student.context(batch.visual).detach()
        positions = student.positions(batch)
        trace = run(student.decoder, context, text, batch.lengths, layers=range(FRONT), positions=positions)
        seen = (trace.context[1][:, size:] - batch.visual - student.time_code(batch)).pow(2).sum(-1).mean()
        kept = (trace.text[1] - text).pow(2).sum(-1).mean()
        start = (trace.context[1][:, :size] - context[:, :size]).pow(2).sum(-1).mean()
        mass = trace.mass(0, size) + trace.mass(1, size)
        report = {"visual": seen.item(), "text": kept.item(), "mass": mass.item()}
        return seen + kept + start + (mass if reading_costs else 0), report

    train(name, schedule, front, front.parameters(), step, place, seed=2)


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
    """How little a token changes since the step before ``[B, N]``, roughly; for batches with all cells."""
    tokens = batch.visual.unflatten(1, (batch.steps, -1))
    same = torch.zeros(tokens.shape[:-1])
    same[:, 1:] = torch.cosine_similarity(tokens[:, 1:], tokens[:, :-1], dim=-1).clamp_min(0)
    noise = torch.from_numpy(rng.random(same.shape))
    return (0.9 * same + 0.1 * noise).flatten(1)


def random_share(rng: np.random.Generator, whole: float = 0.15) -> float:
    """Share of the visual tokens that stay in a training step: sometimes (``whole``) all of them, often few."""
    return 1.0 if rng.random() < whole else float(np.exp(rng.uniform(np.log(0.08), np.log(0.8))))


def dense_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = whole_videos(student, rng, layout_of(number, ordering=2), bank)
        return core_step(student, batch.keep(drop_background(batch, rng, random_share(rng))))

    train("dense", schedule, student, student.core(), step, place, seed=6)


def make_bank(student: Student, place: Place, clips: int, per_object: int) -> Bank:
    """The bank of a run, made once."""
    path = place.folder / "bank.pt"
    if not path.exists():
        bank = build_bank(student.vision, student.shape.eye, np.random.default_rng((SEED, 2)), clips, per_object)
        torch.save({"clips": bank.clips, "needles": bank.needles, "cells": bank.cells}, path)
    return Bank(**torch.load(path, weights_only=True))


def settle_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = whole_videos(student, rng, layout_of(number, ordering=3), bank)
        priority = stillness(batch, rng) if rng.random() < 0.6 else None
        return core_step(student, batch.keep(drop_background(batch, rng, random_share(rng, 0.25), priority)))

    train("settle", schedule, student, student.core(), step, place, seed=7)

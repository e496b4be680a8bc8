"""The stages of the training, in order, each on top of the one before.

1. ``vision``: tower and projector on single frames.
2. ``core``: decoder layers 2 and up learn the three tasks from a few synthetic tokens a frame, to which the time of the
   frame is added by hand.
3. ``video``: the same with features of real frames, a few cells a frame.
4. ``dense``: the same with any share of all cells, dropped at random, never those of needles.
5. ``front``: layers 0 and 1 learn to add the time to visual tokens and to leave everything else alone; the attention of
   the text to the video costs, so that what a question needs is read after the place where tokens are reduced.

Dropping background in stage 4 uses labels and makes benign reduction cheap for this model; the cost in stage 5 makes
the loss of a needle expensive. Without both, a model of this size reads the video in layer 0 and no reduction matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from sttm_lmms.benchmarks.mini.objects import OBJECTS

from .bank import Bank, build_bank, compose
from .codes import MAX_FRAMES, Codes, make_codes
from .decoder import FRONT, LAYERS, VOCABULARY, build_decoder, run
from .loop import Schedule, train
from .losses import Heads, losses
from .stream import CELLS, Batch, draw, make_batch, synthetic_features
from .text import PREFIX, build_tokenizer
from .vision import Vision, frame_batch, vision_loss, vision_scores

SEED = 20
VIDEOS = 16


class Student(nn.Module):
    """Everything that is trained: vision side, decoder, and the heads that are dropped in the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.codes: Codes = make_codes()
        self.tokenizer = build_tokenizer()
        ids = self.tokenizer.convert_tokens_to_ids(list(OBJECTS))
        self.vision = Vision()
        self.decoder: Qwen2ForCausalLM = build_decoder(self.codes, ids)
        self.heads = Heads()
        self.object_of = torch.full((VOCABULARY,), -1)
        self.object_of[ids] = torch.arange(len(OBJECTS))
        self.period: int = self.tokenizer.convert_tokens_to_ids(".")
        self.prefix = torch.tensor(self.tokenizer(PREFIX)["input_ids"])

    def layers(self, numbers: range) -> Iterator[nn.Parameter]:
        for number in numbers:
            yield from self.decoder.model.layers[number].parameters()

    def core(self) -> Iterator[nn.Parameter]:
        """All of the decoder but its front layers, and the heads."""
        yield from self.layers(range(FRONT, LAYERS))
        yield from self.decoder.model.embed_tokens.parameters()
        yield from self.decoder.model.norm.parameters()
        yield from self.decoder.lm_head.parameters()
        yield from self.heads.parameters()

    def context(self, visual: torch.Tensor) -> torch.Tensor:
        """Prefix and visual tokens ``[B, P + N, C]``."""
        start = self.decoder.model.embed_tokens(self.prefix)
        return torch.cat((start[None].expand(len(visual), -1, -1), visual), 1)


@dataclass(frozen=True)
class Place:
    """Where a run keeps its state and its log."""

    folder: Path
    log: Path


def layout_of(step: int) -> str:
    """Counting is the hardest: four steps of five."""
    return "cnt" if step % 5 else "ord"


def vision_stage(student: Student, place: Place, schedule: Schedule) -> None:
    def step(_: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, labels, colours = frame_batch(rng)
        features = student.vision(pixels)
        return vision_loss(features, labels, colours, student.codes), vision_scores(features, labels, student.codes)

    train(
        "vision",
        schedule,
        student.vision,
        student.vision.parameters(),
        step,
        folder=place.folder,
        log=place.log,
        seed=1,
    )


def make_videos(
    student: Student,
    rng: np.random.Generator,
    layout: str,
    per_frame: int,
    bank: Bank | None,
    *,
    videos: int = VIDEOS,
    frames: int | None = None,
) -> Batch:
    """A batch of videos of one length (by default a random one); without a bank their features are made up."""
    frames = frames or int(rng.integers(8, MAX_FRAMES + 1))
    drawn = [draw(rng, layout, frames) for _ in range(videos)]
    if bank is None:
        features = torch.stack([synthetic_features(rng, student.codes, video, frames) for video in drawn])
    else:
        made = [compose(rng, bank, video, frames) for video in drawn]
        features, drawn = torch.stack([f for f, _ in made]), [video for _, video in made]
    return make_batch(rng, student.tokenizer, drawn, features, per_frame)


def core_step(student: Student, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Layers ``FRONT`` and up, on visual tokens to which the time is added by hand."""
    words = student.decoder.model.embed_tokens(batch.ids)
    context = student.context(batch.visual + student.codes.time_code(batch.time))
    trace = run(student.decoder, context, words, batch.lengths, layers=range(FRONT, LAYERS))
    return losses(student, trace, batch, batch.needle)


def core_stage(student: Student, place: Place, schedule: Schedule) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        per_frame = int(rng.integers(1, 1 + min(6, 1 + number // 200)))
        return core_step(student, make_videos(student, rng, layout_of(number), per_frame, None))

    train("core", schedule, student, student.core(), step, folder=place.folder, log=place.log, seed=3)


def video_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    choices = (4, 6, 9, 13, 20)

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        reach = 2 + (len(choices) - 1) * number // schedule.steps
        per_frame = choices[int(rng.integers(min(reach, len(choices))))]
        return core_step(student, make_videos(student, rng, layout_of(number), per_frame, bank))

    train("video", schedule, student, student.core(), step, folder=place.folder, log=place.log, seed=4)


def front_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    """Layers 0 and 1: visual tokens get their time, text passes unchanged and does not look at the video."""
    words = student.decoder.model.embed_tokens.weight.detach()
    front = nn.ModuleList(student.decoder.model.layers[:FRONT])
    for layer in front:
        nn.init.normal_(layer.self_attn.o_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    size = len(student.prefix)

    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = make_videos(student, rng, layout_of(number), CELLS, bank, videos=2, frames=MAX_FRAMES)
        text = words[batch.ids]
        context = student.context(batch.visual).detach()
        trace = run(student.decoder, context, text, batch.lengths, layers=range(FRONT))
        seen = (trace.context[1][:, size:] - batch.visual - student.codes.time_code(batch.time)).pow(2).sum(-1).mean()
        kept = (trace.text[1] - text).pow(2).sum(-1).mean()
        start = (trace.context[1][:, :size] - context[:, :size]).pow(2).sum(-1).mean()
        mass = trace.mass(0, size) + trace.mass(1, size)
        report = {"visual": seen.item(), "text": kept.item(), "mass": mass.item()}
        return seen + kept + start + mass, report

    train("front", schedule, front, front.parameters(), step, folder=place.folder, log=place.log, seed=2)


def drop_background(batch: Batch, rng: np.random.Generator, share: float) -> torch.Tensor:
    """Sorted places ``[B, K]`` of the visual tokens that stay: every needle's, and background at random."""
    priority = torch.from_numpy(rng.random(batch.needle.shape))
    priority[batch.needle >= 0] = -1
    keep = max(round(share * batch.needle.shape[1]), int((batch.needle >= 0).sum(1).max()))
    return priority.argsort(1)[:, :keep].sort(1).values


def random_share(rng: np.random.Generator) -> float:
    """Share of the visual tokens that stay in a training step: sometimes all of them, often few."""
    return 1.0 if rng.random() < 0.15 else float(np.exp(rng.uniform(np.log(0.08), np.log(0.8))))


def dense_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = make_videos(student, rng, layout_of(number), CELLS, bank)
        stay = drop_background(batch, rng, random_share(rng))
        visual = batch.visual.gather(1, stay[..., None].expand(-1, -1, batch.visual.shape[-1]))
        time, needle = batch.time.gather(1, stay), batch.needle.gather(1, stay)
        return core_step(student, replace(batch, visual=visual, time=time, needle=needle))

    train("dense", schedule, student, student.core(), step, folder=place.folder, log=place.log, seed=6)


def make_bank(student: Student, place: Place, clips: int, per_object: int) -> Bank:
    """The bank of a run, made once."""
    path = place.folder / "bank.pt"
    if not path.exists():
        bank = build_bank(student.vision, np.random.default_rng((SEED, 2)), clips, per_object)
        torch.save({"clips": bank.clips, "needles": bank.needles, "cells": bank.cells}, path)
    return Bank(**torch.load(path, weights_only=True))


FREE_STAGES = {"vision": vision_stage, "core": core_stage}
BANK_STAGES = {"video": video_stage, "dense": dense_stage, "front": front_stage}

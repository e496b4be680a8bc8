#!/usr/bin/env python
"""Train the embedded checkpoints from scratch: ``python -m train_tiny.train --work WORK``.

The stages of a model (see ``stages.py`` and ``fine.py``) run one after the other. Each keeps its state in WORK/NAME and
goes on from there when the command is given again. The log is WORK/NAME/train.jsonl, the checkpoint
WORK/NAME/checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import fine, stages
from .bank import Bank
from .decoder import FRONT
from .export import export, load_decoder
from .loop import Place, Schedule
from .shapes import SHAPES
from .student import Student, warm_start

FreeStage = Callable[[Student, Place, Schedule], None]
BankStage = Callable[[Student, Place, Schedule, Bank], None]


@dataclass(frozen=True)
class Plan:
    """How the model of a shape is trained.

    Attributes:
        stages: in order, with optimizer steps and peak learning rate; those of ``BANK`` need features of real views.
        start: model whose checkpoint it starts from.
        bank: clips, and views for each object.
    """

    stages: dict[str, tuple[int, float]]
    start: str | None = None
    bank: tuple[int, int] = (400, 150)


PLANS = {
    "llava_video": Plan(
        {
            "vision": (1800, 3e-3),
            "core": (800, 2e-3),
            "video": (600, 1.5e-3),
            "dense": (1500, 1.2e-3),
            "settle": (500, 5e-4),
            "front": (500, 3e-3),
        },
    ),
    "qwen2_vl": Plan(
        {"vision": (1800, 3e-3), "dense": (1400, 1.2e-3), "settle": (500, 5e-4), "front": (500, 3e-3)},
        start="llava_video",
    ),
    "llava_video_fine": Plan(
        {"project": (600, 4e-3), "time": (150, 2e-3), "coarse": (160, 8e-4)},
        start="llava_video",
        bank=(60, 16),
    ),
}
FREE: dict[str, FreeStage] = {
    "vision": stages.vision_stage,
    "core": stages.core_stage,
    "project": fine.project_stage,
}
BANK: dict[str, BankStage] = {
    "video": stages.video_stage,
    "dense": stages.dense_stage,
    "settle": stages.settle_stage,
    "front": stages.front_stage,
    "coarse": fine.coarse_stage,
    "time": partial(stages.front_stage, name="time", afresh=False, reading_costs=False, videos=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the stages")
    parser.add_argument("--model", choices=PLANS, nargs="+", default=list(PLANS), help="by default all, in this order")
    parser.add_argument("--start", type=Path, help="checkpoint to start from instead of the one in WORK")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a quick try")
    options = parser.parse_args()
    for name in options.model:
        print(train_model(name, options.work, options.start, options.scale))


def train_model(name: str, work: Path, start: Path | None = None, scale: float = 1.0) -> Path:
    """All stages of one model, as far as they have not been done; returns the folder of the checkpoint."""
    plan = PLANS[name]
    place = Place(work / name, work / name / "train.jsonl")
    place.folder.mkdir(parents=True, exist_ok=True)
    student = Student(SHAPES[name])
    if plan.start:
        begin(student, start or work / plan.start / "checkpoint")
    for stage, (steps, rate) in plan.stages.items():
        schedule = Schedule(max(1, round(steps * scale)), rate)
        if stage in FREE:
            FREE[stage](student, place, schedule)
        else:
            clips, per_object = (max(1, round(size * scale)) for size in plan.bank)
            BANK[stage](student, place, schedule, stages.make_bank(student, place, clips, per_object))
    return export(student.eval(), place.folder / "checkpoint")


def begin(student: Student, checkpoint: Path) -> None:
    """Take over what a LLaVA-Video-shaped checkpoint has learned and the new model can use."""
    same_positions = student.shape.family == "llava_video"
    warm_start(student, *load_decoder(checkpoint), first=0 if same_positions else FRONT)
    if same_positions:
        fine.tile_vision(student, checkpoint)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Train the embedded checkpoints from scratch: ``python scripts/train_tiny.py --work WORK``.

The LLaVA-Video-shaped model comes first; the decoder of the Qwen2-VL-shaped one starts from it. The stages of a model
(see ``tiny/stages.py``) run one after the other; each keeps its state in WORK/FAMILY every 100 steps and goes on from
there when the command is given again. The log is WORK/FAMILY/train.jsonl, the checkpoint WORK/FAMILY/checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import stages
from training.export import export, load_decoder
from training.loop import Schedule
from training.shapes import LLAVA_VIDEO, QWEN2_VL, SHAPES

PLANS: dict[str, dict[str, tuple[int, float]]] = {
    LLAVA_VIDEO.family: {
        "vision": (1800, 3e-3),
        "core": (800, 2e-3),
        "video": (600, 1.5e-3),
        "dense": (1500, 1.2e-3),
        "settle": (500, 5e-4),
        "front": (500, 3e-3),
    },
    QWEN2_VL.family: {
        "vision": (1800, 3e-3),
        "dense": (1400, 1.2e-3),
        "settle": (500, 5e-4),
        "front": (500, 3e-3),
    },
}
"""Optimizer steps and peak learning rate of every stage."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the stages")
    parser.add_argument("--family", choices=SHAPES, help="only this model, by default both")
    parser.add_argument(
        "--start", type=Path, help="LLaVA-Video-shaped checkpoint that the Qwen2-VL-shaped model starts from"
    )
    parser.add_argument("--until", choices=PLANS[LLAVA_VIDEO.family], help="last stage to run, by default all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a quick try")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cuda is faster; videos are drawn on the CPU either way")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    families = [options.family] if options.family else list(SHAPES)
    for family in families:
        if options.until and options.until not in PLANS[family]:
            parser.error(f"{family} has no stage {options.until}; its stages are {', '.join(PLANS[family])}")
    for family in families:
        start = options.start or options.work / LLAVA_VIDEO.family / "checkpoint"
        print(train_family(family, options.work / family, start, options.scale, options.until, options.device))


def train_family(
    family: str, folder: Path, start: Path, scale: float = 1.0, until: str | None = None, device: str = "cpu"
) -> Path:
    """All stages of one model, as far as they have not been done; returns the folder of the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    student = stages.Student(SHAPES[family])
    if "core" not in PLANS[family]:
        stages.warm_start(student, *load_decoder(start))
    student.to(device)
    place = stages.Place(folder, folder / "train.jsonl")
    for name, (steps, rate) in PLANS[family].items():
        schedule = Schedule(max(1, round(steps * scale)), rate)
        if name in stages.BANK_STAGES:
            sizes = {"clips": max(1, round(400 * scale)), "per_object": max(1, round(150 * scale))}
            stages.BANK_STAGES[name](student, place, schedule, stages.make_bank(student, place, **sizes))
        else:
            stages.FREE_STAGES[name](student, place, schedule)
        if name == until:
            break
    return export(student.cpu().eval(), folder / "checkpoint")


if __name__ == "__main__":
    main()

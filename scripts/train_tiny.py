#!/usr/bin/env python
"""Train the embedded checkpoint from scratch: ``python scripts/train_tiny.py --work WORK``.

Stages (see ``tiny/stages.py``) run one after the other; each keeps its state in WORK every 100 steps and goes on from
there when the command is given again. The log is WORK/train.jsonl; the checkpoint is written to WORK/checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tiny import stages
from tiny.export import export
from tiny.loop import Schedule

STEPS = {"vision": 1800, "core": 800, "video": 600, "dense": 1100, "front": 500}
RATES = {"vision": 3e-3, "core": 2e-3, "video": 1.5e-3, "dense": 1.2e-3, "front": 3e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the stages")
    parser.add_argument("--log", type=Path, help="JSON lines, by default WORK/train.jsonl")
    parser.add_argument("--until", choices=STEPS, default="front", help="last stage to run")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a quick try")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    place = stages.Place(options.work, options.log or options.work / "train.jsonl")
    student = stages.Student()
    for name in list(STEPS)[: list(STEPS).index(options.until) + 1]:
        schedule = Schedule(max(1, round(STEPS[name] * options.scale)), RATES[name])
        if name in stages.BANK_STAGES:
            bank = stages.make_bank(
                student, place, clips=max(1, round(400 * options.scale)), per_object=max(1, round(150 * options.scale))
            )
            stages.BANK_STAGES[name](student, place, schedule, bank)
        else:
            stages.FREE_STAGES[name](student, place, schedule)
    print(export(student.eval(), options.work / "checkpoint"))


if __name__ == "__main__":
    main()

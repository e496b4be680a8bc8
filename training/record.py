#!/usr/bin/env python
"""Record what the shipped checkpoints answer on a fixed set of videos: ``python -m training.record``.

Writes tests/golden/tiny/FAMILY.json; to be run after a training, never to make a test pass.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .fixed import fixed_answers
from .settings import SUBJECTS

TARGET = Path(__file__).parents[1] / "tests" / "golden" / "tiny"


def main() -> None:
    for family, subject in SUBJECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = fixed_answers(subject, Path(folder))
        (TARGET / f"{family}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(family, {name: round(row["accuracy"], 3) for name, row in found.items()})


if __name__ == "__main__":
    main()

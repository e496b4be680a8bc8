#!/usr/bin/env python
"""Record what the shipped checkpoints answer on a fixed set of videos: ``python -m train_tiny.record [NAME ...]``.

Writes tests/golden/tiny/NAME.json; to be run after a training, never to make a test pass.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .fixed import fixed_answers
from .settings import SUBJECTS

TARGET = Path(__file__).parents[2] / "tests" / "golden" / "tiny"


def main() -> None:
    for name in sys.argv[1:] or SUBJECTS:
        with tempfile.TemporaryDirectory() as folder:
            found = fixed_answers(SUBJECTS[name], Path(folder))
        (TARGET / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, {setting: round(row["accuracy"], 3) for setting, row in found.items()})


if __name__ == "__main__":
    main()

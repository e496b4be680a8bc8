"""The file of predictions that EgoSchema's organisers score. It is written, never sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sttm_lmms.benchmarks.question import LETTERS

UNANSWERED = -1


def predictions(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """``{question id: 0-based index of the predicted option}``, -1 for an unanswered question."""
    return {
        item["question_id"]: LETTERS.index(item["prediction"]) if item["prediction"] else UNANSWERED for item in items
    }


def write_submission(items: Sequence[Mapping[str, Any]], args: Any = None) -> str:
    """Write :func:`predictions` to ``{output path}/submissions/`` and return the path of the file.

    Args:
        items: ``question_id`` and ``prediction`` (a letter or "") of each question.
        args: lmms-eval's command line, whose ``output_path`` is used; the current folder without
            it.
    """
    folder = Path(getattr(args, "output_path", None) or ".").absolute() / "submissions"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"egoschema_{datetime.now():%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(predictions(items), indent=1), encoding="utf-8")
    return str(path)

"""What all rows of a table have in common is said once, above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sttm_lmms.report.paper import SOURCE as PAPER

Row = dict[str, Any]


def say_once(records: Sequence[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The records with shorter settings and machines, and the sentences that say what was left out.

    A setting such as ``max_frames=16`` that all rows of a model have goes into a sentence about the model; one that all
    rows have, into a sentence about all. How much to keep (``budget 0.5``, thresholds, a preset's name) stays in its
    row. The paper's rows are left alone.
    """
    ours = [record for record in records if record["source"] != PAPER]
    models = list(dict.fromkeys(record["model"] for record in ours))
    common = {model: _common([record for record in ours if record["model"] == model]) for model in models}
    everywhere = [word for word in next(iter(common.values()), []) if all(word in words for words in common.values())]
    lines = [f"All runs: {', '.join(everywhere)}."] if everywhere else []
    for model, words in common.items():
        if rest := [word for word in words if word not in everywhere]:
            lines.append(f"{model}: {', '.join(rest)}.")
    shorter = [
        {**record, "setting": _without(record, common.get(record["model"], []))}
        if record["source"] != PAPER
        else record
        for record in records
    ]
    return shorter, tuple(lines)


def _common(records: Sequence[Row]) -> list[str]:
    words = [_words(record) for record in records]
    return [word for word in words[0] if _can_be_shared(word) and all(word in other for other in words)]


def _can_be_shared(word: str) -> bool:
    return "=" in word or word.startswith("on ")


def _words(record: Row) -> list[str]:
    machine = [f"on {record['machine']}"] if record.get("machine") else []
    return [*filter(None, (record["setting"] or "").split(", ")), *machine]


def _without(record: Row, common: Sequence[str]) -> str:
    rest = [word for word in _words(record) if word not in common]
    return ", ".join(rest) or ("all tokens" if record["method"] == "none" else "defaults")

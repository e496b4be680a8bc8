"""Reads and checks annotation files in the STTM format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sttm_lmms.benchmarks.formats import Format, get_format, vnbench_task_type
from sttm_lmms.benchmarks.question import LETTERS, Question
from sttm_lmms.errors import AnnotationError
from sttm_lmms.ids import safe_id

MAX_OPTIONS = 8
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Mean length of the classes of Video-MME in seconds (arXiv 2405.21075, section 3), which gives no
# length of each video.
_MEAN_SECONDS = {"short": 80.7, "medium": 520.2, "long": 2471.0}


def load_questions(path: str | Path, benchmark: str) -> list[Question]:
    """All questions of an annotation file, in the order of the file.

    Raises:
        AnnotationError: the file is missing or not JSON, or a record lacks a key, has an answer
            that is not among its options, an id that is used twice or would leave the video folder;
            names the file and the record (from 0).
    """
    path = Path(path)
    return parse_questions(read_records(path), benchmark, path)


def parse_questions(records: Sequence[Any], benchmark: str, path: Path) -> list[Question]:
    """Checked records; :class:`AnnotationError` as in :func:`load_questions`, with ``path`` as the
    file."""
    fmt = get_format(benchmark)
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        try:
            question = parse_record(record, fmt)
            if (name := question.question_id) in seen:
                raise ValueError(f"{fmt.question_key} {name!r} is that of record {seen[name]}")
        except ValueError as error:
            raise AnnotationError(f"{path}: record {number}: {error}") from None
        seen[question.question_id] = number
        questions.append(question)
    return questions


def read_records(path: Path) -> list[Any]:
    """The records of a JSON file that holds a non-empty list; :class:`AnnotationError` for anything
    else."""
    try:
        records = _printable(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such annotation file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AnnotationError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(records, list) or not records:
        raise AnnotationError(f"{path}: expected a JSON list of records, found {_kind(records)}")
    return records


def _printable(value: Any) -> Any:
    """A JSON value with U+FFFD for halves of surrogate pairs, which no file can be written with."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return {_printable(key): _printable(item) for key, item in value.items()} if isinstance(value, dict) else value


def parse_record(record: Any, fmt: Format) -> Question:
    """One checked record; ``ValueError`` says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"expected an object, found {_kind(record)}")
    video_id = safe_id(str(_get(record, fmt.video_key, (str, int))), fmt.video_key)
    question_id = str(_get(record, fmt.question_key, (str, int)))
    question = str(_get(record, "question", (str,)))
    if not question.strip():
        raise ValueError("question is empty")
    options = _options(record, fmt)
    categories = {key: str(_get(record, key, (str, int))) for key in fmt.categories}
    if fmt.name == "vnbench":
        categories["task_type"] = vnbench_task_type(video_id, categories["task_type"])
    return Question(
        video_id, question_id, question, options, _answer(record, fmt, len(options)), categories, video_seconds(record)
    )


def video_seconds(record: Mapping[str, Any]) -> float:
    """About how long a record's video is: its own number, or the mean of its class; 0 where nothing
    is said."""
    for key in ("video_second", "duration"):
        value = record.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e6:
            return float(value)
    return _MEAN_SECONDS.get(str(record.get("duration")), 0.0)


def _get(record: Mapping[str, Any], key: str, types: tuple[type, ...]) -> Any:
    if key not in record:
        raise ValueError(f"key {key!r} is missing; the record has {', '.join(map(repr, record))}")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, types):
        expected = " or ".join({str: "a string", int: "an integer", list: "a list"}[t] for t in types)
        raise ValueError(f"{key} is {value!r}, expected {expected}")
    return value


def _options(record: Mapping[str, Any], fmt: Format) -> tuple[str, ...]:
    if fmt.options == "fields":
        count = sum(f"option {i}" in record for i in range(MAX_OPTIONS))
        texts = [_get(record, f"option {i}", (str,)) for i in range(max(count, 2))]
    else:
        texts = _get(record, "options", (list,))
    if not 2 <= len(texts) <= MAX_OPTIONS or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"options must be 2 to {MAX_OPTIONS} strings, found {texts!r}")
    if fmt.options != "lettered":
        return tuple(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    for letter, text in zip(LETTERS, texts, strict=False):
        if not text.startswith(f"{letter}. "):
            raise ValueError(f"option {text!r} does not begin with '{letter}. '")
    return tuple(texts)


def _answer(record: Mapping[str, Any], fmt: Format, count: int) -> str | None:
    if not fmt.answer_required and record.get("answer") is None:
        return None
    if fmt.answer == "index":
        index = _get(record, "answer", (int,))
        if not 0 <= index < count:
            raise ValueError(f"answer {index} is not among the {count} options (0 to {count - 1})")
        return LETTERS[index]
    letter = _get(record, "answer", (str,))
    if len(letter) != 1 or letter not in LETTERS[:count]:
        raise ValueError(f"answer {letter!r} is not among the options {', '.join(LETTERS[:count])}")
    return letter


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else "an object" if isinstance(value, dict) else repr(value)[:40]

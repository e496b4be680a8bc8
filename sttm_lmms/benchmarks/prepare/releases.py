"""What the official release of each benchmark looks like, and how its records become ours."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from sttm_lmms.benchmarks.question import LETTERS
from sttm_lmms.errors import AnnotationError

Record = dict[str, Any]
Converted = tuple[Record, str]
"""A record in the STTM format (without what is measured), and the path of its video in the release,
without suffix: the name alone, or the last folder and the name."""

_ACCOUNT = re.compile(r"^@.+-(?=\d)")


@dataclass(frozen=True)
class Release:
    """The release of one benchmark.

    Attributes:
        files: names of its annotation files, as patterns.
        required: keys that every record has.
        known: keys that records may have and that are not needed.
        convert: one record and the name of its file to our record; ``ValueError`` for a bad record.
        measured: whether ``duration`` and ``video_second`` are taken from the video.
    """

    files: tuple[str, ...]
    required: tuple[str, ...]
    convert: Callable[[Record, Path], Converted]
    known: tuple[str, ...] = ()
    measured: bool = False


def convert_release(benchmark: str, raw: Path, ignore: Sequence[str] = ()) -> list[Converted]:
    """All records of a release, in the order of its files.

    Args:
        benchmark: one of :data:`RELEASES`.
        raw: its annotation file, or the folder that holds its annotation files.
        ignore: unknown keys that do not matter.

    Raises:
        AnnotationError: a file cannot be read, or a record lacks a key, has an unknown one or a bad
            value; names the file and the record (from 0).
    """
    release = RELEASES[benchmark]
    files = [raw] if raw.is_file() else sorted({path for pattern in release.files for path in raw.glob(pattern)})
    if not files:
        raise AnnotationError(
            f"{raw}: no {' or '.join(release.files)} here; pass the annotation file or its folder as --raw"
        )
    answers = _egoschema_answers(raw) if benchmark == "egoschema" else {}
    count: Counter[str] = Counter()
    converted = []
    for path in files:
        for number, record in enumerate(_read(path)):
            try:
                _check_keys(record, release.required, {*release.known, *ignore})
                ours, source = release.convert(record, path)
            except (ValueError, TypeError, IndexError) as error:
                raise AnnotationError(f"{path}: record {number}: {error}") from error
            if benchmark == "egoschema":
                ours["answer"] = answers.get(ours["q_uid"])
            elif "question_id" not in ours:  # the questions of a video are counted from 1
                count[ours["video_id"]] += 1
                ours["question_id"] = f"{ours['video_id']}-{count[ours['video_id']]}"
            converted.append((ours, source))
    return converted


def _read(path: Path) -> list[Record]:
    """The records of a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, as plain Python
    values."""
    try:
        match path.suffix.lower():
            case ".json":
                records = json.loads(path.read_text(encoding="utf-8-sig"))
            case ".jsonl":
                lines = path.read_text(encoding="utf-8-sig").split("\n")
                records = [json.loads(line) for line in lines if line.strip()]
            case ".csv":
                texts = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
                records = texts.to_dict("records")
            case ".parquet":
                records = json.loads(pd.read_parquet(path).to_json(orient="records"))
            case _:
                raise AnnotationError(f"{path}: expected a file ending in .json, .jsonl, .csv or .parquet")
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path}: not a readable {path.suffix} file ({error})") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(f"{path}: expected a list of records")
    return records


def _check_keys(record: Record, required: Sequence[str], known: set[str]) -> None:
    """``ValueError`` naming the keys that a record lacks, or those that the converter does not
    know."""
    if lacking := [key for key in required if key not in record]:
        raise ValueError(f"missing keys {', '.join(map(repr, lacking))}; the record has {', '.join(map(repr, record))}")
    if strange := [key for key in record if key not in {*required, *known}]:
        raise ValueError(
            f"unknown keys {', '.join(map(repr, strange))}: is this the release the converter was made for? "
            f"If they do not matter, pass {' '.join(f'--ignore {key!r}' for key in strange)}"
        )


def _egoschema_answers(raw: Path) -> dict[str, Any]:
    """The published answers, ``{q_uid: index}``, from ``subset_answers.json`` beside the questions;
    {} without it."""
    path = (raw if raw.is_dir() else raw.parent) / "subset_answers.json"
    try:
        answers = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(answers, dict):
        raise AnnotationError(f"{path}: expected a JSON object")
    return answers


def _vnbench(record: Record, path: Path) -> Converted:
    video_id = PurePosixPath(record["video"]).stem
    letters = LETTERS[: len(record["options"])]
    return {
        "question": record["question"],
        "options": [f"{letter}. {text}." for letter, text in zip(letters, record["options"], strict=True)],
        "needle_time": record["needle_time"],
        "answer": record["gt_option"],
        "length": record["length"],
        "task_type": record["type"],
        "try": record["try"],
        "videoID": video_id,
        "question_id": f"{video_id}_try{record['try']}",
    }, video_id


def _videomme(record: Record, path: Path) -> Converted:
    return dict(record), record["videoID"]


def _longvideobench(record: Record, path: Path) -> Converted:
    # Videos of accounts are called "@account-1234" in the release, and by their number alone in the
    # published files.
    video_id, question_id = (_ACCOUNT.sub("", record[key]) for key in ("video_id", "id"))
    return {
        "videoID": video_id,
        "question_id": question_id,
        "duration": record["duration_group"],
        "task_type": record["question_category"],
        "question": record["question"],
        "options": record["candidates"],
        "answer": record["correct_choice"],
    }, PurePosixPath(record["video_path"]).stem


def _mlvu(record: Record, path: Path) -> Converted:
    if record["answer"] not in record["candidates"]:
        raise ValueError(f"answer {record['answer']!r} is not among the candidates {record['candidates']!r}")
    name = PurePosixPath(record["video"]).stem
    return {
        "video_id": f"{path.stem}-{name}",
        "question": record["question"],
        "answer": LETTERS[record["candidates"].index(record["answer"])],
        "options": record["candidates"],
        "task_type": record["question_type"],
    }, f"{path.stem}/{name}"


def _nextqa(record: Record, path: Path) -> Converted:
    video_id = str(record["video"])
    return {
        "video_id": video_id,
        "question_id": f"{video_id}_{record['qid']}",
        "question": record["question"],
        "answer": LETTERS[int(record["answer"])],
        "options": [record[f"a{i}"] for i in range(5)],
        "task_type": record["type"],
    }, video_id


_EGOSCHEMA = ("q_uid", "question", *(f"option {i}" for i in range(5)))


def _egoschema(record: Record, path: Path) -> Converted:
    return {key: record[key] for key in _EGOSCHEMA}, record["q_uid"]


def _keys(text: str) -> tuple[str, ...]:
    return tuple(text.split())


RELEASES = {
    "vnbench": Release(
        files=("VNBench-main-4try.json",),
        required=_keys("video question options gt_option needle_time length type try"),
        known=_keys("gt"),
        convert=_vnbench,
        measured=True,
    ),
    "videomme": Release(
        files=("*.parquet",),
        required=_keys(
            "video_id duration domain sub_category url videoID question_id task_type question options answer"
        ),
        convert=_videomme,
    ),
    "longvideobench": Release(
        files=("lvb_val.json",),
        required=_keys("id video_id video_path question candidates correct_choice duration_group question_category"),
        known=_keys(
            "question_wo_referring_query position topic_category level subtitle_path starting_timestamp_for_subtitles "
            "duration view_count"
        ),
        convert=_longvideobench,
    ),
    "mlvu": Release(
        files=("[1-7]_*.json",),
        required=_keys("video question candidates answer question_type"),
        known=_keys("duration question_id"),
        convert=_mlvu,
        measured=True,
    ),
    "nextqa": Release(
        files=("*.parquet", "*.csv"),
        required=_keys("video question answer qid type a0 a1 a2 a3 a4"),
        known=_keys("frame_count width height"),
        convert=_nextqa,
        measured=True,
    ),
    "egoschema": Release(
        files=("questions.json",), required=_EGOSCHEMA, known=_keys("google_drive_id"), convert=_egoschema
    ),
}

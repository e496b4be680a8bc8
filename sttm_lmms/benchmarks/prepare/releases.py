"""What the official release of each benchmark looks like, and how its records become ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sttm_lmms.benchmarks.prepare.sources import Record, check_keys, read_json_object, read_release, release_files
from sttm_lmms.benchmarks.question import LETTERS
from sttm_lmms.errors import AnnotationError

_ACCOUNT = re.compile(r"^@.+-(?=\d)")


@dataclass(frozen=True)
class Converted:
    """A record in the STTM format, and where its video is in the release.

    Attributes:
        record: without ``duration`` and ``video_second`` where these are measured.
        video_id: name of the video in our folder, without suffix.
        source: its path in the release, without suffix: the name alone, or the last folder and the name.
    """

    record: Record
    video_id: str
    source: str


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


def convert_release(release: Release, raw: Path, ignore: Sequence[str] = ()) -> list[Converted]:
    """All records of a release, in the order of its files.

    Args:
        release: one of :data:`RELEASES`.
        raw: its annotation file, or the folder that holds its annotation files.
        ignore: unknown keys that do not matter.

    Raises:
        AnnotationError: a file cannot be read, or a record lacks a key, has an unknown one or a bad value; names the
            file and the record (from 0).
    """
    converted = []
    for path in release_files(raw, release.files):
        for number, record in enumerate(read_release(path)):
            try:
                check_keys(record, release.required, {*release.known, *ignore})
                converted.append(release.convert(record, path))
            except (ValueError, TypeError, IndexError) as error:
                raise AnnotationError(f"{path}: record {number}: {error}") from error
    return converted


def with_question_numbers(converted: Iterable[Converted]) -> Iterator[Converted]:
    """Records without ``question_id`` get ``{video_id}-{n}``, n counting the questions of a video from 1."""
    count: Counter[str] = Counter()
    for item in converted:
        if "question_id" not in item.record:
            count[item.video_id] += 1
            record = {
                "video_id": item.video_id,
                "question_id": f"{item.video_id}-{count[item.video_id]}",
                **item.record,
            }
            item = Converted(record, item.video_id, item.source)
        yield item


def _vnbench(record: Record, path: Path) -> Converted:
    video_id = PurePosixPath(record["video"]).stem
    letters = LETTERS[: len(record["options"])]
    return Converted(
        {
            "question": record["question"],
            "options": [f"{letter}. {text}." for letter, text in zip(letters, record["options"], strict=True)],
            "needle_time": record["needle_time"],
            "answer": record["gt_option"],
            "length": record["length"],
            "task_type": record["type"],
            "try": record["try"],
            "videoID": video_id,
            "question_id": f"{video_id}_try{record['try']}",
        },
        video_id,
        video_id,
    )


def _videomme(record: Record, path: Path) -> Converted:
    return Converted(dict(record), record["videoID"], record["videoID"])


def _longvideobench(record: Record, path: Path) -> Converted:
    # Videos of accounts are called "@account-1234" in the release, and by their number alone in the published files.
    video_id, question_id = (_ACCOUNT.sub("", record[key]) for key in ("video_id", "id"))
    return Converted(
        {
            "videoID": video_id,
            "question_id": question_id,
            "duration": record["duration_group"],
            "task_type": record["question_category"],
            "question": record["question"],
            "options": record["candidates"],
            "answer": record["correct_choice"],
        },
        video_id,
        PurePosixPath(record["video_path"]).stem,
    )


def _mlvu(record: Record, path: Path) -> Converted:
    if record["answer"] not in record["candidates"]:
        raise ValueError(f"answer {record['answer']!r} is not among the candidates {record['candidates']!r}")
    name = PurePosixPath(record["video"]).stem
    return Converted(
        {
            "question": record["question"],
            "answer": LETTERS[record["candidates"].index(record["answer"])],
            "options": record["candidates"],
            "task_type": record["question_type"],
        },
        f"{path.stem}-{name}",
        f"{path.stem}/{name}",
    )


def _nextqa(record: Record, path: Path) -> Converted:
    video_id = str(record["video"])
    return Converted(
        {
            "video_id": video_id,
            "question_id": f"{video_id}_{record['qid']}",
            "question": record["question"],
            "answer": LETTERS[int(record["answer"])],
            "options": [record[f"a{i}"] for i in range(5)],
            "task_type": record["type"],
        },
        video_id,
        video_id,
    )


def _egoschema(record: Record, path: Path) -> Converted:
    known = ("q_uid", "question", *(f"option {i}" for i in range(5)))
    return Converted({key: record[key] for key in known}, record["q_uid"], record["q_uid"])


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
        files=("questions.json",),
        required=("q_uid", "question", *(f"option {i}" for i in range(5))),
        known=_keys("google_drive_id"),
        convert=_egoschema,
    ),
}


def egoschema_answers(raw: Path) -> dict[str, Any]:
    """The published answers, ``{q_uid: index}``, from ``subset_answers.json`` beside the questions; {} without it."""
    path = (raw if raw.is_dir() else raw.parent) / "subset_answers.json"
    return read_json_object(path) if path.is_file() else {}

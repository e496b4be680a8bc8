"""Reads the files of the official releases into plain records whose keys are checked."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sttm_lmms.errors import AnnotationError

Record = dict[str, Any]


def read_release(path: Path) -> list[Record]:
    """The records of a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, as plain Python values.

    Raises:
        AnnotationError: the file is missing, has another suffix, or is not what its suffix says.
    """
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise AnnotationError(f"{path}: expected a file ending in {', '.join(readers)}")
    try:
        records = readers[suffix](path)
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path}: not a readable {path.suffix} file ({error})") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(f"{path}: expected a list of records")
    return records


def check_keys(record: Mapping[str, Any], required: Iterable[str], known: Iterable[str]) -> None:
    """``ValueError`` naming the keys that a record lacks, or those that the converter does not know."""
    lacking = [key for key in required if key not in record]
    if lacking:
        raise ValueError(f"missing keys {', '.join(map(repr, lacking))}; the record has {', '.join(map(repr, record))}")
    strange = [key for key in record if key not in {*required, *known}]
    if strange:
        raise ValueError(
            f"unknown keys {', '.join(map(repr, strange))}: is this the release the converter was made for? "
            f"If they do not matter, pass {' '.join(f'--ignore {key!r}' for key in strange)}"
        )


def release_files(raw: Path, patterns: Sequence[str]) -> list[Path]:
    """``raw`` itself if it is a file, else the files in this folder whose names match, in order of name."""
    if raw.is_file():
        return [raw]
    files = sorted({path for pattern in patterns for path in raw.glob(pattern)})
    if not files:
        raise AnnotationError(
            f"{raw}: no {' or '.join(patterns)} here; pass the annotation file or its folder as --raw"
        )
    return files


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; :class:`AnnotationError` for anything else."""
    try:
        content = _read_json(path)
    except (ValueError, OSError) as error:
        raise AnnotationError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected a JSON object")
    return content


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def _read_csv(path: Path) -> list[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _read_parquet(path: Path) -> list[Record]:
    import pandas  # of the extra `eval`; nothing else here needs it

    return [{key: _plain(value) for key, value in row.items()} for row in pandas.read_parquet(path).to_dict("records")]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value

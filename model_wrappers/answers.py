"""Answers kept in a folder as they come, so that a run that was stopped goes on where it was.

lmms-eval's own response cache does not do for this: its key holds the words of ``--model_args`` and
nothing of the files behind them, it keeps the text of an answer without what was measured about it,
and a process whose answers it all knows is never asked, so that the processes of a run could not
share their work.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeVar

from loguru import logger

from sttm_lmms.runtime import Answer, LogLikelihood

A = TypeVar("A", Answer, LogLikelihood)


def open_cache(folder: Path | None, rank: int) -> AnswerCache | None:
    """The cache in a folder; without one None, with a warning where lmms-eval's own is in use."""
    if folder is not None:
        return AnswerCache(folder, rank)
    if rank == 0 and "--use_cache" in {word.partition("=")[0] for word in sys.argv}:
        logger.warning(
            "lmms-eval's own response cache tells runs by the words of --model_args: it does not see other weights, "
            "presets, methods or videos behind the same words. 'sttm-lmms eval --use_cache', or cache=FOLDER in "
            "--model_args, does"
        )
    return None


class AnswerCache:
    """Answers by a key that holds whatever decides them, see
    :mod:`~sttm_lmms.model_wrappers.identity`.

    Each process appends one JSON line an answer to a file of its own,
    ``runs/<run>/rank_<n>.audit.jsonl``, and knows what any run has left there when it starts. A
    line that a kill cut off is not an answer. Questions that could not be answered are not kept:
    they are asked again.

    Args:
        folder: may be shared by runs and machines.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        run = f"{time.strftime('%Y%m%d_%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
        self._path = folder / "runs" / run / f"rank_{rank}.audit.jsonl"
        self.found = 0
        """Answers of earlier runs that were asked for."""
        self._known: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("runs/*/rank_*.audit.jsonl")):
            self._read(file)

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """64 hex digits for what decides an answer."""
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def get(self, key: str, kind: type[A]) -> A | None:
        """The answer of an earlier run; None if there is none."""
        values = self._known.get(key)
        if values is None:
            return None
        self.found += 1
        return kind(**values)

    def put(self, key: str, answer: Answer | LogLikelihood, **where: Any) -> None:
        """Keep an answer, on disk when this returns. ``where`` (task, document) is for whoever
        reads the file."""
        if answer.error is not None:
            return
        values = asdict(answer)
        self._known[key] = values
        line = {"cache_key": key, **where, "response": values.get("text", ""), "answer": values}
        self._file.write(json.dumps({**line, "created_at": time.time()}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    @cached_property
    def _file(self) -> TextIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path.open("a", encoding="utf-8")

    def _read(self, file: Path) -> None:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                try:
                    found = json.loads(line)
                    self._known[found["cache_key"]] = found["answer"]
                except (ValueError, KeyError, TypeError):
                    continue  # cut off by a kill, or a line of lmms-eval's own cache

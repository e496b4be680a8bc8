"""An output folder in which every file is whole: a run writes beside it, and what is finished is
moved in."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

RESULTS = "_results.json"
_UNFINISHED = ".unfinished-"
_DATE = "%Y%m%d_%H%M%S"


@dataclass(frozen=True)
class Output:
    """``--output_path`` of one run.

    lmms-eval writes in place, the scores before the samples, line by line: a run that is killed
    there would leave half a file, or scores that look like those of a whole run.

    Attributes:
        folder: what the user gave.
        staged: where lmms-eval is to write: a hidden folder in it, of this run alone.
        command: begins the names of such folders of the same command.
    """

    folder: Path
    staged: Path
    command: str

    @classmethod
    def of_run(cls, folder: Path, run_id: str) -> Output:
        """The output of this process. ``run_id`` is the same for the same command."""
        command = f"{_UNFINISHED}{run_id}-{socket.gethostname()}-"
        return cls(folder, folder / f"{command}{os.getpid()}", command)

    def clear(self) -> None:
        """Remove what the same command left on this machine when it was killed."""
        for left in self.folder.glob(f"{self.command}*"):
            if left == self.staged or not _is_alive(left.name.removeprefix(self.command)):
                shutil.rmtree(left, ignore_errors=True)

    def publish(self) -> list[Path]:
        """Move every file to its place and return the result files, which are moved last.

        lmms-eval names files by the second. Where another run has taken that name, the files get
        the next free one.
        """
        results = []
        for result in sorted(self.staged.rglob(f"*{RESULTS}")):
            target = self.folder / result.parent.relative_to(self.staged)
            target.mkdir(parents=True, exist_ok=True)
            date = result.name.removesuffix(RESULTS)
            files = sorted(result.parent.glob(f"{date}_*"), key=lambda path: path == result)
            with _reserved(target, date) as free:
                for file in files:
                    if "_samples_" in file.name:
                        sort_samples(file)
                    if file == result:
                        text = file.read_text(encoding="utf-8")  # lmms-eval notes its arguments
                        file.write_text(text.replace(str(self.staged), str(self.folder)), encoding="utf-8")
                    os.replace(file, target / f"{free}{file.name.removeprefix(date)}")
            results.append(target / f"{free}{RESULTS}")
        if results:
            self._move_others()
        shutil.rmtree(self.staged, ignore_errors=True)
        return results

    def _move_others(self) -> None:
        """Move what a task wrote besides, such as answers for a benchmark's server."""
        for file in [path for path in self.staged.rglob("*") if path.is_file()]:
            target = self.folder / file.relative_to(self.staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            while target.exists():
                target = target.with_stem(f"{target.stem}-1")
            os.replace(file, target)


def result_files(folder: Path) -> list[Path]:
    """``*results.json`` below a folder, but for those of runs that were killed before they were
    published."""
    found = folder.rglob(f"*{RESULTS[1:]}")
    return sorted(path for path in found if not any(part.startswith(_UNFINISHED) for part in path.parts))


def sort_samples(file: Path) -> None:
    """Put the lines of a sample file into the order of the documents; lmms-eval writes them process
    by process."""
    with file.open(encoding="utf-8", newline="\n") as samples:
        lines = sorted(samples, key=lambda line: json.loads(line)["doc_id"])
    file.write_text("".join(lines), encoding="utf-8")


@contextmanager
def _reserved(folder: Path, date: str) -> Iterator[str]:
    """The first date from ``date`` on under which no other run has files in ``folder``; nobody else
    gets it inside."""
    while True:
        marker = folder / f".{date}.lock"
        with suppress(FileExistsError):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            if not any(folder.glob(f"{date}_*")):
                break
            marker.unlink()
        date = _next_second(date)
    try:
        yield date
    finally:
        marker.unlink(missing_ok=True)


def _next_second(date: str) -> str:
    try:
        return (datetime.strptime(date, _DATE) + timedelta(seconds=1)).strftime(_DATE)
    except ValueError:  # lmms-eval names files otherwise one day
        return f"{date}-1"


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True

"""An output folder in which every file is whole: a run writes beside it, and what is finished is moved in."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

RESULTS = "_results.json"
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Output:
    """``--output_path`` of one run.

    lmms-eval writes in place, the scores before the samples, line by line: a run that is killed there would leave half
    a file, or scores that look like those of a whole run.

    Attributes:
        folder: what the user gave.
        run_id: the same for the same command.
    """

    folder: Path
    run_id: str

    @property
    def staged(self) -> Path:
        """Where lmms-eval is to write: a hidden folder in ``folder``."""
        return self.folder / f"{_UNFINISHED}{self.run_id}"

    def clear(self) -> None:
        """Remove what the same command left there when it was killed."""
        shutil.rmtree(self.staged, ignore_errors=True)

    def publish(self) -> list[Path]:
        """Move every file to its place and return the result files, which are moved last."""
        results = []
        files = (path for path in self.staged.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path.name.endswith(RESULTS)):
            target = self.folder / file.relative_to(self.staged)
            if "_samples_" in file.name:
                sort_samples(file)
            if target.name.endswith(RESULTS):
                results.append(target)
                text = file.read_text(encoding="utf-8")  # lmms-eval notes its arguments
                file.write_text(text.replace(str(self.staged), str(self.folder)), encoding="utf-8")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        self.clear()
        return results


def result_files(folder: Path) -> list[Path]:
    """``*results.json`` below a folder, but for those of runs that were killed before they were published."""
    found = folder.rglob(f"*{RESULTS[1:]}")
    return sorted(path for path in found if not any(part.startswith(_UNFINISHED) for part in path.parts))


def sort_samples(file: Path) -> None:
    """Put the lines of a sample file into the order of the documents; lmms-eval writes them process by process."""
    with file.open(encoding="utf-8", newline="\n") as samples:
        lines = sorted(samples, key=lambda line: json.loads(line)["doc_id"])
    file.write_text("".join(lines), encoding="utf-8")

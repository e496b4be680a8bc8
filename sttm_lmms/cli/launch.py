"""One run of lmms-eval in a process of its own, its files under names that stay the same."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sttm_lmms.errors import STTMError

RESULTS, SAMPLES, LOG = "results.json", "samples_{}.jsonl", "log.txt"
LMMS_EVAL = (sys.executable, "-m", "lmms_eval")


def launch(
    args: Sequence[str],
    folder: Path,
    *,
    launcher: Sequence[str] = LMMS_EVAL,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Run lmms-eval and return its result file, ``folder/results.json``; the samples lie beside it.

    Under a launcher of several processes each of them calls this; the first one looks after the
    files.

    lmms-eval writes ``<model>/<date>_results.json`` and ``<model>/<date>_samples_<task>.jsonl``.
    These are moved to ``results.json`` and ``samples_<task>.jsonl``, over those of an earlier run.
    Nothing else in ``folder`` changes, but ``log.txt``: what the run printed.

    Args:
        args: of lmms-eval, without ``--output_path`` and ``--log_samples``.
        launcher: what starts it, such as ``accelerate launch ... -m lmms_eval``.
        environment: variables on top of this process'.

    Raises:
        STTMError: there is no result file; the end of what was printed is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [*launcher, *args, "--log_samples", "--output_path", str(folder)]
    before = set(folder.rglob("*"))
    rank = int(os.environ.get("RANK", 0))
    log_file = folder / (LOG if rank == 0 else f"log-{rank}.txt")
    with log_file.open("w", encoding="utf-8") as log:
        subprocess.run(
            command, env={**os.environ, **(environment or {})}, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if rank:
        return folder / RESULTS
    written = sorted(set(folder.rglob("*")) - before - set(folder.glob("log*.txt")))
    found = [file for file in written if file.name.endswith(f"_{RESULTS}")]
    if len(found) != 1:
        # lmms-eval reports a failed run as a success; only the file tells.
        printed = log_file.read_text(encoding="utf-8", errors="replace")
        raise STTMError(f"the run failed: {shlex.join(command)}\n{printed[-3000:]}")
    (result,) = found
    stem = result.name.removesuffix(RESULTS)
    for file in result.parent.glob(f"{stem}*"):
        shutil.move(file, folder / file.name.removeprefix(stem))
    for emptied in reversed([path for path in written if path.is_dir() and not any(path.iterdir())]):
        emptied.rmdir()
    return folder / RESULTS

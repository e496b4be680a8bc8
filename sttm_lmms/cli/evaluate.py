"""``sttm-lmms eval`` and ``sttm-lmms tasks``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sttm_lmms.cli.printed import shorter_tables
from sttm_lmms.errors import STTMError


def tasks() -> None:
    """Print the folder with our task files: lmms-eval --include_path "$(sttm-lmms tasks)" ..."""
    print(tasks_folder())


def evaluate(args: Sequence[str]) -> None:
    """Run lmms-eval with the given arguments and our tasks.

    Under several processes: accelerate launch --num_processes 8 -m sttm_lmms eval ...

    Raises:
        STTMError, ValueError: the model's arguments cannot work here; said before lmms-eval starts.
        STTMError: the run failed, which lmms-eval reports as a success, or an output path was given and there is no
            new result file in the end.
    """
    from sttm_lmms.model_wrappers.harness import run_lmms_eval
    from sttm_lmms.model_wrappers.preflight import check_run

    args = with_our_tasks(args)
    model, model_args, device = (option(args, name) for name in ("--model", "--model_args", "--device"))
    if model is not None and model_args is not None:
        check_run(model, model_args, {} if device is None else {"device": device})
    output = option(args, "--output_path")
    if option(args, "--use_cache") is not None:
        os.environ.setdefault("LMMS_CACHE_RUN_ID", cache_run_id(args))
    before = _files(output)
    with shorter_tables():
        reason = run_lmms_eval(args)
    if reason:
        raise STTMError(reason)
    if output and int(os.environ.get("RANK", 0)) == 0:
        new = _files(output) - before
        if not any(file.name.endswith("_results.json") for file in new):
            raise STTMError(f"the run failed (see above): no new result file in {output}")
        for file in new:
            if "_samples_" in file.name:
                sort_samples(file)


def sort_samples(file: Path) -> None:
    """Put the lines of a sample file into the order of the documents; lmms-eval writes them process by process."""
    with file.open(encoding="utf-8", newline="\n") as samples:
        lines = sorted(samples, key=lambda line: json.loads(line)["doc_id"])
    partial = file.with_suffix(".tmp")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(file)


def tasks_folder() -> Path:
    """The folder of task files that comes with this package."""
    import sttm_lmms.tasks

    return Path(next(iter(sttm_lmms.tasks.__path__)))


def with_our_tasks(args: Sequence[str]) -> list[str]:
    """``args`` with ``--include_path``, unless it is given or the arguments do not start a run."""
    starts_run = option(args, "--tasks") is not None
    if not starts_run or option(args, "--include_path") is not None:
        return list(args)
    return [*args, "--include_path", str(tasks_folder())]


def cache_run_id(args: Sequence[str]) -> str:
    """A name for the run's part of the response cache, the same for the same command.

    lmms-eval gives every run a new one, and a run that was killed is never merged: its answers would be lost.
    """
    return "sttm-" + hashlib.sha256("\0".join(args).encode()).hexdigest()[:16]


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option, written ``--name value`` or ``--name=value``; None if it is not there."""
    for position, arg in enumerate(args):
        if arg == name and position + 1 < len(args):
            return args[position + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def _files(output: str | None) -> set[Path]:
    """Result and sample files of lmms-eval."""
    return {file for file in Path(output).rglob("*.json*") if file.is_file()} if output else set()

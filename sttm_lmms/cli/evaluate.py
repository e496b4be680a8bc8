"""``sttm-lmms eval`` and ``sttm-lmms tasks``."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sttm_lmms.cli.printed import shorter_tables
from sttm_lmms.errors import STTMError
from sttm_lmms.output import Output

_MERGED_AFTER_S = 600.0


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
    run_id, path, cache = cache_run_id(args), option(args, "--output_path"), option(args, "--use_cache")
    if cache is not None:
        keep_answers(cache, run_id)
    output, first = Output(Path(path), run_id) if path else None, int(os.environ.get("RANK", 0)) == 0
    if output and first:
        output.clear()
    with shorter_tables():
        reason = run_lmms_eval(with_option(args, "--output_path", str(output.staged)) if output else args)
    results = output.publish() if output and first else []
    if reason:
        raise STTMError(reason)
    if output and first and not results:
        raise STTMError(f"the run failed (see above): no new result file in {path}")
    for result in results:
        print(f"results: {result}")


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


def keep_answers(cache: str, run_id: str) -> None:
    """Let lmms-eval's response cache keep the answers of this run where a rerun finds them.

    On a network file system lmms-eval writes answers to the machine's own disk and copies them when the run ends, so a
    rerun on another machine would ask them again. The shared folder itself stands in for that disk, unless
    ``LMMS_LOCAL_CACHE`` names another. A run that was killed while it merged its answers leaves a lock, for which every
    later run would wait a minute and then not merge: one that is older than any merge is removed.
    """
    root = Path(cache).absolute()
    root = root.parent if root.suffix == ".db" else root  # as lmms-eval does
    root.mkdir(parents=True, exist_ok=True)
    lock = root / "runs" / ".merge.lock"
    with suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > _MERGED_AFTER_S:
            shutil.rmtree(lock, ignore_errors=True)
    os.environ.setdefault("LMMS_CACHE_RUN_ID", run_id)
    os.environ.setdefault("LMMS_LOCAL_CACHE", str(root))


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option, written ``--name value`` or ``--name=value``; None if it is not there."""
    for position, arg in enumerate(args):
        if arg == name and position + 1 < len(args):
            return args[position + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def with_option(args: Sequence[str], name: str, value: str) -> list[str]:
    """``args`` with another value for an option that is among them."""
    changed = list(args)
    for position, arg in enumerate(args):
        if arg == name and position + 1 < len(args):
            changed[position + 1] = value
        elif arg.startswith(f"{name}="):
            changed[position] = f"{name}={value}"
    return changed

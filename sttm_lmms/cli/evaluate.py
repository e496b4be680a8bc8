"""``sttm-lmms eval`` and ``sttm-lmms tasks``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sttm_lmms.errors import STTMError
from sttm_lmms.output import Output

_CHANGED = ("include_path", "output_path", "use_cache", "model_args")
"""Options of lmms-eval that a run gets otherwise than they were given."""
_READ = (*_CHANGED, "model", "tasks", "device")

Options = dict[str, Any]


def tasks() -> None:
    """Print the folder with our task files: lmms-eval --include_path "$(sttm-lmms tasks)" ..."""
    print(tasks_folder())


def evaluate(args: Sequence[str]) -> None:
    """Run lmms-eval with the given arguments and our tasks.

    With ``--use_cache`` our models keep their answers in that folder, see ``cache`` of the
    wrappers' arguments; other models use lmms-eval's own response cache. Under several processes:
    accelerate launch --num_processes 8 -m sttm_lmms eval ...

    Raises:
        STTMError, ValueError: the model's arguments cannot work here; said before lmms-eval starts.
        STTMError: the run failed, which lmms-eval reports as a success, or an output path was given
            and there is no new result file in the end.
    """
    from sttm_lmms.model_wrappers.harness import run_lmms_eval

    first = int(os.environ.get("RANK", 0)) == 0
    with _planned(args) as (planned, outputs):
        if first:
            for output in outputs:
                output.clear()
        reason = run_lmms_eval(planned)
    results = {output.folder: output.publish() if first else [] for output in outputs}
    if reason:
        raise STTMError(reason)
    for folder, files in results.items():
        if first and not files:
            raise STTMError(f"the run failed (see above): no new result file in {folder}")
        for file in files:
            print(f"results: {file}")


def tasks_folder() -> Path:
    """The folder of task files that comes with this package."""
    import sttm_lmms.tasks

    return Path(next(iter(sttm_lmms.tasks.__path__)))


@contextmanager
def _planned(args: Sequence[str]) -> Iterator[tuple[list[str], list[Output]]]:
    """The arguments for lmms-eval, and where the files of its runs belong.

    ``--config`` may hold several runs; they are written anew, and options beside it go into each of
    them, because lmms-eval lets these win.
    """
    run_id = hashlib.sha256("\0".join(args).encode()).hexdigest()[:16]
    given = {name: value for name in _READ if (value := option(args, f"--{name}")) is not None}
    config = option(args, "--config")
    if list(args[:1]) == ["tasks"]:
        yield [*args, *(() if option(args, "--include-path") else ("--include-path", str(tasks_folder())))], []
    elif config is None:
        options, output = _plan(given, run_id)
        yield _with_options(args, options), [output] if output else []
    else:
        planned = [_plan({**run, **given}, f"{run_id}-{n}") for n, run in enumerate(_read_config(Path(config)))]
        with TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(yaml.safe_dump([options for options, _ in planned]), encoding="utf-8")
            rest = _with_options(args, dict.fromkeys(_CHANGED) | {"config": str(file)})
            yield rest, [output for _, output in planned if output]


def _plan(options: Options, run_id: str) -> tuple[Options, Output | None]:
    """Options of one run as lmms-eval gets them, and where its files belong.

    Raises:
        STTMError, ValueError: the model's arguments cannot work here.
    """
    from sttm_lmms.model_wrappers import WRAPPERS
    from sttm_lmms.model_wrappers.preflight import check_arguments

    planned = dict(options)
    model, arguments = options.get("model"), _as_text(options.get("model_args"))
    if options.get("tasks") is not None and options.get("include_path") is None:
        planned["include_path"] = str(tasks_folder())
    if model in WRAPPERS and options.get("use_cache") is not None:
        folder = str(planned.pop("use_cache"))
        if "," in folder:
            raise ValueError(f"--use_cache {folder}: lmms-eval cannot hand on a path with a comma")
        arguments = ",".join(part for part in (arguments, f"cache={folder}") if part)
        planned["model_args"] = arguments
    if model is not None and arguments is not None:
        check_arguments(model, arguments, {} if options.get("device") is None else {"device": options["device"]})
    output = Output.of_run(Path(options["output_path"]), run_id) if options.get("output_path") else None
    if output is not None:
        planned["output_path"] = str(output.staged)
    return planned, output


def _read_config(file: Path) -> list[Options]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise STTMError(f"--config {file} cannot be read: {error}") from error
    runs = content if isinstance(content, list) else [content]
    if not all(isinstance(run, dict) for run in runs):
        raise STTMError(f"--config {file}: write one mapping of lmms-eval's options for each run")
    return runs


def _as_text(model_args: Any) -> str | None:
    if isinstance(model_args, Mapping):
        return ",".join(f"{name}={value}" for name, value in model_args.items())
    return None if model_args is None else str(model_args)


def option(args: Sequence[str], name: str) -> str | None:
    """The value of an option, written ``--name value`` or ``--name=value``; None if it is not
    there."""
    for position, arg in enumerate(args):
        if arg == name and position + 1 < len(args):
            return args[position + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def _with_options(args: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """``args`` with the options that runs are planned by written anew: left out where they are None
    or missing."""
    dropped = {f"--{name}" for name in (*_CHANGED, "config")}
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word in dropped:
            next(words, None)
        elif word.partition("=")[0] not in dropped:
            kept.append(word)
    for name in (*_CHANGED, "config"):
        if options.get(name) is not None:
            kept += [f"--{name}", str(options[name])]
    return kept

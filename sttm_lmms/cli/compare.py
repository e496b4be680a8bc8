"""``sttm-lmms compare``: methods at equal budgets through lmms-eval, in one table."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_lmms.benchmarks.data import data_root
from sttm_lmms.cli.compare_grid import PlannedRun, make_controls, make_grid, pretrained, settings_of
from sttm_lmms.cli.evaluate import tasks_folder
from sttm_lmms.cli.launch import LMMS_EVAL, RESULTS, launch
from sttm_lmms.errors import STTMError, unknown
from sttm_lmms.methods import get_method, method_names

COMMAND = "command.txt"
_PACKAGES = ("sttm-lmms", "lmms-eval", "transformers")
_READ_WHOLE = 2**22  # bytes up to which a file is compared by its content


def compare(
    tasks: Annotated[str, typer.Option(help="Tasks of lmms-eval, such as vnbench or videomme,mlvu_dev.")],
    methods: Annotated[str | None, typer.Option(help="Names, such as sttm,tome,fastv. Default: all.")] = None,
    budgets: Annotated[str, typer.Option(help="Shares of the visual tokens to keep.")] = "0.5,0.3,0.15",
    model: Annotated[
        list[str] | None,
        typer.Option(help="sttm_llava_video, ...; may be given several times. Default: the small checkpoints."),
    ] = None,
    model_args: Annotated[
        list[str] | None,
        typer.Option("--model_args", "--model-args", help="pretrained=...,max_frames=..., one for each --model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("outputs/compare"),
    tables: Annotated[Path | None, typer.Option(help="Folder for tables and plots. Default: that of the runs.")] = None,
    reference: Annotated[str, typer.Option(help="The method that the others are compared with.")] = "sttm",
    videos: Annotated[int | None, typer.Option(help="Make so many videos for vnbench (small checkpoints).")] = None,
    work: Annotated[Path, typer.Option(help="Folder for these videos.")] = Path("outputs/compare/work"),
    processes: Annotated[int, typer.Option(help="Processes of each run, one for each GPU.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only so many questions of each task.")] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include_path", "--include-path", help="Folder of tasks. Default: ours.")
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Also all tokens with fewer or smaller frames, other frames, and no video.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and stop.")] = False,
) -> None:
    """Run each method at each budget, and all tokens, through lmms-eval; write one table and a
    plot.

    Beside them run, without reduction: fewer frames and smaller frames at the input for each
    budget, frames half a step later (answers that change by themselves), and no video at all.

    Runs that are there already are not repeated: a command that was stopped goes on where it was. A
    run that fails is named, and the others go on. Each run is a folder in --out with results.json,
    samples_<task>.jsonl, log.txt and command.txt. Under several processes of a launcher (accelerate
    launch -m sttm_lmms compare ...) all of them work on each run.
    """
    models = _models(model, model_args)
    grid = make_grid(models, _methods(methods, reference), _budgets(budgets))
    impossible: list[str] = []
    if controls:
        more, impossible = make_controls(models, _budgets(budgets), tasks.split(",")[0].strip())
        grid += more
    folders = _folder_names(models)
    failed, files = [], []
    for number, planned in enumerate(grid, start=1):
        folder = out / folders[planned.checkpoint] / planned.name
        args = _arguments(planned, tasks, include_path, limit)
        command = shlex.join(["lmms-eval", *args])
        if dry_run:
            typer.echo(command)
            continue
        label = f"[{number}/{len(grid)}] {folder.parent.name} {planned.name}"
        environment = {**_under_launcher(number), **_data(planned, videos, work)}
        data = data_root({**os.environ, **environment})
        inputs = describe_inputs(planned, tasks, include_path or tasks_folder(), data)
        if is_done(folder, command, inputs):
            _log(f"{label}: there already")
            files.append(folder / RESULTS)
            continue
        started = time.perf_counter()
        _log(f"{label}: {folder / 'log.txt'}")
        try:
            files.append(launch(args, folder, launcher=_launcher(processes), environment=environment))
        except STTMError as error:
            failed.append(f"{label}: {error_line(str(error))}")
            _log(failed[-1])
            continue
        if not _rank():
            _write_note(folder, command, inputs)
        _log(f"{label}: {time.perf_counter() - started:.0f} s")
    if dry_run or _rank():
        return
    if files:
        missing = [*impossible, *(f"not run: {line}" for line in failed)]
        write_tables(files, tables or out, checkpoints=list(folders), reference=reference, missing=missing)
    if failed:
        raise STTMError(f"{len(failed)} of {len(grid)} runs failed; the table is without them:\n" + "\n".join(failed))


def is_done(folder: Path, command: str, inputs: Mapping[str, str] | None = None) -> bool:
    """True if the run of this command, on these inputs, is there; otherwise it is noted for the
    next time.

    A run on other inputs (videos, weights, the source of a method, versions) is to be made anew.

    Raises:
        STTMError: the folder has the result of another command.
    """
    note, inputs = folder / COMMAND, inputs or {}
    if (folder / RESULTS).is_file():
        text = note.read_text(encoding="utf-8") if note.is_file() else "an unknown command"
        old, *lines = text.strip().splitlines()
        if old != command:
            raise STTMError(
                f"{folder} has the result of another command:\n  {old}\nnow asked for:\n  {command}\n"
                "Give another --out, or remove that folder"
            )
        seen = dict(line.split(": ", 1) for line in lines if ": " in line)
        others = {name: now for name, now in inputs.items() if seen.get(name) != now}
        changes = (f"{name} ({seen.get(name, 'unknown')} -> {now})" for name, now in others.items())
        if others:
            _log(f"{folder}: run anew, for there are other {', '.join(changes)}")
        return not others
    folder.mkdir(parents=True, exist_ok=True)
    _write_note(folder, command, inputs)
    return False


def describe_inputs(planned: PlannedRun, tasks: str, include_path: Path, root: Path) -> dict[str, str]:
    """What a run depends on besides its command, each in a few words or digits that change with
    it."""
    import inspect

    from sttm_lmms.benchmarks.presets import benchmark_of

    checkpoint = Path(planned.checkpoint).expanduser()
    found = {
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "weights": _digest(checkpoint) if checkpoint.is_dir() else "of the hub",
        "task files": _digest(include_path, "*.yaml", "*.py"),
    }
    if data := sorted({benchmark for task in tasks.split(",") if (benchmark := benchmark_of(task.strip()))}):
        found["videos and questions"] = " ".join(_digest(root / name, "annotations/*", "videos/*") for name in data)
    if ":" in planned.method:
        source = Path(inspect.getfile(get_method(planned.method)))
        found["source of the method"] = _digest(source.parent, source.name)
    return found


def _digest(folder: Path, *patterns: str) -> str:
    """12 hex digits for files below a folder: small ones by content, others by size and time of
    change."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns or ("*",) for path in folder.rglob(pattern) if path.is_file()}):
        stat = path.stat()
        content = path.read_bytes() if stat.st_size < _READ_WHOLE else f"{stat.st_size} {stat.st_mtime_ns}".encode()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _write_note(folder: Path, command: str, inputs: Mapping[str, str]) -> None:
    lines = [command, *(f"{name}: {value}" for name, value in inputs.items())]
    (folder / COMMAND).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tables(
    files: Sequence[Path], out: Path, *, checkpoints: Sequence[str], reference: str, missing: Sequence[str] = ()
) -> None:
    """The table of these result files as Markdown, JSON and a page, and the plot of accuracy over
    kept share. ``missing`` are the rows that are not there, in words."""
    from sttm_lmms.report.layout import equal_budget_json
    from sttm_lmms.report.plots import CAPTIONS, draw_plots, save_plots, to_svg
    from sttm_lmms.report.render import render
    from sttm_lmms.report.runs import load_runs
    from sttm_lmms.report.table import build_table

    command = shlex.join(["sttm-lmms", *sys.argv[1:]])
    table = build_table(load_runs(files), reference=reference, shapes=_shapes(checkpoints))
    table.attrs["missing"] = list(missing)
    figures = draw_plots(table)
    svgs = {CAPTIONS[name]: to_svg(figure, name) for name, figure in figures.items()}
    markdown, page = (
        render(table, format, title="Methods at equal budgets", command=command, reference=reference, plots=svgs)
        for format in ("md", "html")
    )
    out.mkdir(parents=True, exist_ok=True)
    texts = {"compare.md": markdown, "compare.json": equal_budget_json(table, command), "compare.html": page}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    typer.echo(markdown)
    for file in [*(out / name for name in texts), *save_plots(figures, out)]:
        typer.echo(f"wrote {file}")


def error_line(printed: str) -> str:
    """The line that says why a run failed: the last one with an error in it, else the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line or "error" in line), lines[-1] if lines else "")


def _models(model: list[str] | None, model_args: list[str] | None) -> list[tuple[str, str]]:
    if not model and not model_args:
        return [_shipped(family) for family in ("llava_video", "qwen2_vl")]
    if len(model or ()) != len(model_args or ()):
        raise ValueError("give one --model_args pretrained=... for each --model")
    pairs = list(zip(model or (), model_args or (), strict=True))
    for _, args in pairs:
        given = {part.partition("=")[0].strip() for part in args.split(",")}
        if clash := sorted(given & {"method", "budget", "preset", "spatial_threshold", "temporal_threshold"}):
            raise ValueError(f"--model_args {args}: leave out {', '.join(clash)}; --methods and --budgets say it")
        if "pretrained" not in given:
            raise ValueError(f"--model_args {args}: pretrained=... is missing")
    if len({pretrained(args) for _, args in pairs}) < len(pairs):
        raise ValueError("a checkpoint is given twice; compare its --model_args into different --out folders")
    return pairs


def _shipped(family: str) -> tuple[str, str]:
    from sttm_lmms.demo import sampling, shipped

    return f"sttm_{family}", f"pretrained={_relative(shipped(family))},{sampling(family)}"


def _methods(text: str | None, reference: str) -> list[str]:
    asked = text or ",".join(name for name in method_names() if _has_budget(name))
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names:
        if name == "none":
            raise ValueError("--methods none: all tokens are always run; leave it out")
        if not _has_budget(name):
            raise ValueError(f"--methods {name}: it has no budget, so it cannot be compared at equal ones")
    if reference not in names:
        raise unknown("--reference", reference, names)
    return names


def _has_budget(method: str) -> bool:
    return "budget" in settings_of(method)


def _budgets(text: str) -> list[float]:
    try:
        budgets = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--budgets {text}: write numbers, such as 0.5,0.3") from None
    if not budgets or not all(0 < budget < 1 for budget in budgets):
        raise ValueError(f"--budgets {text}: each has to lie between 0 and 1")
    return list(dict.fromkeys(budgets))


def _arguments(planned: PlannedRun, tasks: str, include_path: Path | None, limit: int | None) -> list[str]:
    path = include_path or _relative(tasks_folder())
    args = ["--model", planned.model, "--model_args", planned.arguments, "--tasks", tasks, "--include_path", str(path)]
    return args if limit is None else [*args, "--limit", str(limit)]


def _launcher(processes: int) -> tuple[str, ...]:
    if processes == 1 or "RANK" in os.environ:
        return LMMS_EVAL
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    return (sys.executable, *start, *LMMS_EVAL[1:])


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _log(line: str) -> None:
    if not _rank():
        typer.echo(line, err=True)


def _under_launcher(number: int) -> dict[str, str]:
    """Where this process is one of several: they meet anew for each run, so each run gets a port of
    its own."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return {}
    port = int(os.environ.get("MASTER_PORT", 29500)) + number
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _data(planned: PlannedRun, videos: int | None, work: Path) -> dict[str, str]:
    if videos is None:
        return {}
    from sttm_lmms.demo import make_videos, videos_folder

    family = planned.model.removeprefix("sttm_")
    if _rank():  # the first process makes them
        while not videos_folder(work, videos, family)[1].is_file():
            time.sleep(1)
    root = make_videos(work, videos, family)
    return {"STTM_DATA_ROOT": str(root), "HF_HUB_OFFLINE": "1"}


def _shapes(checkpoints: Sequence[str]) -> dict[str, Any]:
    """Sizes of each checkpoint's decoder, by the name that the tables use; without those that
    cannot be read."""
    from sttm_lmms.families.checkpoint import read_json, resolve_checkpoint
    from sttm_lmms.report.flops import DecoderShape
    from sttm_lmms.report.names import model_names

    shapes = {}
    for checkpoint, name in model_names(checkpoints).items():
        try:
            config = read_json(resolve_checkpoint(checkpoint, files=("config.json",)) / "config.json")
            shapes[name] = DecoderShape.from_config(config)
        except (STTMError, KeyError) as error:
            typer.echo(f"no operation count for {checkpoint}: {error}", err=True)
    return shapes


def _folder_names(models: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A folder for each checkpoint: the last part of its name, or more of it where two share
    that."""
    from sttm_lmms.report.names import model_names

    longer = model_names(pretrained(args) for _, args in models)
    last = {checkpoint: checkpoint.rstrip("/").rsplit("/", 1)[-1] for checkpoint in longer}
    shared = Counter(last.values())
    return {one: name if shared[name] == 1 else longer[one].replace("/", "__") for one, name in last.items()}


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

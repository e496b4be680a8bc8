"""``sttm-lmms check [MODEL] [--task TASK]``: an installation, a checkpoint or a whole run, before
it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sttm_lmms.cli.installation import Finding, examine
from sttm_lmms.config import check_number


def check(
    checkpoint: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Hub id or folder.")] = None,
    model: Annotated[str | None, typer.Option(help="The same as MODEL.")] = None,
    task: Annotated[str | None, typer.Option(help="A task of lmms-eval or of ours: checks a whole run.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of visual tokens to keep. Default: all.")] = None,
    preset: Annotated[str | None, typer.Option(help="Such as paper-50, instead of a budget.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Without a task: memory for videos of N frames.")] = None,
    start_layer: Annotated[int, typer.Option(min=0, help="With --frames: layer in front of which to merge.")] = 2,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that one model is spread over (device_map=auto).")] = 1,
    gpu_memory: Annotated[float | None, typer.Option(help="GiB of each GPU. Default: this machine's, or 80.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data root. Default: $STTM_DATA_ROOT or ./datasets.")] = None,
    model_args: Annotated[str, typer.Option(help="More of what --model_args will hold.")] = "",
    gen_kwargs: Annotated[str, typer.Option(help="What --gen_kwargs will hold.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder of task files. Default: ours.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    family: Annotated[
        str | None, typer.Option(help="llava_video or llava_onevision, where the files say neither.")
    ] = None,
) -> None:
    """Check this installation; with MODEL a checkpoint, and its memory for --frames; with --task a
    whole run.

    Nothing is loaded, and of a hub id no weights are downloaded. Status 1 and a sentence if
    something would fail.
    """
    name = checkpoint or model
    _be_quiet()
    if budget is not None:
        check_number("budget", budget, 0.0, 1.0, low_open=True)
    if task is not None:
        if name is None:
            raise ValueError("--task checks a run of a model: give its hub id or folder")
        from sttm_lmms.cli.check_run import check_run  # needs lmms-eval, which examine() looks for

        asked = {"budget": budget, "preset": preset, "revision": revision}
        values = {key: value for key, value in asked.items() if value is not None}
        for line in check_run(name, task, values, model_args, gen_kwargs, include_path, family, gpus, gpu_memory):
            typer.echo(line)
        return
    if frames is not None and name is None:
        raise ValueError("--frames predicts the memory of a checkpoint: give it with --model")
    findings = list(examine(name, data))
    _print(findings)
    if frames is not None and name is not None:
        from sttm_lmms.cli.check_memory import check_memory

        for line in check_memory(name, revision, frames, budget or 1.0, start_layer, gpus, gpu_memory):
            typer.echo(line)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _be_quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="sttm-lmms check", show_lines=False)
    for column in ("", "What", "Found", "What to do"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok", "note": "[yellow]note", "problem": "[red]problem"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.subject, finding.detail, finding.advice)
    Console().print(table)

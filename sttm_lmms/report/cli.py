"""The `leaderboard` command. The command line mounts this function."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from sttm_lmms.report.render import comparable_text, format_of, render
from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.table import build_table


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders that lmms-eval got as --output_path, or results files.")],
    format: Annotated[str | None, typer.Option(help="md, csv, html or latex. Default: by the file's ending.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: print.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Add the paper's own numbers, marked as such.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots (PNG and SVG).")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Rename a column: vnbench=Mini-VNBench. May be given several times.")
    ] = None,
    title: Annotated[str, typer.Option(help="Headline.")] = "Leaderboard",
    reference: Annotated[
        str | None, typer.Option(help="Compare the methods at equal budgets with this one, such as sttm.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Compare with this file instead of writing; exit 1 if it differs.")
    ] = None,
) -> None:
    """Make a leaderboard from lmms-eval result files: accuracy, intervals, kept tokens, speed, and
    what to distrust.

    Runs with --log_samples get intervals clustered by video and a paired test against the run
    without reduction.
    """
    from sttm_lmms.report.plots import CAPTIONS, draw_plots, save_plots, to_svg

    target = check or out
    chosen = format or (format_of(target) if target else "md")
    names = dict(_named(text) for text in name or [])
    table = build_table(load_runs(runs), paper=paper and not reference, names=names, reference=reference)
    figures = draw_plots(table) if plots or chosen == "html" else {}
    svgs = {CAPTIONS[name]: to_svg(figure, name) for name, figure in figures.items()} if chosen == "html" else {}
    command = _command(runs, paper, name or [], title, reference)
    text = render(table, chosen, title=title, plots=svgs, command=command, reference=reference)
    if check:
        difference = compare_text(check, text)
        if difference:
            typer.echo(difference)
            typer.echo(f"{check} does not match the run files; write it again with --out {check}", err=True)
            raise typer.Exit(1)
        typer.echo(f"{check} matches the run files")
        return
    if plots:
        for file in save_plots(figures, plots):
            typer.echo(f"wrote {file}", err=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {out}", err=True)
    else:
        typer.echo(text, nl=False)


def _named(text: str) -> tuple[str, str]:
    task, equals, label = text.partition("=")
    if not (task and equals and label):
        raise ValueError(f"--name {text!r}: write TASK=LABEL, such as vnbench=Mini-VNBench")
    return task, label


def _command(runs: list[Path], paper: bool, names: list[str], title: str, reference: str | None) -> str:
    """What to type for the same table again."""
    words = ["sttm-lmms", "leaderboard", *(run.as_posix() for run in runs)]
    words += ["--paper"] * paper
    words += [word for name in names for word in ("--name", name)]
    words += ["--reference", reference] if reference else []
    return shlex.join([*words, "--title", title])


def compare_text(file: Path, fresh: str) -> str:
    """Unified diff between a committed table and a fresh one, plots and command aside; empty if
    they agree."""
    if not file.is_file():
        return f"{file}: no such file"
    old, new = comparable_text(file.read_text(encoding="utf-8")), comparable_text(fresh)
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), str(file), "run files", lineterm="", n=1))

"""``sttm-lmms prepare BENCHMARK`` and ``sttm-lmms prepare check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sttm_lmms.benchmarks.data import annotation_file, data_root
from sttm_lmms.benchmarks.formats import FORMATS
from sttm_lmms.benchmarks.prepare.check import check
from sttm_lmms.benchmarks.prepare.convert import prepare
from sttm_lmms.benchmarks.prepare.releases import RELEASES
from sttm_lmms.benchmarks.prepare.report import Report
from sttm_lmms.errors import AnnotationError

app = typer.Typer(
    no_args_is_help=True, help="Convert official benchmark releases to the STTM format, or check a data folder."
)


def _command(benchmark: str) -> Callable[..., None]:
    def command(
        raw: Annotated[Path, typer.Option(help="Annotation file of the release, or the folder that holds it.")],
        videos: Annotated[Path, typer.Option(help="Folder of the videos; searched with all folders below it.")],
        out: Annotated[Path | None, typer.Option(help="Data root; $STTM_DATA_ROOT or ./datasets by default.")] = None,
        copy: Annotated[bool, typer.Option("--copy", help="Copy the videos instead of linking to them.")] = False,
        skip_missing: Annotated[
            bool, typer.Option("--skip-missing", help="Leave out the questions whose video is missing or broken.")
        ] = False,
        ignore: Annotated[list[str] | None, typer.Option(help="A key of the release that does not matter.")] = None,
    ) -> None:
        try:
            report = prepare(
                benchmark,
                raw,
                videos,
                out or data_root(),
                copy=copy,
                skip_missing=skip_missing,
                ignore=ignore or (),
                progress=True,
            )
        except AnnotationError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        _show(report)
        if report.annotations is None:
            typer.echo("find the videos and run this again, or pass --skip-missing", err=True)
            raise typer.Exit(1)

    return command


for _name, _release in RELEASES.items():
    app.command(_name, help=f"Convert {' or '.join(_release.files)} of the official release.")(_command(_name))


@app.command("check")
def check_command(
    benchmark: Annotated[list[str] | None, typer.Argument(help=f"One or more of {', '.join(FORMATS)}.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root; $STTM_DATA_ROOT or ./datasets by default.")] = None,
    read_videos: Annotated[bool, typer.Option("--read-videos", help="Also open every video.")] = False,
) -> None:
    """Say what a data folder lacks; without a benchmark, of every one whose annotations are there."""
    root = root or data_root()
    failed = False
    for name in benchmark or _present(root):
        try:
            report = check(root, name, read_videos=read_videos, progress=True)
        except (AnnotationError, ValueError) as error:
            typer.echo(f"error: {error}", err=True)
            failed = True
            continue
        _show(report)
        failed |= not report.complete
    if failed:
        raise typer.Exit(1)


def _present(root: Path) -> list[str]:
    found = []
    for name, fmt in FORMATS.items():
        try:
            annotation_file(root, fmt)
        except AnnotationError:
            continue
        found.append(name)
    if not found:
        typer.echo(
            f"error: no annotations of any benchmark in {root}; pass --root, or make some with prepare", err=True
        )
        raise typer.Exit(1)
    return found


def _show(report: Report) -> None:
    for line in report.lines():
        typer.echo(line)

"""``sttm-lmms prepare BENCHMARK`` and ``sttm-lmms prepare check``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_lmms.benchmarks.data import annotation_file, data_root
from sttm_lmms.benchmarks.formats import FORMATS
from sttm_lmms.benchmarks.prepare.convert import prepare
from sttm_lmms.benchmarks.prepare.releases import RELEASES
from sttm_lmms.benchmarks.prepare.report import Report, check
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
        options: dict[str, Any] = {"copy": copy, "skip_missing": skip_missing, "ignore": ignore or (), "progress": True}
        report = _run(partial(prepare, benchmark, raw, videos, out or data_root(), **options))
        if report is not None and report.annotations is None:
            typer.echo("find the videos and run this again, or pass --skip-missing", err=True)
        if report is None or report.annotations is None:
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
    """Say what a data folder lacks; without a benchmark, of every one whose annotations are
    there."""
    folder = root or data_root()
    names = benchmark or [name for name in FORMATS if _is_present(folder, name)]
    if not names:
        typer.echo(
            f"error: no annotations of any benchmark in {folder}; pass --root, or make some with prepare", err=True
        )
    reports = [_run(partial(check, folder, name, read_videos=read_videos, progress=True)) for name in names]
    if not reports or not all(report is not None and report.complete for report in reports):
        raise typer.Exit(1)


def _is_present(root: Path, benchmark: str) -> bool:
    try:
        return annotation_file(root, FORMATS[benchmark]).is_file()
    except AnnotationError:
        return False


def _run(make: Callable[[], Report]) -> Report | None:
    """The report, printed; None where there is an error instead."""
    try:
        report = make()
    except (AnnotationError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        return None
    for line in report.lines():
        typer.echo(line)
    return report

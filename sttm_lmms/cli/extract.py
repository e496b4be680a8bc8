"""``sttm-lmms extract``: visual features of a task's videos, stored in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sttm_lmms.video import VideoInfo


def extract(
    model: Annotated[str, typer.Option(help="Hub id or folder of a checkpoint.")],
    task: Annotated[str, typer.Option(help="A task of one of the six benchmarks, such as vnbench.")],
    out: Annotated[Path | None, typer.Option(help="Data set folder to write to. Default: the task's own.")] = None,
    size: Annotated[bool, typer.Option("--size", help="Only say how much space it takes.")] = False,
    form: Annotated[str, typer.Option(help="full, bf16 or pooled; --size says what each loses.")] = "full",
    max_frames: Annotated[int | None, typer.Option(help="Default: as in the published runs.")] = None,
    fps: Annotated[float | None, typer.Option(help="Default: as in the published runs.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Least pixels of a resized frame (Qwen families).")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a resized frame (Qwen families).")] = None,
    sampling: Annotated[str | None, typer.Option(help="uniform_fps (default, as published) or model.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data root. Default: $STTM_DATA_ROOT or ./datasets.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the vision tower: auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:1. Default: picked by itself.")] = None,
    video_backend: Annotated[str, typer.Option(help="auto (PyAV), pyav, torchcodec or decord.")] = "auto",
    video_timeout: Annotated[
        float, typer.Option(help="Seconds after which a video is given up; 0 for no limit.")
    ] = 120.0,
) -> None:
    """Run the vision tower once over the videos of a task and store what it sees; features=DIR then
    reads it.

    Stopped at any moment, it goes on where it was. Several processes share the work: accelerate
    launch --num_processes 8 -m sttm_lmms extract ...
    """
    from sttm_lmms.benchmarks import data_root
    from sttm_lmms.cli.videos import load_model, video_settings, videos_of
    from sttm_lmms.config import check_choice
    from sttm_lmms.runtime.stored import open_store
    from sttm_lmms.video.extract import estimate_size, human_bytes
    from sttm_lmms.video.extract import extract as fill
    from sttm_lmms.video.features import FORMS

    check_choice("form", form, tuple(FORMS))
    benchmark, videos = videos_of(task, data)
    loaded = load_model(model, device, dtype, revision)
    settings = video_settings(
        *(loaded.family.name, task, max_frames, fps, video_backend, min_pixels, max_pixels, sampling, video_timeout)
    )
    precision = str(loaded.placement.dtype).removeprefix("torch.")
    if size:

        def shape_of(info: VideoInfo) -> tuple[int, ...]:
            return loaded.family.feature_shape(loaded.model.config, info, settings)

        for name, loses in FORMS.items():
            if name != "pooled" or loaded.family.poolable:
                count, space = estimate_size(videos, shape_of, precision, name)
                typer.echo(f"{name}: {human_bytes(space)} for {count} videos; {loses}")
        return
    folder = out or (data or data_root()) / benchmark
    store = open_store(folder, model, settings, precision, form, revision=revision)
    rank, world = loaded.placement.rank, loaded.placement.world_size
    with typer.progressbar(length=1, label="extracting", hidden=rank != 0) as bar:

        def progress(done: int, videos_here: int) -> None:
            bar.length = videos_here
            bar.update(done - bar.pos)

        report = fill(videos, loaded.encoder(settings), store, shard=(rank, world), progress=progress)
    typer.echo(f"{len(report.written)} written, {len(report.skipped)} there already: {store.folder}")
    for video_id, reason in report.failed:
        typer.echo(f"failed: {video_id}: {reason}", err=True)
    if report.failed:
        raise typer.Exit(1)

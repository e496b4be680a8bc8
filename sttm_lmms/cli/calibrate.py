"""``sttm-lmms calibrate``: one pair of thresholds for a data set, as the paper uses them, written
as a preset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    model: Annotated[str, typer.Option(help="Hub id or folder of a checkpoint.")],
    task: Annotated[str, typer.Option(help="A task of one of the six benchmarks, such as vnbench.")],
    budget: Annotated[float, typer.Option(help="Average share of visual tokens to keep, in (0, 1].")],
    out: Annotated[Path, typer.Option(help="Preset to write, a .yaml file; preset=FILE then uses it.")],
    videos: Annotated[int, typer.Option(help="Videos to look at, spread over the data set.", min=1)] = 32,
    size: Annotated[str | None, typer.Option(help="Model size such as 7b. Default: from the name.")] = None,
    start_layer: Annotated[
        int | None, typer.Option(help="Decoder layer in front of which tokens are merged. Default: the family's.")
    ] = None,
    root_level: Annotated[int, typer.Option(help="Level at which the quadtrees start.")] = 1,
    max_frames: Annotated[int | None, typer.Option(help="Default: as in the published runs.")] = None,
    fps: Annotated[float | None, typer.Option(help="Default: as in the published runs.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Least pixels of a resized frame (Qwen families).")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a resized frame (Qwen families).")] = None,
    sampling: Annotated[str | None, typer.Option(help="uniform_fps (default, as published) or model.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data root. Default: $STTM_DATA_ROOT or ./datasets.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:1. Default: picked by itself.")] = None,
    video_backend: Annotated[str, typer.Option(help="auto (PyAV), pyav, torchcodec or decord.")] = "auto",
    video_timeout: Annotated[
        float, typer.Option(help="Seconds after which a video is given up; 0 for no limit.")
    ] = 120.0,
) -> None:
    """Find the spatial and temporal threshold with which a sample of videos meets a budget on
    average.

    A single video may land far from it; budget=... instead of a preset meets the budget for each
    video.
    """
    import torch
    import yaml

    from sttm_lmms import STTMConfig
    from sttm_lmms.benchmarks.presets import size_of
    from sttm_lmms.cli.videos import load_model, video_settings, videos_of
    from sttm_lmms.config import check_integer
    from sttm_lmms.methods.sttm import calibrate as search
    from sttm_lmms.runtime.hidden import video_states

    named = size or size_of(model)
    if not named:
        raise ValueError(f"the size of {model} cannot be told from its name: give --size, such as --size 7b")
    if start_layer is not None:
        check_integer("start_layer", start_layer, 0)
    benchmark, all_videos = videos_of(task, data)
    sample = all_videos[:: max(1, len(all_videos) // videos)][:videos]
    loaded = load_model(model, device, dtype, revision)
    start_layer = loaded.family.start_layer if start_layer is None else start_layer
    settings = video_settings(
        *(loaded.family.name, task, max_frames, fps, video_backend, min_pixels, max_pixels, sampling, video_timeout)
    )
    encode = loaded.encoder(settings)

    def states() -> Iterator[torch.Tensor]:
        with typer.progressbar(sample, label="looking at videos") as bar:
            for _, path in bar:
                yield video_states(loaded.model, loaded.processor, encode(path), start_layer)

    config = STTMConfig(budget=budget, root_level=root_level, start_layer=start_layer)
    found = search(states(), budget, config)
    pair = [round(found.spatial, 6), round(found.temporal, 6)]
    preset = {
        "family": loaded.family.name,
        "size": named.lower(),
        "start_layer": start_layer,
        "root_level": root_level,
        "max_frames": settings.max_frames,
        "fps": settings.fps,
        "sampling": settings.sampling,
        "thresholds": {benchmark: pair},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump({"models": [preset]}, sort_keys=False), encoding="utf-8")
    typer.echo(f"spatial {pair[0]}, temporal {pair[1]} over {len(sample)} videos; wrote {out}: preset={out}")

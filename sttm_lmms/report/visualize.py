"""The `visualize` command: which tokens of a video merged, as pictures, a film and a page with
sliders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import yaml

from sttm_lmms.errors import STTMError, unknown
from sttm_lmms.methods import get_method
from sttm_lmms.report.names import setting_words
from sttm_lmms.report.page import Setting, render_page
from sttm_lmms.report.pictures import TokenMap, draw_film, draw_sheet, frames_of_grid, save_gif

if TYPE_CHECKING:
    from sttm_lmms.types import MergedTokens
    from sttm_lmms.video import Video, VideoSettings

BUDGETS = ("budget=0.7", "budget=0.5", "budget=0.3", "budget=0.1")
PIXEL_NOTE = "A preview without a model: tokens are compared by the look of their pixels, not by what a model sees."


class Film(str, Enum):
    """Kinds of film."""

    gif = "gif"
    mp4 = "mp4"
    none = "none"


def visualize(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a checkpoint.")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="No model: a rough preview by the look of pixels.")] = False,
    method: Annotated[str, typer.Option(help="Name in the methods registry.")] = "sttm",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings of the method, such as budget=0.5 or spatial_threshold=0.8,temporal_threshold=0.6."
        ),
    ] = None,
    max_frames: Annotated[int, typer.Option(help="Frames to look at, at most.")] = 16,
    fps: Annotated[float, typer.Option(help="Frames for each second of video, at most.")] = 1.0,
    min_pixels: Annotated[int | None, typer.Option(help="Least pixels of a resized frame (Qwen families).")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a resized frame (Qwen families).")] = None,
    film: Annotated[Film, typer.Option(help="Kind of film of each setting.")] = Film.gif,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1. Default: picked by itself.")] = None,
    question: Annotated[
        str, typer.Option(help="What the prompt asks; methods that read attention keep what matters to it.")
    ] = "What happens in the video?",
) -> None:
    """Draw which visual tokens of a video merge: a sheet and a film for each setting, and one page
    with sliders.

    --setting may be given several times; by default four budgets are drawn.
    """
    from sttm_lmms.video import VideoSettings

    if (model is None) != pixels:
        raise ValueError("give either --model (a checkpoint) or --pixels (a preview without a model)")
    asked = [parse_settings(text) for text in setting or BUDGETS]
    configs = [make_config(method, settings) for settings in asked]
    sampling = VideoSettings(max_frames=max_frames, fps=fps, min_pixels=min_pixels, max_pixels=max_pixels)
    if model is None:
        seen, merged = _by_pixels(video, sampling, method, configs)
    else:
        seen, merged = _by_model(video, sampling, model, revision, device, method, asked, question)
    settings = [
        Setting(setting_words(settings) or "defaults", TokenMap.of(tokens), tokens.info)
        for settings, tokens in zip(asked, merged, strict=True)
    ]
    title = f"{method} on {video.name}"
    for file in write_pictures(seen.frames, settings, out, title, film=film, note=PIXEL_NOTE if pixels else ""):
        typer.echo(f"wrote {file}")


def write_pictures(
    frames: np.ndarray, settings: Sequence[Setting], out: Path, title: str, *, film: Film = Film.gif, note: str = ""
) -> Iterator[Path]:
    """Write sheets, films and the page, yielding each file when it is there.

    Args:
        frames: uint8 ``[F, H, W, 3]``, the frames that the model saw.
    """
    out.mkdir(parents=True, exist_ok=True)
    shown = frames_of_grid(frames, len(settings[0].tokens.source))
    for setting in settings:
        name = f"{title}, {setting.name}"
        stem = re.sub(r"[^\w.]+", "-", setting.name)
        sheet = out / f"sheet-{stem}.png"
        draw_sheet(shown, setting.tokens, name).save(sheet)
        yield sheet
        if film is not Film.none:
            yield _write_film(shown, setting.tokens, name, out / f"film-{stem}.{film.value}")
    page = out / "index.html"
    page.write_text(render_page(shown, settings, title, note=note), encoding="utf-8")
    yield page


def parse_settings(text: str) -> dict[str, str]:
    """``"name=value,name=value"`` as a dictionary. Raises ``ValueError`` where a value is
    missing."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    for name, equals, _ in pairs:
        if not equals:
            raise ValueError(f"setting {name!r} has no value; write {name}=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def make_config(method: str, settings: Mapping[str, str]) -> Any:
    """Settings of a method from their texts.

    Raises:
        ValueError: an unknown method or setting, or a value that the method refuses.
    """
    config_class = get_method(method)
    known = [field.name for field in fields(config_class)]
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {method}", name, known)
    return config_class(**{name: yaml.safe_load(value) for name, value in settings.items()})


def pixel_features(frames: np.ndarray, side: int = 14) -> Any:
    """Stand-ins for a model's tokens: the pixels of each cell, less the video's mean colour.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        side: cells along each side of the grid.

    Returns:
        float32 ``[T, side, side, 48]``: 4x4 pixels for each cell.
    """
    import torch

    small = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, (4 * side, 4 * side), mode="area"
    )
    small = small - small.mean((0, 2, 3), keepdim=True)
    cells = small.reshape(len(frames), 3, side, 4, side, 4).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(len(frames), side, side, 48)


def _by_pixels(
    path: Path, sampling: VideoSettings, method: str, configs: Sequence[Any]
) -> tuple[Video, list[MergedTokens]]:
    from sttm_lmms.runtime.videos import reduce_grid
    from sttm_lmms.video import probe, read_frames, sample_uniform_fps

    info = probe(path, sampling.backend)
    video = read_frames(info, sample_uniform_fps(info, sampling.fps, sampling.max_frames), sampling.backend)
    features = pixel_features(video.frames)
    return video, [reduce_grid(config, features, head_dim=16) for config in configs]


def _by_model(
    path: Path,
    sampling: VideoSettings,
    checkpoint: str,
    revision: str | None,
    device: str | None,
    method: str,
    asked: Sequence[Mapping[str, str]],
    question: str,
) -> tuple[Video, list[MergedTokens]]:
    """What really happens in the model, at the stages that are asked for or from its family's own
    start layer on."""
    from sttm_lmms.families import family_of, load_pretrained
    from sttm_lmms.families.placement import place_model

    placed = place_model(device)
    model, processor = load_pretrained(checkpoint, revision=revision, dtype=placed.dtype, device_map=placed.device_map)
    family = family_of(model)
    own = {name: str(value) for name, value in family.method_defaults(get_method(method)).items()}
    configs = [make_config(method, {**own, **settings}) for settings in asked]
    video = family.read_video(path, sampling)
    features = family.vision_features(model, processor, video)
    return video, [merge_in_model(model, processor, features, config, question) for config in configs]


def merge_in_model(model: Any, processor: Any, features: Any, config: Any, question: str = " ") -> MergedTokens:
    """Run the decoder and return what the reduction did to a video (without features).

    The decoder sees the prompt up to the end of the video, or all of it for methods that depend on
    the question.

    Args:
        model, processor: from :func:`sttm_lmms.load_pretrained`.
        features: ``VisionFeatures`` of the video.
        config: settings of a reduction method.
        question: the prompt's text after the video.
    """
    from sttm_lmms.families import family_of
    from sttm_lmms.runtime.prefix import prefill_prefix
    from sttm_lmms.runtime.reducer import TokenReducer

    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    prepared = family_of(model).prepare(model, processor, messages, [features], newline="no_token")
    if not config.shares_prefix:
        prepared = replace(prepared, prefix_length=prepared.input_ids.shape[1])
    with TokenReducer(model, config) as reducer:
        (reduction,) = prefill_prefix(reducer, prepared).reductions
    if reduction.merged is None:
        raise STTMError("the prefill kept no source map; there is nothing to draw")
    return reduction.merged


def _write_film(frames: np.ndarray, tokens: TokenMap, title: str, path: Path) -> Path:
    pictures = draw_film(frames, tokens, title)
    if path.suffix == ".gif":
        return save_gif(list(pictures), path)
    from sttm_lmms.video import write_video

    return write_video(path, (np.asarray(picture) for picture in pictures), fps=2)

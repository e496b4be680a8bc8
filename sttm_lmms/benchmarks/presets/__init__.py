"""Settings of the published runs, and of users' own, chosen by name: model x benchmark x budget.

The numbers are data: one YAML file a preset beside this module, in the layout a user's own file has too::

    models:
      - family: llava_video          # as in `--model sttm_llava_video`
        size: 7b
        start_layer: 2               # optional, as are root_level, decode_positions, max_frames, fps and sampling
        thresholds:
          videomme: [0.85, 0.55]     # spatial, temporal
          default: [0.80, 0.60]      # optional: every other task
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sttm_lmms.benchmarks.formats import FORMATS
from sttm_lmms.errors import unknown

if TYPE_CHECKING:
    from sttm_lmms.methods.base import DecodePositions
    from sttm_lmms.methods.sttm import STTMConfig
    from sttm_lmms.video import VideoSettings

UNIFORM_FPS = "uniform_fps"
"""The frame sampling of all published runs, see ``VideoSettings``."""

ALL_FRAMES = 1000.0
"""A rate that no video has: ``max_frames`` frames are then taken from any video."""

FIELD = {"field-32": "frames-32", "field-64": "frames-64"}
"""Presets of frames alone, with the video settings that they stand for: what most papers use beside ``sttm_field``."""

BLIND = "none"
"""The video settings under which no video is shown."""

_FOLDER = Path(__file__).parent
_FRAMES = _FOLDER / "frames.yaml"
_VIDEO = _FOLDER / "video.yaml"
_OPTIONAL = {"start_layer", "root_level", "decode_positions", "max_frames", "fps", "sampling"}
_MODEL_KEYS = {"family", "size", "thresholds", *_OPTIONAL}
_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?[bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Frames:
    """At most ``max_frames`` frames, sampled at ``fps`` a second; ``sampling`` as in
    ``VideoSettings``; pixel limits where they are not the family's own."""

    max_frames: int
    fps: float
    sampling: str = "model"
    min_pixels: int | None = None
    max_pixels: int | None = None

    def settings(self, **chosen: Any) -> VideoSettings:
        """These frames, but for what was ``chosen``: fields of ``VideoSettings`` by name; None
        leaves one as it is."""
        from sttm_lmms.video import VideoSettings

        own = {field.name: getattr(self, field.name) for field in fields(Frames)}
        return VideoSettings(**own | {name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Preset(Frames):
    """Settings of one model on one benchmark: its frames, and those of
    :class:`~sttm_lmms.STTMConfig`."""

    spatial_threshold: float
    temporal_threshold: float
    root_level: int = 1
    start_layer: int = 2
    decode_positions: DecodePositions = "continue"

    @property
    def config(self) -> STTMConfig:
        """The settings of the reduction."""
        from sttm_lmms.methods.sttm import STTMConfig  # with torch, which reproduce.sh can do without

        own = {field.name for field in fields(self)} - {field.name for field in fields(Frames)}
        return STTMConfig(**{name: getattr(self, name) for name in own})


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return [*FIELD, *sorted(path.stem for path in _FOLDER.glob("*.yaml") if path not in (_FRAMES, _VIDEO))]


def resolve_preset(preset: str, *, family: str, task: str, size: str = "", checkpoint: str = "") -> Preset:
    """The settings a preset has for a model and a task.

    Args:
        preset: a name of :func:`preset_names` or the path of a YAML file; ``NAME:SIZE`` gives the
            size, too.
        family: name of a model family, such as ``"llava_video"``.
        task: name of a task of ours or of lmms-eval (``videomme``, ``mlvu_dev``,
            ``longvideobench_val_v``, ...).
        size: for example ``"7b"``; by default read from ``checkpoint``, a hub id or a folder whose
            name contains it.

    Raises:
        ValueError: the preset, the task or the combination is unknown (the message lists what
            exists), the size cannot be told, or the file does not have the layout above.
    """
    if preset in FIELD:
        raise ValueError(f"preset={preset!r} has frames and no thresholds: give budget or method beside it")
    preset, _, given = preset.partition(":") if re.search(r":[\d.]+b$", preset, re.IGNORECASE) else (preset, "", "")
    models = _read(preset)
    size = (given or size or size_of(checkpoint)).lower()
    if not size:
        raise ValueError(
            f"preset={preset!r} depends on the size of the model, which the name {checkpoint!r} does not tell; "
            f"say it with the preset: preset={preset}:7b"
        )
    benchmark = benchmark_of(task)
    for model in models:
        if (model["family"], model["size"].lower()) == (family, size):
            thresholds = model["thresholds"].get(benchmark or task, model["thresholds"].get("default"))
            if thresholds is not None:
                frames = asdict(resolve_frames(family, task)) | {"sampling": UNIFORM_FPS}
                own = {key: model[key] for key in _OPTIONAL if key in model}
                spatial, temporal = map(float, thresholds)
                return Preset(**frames | own, spatial_threshold=spatial, temporal_threshold=temporal)
    known = "; ".join(f"{model['family']} {model['size']} on {', '.join(model['thresholds'])}" for model in models)
    raise ValueError(f"preset {preset!r} has nothing for {family} {size} on task {task!r}. It has: {known}")


def resolve_frames(family: str, task: str) -> Frames:
    """The frames of the published runs of a family on a task; tasks that are not in the paper get
    the family's default.

    Our own tasks sample as the published runs did, those of lmms-eval as the model does everywhere
    else. Families that the paper does not have are sampled as the model does in all tasks.

    Raises:
        ValueError: the family is unknown.
    """
    families: dict[str, dict[str, Any]] = yaml.safe_load(_FRAMES.read_text(encoding="utf-8"))
    if family not in families:
        raise unknown("family", family, families)
    known = families[family]
    ours = task == "vnbench" or task.startswith("sttm_")
    rule = known.get("sampling", UNIFORM_FPS if ours else "model")
    return Frames(**known.get(benchmark_of(task) or "", known["default"]), sampling=rule)


def resolve_video(name: str, family: str) -> Frames:
    """The video settings called ``name`` of a family.

    ``official`` is what its makers use. ``frames-16`` (or any other number) is so many frames of
    every video, evenly spread: with a budget, more frames at the same cost. Under ``none`` the
    wrappers show no video, so its frames are any.

    Raises:
        ValueError: there are none of that name, or not for this family.
    """
    if name == BLIND:
        return resolve_frames(family, "")
    if count := re.fullmatch(r"frames-([1-9]\d*)", name):
        return Frames(int(count.group(1)), ALL_FRAMES)
    presets: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(_VIDEO.read_text(encoding="utf-8"))
    if name not in presets:
        raise unknown("video", name, [*presets, BLIND, "frames-16, frames-32, ... (so many frames of every video)"])
    if family not in presets[name]:
        raise ValueError(f"video={name!r} has nothing for {family}. It has: {', '.join(presets[name])}")
    return Frames(**presets[name][family])


def benchmark_of(task: str) -> str | None:
    """The benchmark a task belongs to, by its name: ``sttm_mlvu``, ``mlvu_dev`` -> ``"mlvu"``; None
    if to none."""
    name = task.removeprefix("sttm_")
    return next((benchmark for benchmark in FORMATS if name == benchmark or name.startswith(f"{benchmark}_")), None)


def size_of(checkpoint: str) -> str:
    """The size in the name of a checkpoint, ``"lmms-lab/LLaVA-Video-7B-Qwen2" -> "7b"``; "" if
    there is none."""
    sizes = _SIZE.findall(checkpoint)
    return sizes[-1].lower() if sizes else ""


def _read(preset: str) -> list[dict[str, Any]]:
    """The models of a preset, checked."""
    path = _FOLDER / f"{preset}.yaml" if preset in preset_names() else Path(preset).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("preset", preset, [*preset_names(), "the path of a .yaml file"])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"preset {preset!r}: no such file; presets by name: {', '.join(preset_names())}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"preset {preset!r} is not a YAML file: {error}") from None
    models = content.get("models") if isinstance(content, Mapping) else None
    if not isinstance(models, list) or not models:
        raise ValueError(f"preset {preset!r} has no list called 'models'")
    for number, model in enumerate(models):
        _check(model, f"preset {preset!r}, model {number}")
    return models


def _check(model: Any, where: str) -> None:
    missing = {"family", "size", "thresholds"} - set(model if isinstance(model, Mapping) else ())
    if missing:
        raise ValueError(f"{where}: {', '.join(sorted(missing))} missing")
    for key in model:
        if key not in _MODEL_KEYS:
            raise ValueError(f"{where}: {unknown('key', key, _MODEL_KEYS)}")
    for benchmark, pair in model["thresholds"].items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, (int, float)) for x in pair):
            raise ValueError(f"{where}: thresholds of {benchmark} must be [spatial, temporal], found {pair!r}")

"""Which reduction and which frames a task runs with: the arguments where given, else the preset, else the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sttm_lmms.model_wrappers.arguments import WrapperArguments

from sttm_lmms.benchmarks.presets import resolve_frames, resolve_preset
from sttm_lmms.methods import get_method
from sttm_lmms.video import VideoSettings


@dataclass(frozen=True)
class TaskSettings:
    """``config`` of the reduction (None reduces nothing) and the frame sampling of one task."""

    config: Any
    video: VideoSettings


def task_settings(arguments: WrapperArguments, family: str, task: str) -> TaskSettings:
    """The settings of a task.

    Raises:
        ValueError: a setting is out of range, or the preset does not know the model or the task.
    """
    if arguments.preset is not None:
        preset = resolve_preset(arguments.preset, family=family, task=task, checkpoint=arguments.pretrained)
        config = replace(preset.config, **arguments.method_settings)
        return TaskSettings(config, _video(arguments, preset.max_frames, preset.fps))
    frames = resolve_frames(family, task)
    return TaskSettings(_config(arguments), _video(arguments, frames.max_frames, frames.fps))


def default_settings(arguments: WrapperArguments, family: str) -> TaskSettings:
    """The settings before any task is known; a preset has no reduction then."""
    return task_settings(replace(arguments, preset=None, method="none") if arguments.preset else arguments, family, "")


def _config(arguments: WrapperArguments) -> Any:
    if arguments.method == "none":
        return None
    return get_method(arguments.method)(**arguments.method_settings)


def _video(arguments: WrapperArguments, max_frames: int, fps: float) -> VideoSettings:
    return VideoSettings(
        max_frames=max_frames if arguments.max_frames is None else arguments.max_frames,
        fps=fps if arguments.fps is None else arguments.fps,
        backend=arguments.video_backend,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
    )

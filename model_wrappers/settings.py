"""Which reduction and which frames a task runs with: the arguments where given, else the preset, else the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sttm_lmms.benchmarks.presets import Frames, resolve_frames, resolve_preset, resolve_video
from sttm_lmms.families import get_family
from sttm_lmms.methods import get_method
from sttm_lmms.model_wrappers.arguments import WrapperArguments
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
        frames = Frames(preset.max_frames, preset.fps, sampling=preset.sampling)
        return TaskSettings(config, _video(arguments, frames))
    frames = resolve_video(arguments.video, family) if arguments.video else resolve_frames(family, task)
    return TaskSettings(_config(arguments, family), _video(arguments, frames))


def default_settings(arguments: WrapperArguments, family: str) -> TaskSettings:
    """The settings before any task is known; a preset has no reduction then."""
    return task_settings(replace(arguments, preset=None, method="none") if arguments.preset else arguments, family, "")


def _config(arguments: WrapperArguments, family: str) -> Any:
    if arguments.method == "none":
        return None
    cls = get_method(arguments.method)
    return cls(**{**get_family(family).method_defaults(cls), **arguments.method_settings})


def _video(arguments: WrapperArguments, frames: Frames) -> VideoSettings:
    names = ("max_frames", "fps", "min_pixels", "max_pixels", "sampling")
    chosen = {name: getattr(arguments, name) for name in names}
    return frames.settings(**chosen, backend=arguments.video_backend, timeout=arguments.video_timeout)

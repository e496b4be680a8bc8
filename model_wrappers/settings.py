"""Which reduction and which frames a task runs with: the arguments where given, else the preset,
else the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sttm_lmms.benchmarks.presets import Frames, resolve_frames, resolve_preset, resolve_video
from sttm_lmms.families import get_family
from sttm_lmms.methods import get_method
from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.provenance import Provenance, collect_provenance
from sttm_lmms.video import VideoSettings, available_backends


@dataclass(frozen=True)
class TaskSettings:
    """``config`` of the reduction (None reduces nothing) and the frame sampling of one task."""

    config: Any
    video: VideoSettings

    @property
    def backend(self) -> str:
        """Who decodes the videos."""
        return available_backends()[0] if self.video.backend == "auto" else self.video.backend


class RunSettings:
    """The arguments of a run, and the reduction and frames of each of its tasks. Each is made once.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, arguments: WrapperArguments, family: str) -> None:
        self.arguments, self.family = arguments, family
        self._config = None if arguments.preset is not None else _config(arguments, family)
        self.default = TaskSettings(self._config, self._video(""))
        """Before any task is known; a preset has no reduction then."""
        self.tasks: dict[str, TaskSettings] = {}
        """Those that were asked for."""

    def of(self, task: str) -> TaskSettings:
        """The settings of a task.

        Raises:
            ValueError: a setting is out of range, or the preset does not know the model or the
                task.
        """
        if task not in self.tasks:
            self.tasks[task] = self._make(task)
        return self.tasks[task]

    def describe(self, model: Any, settings: TaskSettings) -> Provenance:
        """What it takes to repeat a run of these settings with a loaded model."""
        arguments, family, video = self.arguments, get_family(self.family), settings.video
        sampling = family.model_sampling if video.sampling == "model" else video.sampling
        return collect_provenance(
            model,
            method=arguments.method,
            config=settings.config,
            checkpoint=arguments.pretrained,
            family=self.family,
            video=replace(video, backend=settings.backend, sampling=sampling),
            newline=family.newline_mode(model.config, arguments.newline, reduced=settings.config is not None),
            reuse=arguments.reuse,
        )

    def _make(self, task: str) -> TaskSettings:
        arguments = self.arguments
        if arguments.preset is None:
            return TaskSettings(self._config, self._video(task))
        preset = resolve_preset(arguments.preset, family=self.family, task=task, checkpoint=arguments.pretrained)
        return TaskSettings(replace(preset.config, **arguments.method_settings), _video(arguments, preset))

    def _video(self, task: str) -> VideoSettings:
        name = self.arguments.video
        return _video(self.arguments, resolve_video(name, self.family) if name else resolve_frames(self.family, task))


def task_settings(arguments: WrapperArguments, family: str, task: str) -> TaskSettings:
    """The settings of one task alone, see :meth:`RunSettings.of`."""
    return RunSettings(arguments, family).of(task)


def _config(arguments: WrapperArguments, family: str) -> Any:
    if arguments.method == "none":
        return None
    cls = get_method(arguments.method)
    return cls(**{**get_family(family).method_defaults(cls), **arguments.method_settings})


def _video(arguments: WrapperArguments, frames: Frames) -> VideoSettings:
    names = ("max_frames", "fps", "phase", "min_pixels", "max_pixels", "sampling")
    chosen = {name: getattr(arguments, name) for name in names}
    return frames.settings(**chosen, backend=arguments.video_backend, timeout=arguments.video_timeout)

"""What the commands over a task's videos share: the videos, the model, the frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sttm_lmms.benchmarks import FORMATS, data_root, find_video, load_benchmark, video_folder
from sttm_lmms.benchmarks.presets import benchmark_of, resolve_frames
from sttm_lmms.errors import unknown
from sttm_lmms.families import family_of, load_pretrained
from sttm_lmms.families.base import Family
from sttm_lmms.families.placement import Placement, place_model
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoSettings


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on this process' device."""

    model: nn.Module
    processor: Any
    family: Family
    placement: Placement

    def encoder(self, settings: VideoSettings) -> Callable[[str | Path], VisionFeatures]:
        """A function that reads a video and runs the vision tower on it."""

        def encode(path: str | Path) -> VisionFeatures:
            video = self.family.read_video(path, settings, self.processor)
            return self.family.vision_features(self.model, self.processor, video)

        return encode


def load_model(checkpoint: str, device: str | None, dtype: str, revision: str | None = None) -> LoadedModel:
    """Load a checkpoint the way the wrappers do: CUDA, MPS or CPU, the process' own device under
    accelerate."""
    placement = place_model(device, dtype)
    model, processor = load_pretrained(
        checkpoint, revision=revision, dtype=placement.dtype, device_map=placement.device_map
    )
    return LoadedModel(model, processor, family_of(model), placement)


def videos_of(task: str, data: Path | None) -> tuple[str, list[tuple[str, Path]]]:
    """Benchmark of a task, and id and file of each of its videos, each video once.

    Raises:
        ValueError: the task belongs to none of the six benchmarks.
        AnnotationError: its annotation file is missing or malformed.
    """
    benchmark = benchmark_of(task)
    if benchmark is None:
        raise unknown("task", task, FORMATS)
    root = data or data_root()
    folder = video_folder(root, benchmark)
    ids = dict.fromkeys(question.video_id for question in load_benchmark(benchmark, root))
    return benchmark, [(video_id, find_video(folder, video_id)) for video_id in ids]


def video_settings(
    family: str,
    task: str,
    max_frames: int | None,
    fps: float | None,
    backend: str,
    min_pixels: int | None,
    max_pixels: int | None,
    sampling: str | None = None,
    timeout: float | None = None,
) -> VideoSettings:
    """Frame sampling of a task: what is given, else that of the published runs (pixels: else the
    family's)."""
    return resolve_frames(family, f"sttm_{benchmark_of(task) or task}").settings(
        max_frames=max_frames,
        fps=fps,
        backend=backend,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        sampling=sampling,
        timeout=timeout,
    )

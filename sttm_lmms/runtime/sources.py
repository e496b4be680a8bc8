"""Videos and images on their way to the decoder: read once, encoded once, failures counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.runtime.requests import Counters, Failure, Request
from sttm_lmms.runtime.timing import ForwardMarks, Mark, Stopwatch
from sttm_lmms.types import VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings


_PHASES = ("video_decode", "preprocess", "vision")


class Store(Protocol):
    """Stored features: :class:`sttm_lmms.video.FeatureStore` or anything that loads by video id."""

    def load(self, vid: str) -> VisionFeatures: ...


@dataclass(frozen=True)
class Encoded:
    """The visuals of one request.

    Attributes:
        features: one for each visual.
        stopwatch: whose marks the phases are.
        phases: ``(name, began, ended)`` of what was done for them; nothing where they were reused.
    """

    features: list[VisionFeatures]
    stopwatch: Stopwatch
    phases: tuple[tuple[str, Mark, Mark], ...] = ()

    def timing(self) -> dict[str, float]:
        """Seconds of ``video_decode``, ``preprocess`` and ``vision``; waits for the device, so ask at the end."""
        seconds = dict.fromkeys((*_PHASES, "encode"), 0.0)
        for name, began, ended in self.phases:
            seconds[name] += self.stopwatch.seconds(began, ended)
        seconds["preprocess"] = seconds.pop("encode") - seconds["vision"]
        return seconds


def source_key(request: Request, video: VideoSettings) -> Hashable:
    """Equal for requests that show the same visuals in the same way."""
    shown = tuple(
        (kind, str(source) if isinstance(source, (str, Path)) else id(source)) for kind, source in request.sources
    )
    return shown, request.video_id, video


class SourceReader:
    """Reads and encodes the visuals of requests; keeps the most recent ones.

    Args:
        keep: how many requests' features are kept (the current video's is one).
        store: load features from here instead of opening video files.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family,
        stopwatch: Stopwatch,
        *,
        store: Store | None = None,
        keep: int = 1,
    ) -> None:
        self._model, self._processor, self._family, self._stopwatch = model, processor, family, stopwatch
        self._store, self._keep = store, max(1, keep)
        self._recent: OrderedDict[Hashable, list[VisionFeatures]] = OrderedDict()
        self.counters = Counters()
        self.failures: list[Failure] = []

    def fail(self, error: VideoError | FeatureError, questions: int) -> None:
        """Count a source that could not be read."""
        source = getattr(error, "path", "") or str(error)
        self.failures.append(Failure(source, str(error), questions))

    @torch.inference_mode()
    def encode(self, request: Request, video: VideoSettings, *, reuse: bool) -> Encoded:
        """Vision features of all visuals of ``request``. Raises ``VideoError`` or ``FeatureError``."""
        key = source_key(request, video)
        mark = self._stopwatch.mark
        phases: list[tuple[str, Mark, Mark]] = []
        if reuse and key in self._recent:
            self._recent.move_to_end(key)
            return Encoded(self._recent[key], self._stopwatch)
        features = []
        for kind, source in request.sources:
            began = mark()
            visual = self._open(kind, source, request, video)
            opened = mark()
            phases.append(("video_decode", began, opened))
            if not isinstance(visual, VisionFeatures):
                with ForwardMarks(self._family.tower(self._model), mark) as tower:
                    visual = self._family.vision_features(self._model, self._processor, visual)
                self.counters.vision_passes += 1
                phases += [("vision", *times) for times in tower.passes]
            seen = mark()
            features.append(self._family.project(self._model, visual))
            ended = mark()
            phases += [("vision", seen, ended), ("encode", opened, ended)]
        if reuse:
            self._recent[key] = features
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return Encoded(features, self._stopwatch, tuple(phases))

    def _open(self, kind: str, source: Any, request: Request, video: VideoSettings) -> Any:
        if kind == "image":
            return source
        if self._store is not None:
            return self._store.load(request.video_id or Path(str(source)).stem)
        self.counters.videos_decoded += 1
        return self._family.read_video(source, video)

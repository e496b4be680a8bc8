"""Videos and images on their way to the decoder: read once, encoded once, failures counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.runtime.requests import Counters, Failure, Request
from sttm_lmms.runtime.timing import ForwardSeconds
from sttm_lmms.types import VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings


class Store(Protocol):
    """Stored features: :class:`sttm_lmms.video.FeatureStore` or anything that loads by video id."""

    def load(self, vid: str) -> VisionFeatures: ...


@dataclass(frozen=True)
class Encoded:
    """The visuals of one request and what they cost (0 where they were reused)."""

    features: list[VisionFeatures]
    timing: dict[str, float]
    """Seconds of ``video_decode``, ``preprocess`` and ``vision``."""


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
        now: Callable[[], float],
        *,
        store: Store | None = None,
        keep: int = 1,
    ) -> None:
        self._model, self._processor, self._family, self._now = model, processor, family, now
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
        timing = {"video_decode": 0.0, "preprocess": 0.0, "vision": 0.0}
        if reuse and key in self._recent:
            self._recent.move_to_end(key)
            return Encoded(self._recent[key], timing)
        features = []
        for kind, source in request.sources:
            began = self._now()
            visual = self._open(kind, source, request, video)
            opened = self._now()
            timing["video_decode"] += opened - began
            if not isinstance(visual, VisionFeatures):
                with ForwardSeconds(self._family.tower(self._model), self._now) as tower:
                    visual = self._family.vision_features(self._model, self._processor, visual)
                self.counters.vision_passes += 1
                timing["vision"] += tower.seconds
                timing["preprocess"] += self._now() - opened - tower.seconds
            seen = self._now()
            features.append(self._family.project(self._model, visual))
            timing["vision"] += self._now() - seen
        if reuse:
            self._recent[key] = features
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return Encoded(features, timing)

    def _open(self, kind: str, source: Any, request: Request, video: VideoSettings) -> Any:
        if kind == "image":
            return source
        if self._store is not None:
            return self._store.load(request.video_id or Path(str(source)).stem)
        self.counters.videos_decoded += 1
        return self._family.read_video(source, video)

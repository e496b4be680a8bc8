"""Videos and images on their way to the decoder: read once, encoded once, failures counted."""

from __future__ import annotations

import time
from collections import OrderedDict
<<<<<<< HEAD
from collections.abc import Hashable
=======
from collections.abc import Callable, Hashable, Iterable, Iterator
>>>>>>> h/scale
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.runtime.prefetch import Job, Prefetcher
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
<<<<<<< HEAD
    stopwatch: Stopwatch
    phases: tuple[tuple[str, Mark, Mark], ...] = ()

    def timing(self) -> dict[str, float]:
        """Seconds of ``video_decode``, ``preprocess`` and ``vision``; waits for the device, so ask at the end."""
        seconds = dict.fromkeys((*_PHASES, "encode"), 0.0)
        for name, began, ended in self.phases:
            seconds[name] += self.stopwatch.seconds(began, ended)
        seconds["preprocess"] = seconds.pop("encode") - seconds["vision"]
        return seconds
=======
    timing: dict[str, float]
    """Seconds of ``video_decode``, ``preprocess`` and ``vision``. Work that was done ahead counts as what it took, not
    as what was waited for it."""


@dataclass(frozen=True)
class Opened:
    """One visual in front of the vision tower (or behind it, out of a store), and the seconds spent on it."""

    visual: Any
    decode: float
    preprocess: float = 0.0


@dataclass(frozen=True)
class ReadAhead:
    """The visuals of a request up to the first that could not be had, and why it could not."""

    opened: list[Opened]
    error: Exception | None

    def __iter__(self) -> Iterator[Opened]:
        yield from self.opened
        if self.error is not None:
            raise self.error


Group = list[tuple[int, Request]]
>>>>>>> h/scale


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
        prefetch, workers: videos that are read ahead, and by how many threads; see :class:`Prefetcher`.
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
        prefetch: int = 0,
        workers: int | None = None,
    ) -> None:
        self._model, self._processor, self._family, self._stopwatch = model, processor, family, stopwatch
        self._store, self._keep = store, max(1, keep)
        self._recent: OrderedDict[Hashable, list[VisionFeatures]] = OrderedDict()
        self._prefetcher: Prefetcher[ReadAhead] = Prefetcher(prefetch, workers)
        self.counters = Counters()
        self.failures: list[Failure] = []

    def fail(self, error: VideoError | FeatureError, questions: int) -> None:
        """Count a source that could not be read."""
        source = getattr(error, "path", "") or str(error)
        self.failures.append(Failure(source, str(error), questions))

    def ahead(self, groups: Iterable[Group], video_of: Callable[[Request], VideoSettings]) -> Iterator[Group]:
        """``groups``, each of which shows the same visuals, while the videos of the next ones are being read."""

        def job(group: Group) -> Job[ReadAhead] | None:
            request = group[0][1]
            key = source_key(request, video_of(request))
            if key in self._recent or all(kind != "video" for kind, _ in request.sources):
                return None
            return key, lambda: self._read_ahead(request, video_of(request))

        return self._prefetcher.ahead(groups, job)

    @torch.inference_mode()
    def encode(self, request: Request, video: VideoSettings, *, reuse: bool) -> Encoded:
        """Vision features of all visuals of ``request``. Raises ``VideoError`` or ``FeatureError``."""
        key = source_key(request, video)
        mark = self._stopwatch.mark
        phases: list[tuple[str, Mark, Mark]] = []
        if reuse and key in self._recent:
            self._recent.move_to_end(key)
<<<<<<< HEAD
            return Encoded(self._recent[key], self._stopwatch)
        features = []
        for kind, source in request.sources:
            began = mark()
            visual = self._open(kind, source, request, video)
            opened = mark()
            phases.append(("video_decode", began, opened))
=======
            return Encoded(self._recent[key], timing)
        result = self._prefetcher.take(key)
        opened = iter(self._open_each(request, video) if result is None else result())
        features = []
        for kind, _ in request.sources:
            self.counters.videos_decoded += kind == "video" and self._store is None
            found = next(opened)
            timing["video_decode"] += found.decode
            timing["preprocess"] += found.preprocess
            visual, began = found.visual, self._now()
>>>>>>> h/scale
            if not isinstance(visual, VisionFeatures):
                with ForwardMarks(self._family.tower(self._model), mark) as tower:
                    visual = self._family.vision_features(self._model, self._processor, visual)
                self.counters.vision_passes += 1
<<<<<<< HEAD
                phases += [("vision", *times) for times in tower.passes]
            seen = mark()
=======
                timing["vision"] += tower.seconds
                timing["preprocess"] += self._now() - began - tower.seconds
            seen = self._now()
>>>>>>> h/scale
            features.append(self._family.project(self._model, visual))
            ended = mark()
            phases += [("vision", seen, ended), ("encode", opened, ended)]
        if reuse:
            self._recent[key] = features
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return Encoded(features, self._stopwatch, tuple(phases))

    def _open_each(self, request: Request, video: VideoSettings, *, preprocess: bool = False) -> Iterator[Opened]:
        for kind, source in request.sources:
            began = time.perf_counter()
            visual = self._open(kind, source, request, video)
            read = time.perf_counter()
            if preprocess and kind == "video" and not isinstance(visual, VisionFeatures):
                visual = self._family.preprocess(self._processor, visual)
            yield Opened(visual, read - began, time.perf_counter() - read)

    @torch.inference_mode()  # a thread has a mode of its own
    def _read_ahead(self, request: Request, video: VideoSettings) -> ReadAhead:
        opened: list[Opened] = []
        try:
            opened.extend(self._open_each(request, video, preprocess=True))
        except Exception as error:  # whatever it is, it is raised where the visual is asked for
            return ReadAhead(opened, error)
        return ReadAhead(opened, None)

    def _open(self, kind: str, source: Any, request: Request, video: VideoSettings) -> Any:
        if kind == "image":
            return source
        if self._store is not None:
            return self._store.load(request.video_id or Path(str(source)).stem)
        return self._family.read_video(source, video)

"""Videos and images on their way to the decoder: read once, encoded once, failures counted."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.runtime.identity import content_key, is_array
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
        host: what reading each of them took.
    """

    features: list[VisionFeatures]
    stopwatch: Stopwatch
    phases: tuple[tuple[str, Mark, Mark], ...] = ()
    host: tuple[Opened, ...] = ()

    def timing(self) -> dict[str, float]:
        """Seconds of ``video_decode``, ``preprocess`` and ``vision``; waits for the device, so ask at the end.

        Work that was done ahead counts as what it took, not as what was waited for it.
        """
        seconds = dict.fromkeys((*_PHASES, "encode"), 0.0)
        for name, began, ended in self.phases:
            seconds[name] += self.stopwatch.seconds(began, ended)
        seconds["preprocess"] = seconds.pop("encode") - seconds["vision"]
        for opened in self.host:
            seconds["video_decode"] += opened.decode
            seconds["preprocess"] += opened.preprocess
        return seconds


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


def with_key(request: Request, known: dict[int, Hashable]) -> Request:
    """``request`` with a key of what its visuals are now.

    Args:
        known: keys by the ``id`` of sources that stay alive; each is looked at once.
    """
    if request.visuals_key is not None:
        return request
    for _, source in request.sources:
        if id(source) not in known:
            known[id(source)] = content_key(source)
    return replace(request, visuals_key=tuple((kind, known[id(source)]) for kind, source in request.sources))


def source_key(request: Request, video: VideoSettings) -> Hashable:
    """Equal for requests :func:`with_key` that show the same visuals in the same way."""
    return request.visuals_key, request.video_id, video


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
        request = with_key(request, {})
        key = source_key(request, video)
        mark = self._stopwatch.mark
        phases: list[tuple[str, Mark, Mark]] = []
        if reuse and key in self._recent:
            self._recent.move_to_end(key)
            return Encoded(self._recent[key], self._stopwatch)
        result = self._prefetcher.take(key)
        reading = iter(self._open_each(request, video) if result is None else result())
        features, host = [], []
        for kind, _ in request.sources:
            self.counters.videos_decoded += kind == "video" and self._store is None
            found = next(reading)
            host.append(replace(found, visual=None))
            visual, opened = found.visual, mark()
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
        return Encoded(features, self._stopwatch, tuple(phases), tuple(host))

    def _open_each(self, request: Request, video: VideoSettings, *, preprocess: bool = False) -> Iterator[Opened]:
        for (kind, source), (_, key) in zip(request.sources, request.visuals_key or (), strict=True):
            began = time.perf_counter()
            visual = self._open(kind, source, request, video)
            read = time.perf_counter()
            if preprocess and kind == "video" and not isinstance(visual, VisionFeatures):
                visual = self._family.preprocess(self._processor, visual)
            _check_unchanged(source, key)
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
        if self._store is None:
            return self._family.read_video(source, video)
        from sttm_lmms.video.source_file import is_source

        if request.video_id is None and not isinstance(source, (str, Path)):
            raise FeatureError("frames in memory have no name to find stored features by; give Request(video_id=...)")
        vid = request.video_id or Path(str(source)).stem
        features = self._store.load(vid)
        if isinstance(source, (str, Path)) and not is_source(features.metadata, source):
            raise FeatureError(
                f"the stored features of {vid!r} were made from another file than {source}; run 'sttm-lmms extract' "
                "again, or give each video a name of its own with Request(video_id=...)"
            )
        return features


def _check_unchanged(source: Any, key: Hashable) -> None:
    """Raise ``VideoError`` if the owner of frames in memory wrote over them between asking and being answered."""
    if is_array(source) and content_key(source) != key:
        raise VideoError("frames", "were overwritten before their questions were answered", "give the engine a copy")

"""Videos and images on their way to the decoder: read once, encoded once, failures counted."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.identity import content_key, is_array
from sttm_lmms.runtime.prefetch import Job, Prefetcher
from sttm_lmms.runtime.recent import Recent
from sttm_lmms.runtime.requests import Counters, Failure, Request
from sttm_lmms.runtime.timing import IN_FRONT, Phases, Stopwatch, pass_marks
from sttm_lmms.types import VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings


class Store(Protocol):
    """Stored features: :class:`sttm_lmms.video.FeatureStore` or anything that loads by video id."""

    def load(self, vid: str) -> VisionFeatures: ...


Group = list[tuple[int, Request]]
Loaded = tuple[Any, list[Any] | None]
"""A video, an image or stored features; and the chunks that the processor made of a video, where it
was read ahead."""


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


def resolved(request: Request, known: dict[int, Hashable], config: Method | None, video: VideoSettings) -> Request:
    """``request`` :func:`with_key`, and with ``config`` and ``video`` where it leaves them to the
    engine."""
    shows_video = any(kind == "video" for kind, _ in request.sources)
    own = config if request.config is None else request.config
    return replace(
        with_key(request, known),
        config=own if shows_video else None,  # else there is nothing to reduce
        video=request.video or video,
    )


def source_key(request: Request) -> Hashable:
    """Equal for :func:`resolved` requests that show the same visuals in the same way."""
    return request.visuals_key, request.video_id, request.video


class SourceReader:
    """Reads and encodes the visuals of requests; keeps the most recent ones.

    Args:
        keep: how many requests' features are kept (the current video's is one).
        store: load features from here instead of opening video files.
        prefetch, workers: videos that are read ahead, and by how many threads; see
            :class:`Prefetcher`.
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
        self._store = store
        self._recent: Recent[list[VisionFeatures]] = Recent(keep)
        self._prefetcher: Prefetcher[tuple[list[Loaded], dict[str, float]]] = Prefetcher(prefetch, workers)
        self.counters = Counters()
        self.failures: list[Failure] = []

    def fail(self, error: VideoError | FeatureError, questions: int) -> None:
        """Count a source that could not be read."""
        source = getattr(error, "path", "") or str(error)
        self.failures.append(Failure(source, str(error), questions))

    def ahead(self, groups: Iterable[Group]) -> Iterator[Group]:
        """``groups``, each of which shows the same visuals, while the videos of the next ones are
        being read."""

        def job(group: Group) -> Job[tuple[list[Loaded], dict[str, float]]] | None:
            request = group[0][1]
            key = source_key(request)
            if key in self._recent or all(kind != "video" for kind, _ in request.sources):
                return None
            return key, lambda: self._read_ahead(request)

        return self._prefetcher.ahead(groups, job)

    @torch.inference_mode()
    def features(self, request: Request, phases: Phases, *, reuse: bool) -> list[VisionFeatures]:
        """Vision features of each visual of ``request``.

        Args:
            request: as :func:`resolved`.
            phases: gets the time of ``video_decode``, ``preprocess`` and ``vision``. Work that was
                done ahead counts as what it took, not as what was waited for it.
            reuse: whether features are remembered, and remembered ones are taken.

        Raises:
            VideoError, FeatureError: a source cannot be read.
        """
        seconds = dict.fromkeys(IN_FRONT, 0.0)
        phases.add_seconds(seconds)
        if not request.sources:
            return []
        key = source_key(request)
        if reuse and (found := self._recent.get(key)) is not None:
            return found
        if self._store is None:
            self.counters.videos_decoded += sum(kind == "video" for kind, _ in request.sources)
        visuals: Iterable[Loaded]
        if (ahead := self._prefetcher.take(key)) is not None:
            visuals, seconds = ahead()
        else:
            visuals = self._load(request, seconds)
        features = [self._encode(*loaded, phases) for loaded in visuals]
        phases.add_seconds(seconds)
        if reuse:
            self._recent.put(key, features)
        return features

    def _encode(self, visual: Any, chunks: list[Any] | None, phases: Phases) -> VisionFeatures:
        """Vision tower and projector; stored features have been through the tower already."""
        mark = self._stopwatch.mark
        began = mark()
        if not isinstance(visual, VisionFeatures):
            with pass_marks(self._family.tower(self._model), mark) as passes:
                visual = self._family.vision_features(self._model, self._processor, visual, chunks)
            self.counters.vision_passes += 1
            # What is not the tower itself (patches, copies to the device) counts as preprocessing.
            for times in passes:
                phases.add("vision", *times, within="preprocess")
        seen = mark()
        features = self._family.project(self._model, visual)
        ended = mark()
        phases.add("preprocess", began, seen)
        phases.add("vision", seen, ended)
        return features

    def _load(self, request: Request, seconds: dict[str, float], *, preprocess: bool = False) -> Iterator[Loaded]:
        """Each visual in front of the vision tower (or behind it, out of the store), when it is
        asked for.

        Args:
            seconds: gets the time that decoding and preprocessing took.
        """
        for (kind, source), (_, key) in zip(request.sources, request.visuals_key or (), strict=True):
            began = time.perf_counter()
            visual = self._open(kind, source, request)
            read = time.perf_counter()
            ahead = preprocess and kind == "video" and not isinstance(visual, VisionFeatures)
            chunks = list(self._family.chunks(self._processor, visual)) if ahead else None
            _check_unchanged(source, key)  # read in a thread, perhaps long after the key was made
            seconds["video_decode"] += read - began
            seconds["preprocess"] += time.perf_counter() - read
            yield visual, chunks

    @torch.inference_mode()  # a thread has a mode of its own
    def _read_ahead(self, request: Request) -> tuple[list[Loaded], dict[str, float]]:
        """All visuals of a request through the processor, and the seconds that it took."""
        seconds = dict.fromkeys(IN_FRONT, 0.0)
        return list(self._load(request, seconds, preprocess=True)), seconds

    def _open(self, kind: str, source: Any, request: Request) -> Any:
        if kind == "image":
            return source
        if self._store is None:
            assert request.video is not None
            return self._family.read_video(source, request.video, self._processor)
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
    """Raise ``VideoError`` if the owner of frames in memory wrote over them between asking and
    being answered."""
    if is_array(source) and content_key(source) != key:
        raise VideoError("frames", "were overwritten before their questions were answered", "give the engine a copy")

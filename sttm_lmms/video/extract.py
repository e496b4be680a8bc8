"""Filling a feature store from video files: resumable, in shards, and with the space known
before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from sttm_lmms.config import check_choice
from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video.features import FeatureStore, OtherKeyError, form_shape
from sttm_lmms.video.reading import probe
from sttm_lmms.video.settings import VideoInfo
from sttm_lmms.video.source_file import file_record

_LEFTOVER_AGE = 3600.0


@dataclass(frozen=True)
class ExtractReport:
    """What became of the videos of one shard, by id, in the order given.

    Attributes:
        written: encoded and stored now.
        skipped: whole features of the same file, with the right key, were there already.
        failed: id and reason.
    """

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def shard_of(items: Iterable[tuple[str, str | Path]], rank: int = 0, world: int = 1) -> list[tuple[str, str | Path]]:
    """Every ``world``-th video, from the ``rank``-th on; a video that comes up several times counts
    once.

    Raises:
        ValueError: not ``0 <= rank < world``.
    """
    if not 0 <= rank < world:
        raise ValueError(f"shard {rank} of {world} does not exist; ranks go from 0 to world - 1")
    return list({vid: (vid, path) for vid, path in items}.values())[rank::world]


def extract(
    items: Iterable[tuple[str, str | Path]],
    encode: Callable[[str | Path], VisionFeatures],
    store: FeatureStore,
    *,
    shard: tuple[int, int] = (0, 1),
    on_error: Literal["skip", "raise"] = "skip",
    progress: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Encode and store the videos that are not stored yet. Stopped at any moment, it goes on where
    it was.

    Args:
        items: video ids and files; every process gives the same ones in the same order.
        encode: reads a file and runs the vision tower on it.
        store: where features go.
        shard: number of this process and number of processes.
        on_error: what a video does that cannot be read or encoded: it is reported, or it stops the
            run.
        progress: called after each video with the videos done and the videos of this shard.

    Raises:
        OtherKeyError: the store holds features of another checkpoint or other settings.
        VideoError, FeatureError: with ``on_error="raise"``.
        ValueError: a shard that does not exist.
    """
    check_choice("on_error", on_error, ("skip", "raise"))
    mine, report = shard_of(items, *shard), ExtractReport()
    store.remove_leftovers(_LEFTOVER_AGE)
    for done, (vid, path) in enumerate(mine, start=1):
        try:
            if store.has(vid, path):
                report.skipped.append(vid)
            else:
                store.save(vid, _with_source(encode(path), path))
                report.written.append(vid)
        except OtherKeyError:
            raise
        except (VideoError, FeatureError) as error:
            if on_error == "raise":
                raise
            report.failed.append((vid, str(error)))
        if progress is not None:
            progress(done, len(mine))
    return report


def _with_source(features: VisionFeatures, path: str | Path) -> VisionFeatures:
    """The features with a record of their file, so that another video of the same name is not taken
    for it."""
    try:
        return replace(features, metadata={**features.metadata, "source": file_record(path)})
    except OSError:
        return features  # encoded from something else than a file


def estimate_size(
    items: Iterable[tuple[str, str | Path]],
    shape_of: Callable[[VideoInfo], tuple[int, ...]],
    dtype: str,
    form: str = "full",
) -> tuple[int, int]:
    """How many videos can be read, and the bytes of their features; each is probed, none is
    encoded.

    Args:
        items: video ids and files; an id that comes up several times counts once.
        shape_of: shape of a video's features in the full form, from
            :meth:`~sttm_lmms.families.Family.feature_shape`.
        dtype: what the vision tower computes in, such as ``"bfloat16"``.
        form: one of :data:`~sttm_lmms.video.features.FORMS`.

    Raises:
        ValueError: the form does not apply to such features.
    """
    width = getattr(torch, dtype if form == "full" else "bfloat16").itemsize
    sizes = []
    for path in dict(items).values():
        with suppress(VideoError):
            sizes.append(math.prod(form_shape(shape_of(probe(path)), form)) * width)
    return len(sizes), sum(sizes)


def human_bytes(count: float) -> str:
    """``1536`` as ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""How much space features will need, known from the files' headers before anything is encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sttm_lmms.errors import VideoError
from sttm_lmms.video.feature_forms import FORMS, form_dtype, form_shape
from sttm_lmms.video.reading import probe
from sttm_lmms.video.settings import VideoInfo, VideoSettings


@dataclass(frozen=True)
class SizeEstimate:
    """Space for the features of some videos.

    Attributes:
        videos: videos that can be read.
        size: bytes of their features, headers not counted.
        loses: what the form loses.
        failed: id and reason of those that cannot be read.
    """

    videos: int
    size: int
    loses: str
    failed: list[tuple[str, str]] = field(default_factory=list)


def estimate_size(
    items: Iterable[tuple[str, str | Path]],
    shape_of: Callable[[VideoInfo], tuple[int, ...]],
    dtype: str,
    form: str = "full",
) -> SizeEstimate:
    """Add up the features of all videos; each is probed, none is decoded.

    Args:
        items: video ids and files; an id that comes up several times counts once.
        shape_of: shape of a video's features in the full form, such as :func:`feature_shape` gives.
        dtype: what the vision tower computes in, such as ``"bfloat16"``.
        form: one of :data:`~sttm_lmms.video.feature_forms.FORMS`.

    Raises:
        ValueError: the form does not apply to such features.
    """
    width = form_dtype(getattr(torch, dtype), form).itemsize
    videos, size, failed = 0, 0, []
    for vid, path in dict(items).items():
        try:
            shape = form_shape(shape_of(probe(path)), form)
        except VideoError as error:
            failed.append((vid, str(error)))
            continue
        videos += 1
        size += math.prod(shape) * width
    return SizeEstimate(videos, size, FORMS[form], failed)


def feature_shape(family: str, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
    """Shape of one video's features: ``(T, P, C_v)`` for the LLaVA families, ``(T, H, W, C)`` for the others.

    Args:
        family: name of a model family.
        config: the loaded model's ``config``.
        info: facts about the file.
        settings: how frames are sampled.
    """
    from sttm_lmms.families import get_family

    return get_family(family).feature_shape(config, info, settings)

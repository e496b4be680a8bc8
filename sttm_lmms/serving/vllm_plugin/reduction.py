"""What a vLLM server was asked to do with every video, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from sttm_lmms import __version__
from sttm_lmms.errors import unknown
from sttm_lmms.methods import get_method
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.deepstack import mean_of_groups
from sttm_lmms.runtime.videos import reduce_grid

Grid = tuple[int, int, int]
_SOME_GRID = (2, 2, 2)


def method_of(settings: Mapping[str, Any]) -> Method:
    """The method that ``hf_config.sttm`` names: ``{"method": "sttm", "budget": 0.3, ...}``, in
    front of layer 0.

    STTM joins tokens below its lowest thresholds where a video needs it (``floor="join"``), because
    the places of the tokens are reserved before the video is seen.

    Raises:
        ValueError: the settings are not valid, or the method does not know its count beforehand.
    """
    settings = dict(settings)
    method_class = get_method(settings.pop("method", "sttm"))
    names = {field.name for field in fields(method_class)}
    if unwanted := [name for name in settings if name not in names]:
        raise unknown(f"setting of method={method_class.name}", unwanted[0], names)
    defaults = {"start_layer": 0, "floor": "join"}
    method = method_class(**{name: value for name, value in defaults.items() if name in names} | settings)
    check_reservable(method)
    return method


def check_reservable(method: Method) -> None:
    """Raise ``ValueError`` unless a method acts in front of layer 0 alone and knows its count
    beforehand."""
    reserved(method, _SOME_GRID)
    stages = list(method.stages(1000))
    if len(stages) != 1 or stages[0] not in (0, (0, "layer")):
        raise ValueError(f"{method}: vLLM is reached in front of its first layer only; start_layer=0")


def reserved(method: Method, grid: Grid) -> int:
    """Tokens that a (T, H, W) video will have. Raises ``ValueError`` if the method cannot say so
    beforehand."""
    count = method.count(grid)
    if count is None:
        raise ValueError(
            f"{method}: how many tokens it keeps depends on the video, but vLLM reserves their places before it sees "
            "one; take sttm or random with a budget"
        )
    return count


def salt(method: Method) -> str:
    """What tells the rows of one method, its settings and this version from those of others, for
    caches' keys."""
    return f"{method!r} {__version__}"


def reduce_video(
    method: Method, features: torch.Tensor, grid: Grid, channels: int, head_dim: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """One video's rows, reduced.

    Args:
        features: ``[T*H*W, C]`` behind the patch merger.
        channels: the first of the C that are the token itself; the rest (deepstack) is averaged
            over each group.

    Returns:
        ``[K, C]``, the ascending places ``[K]`` that they take, and whether tokens were joined
        below STTM's floor.

    Raises:
        RuntimeError: not as many tokens as were reserved; methods that can be chosen here do not
            come to that.
    """
    t, h, w = grid
    merged = reduce_grid(method, features[:, :channels].view(t, h, w, channels), head_dim)
    if len(merged) != (expected := reserved(method, grid)):
        raise RuntimeError(f"{method} kept {len(merged)} of {grid} tokens where {expected} were reserved")
    frame, y, x = merged.boxes[:, :3].unbind(-1)
    kept = (frame * h + y) * w + x
    rows = merged.features
    if features.shape[1] > channels:
        deepstack = mean_of_groups(features[:, channels:], merged.source_map.flatten(), len(merged))
        rows = torch.cat((rows, deepstack), dim=1)
    order = kept.argsort()
    return rows[order], kept[order], bool(merged.info.get("joined"))

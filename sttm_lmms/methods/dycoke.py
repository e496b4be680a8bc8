"""DyCoke (arXiv 2411.15024): tokens of similar frames are dropped, then each decode step attends to
fewer KV entries.

Stage 1, in front of one layer; a place is compared with the same place of the other frame (cosine)::

    of each frame 1, 3, 5, ..: keep the k places least similar to the frame before it
    of each frame 2, 6, 10, .. (i + 2 for i = 0, 4, 8, .. below T - 4):
        keep the k places least similar to frame i
    keep all other frames whole; survivors of a frame go on in ascending order of similarity

Stage 2, at every decode step::

    layers from prune_layer on attend only to the video's entries that the new token attends to
        most in the layer before
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms.config import check_flag, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import (
    BudgetWarning,
    CacheView,
    Probe,
    RatioMethod,
    State,
    from_published,
    max_tokens,
)
from sttm_lmms.methods.ops import cosine
from sttm_lmms.types import Kept, Tokens

_STAGE1_NAMES = {
    "sa_prune_ratio": "ratio",
    "sa_start_layer_idx": "start_layer",
    "prune_ratio": "ratio",
    "ratio": "ratio",
    "start_layer": "start_layer",
}


@register_method("dycoke_stage1")
@dataclass(frozen=True, kw_only=True)
class DyCokeStage1Config(RatioMethod):
    """Settings of DyCoke's temporal pruning.

    The frames that are never pruned are its floor: 33 of 128 frames, 9 of 32, 3 of 8, 2 of 4. The
    published code crashes on up to 4 frames; here the rule above holds for them too.

    Attributes:
        ratio: share removed of each pruned frame; ``int((1 - ratio) * H * W)`` of its tokens stay.
        budget: the lowest ratio whose kept tokens are within it. A budget below the floor warns and
            gives the floor.
    """

    @classmethod
    def published(cls, **settings: Any) -> DyCokeStage1Config:
        """From ``sa_prune_ratio``, ``sa_start_layer_idx``."""
        return cls(**from_published(settings, _STAGE1_NAMES), decode_positions="reference")

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Drop tokens of pruned frames."""
        frames, height, width = tokens.grid
        size, device = height * width, tokens.features.device
        features = tokens.as_grid().flatten(0, 2)
        base = pruned_frames(frames)
        keep = self._kept_places(frames, size, len(base))

        cells = torch.arange(frames * size, device=device).view(frames, size)
        whole = torch.ones(frames, size, dtype=torch.bool)
        if base:
            later = torch.tensor(list(base), device=device)
            earlier = torch.tensor(list(base.values()), device=device)
            similarity = cosine(features, cells[later].flatten(), cells[earlier].flatten()).view(len(base), size)
            cells[later] = cells[later].gather(1, similarity.argsort(dim=1, stable=True))
            whole[list(base), keep:] = False
        index = cells.flatten()[whole.flatten().nonzero().squeeze(1).to(device)]
        floor = (frames - len(base)) / frames
        return Kept.select(tokens, index, ratio=_ratio_of(keep, size), floor=floor)

    def _kept_places(self, frames: int, size: int, pruned: int) -> int:
        """Tokens that stay of each pruned frame."""
        if self.ratio is not None:
            return int((1 - self.ratio) * size)
        assert self.budget is not None
        spare = max_tokens(self.budget, frames * size) - (frames - pruned) * size
        if spare < 0:
            warnings.warn(
                f"budget={self.budget} is below what DyCoke keeps of {frames} frames at least: {frames - pruned} of "
                f"them whole ({(frames - pruned) / frames:.4f} of the tokens)",
                BudgetWarning,
                stacklevel=3,
            )
        return min(size, max(0, spare) // pruned) if pruned else size


@register_method("dycoke")
@dataclass(frozen=True, kw_only=True)
class DyCokeConfig(DyCokeStage1Config):
    """Settings of DyCoke with its selection of KV entries; no entry is removed, each step selects
    anew.

    Text and the new token itself are always attended to. The published code (``reference=True``)
    instead takes the ``int(keep_kv * tokens before stage 1)`` entries of most attention out of all
    that follow the video's first entry, because it still uses the video's length before stage 1; so
    it drops most of the question, and often the new token. Where it then crashes for want of
    entries, all that there are are taken.

    Attributes:
        start_layer: as for stage 1; its published script uses 0.
        prune_layer: first layer that attends to selected entries; attention is read in the layer
            before it, so it must be above ``start_layer``.
        keep_kv: share of the video's entries that a decode step attends to, in (0, 1].
        reference: select as the published code does.
    """

    start_layer: int = 0
    prune_layer: int = 3
    keep_kv: float = 0.3
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("prune_layer", self.prune_layer, 1)
        check_number("keep_kv", self.keep_kv, 0.0, 1.0, low_open=True)
        check_flag("reference", self.reference)
        if self.prune_layer <= self.start_layer:
            raise ValueError(
                f"prune_layer={self.prune_layer} must be above start_layer={self.start_layer}: the layer before it has "
                "to hold the reduced video"
            )

    @classmethod
    def published(cls, **settings: Any) -> DyCokeConfig:
        """From ``sa_prune_ratio``, ``sa_start_layer_idx``, ``dycoke_l``, ``dycoke_p`` (share of
        entries removed)."""
        ours = from_published(settings, _STAGE1_NAMES | {"dycoke_l": "prune_layer", "dycoke_p": "keep_kv"})
        if "keep_kv" in ours:
            ours["keep_kv"] = 1 - ours["keep_kv"]
        return cls(**ours, decode_positions="reference", reference=True)

    def cache_stages(self, layers: int) -> Sequence[int]:
        if self.prune_layer >= layers:
            raise ValueError(f"prune_layer={self.prune_layer} is out of range; this model has layers 0..{layers - 1}")
        return (self.prune_layer,)

    def edit_cache(self, cache: CacheView, state: State) -> None:
        attention, start = cache.attention(), cache.video.start
        total = len(attention)
        if self.reference:
            stop = min(start + cache.visual_tokens, total)
            keep = min(int(cache.visual_tokens * self.keep_kv), stop - start)
        else:
            stop = cache.video.stop
            keep = max_tokens(self.keep_kv, stop - start)
        entry = torch.arange(total, device=attention.device)
        best = attention[start:stop].argsort(descending=True, stable=True)[:keep].sort().values
        index = torch.cat((entry[:start], start + best, entry[stop:]))
        for layer in range(self.prune_layer, cache.layers):
            cache.attend(layer, index)


def pruned_frames(frames: int) -> dict[int, int]:
    """Frames that stage 1 prunes, ascending, and the frame that each of them is compared with."""
    odd = {frame: frame - 1 for frame in range(1, frames, 2)}
    # The bound leaves the last group's third frame whole, as in the published code and in the
    # original one.
    even = {frame + 2: frame for frame in range(0, frames - 4, 4)}
    return dict(sorted((odd | even).items()))


def _ratio_of(keep: int, size: int) -> float:
    """A ratio that keeps ``keep`` of ``size`` tokens."""
    ratio = 1 - keep / size
    while int((1 - ratio) * size) < keep:
        ratio = math.nextafter(ratio, -1)
    return ratio

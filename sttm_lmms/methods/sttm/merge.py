"""STTM itself: its settings, and the steps from a video's tokens to the merged ones (arXiv
2507.07990, section 3)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from sttm_lmms.config import check_choice, check_flag, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetWarning, DecodePositions, Method, Probe, Stage, State, max_tokens
from sttm_lmms.methods.quadtree import OddEdge
from sttm_lmms.methods.sttm.average import average
from sttm_lmms.methods.sttm.cluster import Labels, cluster
from sttm_lmms.methods.sttm.exact import join_to_count, split_to_count
from sttm_lmms.methods.sttm.grid import grid_for
from sttm_lmms.methods.sttm.search import search_thresholds
from sttm_lmms.methods.sttm.similarity import Thresholds, measure
from sttm_lmms.types import Kept, MergedTokens, Tokens

Floor = Literal["keep", "join"]


@register_method("sttm")
@dataclass(frozen=True)
class STTMConfig(Method):
    """Settings of spatio-temporal token merging (arXiv 2507.07990, sections 3.2 and 3.3).

    Give either both thresholds or a ``budget``.

    Attributes:
        spatial_threshold: a quadtree node stays coarse if its cosine similarity to each child is at
            least this. In [-1, 2]; above 1 nothing merges in space.
        temporal_threshold: overlapping tokens of consecutive frames merge if their cosine
            similarity is at least this. In [-1, 2]; at or below 0 the temporal step is off.
        root_level: level of the pyramid (0 = coarsest, about 2x2) at which the quadtrees start. A
            level beyond the finest one means the finest, where there is no spatial step.
        start_layer: see :class:`~sttm_lmms.methods.base.LayerMethod`.
        weighted_avg: average over all original cells instead of over nodes.
        per_head: cosine similarity per attention head, then averaged.
        odd_edge: what a border node with fewer than four children does. ``"reference"`` compares it
            to the frame's top-left child as well (the published code), ``"masked"`` ignores the
            missing children (the paper's text).
        decode_positions: see :class:`~sttm_lmms.methods.base.LayerMethod`.
        budget: kept visual tokens / all visual tokens, in (0, 1]; thresholds are then searched for
            each video.
        floor: what to do with a video whose lowest thresholds keep more than the budget: ``"keep"``
            them, with a :class:`BudgetWarning`, or ``"join"`` tokens that are not similar until the
            count is met.

    Raises:
        ValueError: a value is out of range, or thresholds and budget are mixed.
    """

    spatial_threshold: float | None = None
    temporal_threshold: float | None = None
    root_level: int = 1
    start_layer: int = 2
    weighted_avg: bool = False
    per_head: bool = False
    odd_edge: OddEdge = "reference"
    decode_positions: DecodePositions = "continue"
    budget: float | None = None
    floor: Floor = "keep"

    def __post_init__(self) -> None:
        thresholds = (self.spatial_threshold, self.temporal_threshold)
        if self.budget is not None:
            if thresholds != (None, None):
                raise ValueError("budget and thresholds exclude each other: give budget, or both thresholds")
            check_number("budget", self.budget, 0.0, 1.0, low_open=True)
        elif None in thresholds:
            raise ValueError(
                "give both spatial_threshold and temporal_threshold (temporal_threshold=0 turns the temporal step "
                "off), or budget in (0, 1]"
            )
        else:
            check_number("spatial_threshold", self.spatial_threshold, -1.0, 2.0)
            check_number("temporal_threshold", self.temporal_threshold, -1.0, 2.0)
        check_integer("root_level", self.root_level, 0)
        check_integer("start_layer", self.start_layer, 0)
        check_flag("weighted_avg", self.weighted_avg)
        check_flag("per_head", self.per_head)
        check_choice("odd_edge", self.odd_edge, get_args(OddEdge))
        check_choice("decode_positions", self.decode_positions, get_args(DecodePositions))
        check_choice("floor", self.floor, get_args(Floor))
        if self.floor == "join" and self.budget is None:
            raise ValueError("floor='join' needs a budget: thresholds keep what they keep")

    @property
    def thresholds(self) -> Thresholds | None:
        """Both thresholds; None with a budget."""
        if self.spatial_threshold is None or self.temporal_threshold is None:
            return None
        return Thresholds(self.spatial_threshold, self.temporal_threshold)

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return (self.start_layer,)

    def count(self, grid: tuple[int, int, int]) -> int | None:
        if self.budget is None or self.floor == "keep":
            return None
        return max_tokens(self.budget, math.prod(grid))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Merge one video; :func:`merge_video_tokens` on its grid."""
        return Kept.of_merged(merge_video_tokens(tokens.as_grid(), self, tokens.head_dim))

    @classmethod
    def published(cls, **settings: Any) -> STTMConfig:
        """From the argument names of the published code: ``sa_spatial_thresh``,
        ``sa_temporal_thresh``, ``sa_tree_root_level``, ``sa_start_layer_idx``,
        ``sa_tree_weighted_avg``."""
        return cls(
            spatial_threshold=float(settings["sa_spatial_thresh"]),
            temporal_threshold=float(settings["sa_temporal_thresh"]),
            root_level=int(settings.get("sa_tree_root_level", 1)),
            start_layer=int(settings.get("sa_start_layer_idx", 2)),
            weighted_avg=bool(settings.get("sa_tree_weighted_avg", False)),
            decode_positions="reference",
        )


def merge_video_tokens(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> MergedTokens:
    """Merge the visual tokens of one video.

    With ``config.budget`` exactly ``max_tokens(budget, T*H*W)`` tokens are kept: those of the
    thresholds that :mod:`~sttm_lmms.methods.sttm.search` finds, which keep at most one point less
    wherever there are such, and of which :mod:`~sttm_lmms.methods.sttm.exact` splits the least
    similar ones. A budget below the video's floor, the share that the lowest thresholds keep, gives
    that floor and a :class:`BudgetWarning`, or with ``floor="join"`` joins tokens until the count
    is met.

    Args:
        features: ``[T, H, W, C]``, any float dtype and device, T, H, W >= 1.
        config: thresholds, or a budget; ``start_layer`` and ``decode_positions`` play no role here.
        head_dim: channels of an attention head; needed with ``config.per_head``, unused without.

    Returns:
        The tokens in sequence order. ``info`` holds ``spatial_threshold`` and
        ``temporal_threshold``, the number of tokens ``after_spatial``, that is before any merged in
        time, and after a search also the requested ``budget`` and the number of ``evaluations``,
        the pairs of thresholds that were counted; thresholds found by a search give the same tokens
        when they are given as thresholds, but for those that were split off. ``joined`` is the
        number of tokens that ``floor="join"`` took away below the video's floor.

    Raises:
        ValueError: ``features`` has another rank or is empty, or ``head_dim`` is missing or does
            not divide C.
        TypeError: ``features`` is not floating point.
    """
    check_features(features, config, head_dim)
    grid = grid_for(*features.shape[1:3], config.root_level, config.odd_edge, features.device)
    similarities = measure(
        features,
        grid,
        weighted_avg=config.weighted_avg,
        head_dim=head_dim if config.per_head else None,
        thresholds=config.thresholds,
    )
    count = max_tokens(config.budget, features[..., 0].numel()) if config.budget is not None else 0
    thresholds = config.thresholds or search_thresholds(similarities, grid, count)
    labels = cluster(similarities, grid, thresholds)  # section 3.2 in space, 3.3 in time
    labels = split_to_count(labels, similarities, grid, count)  # does nothing where there are as many already
    floor = labels.kept
    if config.floor == "join":
        labels = join_to_count(labels, grid, count)
    merged = average(features, grid, labels, config.weighted_avg)
    info = _info(config, thresholds, labels, len(similarities.counts))
    return replace(merged, info=info | {"joined": floor - labels.kept} if config.floor == "join" else info)


def check_features(features: torch.Tensor, config: STTMConfig, head_dim: int | None) -> None:
    """Raise what :func:`merge_video_tokens` raises."""
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(f"features have shape {tuple(features.shape)}; they must be a non-empty [T, H, W, C]")
    if not features.is_floating_point():
        raise TypeError(f"features are {features.dtype}; they must be floating point")
    if config.per_head and (head_dim is None or head_dim < 1 or features.shape[-1] % head_dim):
        raise ValueError(f"per_head=True needs a head_dim that divides C={features.shape[-1]}, not {head_dim}")


def _info(config: STTMConfig, thresholds: Thresholds, labels: Labels, evaluations: int) -> dict[str, float]:
    """What is worth reporting; warns where a video keeps more than its budget."""
    info = {
        "spatial_threshold": thresholds.spatial,
        "temporal_threshold": thresholds.temporal,
        "after_spatial": labels.after_spatial,
    }
    if config.budget is None:
        return info
    share = labels.kept / labels.cells
    if share > config.budget and config.floor == "keep":
        kept = f"{labels.kept} of {labels.cells} tokens ({share:.4f})"
        reason = f"is below what this video allows: its lowest thresholds keep {kept}"
        warnings.warn(f"budget={config.budget} {reason}", BudgetWarning, stacklevel=3)
    return info | {"budget": config.budget, "evaluations": evaluations}

"""Settings of STTM, and the method that the runtime calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sttm_lmms.config import check_choice, check_flag, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import DecodePositions, Method, Probe, Scratch, Stage
from sttm_lmms.methods.sttm.merge import merge_video_tokens
from sttm_lmms.methods.sttm.quadtree import OddEdge
from sttm_lmms.types import Kept, Tokens


@register_method("sttm")
@dataclass(frozen=True)
class STTMConfig(Method):
    """Settings of spatio-temporal token merging (arXiv 2507.07990, sections 3.2 and 3.3).

    Give either both thresholds or a ``budget``.

    Attributes:
        spatial_threshold: a quadtree node stays coarse if its cosine similarity to each child is at least this.
            In [-1, 2]; above 1 nothing merges in space.
        temporal_threshold: overlapping tokens of consecutive frames merge if their cosine similarity is at least this.
            In [-1, 2]; at or below 0 the temporal step is off.
        root_level: level of the pyramid (0 = coarsest, about 2x2) at which the quadtrees start. A level beyond the
            finest one means the finest, where there is no spatial step.
        start_layer: see :class:`~sttm_lmms.methods.base.LayerMethod`.
        weighted_avg: average over all original cells instead of over nodes.
        per_head: cosine similarity per attention head, then averaged.
        odd_edge: what a border node with fewer than four children does. ``"reference"`` compares it to the frame's
            top-left child as well (the published code), ``"masked"`` ignores the missing children (the paper's text).
        decode_positions: see :class:`~sttm_lmms.methods.base.LayerMethod`.
        budget: kept visual tokens / all visual tokens, in (0, 1]; thresholds are then searched for each video.

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

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return (self.start_layer,)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        """Merge one video; :func:`merge_video_tokens` on its grid."""
        return Kept.of_merged(merge_video_tokens(tokens.as_grid(), self, tokens.head_dim))

    @classmethod
    def published(cls, **settings: Any) -> STTMConfig:
        """From the argument names of the published code: ``sa_spatial_thresh``, ``sa_temporal_thresh``,
        ``sa_tree_root_level``, ``sa_start_layer_idx``, ``sa_tree_weighted_avg``."""
        return cls(
            spatial_threshold=float(settings["sa_spatial_thresh"]),
            temporal_threshold=float(settings["sa_temporal_thresh"]),
            root_level=int(settings.get("sa_tree_root_level", 1)),
            start_layer=int(settings.get("sa_start_layer_idx", 2)),
            weighted_avg=bool(settings.get("sa_tree_weighted_avg", False)),
            decode_positions="reference",
        )

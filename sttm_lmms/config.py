"""Settings of the reduction methods: frozen dataclasses that refuse values out of range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

OddEdge = Literal["reference", "masked"]
DecodePositions = Literal["continue", "reference"]


def check_number(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise ``ValueError`` naming the setting, its value and the valid range unless ``low <= value <= high``."""
    valid = f"{'(' if low_open else '['}{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a number; it must be in {valid}")
    if not (low < value if low_open else low <= value) or value > high:
        raise ValueError(f"{name}={value!r} is out of range; it must be in {valid}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={value!r} is not valid; it must be an integer >= {low}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not valid; it must be one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not valid; it must be True or False")


@dataclass(frozen=True)
class MethodConfig:
    """What every reduction method shares: where it runs and how later tokens are placed.

    Attributes:
        start_layer: decoder layer (0-based) in front of which the visual tokens are reduced; 0 reduces the input
            embeddings. The paper uses 2 for 7B models and 0 for 72B.
        decode_positions: rotary position of generated tokens in the layers that hold the short sequence.
            ``"continue"`` goes on from the last position of that layer, ``"reference"`` takes the position that the
            full length would give, as the published code does.
    """

    start_layer: int = 2
    decode_positions: DecodePositions = "continue"

    def __post_init__(self) -> None:
        check_integer("start_layer", self.start_layer, 0)
        check_choice("decode_positions", self.decode_positions, get_args(DecodePositions))


@dataclass(frozen=True)
class STTMConfig:
    """Settings of spatio-temporal token merging (arXiv 2507.07990, sections 3.2 and 3.3).

    Give either both thresholds or a ``budget``.

    Attributes:
        spatial_threshold: a quadtree node stays coarse if its cosine similarity to each child is at least this.
            In [-1, 2]; above 1 nothing merges in space.
        temporal_threshold: overlapping tokens of consecutive frames merge if their cosine similarity is at least this.
            In [-1, 2]; at or below 0 the temporal step is off.
        root_level: level of the pyramid (0 = coarsest, about 2x2) at which the quadtrees start. A level beyond the
            finest one means the finest, where there is no spatial step.
        start_layer: see :class:`MethodConfig`.
        weighted_avg: average over all original cells instead of over nodes.
        per_head: cosine similarity per attention head, then averaged.
        odd_edge: what a border node with fewer than four children does. ``"reference"`` compares it to the frame's
            top-left child as well (the published code), ``"masked"`` ignores the missing children (the paper's text).
        decode_positions: see :class:`MethodConfig`.
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

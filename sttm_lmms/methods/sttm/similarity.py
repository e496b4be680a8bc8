"""All similarities that decide which tokens of a video merge, measured once.

One definition, two ways to compute it: ``gather.py`` on CPUs, ``products.py`` on accelerators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sttm_lmms.methods.sttm.gather import measure_by_gather
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.products import measure_by_products
from sttm_lmms.methods.sttm.pyramid import over_cells


class Thresholds(NamedTuple):
    """The two cosine similarities from which on tokens merge; the temporal step is off at or below
    0."""

    spatial: float
    temporal: float


class TokenCount(NamedTuple):
    """Tokens kept at a pair of thresholds, those of the spatial step alone, and the rounds that the
    union takes."""

    kept: int
    after_spatial: int
    rounds: int


@dataclass(frozen=True)
class Similarities:
    """The similarities of a video's nodes; what thresholds are compared with.

    Attributes:
        min_child_similarity: ``[T, L - 1, 1, H*W]`` float32, cosine similarity between the coarse
            node over each cell and the least similar of its children; -inf where that is not a
            number.
        running_max_similarity: the same shape, the largest of it and of those of the nodes above: a
            threshold up to that stops the descent there or before.
        frame_similarity: ``[T - 1, P]`` float32, cosine similarity of each pair of :class:`Grid` in
            consecutive frames; None where it was not asked for.
        feature_bytes: of the features that were measured, which bounds the memory that counting
            takes.
        counts: the token counts at the thresholds that were asked for already.
    """

    min_child_similarity: torch.Tensor
    running_max_similarity: torch.Tensor
    frame_similarity: torch.Tensor | None
    feature_bytes: int
    counts: dict[Thresholds, TokenCount] = field(default_factory=dict)


@torch.no_grad()  # they only decide what merges; gradients go through the averages
def measure(
    features: torch.Tensor,
    grid: Grid,
    *,
    weighted_avg: bool = False,
    head_dim: int | None = None,
    thresholds: Thresholds | None = None,
) -> Similarities:
    """Pool a video's pyramid, and compare each node with its children and with those of the next
    frame.

    A coarse node's feature is the mean of its children's, or with ``weighted_avg`` the mean of all
    its cells, in the input's dtype. Similarities are float32.

    Args:
        features: ``[T, H, W, C]``, any float dtype.
        grid: the tables of H x W.
        weighted_avg: see above.
        head_dim: channels of an attention head; similarities are then averages over heads.
        thresholds: the only ones that will be asked about, if that is known; what they do not need
            may be left out.
    """
    feature_bytes = features.nbytes
    if features.dtype == torch.float64:
        features = features.float()
    temporal = len(features) > 1 and (thresholds is None or thresholds.temporal > 0)
    if grid.dense:
        child, frame = measure_by_products(features.contiguous(), grid, weighted_avg, head_dim, temporal)
    else:
        spatial = thresholds.spatial if thresholds else None
        child, frame = measure_by_gather(features, grid, weighted_avg, head_dim, temporal, spatial)
    return Similarities(*over_cells(child, grid), frame, feature_bytes)

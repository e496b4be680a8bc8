"""One knob instead of two thresholds: the pair of thresholds that keeps a given share of the tokens.

All similarities of a video are computed once; a step of the search only counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from sttm_lmms.config import check_number
from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.sttm.dense import DenseVideo, fits
from sttm_lmms.methods.sttm.quadtree import Layout, Quadtrees, build_quadtrees, check_features, partition_at
from sttm_lmms.methods.sttm.search import HIGHEST, LOWEST, Search, Thresholds, turning_points
from sttm_lmms.methods.sttm.temporal import Pairs, merge_in_time, pair_similarities

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig

__all__ = ["BudgetWarning", "Profile", "calibrate", "search_budget"]


@dataclass(frozen=True)
class Profile:
    """All that decides how many tokens a video keeps, without its features.

    Attributes:
        layout: the geometry of the quadtrees.
        min_child_similarity: ``[L - 1, T, H, W]`` float32, see :class:`Quadtrees`.
        similarity: ``[L, L, (T - 1) * H * W]`` float32, cosine similarity between the node of one level over a cell
            and the node of another level over that cell in the next frame; NaN but at the top-left cell of the smaller
            node.
    """

    layout: Layout
    min_child_similarity: torch.Tensor
    similarity: torch.Tensor

    @classmethod
    def of(cls, trees: Quadtrees) -> Profile:
        """Measure everything once."""
        layout, (frames, height, width, _) = trees.layout, trees.levels[-1].shape
        y, x, depth = (
            torch.arange(n, device=trees.min_child_similarity.device) for n in (height, width, len(trees.levels))
        )
        is_corner = (layout.top == y)[:, :, None] & (layout.left == x)[:, None]
        smaller = torch.maximum(depth[:, None], depth)
        wanted = is_corner[smaller].flatten(2).repeat(1, 1, frames - 1)
        earlier_level, later_level, cell = wanted.nonzero().unbind(1)
        similarity = torch.full_like(wanted, torch.nan, dtype=torch.float32)
        similarity[wanted] = pair_similarities(trees, cell, earlier_level, later_level)
        return cls(layout, trees.min_child_similarity, similarity)

    def share(self, thresholds: Thresholds) -> float:
        """Kept tokens / all tokens."""
        partition = partition_at(self.layout, self.min_child_similarity, thresholds.spatial)
        owner = merge_in_time(partition, thresholds.temporal, self.look_up).owner.flatten()
        kept = int((owner == torch.arange(len(owner), device=owner.device)).sum())
        return kept / len(owner)

    def ahead(self, points: Sequence[Thresholds]) -> None:
        """Nothing: on a CPU counting one by one is as fast."""

    def turning_points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The spatial and the temporal thresholds at which the share can change, ascending."""
        return turning_points(self.min_child_similarity, self.similarity)

    def look_up(self, pairs: Pairs) -> torch.Tensor:
        """``[P]`` float32, the similarities of pairs."""
        return self.similarity[pairs.earlier_level, pairs.later_level, pairs.cell]


class Searchable(Protocol):
    """A video's similarities, as a search asks about them; see :class:`Profile`."""

    def share(self, thresholds: Thresholds) -> float: ...
    def ahead(self, points: Sequence[Thresholds]) -> None: ...
    def turning_points(self) -> tuple[torch.Tensor, torch.Tensor]: ...


def search_budget(profile: Searchable, budget: float) -> Search:
    """Search the thresholds for one video: along the path, and off it where the path misses the budget."""
    search = Search(profile.share, budget, profile.ahead)
    above = search.follow_path()
    if search.best_share is not None and not search.within():
        spatial, temporal = profile.turning_points()
        for start in (HIGHEST, above, search.best):
            for space_first in (True, False):
                search.leave_path(start, spatial, temporal, space_first=space_first)
    return search


def calibrate(
    features: Iterable[torch.Tensor],
    budget: float,
    config: STTMConfig,
    head_dim: int | None = None,
    *,
    _dense: bool | None = None,
) -> Thresholds:
    """One fixed pair of thresholds that meets a budget on average over videos, as the paper uses them.

    Args:
        features: visual tokens ``[T, H, W, C]`` of each video, at the layer where they are to be merged. Taken one at a
            time; only similarities are kept.
        budget: average over videos of kept tokens / all tokens, in (0, 1].
        config: everything but thresholds and budget.
        head_dim: see :func:`sttm_lmms.methods.sttm.merge_video_tokens`.
        _dense: for tests; videos on CUDA devices are measured by the dense path otherwise.

    Raises:
        ValueError: there is no video, the budget is out of range, or no thresholds keep so few tokens.
    """
    check_number("budget", budget, 0.0, 1.0, low_open=True)
    profiles = [
        _profile_of(video, config, head_dim, video.device.type == "cuda" if _dense is None else _dense)
        for video in features
    ]
    if not profiles:
        raise ValueError("calibration needs at least one video")

    def average(thresholds: Thresholds) -> float:
        return sum(profile.share(thresholds) for profile in profiles) / len(profiles)

    search = Search(average, budget)
    search.follow_path()
    if search.best_share is None:
        raise ValueError(
            f"budget={budget} is below what these videos allow: even the lowest thresholds keep {average(LOWEST):.4f} "
            "of the tokens on average; ask for more, or start the quadtrees at a lower root_level"
        )
    return search.best


def _profile_of(video: torch.Tensor, config: STTMConfig, head_dim: int | None, dense: bool) -> Searchable:
    check_features(video, config, head_dim)
    if dense and fits(video, config):
        return DenseVideo.of(video, config, head_dim).without_features()
    return Profile.of(build_quadtrees(video, config, head_dim))

"""One knob instead of two thresholds: the pair of thresholds that keeps a given share of the tokens.

All similarities of a video are computed once; a step of the search only counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.sttm.quadtree import Layout, Quadtrees, partition_at
from sttm_lmms.methods.sttm.search import HIGHEST, Search, Thresholds, turning_points
from sttm_lmms.methods.sttm.temporal import Pairs, merge_in_time, pair_similarities

__all__ = ["BudgetWarning", "Profile", "search_budget"]


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

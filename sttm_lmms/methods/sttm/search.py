"""The search behind a budget: thresholds with the largest kept share that a budget allows.

It bisects the kept share along a diagonal of the (spatial, temporal) plane, temporal = spatial -
0.25 in its main part, which passes within 0.1 of the pairs published for 50% and 30%. Where shares
jump over the budget on the diagonal (still videos, where everything merges in time at once; flat
pictures; tiny grids) it goes on along one threshold at a time.

The search is monotone: a larger budget never keeps fewer tokens. Its steps depend on comparisons
with the budget alone, and the answer is the largest share within the budget that was seen. So
searches for two budgets evaluate the same points until one fits the larger budget only, and that
point keeps more than the smaller budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from sttm_lmms.methods.sttm.cluster import count_tokens
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.similarity import Similarities, Thresholds

Line = Callable[[int], Thresholds]
"""A line of numbered points, shares ascending."""


LOWEST = Thresholds(-1.0, 1e-6)
"""Merges all that thresholds can merge: every quadtree stops at its root, and every pair with a
positive similarity merges in time. (A temporal threshold of 0 would turn that step off.)"""

HIGHEST = Thresholds(1.01, 1.01)
"""Merges nothing: above 1 by more than a similarity can be through rounding."""

DIAGONAL = (LOWEST, Thresholds(0.25, LOWEST.temporal), Thresholds(0.95, 0.70), HIGHEST)
"""Corners of the diagonal, lowest share first."""

TOLERANCE = 0.01
"""A share in (budget - TOLERANCE, budget] meets the budget."""

_CLOSE = 0.002  # a share in (budget - _CLOSE, budget] ends the bisection
_STEPS = 2**25  # points on each part of the diagonal: as fine as float32 similarities near 1
MAX_SWEEPS = 4  # lines that a coordinate search tries
PATIENCE = 16  # pairs of thresholds that are counted before looking which of them give the same tokens
LOOKAHEAD = 4  # steps of a bisection that are announced at once: 15 points


class Search:
    """One search.

    Args:
        share: kept share at a pair of thresholds.
        budget: in (0, 1].
        prefetch: told which points ``share`` may be asked for next; all of them can be counted at
            once. The search goes the same way whatever it does.

    Attributes:
        best: the thresholds found; the lowest ones as long as nothing is within the budget.
        best_share: their share; None as long as nothing is within the budget.
        evaluations: calls of ``share``.
    """

    def __init__(
        self,
        share: Callable[[Thresholds], float],
        budget: float,
        prefetch: Callable[[Sequence[Thresholds]], None] = lambda points: None,
    ) -> None:
        self.best = LOWEST
        self.best_share: float | None = None
        self.evaluations = 0
        self._share = share
        self._budget = budget
        self._prefetch = prefetch

    def within(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the best share lies in (budget - tolerance, budget]."""
        return self.best_share is not None and self.best_share > self._budget - tolerance

    def search_diagonal(self) -> Thresholds:
        """Bisect along the diagonal. Returns the last point seen whose share is above the budget,
        if there is one."""
        high = HIGHEST
        self._prefetch([*DIAGONAL, *_tree(_segment(*DIAGONAL[1:3]), 0, _STEPS)])
        if self._fits(high):
            return high
        for low in reversed(DIAGONAL[:-1]):
            if self._fits(low):
                return self._bisect(_segment(low, high), _STEPS)
            high = low
        return high

    def coordinate_search(
        self, start: Thresholds, spatial: torch.Tensor, temporal: torch.Tensor, *, space_first: bool
    ) -> None:
        """Go on along the lines through a point: along one threshold and then along the other, in
        turns.

        Args:
            start: the point; each line searched moves it.
            spatial, temporal: ``[n]`` ascending, the values to try for each threshold.
            space_first: which one moves first.
        """
        for sweep in range(MAX_SWEEPS):
            if self.within():
                return
            if (sweep % 2 == 0) == space_first:
                line, length = _along_space(spatial, start.temporal), len(spatial)
            else:
                line, length = _along_time(start.spatial, temporal), len(temporal)
            self._prefetch([line(0), line(length - 1), *_tree(line, 0, length - 1)])
            # A line helps only if the budget lies between its ends.
            if self._fits(line(0)) and not self._fits(line(length - 1)):
                start = self._bisect(line, length - 1)

    def _bisect(self, line: Line, high: int) -> Thresholds:
        """Narrow down a line whose point 0 fits and whose point ``high`` does not; returns the last
        that does not."""
        low = step = 0
        while high - low > 1 and not self.within(_CLOSE):
            if step % LOOKAHEAD == 0:
                self._prefetch(_tree(line, low, high))
            step += 1
            middle = (low + high) // 2
            if self._fits(line(middle)):
                low = middle
            else:
                high = middle
        return line(high)

    def _fits(self, point: Thresholds) -> bool:
        share = self._share(point)
        self.evaluations += 1
        if share <= self._budget and (self.best_share is None or share > self.best_share):
            self.best, self.best_share = point, share
        return share <= self._budget


def _tree(line: Line, low: int, high: int, steps: int = LOOKAHEAD) -> list[Thresholds]:
    """All points that the next steps of a bisection between ``low`` and ``high`` can ask for."""
    if steps == 0 or high - low <= 1:
        return []
    middle = (low + high) // 2
    return [line(middle), *_tree(line, low, middle, steps - 1), *_tree(line, middle, high, steps - 1)]


def _segment(low: Thresholds, high: Thresholds) -> Line:
    """From ``low`` (0) to ``high`` (_STEPS)."""
    ends = list(zip(low, high, strict=True))
    return lambda i: Thresholds(*(start + (end - start) * i / _STEPS for start, end in ends))


def _along_space(spatial: torch.Tensor, temporal: float) -> Line:
    return lambda i: Thresholds(float(spatial[i]), temporal)


def _along_time(spatial: float, temporal: torch.Tensor) -> Line:
    return lambda i: Thresholds(spatial, float(temporal[i]))


class TurningPoints:
    """The thresholds at which the tokens of a video can change: where its similarities lie.

    Attributes:
        spatial, temporal: float64 on the host, ascending, from the lowest to the highest thresholds
            of a search.
    """

    def __init__(self, similarities: Similarities) -> None:
        frame = similarities.frame_similarity
        (spatial, temporal), (spatial_end, temporal_end) = LOWEST, HIGHEST
        self.spatial = _between(spatial, similarities.min_child_similarity, spatial_end)
        self.temporal = _between(temporal, torch.empty(0) if frame is None else frame, temporal_end)

    def next(self, point: Thresholds) -> Thresholds:
        """The highest thresholds with the same tokens: no similarity lies between them and
        ``point``."""
        # Thresholds are compared with similarities as float32 numbers.
        place = zip((self.spatial, self.temporal), torch.tensor(point).double(), strict=True)
        return Thresholds(
            *(float(values[min(int(torch.searchsorted(values, x)), len(values) - 1)]) for values, x in place)
        )


def _between(low: float, values: torch.Tensor, high: float) -> torch.Tensor:
    inner = values[(values > low) & (values < high)].unique().double().cpu()
    return torch.cat((inner.new_tensor([low]), inner, inner.new_tensor([high])))


def search_thresholds(similarities: Similarities, grid: Grid, count: int) -> Thresholds:
    """The thresholds that keep most of one video's tokens out of those that keep at most ``count``;
    the lowest ones if none do."""
    cells = len(similarities.min_child_similarity) * grid.cells
    turning_points = cache(lambda: TurningPoints(similarities))

    def share(point: Thresholds) -> float:
        if len(similarities.counts) >= PATIENCE and not grid.dense:
            # Still and flat videos have few similarities, and a search that asks for the same
            # tokens again and again.
            point = turning_points().next(point)
        count_tokens(similarities, grid, [point])
        return similarities.counts[point].kept / cells

    def prefetch(points: Sequence[Thresholds]) -> None:
        if grid.dense:  # elsewhere counting one by one is as fast
            count_tokens(similarities, grid, points)

    search = Search(share, count / cells, prefetch)
    above = search.search_diagonal()
    if search.best_share is not None and not search.within():
        lines = turning_points()
        for start in (HIGHEST, above, search.best):
            for space_first in (True, False):
                search.coordinate_search(start, lines.spatial, lines.temporal, space_first=space_first)
    return search.best

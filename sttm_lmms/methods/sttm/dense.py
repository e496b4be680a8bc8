"""Merging in few large operations and one host read: the path of GPUs, where launches and waiting are what costs.

Same tokens as ``merge.py``, from the same definitions in another order::

    multiply the nodes of every frame with those of the frame and of the next one    dense_similarity.py
    look up level, anchor and pairs of every cell; a pair that fails joins itself     dense_union.py
    run more rounds of the union than are needed, take the first that is stable       dense_union.py
    sort cells by token; read the number of tokens; average                           dense_average.py

Averages are taken over the cells of a token, each weighted as pooling weighs it, and are rounded once; in half
precision they differ from those of pooled features in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from sttm_lmms.methods.sttm.dense_average import Groups
from sttm_lmms.methods.sttm.dense_similarity import Measured, measure
from sttm_lmms.methods.sttm.dense_tables import Tables, tables_for
from sttm_lmms.methods.sttm.dense_union import Tokens, rounds_for, tokens_at
from sttm_lmms.methods.sttm.exact import Labels, leave_groups, split_nodes
from sttm_lmms.methods.sttm.quadtree import check_features
from sttm_lmms.methods.sttm.search import Thresholds, turning_points
from sttm_lmms.types import MergedTokens

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig

POINTS_SHARE = 1.0
"""Counting at many pairs of thresholds at once may take this much of the input's bytes; more pairs go in turns."""


def to_host(*values: torch.Tensor) -> list[int]:
    """The only place where the dense path waits for the device."""
    return torch.cat(values).tolist()


@dataclass(frozen=True)
class Count:
    """Tokens kept at a pair of thresholds, those of the spatial step alone, and the rounds that the union took."""

    kept: int
    spatial: int
    rounds: int


@dataclass(frozen=True)
class DenseVideo:
    """A measured video: the counterpart of ``Quadtrees`` and of ``Profile``.

    Attributes:
        features: ``[T, H, W, C]`` contiguous.
        tables: of its grid.
        measured: its similarities.
        weighted_avg: average over cells instead of over nodes.
        counts: what :meth:`ahead` has counted.
    """

    features: torch.Tensor
    tables: Tables
    measured: Measured
    weighted_avg: bool
    counts: dict[Thresholds, Count] = field(default_factory=dict)

    @classmethod
    def of(
        cls, features: torch.Tensor, config: STTMConfig, head_dim: int | None, *, temporal: bool = True
    ) -> DenseVideo:
        """Measure ``[T, H, W, C]``; ``temporal=False`` leaves out what only the temporal step needs.

        Arguments and errors as in ``merge_video_tokens``.
        """
        check_features(features, config, head_dim)
        frames, height, width, _ = features.shape
        tables = tables_for(height, width, config.root_level, config.odd_edge, features.device)
        features = features.contiguous()
        measured = measure(
            features,
            tables,
            weighted_avg=config.weighted_avg,
            head_dim=head_dim if config.per_head else None,
            temporal=temporal and frames > 1,
        )
        return cls(features, tables, measured, config.weighted_avg)

    @property
    def tokens(self) -> int:
        """T*H*W."""
        return math.prod(self.features.shape[:3])

    @property
    def profile(self) -> DenseVideo:
        """What a search for thresholds asks: this video itself, which is measured already."""
        return self

    def without_features(self) -> DenseVideo:
        """The same similarities for counting alone: nothing can be merged, and the memory of features is free."""
        return replace(self, features=self.features.new_empty(*self.features.shape[:3], 0), counts={})

    def merge_at(self, thresholds: Thresholds, wanted: int = 0) -> MergedTokens:
        """The tokens at a pair of thresholds, see :meth:`SparseVideo.merge_at`."""
        count = self.counts.get(thresholds)
        if count is None and wanted:
            self.ahead([thresholds])
            count = self.counts[thresholds]
        if count is None:
            groups, kept, after_spatial = self._groups(_effective(thresholds))
        else:
            tokens = tokens_at(self.measured, self.tables, *_effective(thresholds), limit=count.rounds, settled=True)
            kept, after_spatial = max(wanted, count.kept), count.spatial
            groups = Groups.of(self._split(tokens, count, kept), self.tables)
        merged = groups.average(self.features, kept, weighted_avg=self.weighted_avg)
        info = {
            "spatial_threshold": thresholds.spatial,
            "temporal_threshold": thresholds.temporal,
            "after_spatial": after_spatial,
        }
        return MergedTokens(*merged, info=info)

    def _split(self, tokens: Tokens, count: Count, wanted: int) -> Tokens:
        """Tokens of one pair of thresholds, split until there are as many as wanted."""
        if wanted <= count.kept:
            return tokens
        level, anchor, owner = tokens.level.flatten(), tokens.anchor.flatten(), tokens.owner.flatten()
        if wanted <= count.spatial and tokens.link is not None:
            later, link = tokens.anchor[1:].flatten(), tokens.link.flatten()
            labels = leave_groups(Labels(level, anchor, owner), later, link, wanted - count.kept)
        else:
            agreement = self.measured.agreement[:, self.tables.over[0]].movedim(1, 0)
            labels = split_nodes(Labels(level, anchor, anchor), agreement, self.tables.anchor, wanted - count.spatial)
        shape = tokens.cell.shape
        return replace(
            tokens,
            level=labels.level.view(shape),
            anchor=labels.anchor.view(shape),
            owner=labels.owner.view(shape),
        )

    def _groups(self, thresholds: Thresholds) -> tuple[Groups, int, int]:
        """The groups, their number, and that of the spatial step's tokens.

        One host read, but for a union that takes unusually many rounds.
        """
        limit = rounds_for(len(self.features))
        while True:
            tokens = tokens_at(self.measured, self.tables, *thresholds, limit=limit)
            groups = Groups.of(tokens, self.tables)
            kept, rounds, after_spatial = to_host(groups.number, tokens.rounds, tokens.starts.sum((0, 2)))
            if rounds < tokens.limit:
                return groups, kept, after_spatial
            limit *= 2

    def share(self, thresholds: Thresholds) -> float:
        """Kept tokens / all tokens."""
        self.ahead([thresholds])
        return self.counts[thresholds].kept / self.tokens

    def ahead(self, points: Sequence[Thresholds]) -> None:
        """Count at all of these pairs of thresholds, with one host read, so that ``share`` need not."""
        points = [point for point in dict.fromkeys(points) if point not in self.counts]
        limit = rounds_for(len(self.features))
        while points:
            counts = self._count(points, limit)
            found = {point: count for point, count in zip(points, counts, strict=True) if count.rounds <= limit}
            self.counts.update(found)
            points = [point for point in points if point not in self.counts]
            limit *= 2

    def _count(self, points: list[Thresholds], limit: int) -> list[Count]:
        """The counts at each pair of thresholds; one whose rounds are beyond ``limit`` is not known yet."""
        table = torch.tensor([_effective(point) for point in points], dtype=torch.float32)[..., None]
        table = table.to(self.features.device, non_blocking=True)
        # int64 tables of a union: one a round, and about twelve others.
        a_point = 8 * self.tokens * (limit + 12)
        step = max(1, int(POINTS_SHARE * self.features.numel() * self.features.element_size()) // a_point)
        kept, spatial_kept, rounds = [], [], []
        for start in range(0, len(points), step):
            spatial, temporal = table[start : start + step].unbind(1)
            number = len(spatial)
            tokens = tokens_at(self.measured, self.tables, spatial[..., None], temporal, points=number, limit=limit)
            kept.append(tokens.survives.sum((0, 2)))
            spatial_kept.append(tokens.starts.sum((0, 2)))
            rounds.append(tokens.rounds)
        values = iter(to_host(*kept, *spatial_kept, *rounds))
        columns = [[next(values) for _ in points] for _ in range(3)]
        return [Count(n, most, unstable + 1) for n, most, unstable in zip(*columns, strict=True)]

    def turning_points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The spatial and the temporal thresholds at which the share can change, ascending, on the host."""
        similarity = self.measured.similarity
        temporal = torch.empty(0) if similarity is None else similarity.cpu()
        return turning_points(self.measured.agreement.cpu(), temporal)


def _effective(thresholds: Thresholds) -> Thresholds:
    """The same with the temporal step turned off by a threshold that no pair reaches, instead of by zero."""
    return thresholds if thresholds.temporal > 0 else thresholds._replace(temporal=math.inf)


def fits(features: torch.Tensor, config: STTMConfig) -> bool:
    """Whether frames are small enough for tables of the products of two frames' nodes."""
    _, height, width, _ = features.shape
    return tables_for(height, width, config.root_level, config.odd_edge, features.device).fits

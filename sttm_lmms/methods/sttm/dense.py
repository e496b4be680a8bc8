"""Merging in few large operations and one host read: the path of GPUs, where launches and waiting are what costs.

Same tokens as ``merge.py``, from the same definitions in another order::

    multiply the nodes of every frame with those of the frame and of the next one    dense_similarity.py
    look up level, anchor and pairs of every cell; a pair that fails joins itself     dense_union.py
    run as many rounds of the union as nearly every video needs                        dense_union.py
    read the number of tokens after each of them; take the first that is stable       here
    sort cells by token; average                                                      dense_average.py

Averages are taken over the cells of a token, each weighted as pooling weighs it, and are rounded once; in half
precision they differ from those of pooled features in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from sttm_lmms.methods.sttm.dense_average import average_tokens
from sttm_lmms.methods.sttm.dense_similarity import Measured, measure
from sttm_lmms.methods.sttm.dense_tables import Tables, tables_for
from sttm_lmms.methods.sttm.dense_union import rounds_for, tokens_at
from sttm_lmms.methods.sttm.exact import Labels, leave_groups, split_nodes
from sttm_lmms.methods.sttm.quadtree import check_features
from sttm_lmms.methods.sttm.search import Thresholds, turning_points
from sttm_lmms.types import MergedTokens

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig

POINTS_SHARE = 1.0
"""Counting at many pairs of thresholds at once may take this much of the input's bytes; more pairs go in turns."""

POINTS_BYTES = 1 << 25
"""... but always as many bytes as this."""


def to_host(values: torch.Tensor) -> list:
    """The only place where the dense path waits for the device."""
    return values.tolist()


@dataclass(frozen=True)
class Count:
    """Tokens kept at a pair of thresholds, those of the spatial step alone, and the rounds that the union takes."""

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
        kernels: use those of ``dense_kernels.py`` instead of ``dense_union.py``.
        counts: what :meth:`ahead` has counted.
    """

    features: torch.Tensor
    tables: Tables
    measured: Measured
    weighted_avg: bool
    kernels: bool = False
    counts: dict[Thresholds, Count] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        features: torch.Tensor,
        config: STTMConfig,
        head_dim: int | None,
        *,
        temporal: bool = True,
        kernels: bool = False,
    ) -> DenseVideo:
        """Measure ``[T, H, W, C]``; ``temporal=False`` leaves out what only the temporal step needs.

        Arguments and errors as in ``merge_video_tokens``; ImportError where ``kernels`` lack triton.
        """
        if kernels:
            _kernels()
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
        return cls(features, tables, measured, config.weighted_avg, kernels)

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
        if wanted:
            self.ahead([thresholds])
        labels, link, count = self._tokens(thresholds)
        kept = count.kept
        if wanted > kept:
            kept, labels = wanted, self._split(labels, link, count, wanted)
        merged = average_tokens(self.features, self.tables, labels, kept, weighted_avg=self.weighted_avg)
        info = {
            "spatial_threshold": thresholds.spatial,
            "temporal_threshold": thresholds.temporal,
            "after_spatial": count.spatial,
        }
        return MergedTokens(*merged, info=info)

    def _tokens(self, thresholds: Thresholds) -> tuple[Labels, torch.Tensor | None, Count]:
        """The tokens at a pair of thresholds, and the similarities that decided about pairs.

        One host read where it was not counted before, but for a union that takes unusually many rounds.
        """
        count, rounds = self.counts.get(thresholds), rounds_for(len(self.features))
        if self.kernels:
            labels, link, numbers = _kernels().tokens_at(self.measured, self.tables, *_effective(thresholds))
            return labels, link, count or Count(*to_host(numbers))
        while True:
            rounds = count.rounds if count else rounds
            tokens = tokens_at(self.measured, self.tables, *_effective(thresholds), rounds=rounds)
            count = count or _counts(to_host(tokens.counts()), self.tokens)[0]
            if count is not None:
                return Labels(tokens.level, tokens.anchor, tokens.owner(count.rounds)), tokens.link, count
            rounds *= 2

    def _split(self, labels: Labels, link: torch.Tensor | None, count: Count, wanted: int) -> Labels:
        """The tokens of one pair of thresholds, split until there are as many as wanted."""
        if wanted <= count.spatial and link is not None:
            return leave_groups(labels, labels.anchor[self.tables.cells :], link.view(-1), wanted - count.kept)
        agreement = self.measured.agreement.squeeze(2).transpose(0, 1)
        spatial = Labels(labels.level.flatten(), labels.anchor, labels.anchor)
        split = split_nodes(spatial, agreement, self.tables.anchor, wanted - count.spatial)
        return replace(split, level=split.level.view_as(labels.level))

    def share(self, thresholds: Thresholds) -> float:
        """Kept tokens / all tokens."""
        self.ahead([thresholds])
        return self.counts[thresholds].kept / self.tokens

    def ahead(self, points: Sequence[Thresholds]) -> None:
        """Count at all of these pairs of thresholds, with one host read, so that ``share`` need not."""
        points = [point for point in dict.fromkeys(points) if point not in self.counts]
        # One more than for a single pair: each of many could be the one that needs it.
        rounds = rounds_for(len(self.features)) + 1
        while points:
            found = zip(points, self._count(points, rounds), strict=True)
            self.counts.update((point, count) for point, count in found if count is not None)
            points = [point for point in points if point not in self.counts]
            rounds *= 2

    def _count(self, points: list[Thresholds], rounds: int) -> list[Count | None]:
        """The counts at each pair of thresholds; None for one whose union takes more rounds."""
        # The tables of a union are int64: two a round, and about twelve others; or the int32 ones of a kernel.
        a_point = 4 * _kernels().SCRATCH if self.kernels else 8 * (2 * rounds + 12)
        allowed = max(POINTS_BYTES, int(POINTS_SHARE * self.features.nbytes))
        step = max(1, allowed // (a_point * self.tokens))
        found = []
        for start in range(0, len(points), step):
            part = [_effective(point) for point in points[start : start + step]]
            table = torch.tensor(part, dtype=torch.float32).to(self.features.device, non_blocking=True)
            if self.kernels:
                found.append(_kernels().count_at(self.measured, self.tables, table))
                continue
            spatial, temporal = table.split(1, dim=1)
            tokens = tokens_at(self.measured, self.tables, spatial, temporal, rounds=rounds, points=len(part))
            found.append(tokens.counts())
        columns = to_host(found[0] if len(found) == 1 else torch.cat(found, -1))
        return [Count(*row) for row in zip(*columns, strict=True)] if self.kernels else _counts(columns, self.tokens)

    def turning_points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The spatial and the temporal thresholds at which the share can change, ascending, on the host."""
        similarity = self.measured.similarity
        temporal = torch.empty(0) if similarity is None else similarity.cpu()
        return turning_points(self.measured.agreement.cpu(), temporal)


def _kernels() -> ModuleType:
    """Triton is imported only where it was asked for."""
    return import_module("sttm_lmms.methods.sttm.dense_kernels")


def _counts(after_rounds: list[list[list[int]]], cells: int) -> list[Count | None]:
    """The counts at each pair of thresholds from :meth:`Tokens.counts`; None if the union was never stable.

    The first stable round counts: more rounds are not harmless, they would go on merging.
    """
    fixed, settled = (list(zip(*column, strict=True)) for column in after_rounds)
    return [_first_stable(*column, cells) for column in zip(fixed, settled, strict=True)]


def _first_stable(fixed: Sequence[int], settled: Sequence[int], cells: int) -> Count | None:
    spatial = fixed[0]
    if len(fixed) == 1:
        return Count(spatial, spatial, 0)
    # In the union cells that are no anchor stand for themselves.
    stable = (rounds for rounds in range(1, len(fixed)) if settled[rounds] == cells)
    return next((Count(fixed[rounds] - (cells - spatial), spatial, rounds) for rounds in stable), None)


def _effective(thresholds: Thresholds) -> Thresholds:
    """The same with the temporal step turned off by a threshold that no pair reaches, instead of by zero."""
    return thresholds if thresholds.temporal > 0 else thresholds._replace(temporal=math.inf)


def fits(features: torch.Tensor, config: STTMConfig) -> bool:
    """Whether frames are small enough for tables of the products of two frames' nodes."""
    _, height, width, _ = features.shape
    return tables_for(height, width, config.root_level, config.odd_edge, features.device).fits

"""FlashVID's outer stage (arXiv 2602.08024): diverse tokens of each frame, and clusters of what
merges along time.

::

    cut the video into segments where frames' unit means change most
    in each frame: select the A tokens that are least alike, one after the other; they stay
    in each segment: a token that is similar enough to one of the frame before joins it
        (selected ones do not)
    in each frame: cluster what is left by density peaks,
        as many clusters as the rest of the budget allows

The published pipeline lets 1.25 times the tokens into the decoder and prunes again in layer 20;
that stage is not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from sttm_lmms.config import check_choice, check_flag, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import LayerMethod, Probe, State, check_exactly_one, from_published, max_tokens
from sttm_lmms.types import Kept, Tokens

Selection = Literal["div"]
NEIGHBOURS = 7
"""Nearest tokens by whose distance the density at a token is measured."""

_PUBLISHED = (
    "retention_ratio",
    "do_segment",
    "segment_threshold",
    "min_segment_num",
    "complementary_segment",
    "token_selection_method",
    "alpha",
    "temporal_threshold",
    "expansion",
)


@register_method("flashvid")
@dataclass(frozen=True, kw_only=True)
class FlashVIDConfig(LayerMethod):
    """Settings of FlashVID's outer stage. Give ``retention_ratio`` or ``budget``.

    Tokens are selected by their diversity alone (``"div"``, an ablation of the paper); the
    published default weighs it with the vision tower's attention, which no family here computes.

    The published code fails on one token a frame, on ``retention_ratio=1`` and where nothing merges
    along time; it draws noise against ties of densities. Here all of these work, and the first
    among equals wins.

    Attributes:
        retention_ratio: the published argument: about ``ceil(n * retention_ratio * expansion)`` of
            a frame's n tokens. A selected token of a frame that is a segment of its own may come
            out twice, as published.
        budget: keeps exactly as many tokens as it allows: clusters of fewest tokens are dropped
            until it is met.
        do_segment: whether the video is cut into segments.
        segment_threshold: similarity of consecutive frames below which a segment ends.
        min_segment_num: segments that there should be; more cuts are made where frames change most.
        complementary_segment: whether more cuts are made.
        token_selection_method: ``"div"``.
        alpha: share of a frame's tokens that is selected; the rest are clusters.
        temporal_threshold: cosine similarity above which a token joins one of the frame before.
        expansion: factor on ``retention_ratio``; the published pipeline has 1.25 for its inner
            stage.
    """

    start_layer: int = 0
    retention_ratio: float | None = None
    budget: float | None = None
    do_segment: bool = True
    segment_threshold: float = 0.9
    min_segment_num: int = 8
    complementary_segment: bool = True
    token_selection_method: Selection = "div"
    alpha: float = 0.7
    temporal_threshold: float = 0.8
    expansion: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exactly_one(retention_ratio=self.retention_ratio, budget=self.budget)
        name = "budget" if self.retention_ratio is None else "retention_ratio"
        check_number(name, getattr(self, name), 0.0, 1.0, low_open=True)
        check_choice("token_selection_method", self.token_selection_method, get_args(Selection))
        for name in ("do_segment", "complementary_segment"):
            check_flag(name, getattr(self, name))
        check_integer("min_segment_num", self.min_segment_num, 1)
        check_number("segment_threshold", self.segment_threshold, -1.0, 2.0)
        check_number("alpha", self.alpha, 0.0, 1.0)
        check_number("temporal_threshold", self.temporal_threshold, -1.0, 2.0)
        check_number("expansion", self.expansion, 0.0, 4.0, low_open=True)

    @classmethod
    def published(cls, **settings: Any) -> FlashVIDConfig:
        """From the names of the published code, which are ours; ``expansion`` is 1.25 there."""
        return cls(**{"expansion": 1.25} | from_published(settings, {name: name for name in _PUBLISHED}))

    def count(self, grid: tuple[int, int, int]) -> int | None:
        return None if self.budget is None else max_tokens(self.budget, math.prod(grid))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Select and cluster, segment by segment."""
        features = tokens.as_grid().flatten(1, 2).float()
        size = features.shape[1]
        a_frame = min(size, math.ceil(size * (self.retention_ratio or self.budget or 1.0) * self.expansion))
        selected = math.ceil(a_frame * self.alpha)
        places: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        # For each place the token that stands for what is left there, and the place that it has
        # joined.
        token = torch.full((len(tokens),), -1, device=features.device)
        root = torch.arange(len(tokens), device=features.device)
        for start, stop in self._segments(features):
            segment = self._reduce_segment(features[start:stop], a_frame, selected)
            begin, end, number = start * size, stop * size, sum(map(len, places))
            token[begin:end] = torch.where(segment.token < 0, -1, segment.token + number)
            root[begin:end] = segment.root + begin
            places.append(segment.places + begin)
            means.append(segment.features)
        return self._collect(tokens, torch.cat(places), torch.cat(means), token[root])

    def _segments(self, features: torch.Tensor) -> list[tuple[int, int]]:
        """First frame and end of each segment."""
        frames = len(features)
        if not self.do_segment or frames == 1:
            return [(0, frames)]
        mean = F.normalize(features.mean(1), dim=-1)
        similarity = (mean[:-1] * mean[1:]).sum(-1)
        cuts = (similarity < self.segment_threshold).nonzero().flatten()
        missing = self.min_segment_num - 1 - len(cuts)
        if missing > 0 and self.complementary_segment:
            similarity[cuts] = 1.0
            cuts = torch.cat((cuts, similarity.topk(min(missing, frames - 1), largest=False).indices))
        ends = [*(cut + 1 for cut in sorted(set(cuts.tolist()))), frames]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def _reduce_segment(self, features: torch.Tensor, a_frame: int, selected: int) -> _Segment:
        """The tokens that go on of the frames ``[F, n, C]`` of one segment."""
        frames, size, _ = features.shape
        unit = F.normalize(features, dim=-1)
        root = torch.arange(frames * size, device=features.device).view(frames, size)
        is_selected = torch.zeros(frames, size, dtype=torch.bool, device=features.device)
        if selected:
            is_selected.scatter_(1, torch.stack([select_diverse(frame, selected) for frame in unit]), True)
        values, left, clusters = features, ~is_selected, (a_frame - selected) * frames
        if clusters and frames > 1 and self.temporal_threshold < 1:
            values, root, left = self._join_in_time(features, unit, is_selected, a_frame)
        elif frames == 1 and self.temporal_threshold < 1 and self.budget is None:
            left = torch.ones_like(left)  # as published: of a single frame selected tokens are clustered, too
        chosen = is_selected.flatten().nonzero().flatten()
        index, means, found = [chosen], [features.flatten(0, 1).index_select(0, chosen)], len(chosen)
        token = torch.full((frames * size,), -1, device=features.device)
        # Sizes of all frames at once, so that the host waits for the device once a segment.
        sizes = left.sum(1).tolist()
        share = clusters / max(1, sum(sizes))
        for own in left.flatten().nonzero().flatten().split(sizes):
            number = math.ceil(len(own) * share)
            if not number:
                continue
            rows = values.flatten(0, 1).index_select(0, own)
            group = centre = torch.arange(len(own), device=own.device)
            if share < 1:
                group, centre = density_peaks(rows, number)
            means.append(_means(rows, group, len(centre)))
            token[own] = group + found
            found += len(centre)
            index.append(own[centre])
        token[chosen] = torch.arange(len(chosen), device=token.device)
        return _Segment(torch.cat(index), torch.cat(means), token, root.flatten())

    def _join_in_time(
        self, features: torch.Tensor, unit: torch.Tensor, is_selected: torch.Tensor, a_frame: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values of the tokens after joining, the token ``[F, n]`` that each went into, and which
        ones are left."""
        frames, size, _ = features.shape
        similarity = unit[1:] @ unit[:-1].mT
        similarity = similarity.masked_fill(is_selected[1:, :, None] | is_selected[:-1, None], -1.0)
        best, parent = similarity.max(-1)
        best = torch.cat((best.new_full((1, size), -1.0), best))
        joins = best > self.temporal_threshold
        if int((~joins).sum()) < a_frame * frames:
            spare = frames * (size - a_frame)
            bound = best.flatten().topk(spare).values[-1] if spare else best.new_tensor(torch.inf)
            joins = best > bound.clamp(min=-1 + 1e-6)
        values, count = features.clone(), torch.ones(frames, size, device=features.device)
        root = torch.arange(frames * size, device=features.device).view(frames, size)
        for t in reversed(range(frames)):
            # As published: a token that joins hands on the sum that it holds, but counts as one.
            values[t] /= torch.where(joins[t], 1.0, count[t])[:, None]
            if t:
                # Those that do not join hand on nothing; which ones these are is known to the device alone.
                values[t - 1].index_add_(0, parent[t - 1], values[t] * joins[t, :, None])
                count[t - 1].index_add_(0, parent[t - 1], joins[t].to(count.dtype))
        for t in range(1, frames):
            root[t] = torch.where(joins[t], root[t - 1][parent[t - 1]], root[t])
        return values, root, ~joins & ~is_selected

    def _collect(self, tokens: Tokens, index: torch.Tensor, means: torch.Tensor, token: torch.Tensor) -> Kept:
        """The tokens at the places ``index`` in the order of these; with a budget without those
        that are too many."""
        keep = torch.arange(len(index), device=index.device)
        if self.budget is not None:
            # Those that stand for least go first, of equal ones the last.
            counts = torch.zeros(len(index) + 1, device=index.device).index_add_(
                0, token + 1, torch.ones_like(token, dtype=torch.float32)
            )[1:]
            most = max_tokens(self.budget, len(tokens))
            keep = counts.argsort(descending=True, stable=True)[:most].sort().values
        keep = keep[index[keep].argsort(stable=True)]
        number = torch.full((len(index) + 1,), -1, device=index.device)  # the last one: of places that were dropped
        number[keep] = torch.arange(len(keep), device=index.device)
        return Kept(means[keep].to(tokens.features.dtype), index[keep], number[token])


class _Segment(NamedTuple):
    """What goes on of a segment's ``F * n`` places: ``places`` and ``features`` of the tokens; for
    each place the ``token`` that stands for what is left there (-1: none), and the ``root``, the
    place that it has joined."""

    places: torch.Tensor
    features: torch.Tensor
    token: torch.Tensor
    root: torch.Tensor


def _means(rows: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """``[groups, C]``: the mean of each group's rows of ``[m, C]``."""
    sums = torch.zeros(groups, rows.shape[1], device=rows.device).index_add_(0, group, rows)
    return sums / torch.zeros(groups, device=rows.device).index_add_(0, group, rows.new_ones(len(rows)))[:, None]


def select_diverse(unit: torch.Tensor, number: int) -> torch.Tensor:
    """``[number]`` int64: rows of ``[n, C]`` (unit length), each as unlike those before it as can
    be."""
    distance = 1 - unit @ unit.T
    second = distance.topk(2, largest=False).values[:, 1] if len(unit) > 1 else distance[:, 0]
    chosen = [second.argmax().view(1)]
    near = distance.index_select(0, chosen[0])[0].index_fill(0, chosen[0], -1.0)
    for _ in range(number - 1):
        chosen.append(near.argmax().view(1))
        near = torch.minimum(near, distance.index_select(0, chosen[-1])[0]).index_fill(0, chosen[-1], -1.0)
    return torch.cat(chosen)


def density_peaks(rows: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster the rows ``[m, C]``: the cluster ``[m]`` of each, and the rows ``[number]`` that are
    their centres.

    Centres are rows of high density that are far from any of higher density; the others join the
    nearest centre.
    """
    distance = torch.cdist(rows, rows) / rows.shape[1] ** 0.5
    nearest = distance.topk(min(number, NEIGHBOURS, len(rows)), largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    higher = density[None] > density[:, None]
    gap = torch.where(higher, distance, distance.max()).amin(-1)
    centre = (gap * density).topk(number).indices
    group = distance[:, centre].argmin(-1)
    group[centre] = torch.arange(number, device=rows.device)
    return group, centre

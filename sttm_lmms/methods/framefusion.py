"""FrameFusion (arXiv 2501.01986): merge along time over the first layers, then prune once, within a
cost.

A *call* happens in front of layer 0 and, in every layer, between attention and MLP. The cost is the mean over layers
of the share of visual tokens that a layer's attention sees. ``bound`` is the share of the present tokens to remove at
this call so that the cost comes out exactly if nothing else were removed afterwards. A call does at most one of::

    merge: compare each token with the one before it in time at the same place (cosine)
        fewer than ``bound`` are similar (>= similarity): merge those;
            once they are fewer than ``ratio``, stop merging
        else: merge the ``bound`` most similar, and be done
    prune, if a call before this one stopped merging:
        drop the ``bound`` with the least attention, and be done

Merging: a run of marked tokens joins the token before it; that becomes the plain mean and keeps its
place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from sttm_lmms.config import check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import (
    Method,
    Probe,
    RatioMethod,
    Stage,
    State,
    from_published,
    max_tokens,
)
from sttm_lmms.methods.ops import cosine, group_means
from sttm_lmms.types import Kept, Tokens


@register_method("framefusion")
@dataclass(frozen=True, kw_only=True)
class FrameFusionConfig(Method):
    """Settings of FrameFusion. Survivors keep order and rotary positions. Give either ``cost`` or
    ``budget``.

    Attributes:
        cost: the published argument, with its rounding: the cost it aims at, in (0, 1].
        budget: the same, but never exceeded. Where merging slowly would spend more, merging ends at
            once.
        similarity: cosine similarity from which tokens merge.
        ratio: merging goes on while at least this share of the tokens is similar.
        cost_layers: layers in the cost. None means the model's own; the published code has 28 for
            every model.

    Raises:
        ValueError: a value is out of range, or not exactly one of cost and budget is given.

    The published code fails where merging has already spent the cost; here merging ends before
    that. It gives NaN for zero vectors; here they are similar to nothing. If more tokens have to be
    merged than have one before them in time, the first tokens of a place join the place before.
    """

    reads: ClassVar[Literal["features", "attention"]] = "attention"
    positions: ClassVar[Literal["renumber", "keep"]] = "keep"

    cost: float | None = None
    budget: float | None = None
    similarity: float = 0.6
    ratio: float = 0.1
    cost_layers: int | None = None

    def __post_init__(self) -> None:
        if (self.cost is None) == (self.budget is None):
            raise ValueError("give either cost (the published argument) or budget (the same, never exceeded)")
        name = "budget" if self.cost is None else "cost"
        check_number(name, getattr(self, name), 0.0, 1.0, low_open=True)
        check_number("similarity", self.similarity, -1.0, 1.0)
        check_number("ratio", self.ratio, 0.0, 1.0)
        if self.cost_layers is not None:
            check_integer("cost_layers", self.cost_layers, 1)

    @classmethod
    def published(cls, **settings: Any) -> FrameFusionConfig:
        """From ``cost``, ``similarity_lower_bound``, ``ratio_lower_bound``."""
        names = {"cost": "cost", "similarity_lower_bound": "similarity", "ratio_lower_bound": "ratio"}
        return cls(**from_published(settings, names), cost_layers=28)

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return [Stage(0, "layer"), *(Stage(layer, "mlp") for layer in range(layers))]

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept | None:
        """One call."""
        layers = self.cost_layers if self.cost_layers is not None else probe.layers
        done: _Done = state.setdefault("framefusion", _Done())
        if done.finished or len(done.seen) >= layers:
            return None
        keep = self._most(done, tokens, layers)
        if done.merged:
            done.finished = True
            weights = probe.attention((-1,))[0]
            index = weights.argsort(descending=True, stable=True)[: keep.pruning].sort().values
            return Kept.select(tokens, index, pruned=len(tokens) - keep.pruning)
        chain = Chain.of(tokens)
        similar = int((chain.similarity >= self.similarity).sum())  # the one look at the device
        share, left = similar / len(tokens), len(tokens) - similar
        if share < keep.bound and not keep.overspends(left):
            done.seen.append(left)
            done.shares.append(share)
            done.merged = share < self.ratio
            number = similar
        else:
            done.finished = True
            number = len(tokens) - keep.merging
        return chain.merge(tokens, number) if number else None

    def _most(self, done: _Done, tokens: Tokens, layers: int) -> _Most:
        """How many of the present tokens may stay."""
        present, ahead = len(tokens), layers - len(done.seen)
        if self.budget is not None:
            t, h, w = tokens.grid
            rest = max_tokens(self.budget, t * h * w * layers) - sum(done.seen)
            keep = max(1, min(present, rest // ahead))
            return _Most(1 - keep / present, keep, keep, rest, ahead - 1)
        assert self.cost is not None
        product, total = 1.0, 0.0
        for removed in done.shares:
            product *= 1 - removed
            total += product
        spare = layers * self.cost - total
        stays = max(0.0, spare / (ahead * product))
        bound = 0.0 if stays > 1 else 1 - stays
        merging = max(1, present - int(bound * present))
        pruning = max(1, round(present * (1 - bound)))
        return _Most(bound, merging, pruning, spare / product * present, 0)


@dataclass
class _Done:
    """What the calls so far did.

    Attributes:
        shares: for each call that merged and left room for more, the share of tokens that it
            removed.
        seen: the tokens that it left, which is what attention sees in one layer.
        merged, finished: merging is over; everything is.
    """

    shares: list[float] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    merged: bool = False
    finished: bool = False


@dataclass(frozen=True)
class _Most:
    """What a call may leave.

    Attributes:
        bound: the share of the present tokens to remove.
        merging, pruning: tokens left if that is merged or pruned.
        rest: tokens, summed over all layers to come, that the cost leaves.
        later: how many of them have to be left for later layers.
    """

    bound: float
    merging: int
    pruning: int
    rest: float
    later: int

    def overspends(self, left: int) -> bool:
        """True if a layer with ``left`` tokens takes what later layers need."""
        return left > self.rest - self.later


@register_method("framefusion_merge")
@dataclass(frozen=True, kw_only=True)
class FrameFusionMergeConfig(RatioMethod):
    """Settings of FrameFusion's merging in one layer, without thresholds and pruning.

    It acts on the normed input of attention in ``start_layer``: the means feed queries, keys and
    values there, while survivors go on with their own residual stream, as in the published code.
    They keep order and rotary positions, so ``decode_positions`` makes no difference.

    Attributes:
        ratio: share removed; of N tokens the ``floor(ratio * N)`` most similar ones are merged, at
            most N - 1.
        budget: keeps exactly as many tokens as it allows.
    """

    positions: ClassVar[Literal["renumber", "keep"]] = "keep"

    @classmethod
    def published(cls, **settings: Any) -> FrameFusionMergeConfig:
        """From ``layer``, ``ratio``."""
        return cls(**from_published(settings, {"layer": "start_layer", "ratio": "ratio"}))

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return (Stage(self.start_layer, "attention"),)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Merge the most similar tokens."""
        if self.ratio is not None:
            number = min(int(self.ratio * len(tokens)), len(tokens) - 1)
        else:
            assert self.budget is not None
            number = len(tokens) - max_tokens(self.budget, len(tokens))
        return Chain.of(tokens).merge(tokens, number)


@dataclass(frozen=True)
class Chain:
    """The tokens place by place, each place through time.

    Attributes:
        order: ``[N]`` int64, tokens in that order.
        similarity: ``[N]`` float32, of each to the one before it in that order. The first of a
            place is 4 lower, so that it comes after all others; the very first is -inf.
    """

    order: torch.Tensor
    similarity: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens) -> Chain:
        """The chain of the tokens that are left, whatever stages there were before."""
        frames, _, width = tokens.grid
        t, y, x = tokens.cells.unbind(1)
        place = y * width + x
        order = (place * frames + t).argsort()
        similarity = torch.full((len(order),), -torch.inf, device=order.device)
        similarity[1:] = cosine(tokens.features, order[1:], order[:-1])
        similarity[1:] -= 4 * (place[order[1:]] != place[order[:-1]])
        return cls(order, similarity)

    def merge(self, tokens: Tokens, number: int) -> Kept:
        """Let the ``number`` (below N) most similar tokens join the one before; ``info`` counts all
        that ever did."""
        joins = torch.zeros_like(self.order, dtype=torch.bool)
        joins[self.similarity.argsort(descending=True, stable=True)[:number]] = True
        left = len(self.order) - number
        head = self.order[joins.long().argsort(stable=True)[:left]]
        index, by = head.sort()
        rank = torch.empty_like(by)
        rank[by] = torch.arange(left, device=rank.device)
        owner = torch.empty_like(self.order)
        owner[self.order] = rank[(~joins).cumsum(0) - 1]
        features = group_means(tokens.features, owner, left).to(tokens.features.dtype)
        return Kept(features, index, owner, info={"merged": math.prod(tokens.grid) - left})

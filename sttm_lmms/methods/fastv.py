"""FastV (arXiv 2403.06764): keep the tokens that the prompt's last token attends to most in an
early layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sttm_lmms.config import check_integer
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import (
    Method,
    Probe,
    Stage,
    State,
    check_ratio_or_budget,
    from_published,
    max_tokens,
)
from sttm_lmms.types import Kept, Tokens


@register_method("fastv")
@dataclass(frozen=True, kw_only=True)
class FastVConfig(Method):
    """Settings of FastV. Survivors keep order and rotary positions; text is never touched.

    Attributes:
        layer: the first layer that sees fewer tokens, at least 1; attention is read in the layer
            before it.
        ratio: share removed; of N tokens ``round(N * (1 - ratio))`` stay (halves round to even), at
            least one.
        budget: kept visual tokens / all visual tokens, in (0, 1]; keeps exactly as many tokens as
            it allows.

    Raises:
        ValueError: a value is out of range, or not exactly one of ratio and budget is given.
    """

    reads: ClassVar[Literal["features", "attention"]] = "attention"
    positions: ClassVar[Literal["renumber", "keep"]] = "keep"

    layer: int = 2
    ratio: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        check_integer("layer", self.layer, 1)
        check_ratio_or_budget(self.ratio, self.budget)

    @classmethod
    def published(cls, **settings: Any) -> FastVConfig:
        """From ``fastv_k`` (the layer), ``fastv_r`` (the ratio)."""
        return cls(**from_published(settings, {"fastv_k": "layer", "fastv_r": "ratio"}))

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return (self.layer,)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Keep the tokens with the largest attention weights."""
        if self.ratio is not None:
            keep = max(1, round(len(tokens) * (1 - self.ratio)))
        else:
            assert self.budget is not None
            keep = max_tokens(self.budget, len(tokens))
        weights = probe.attention((-1,))[0]
        return Kept.select(tokens, weights.argsort(descending=True, stable=True)[:keep].sort().values)

"""StreamingLLM (arXiv 2309.17453): every token attends to the first tokens (sinks) and to a window
of the last ones.

No token is removed in the prefill, whose cost falls by masked attention only. From the first decode
step on the cache holds the sinks and the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from sttm_lmms.config import check_flag, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import CacheView, Method, Probe, Stage, State, from_published, max_tokens
from sttm_lmms.types import Kept, Tokens


@register_method("streaming_llm")
@dataclass(frozen=True, kw_only=True)
class StreamingLLMConfig(Method):
    """Settings of StreamingLLM.

    Keys keep the rotary positions that they were computed with, so that a decode step sees what the
    prefill's mask would show it. The published code (``reference=True``) turns the keys of the
    window back by one position at every step while new tokens count on from the prompt's full
    length, so that distances to old keys grow by two a step.

    Attributes:
        sinks: first tokens of the sequence, text included, that everything attends to.
        window: tokens that a token attends to, the sinks and itself included. A fixed number lets
            one video's KV cache serve all questions; a budget does not, since it depends on the
            length of the question.
        budget: the window as a share of the prompt's tokens, rounded down, in (0, 1]. In a prompt
            so short that the sinks fill the window there are fewer sinks.
        reference: rotate keys as the published code does.

    Raises:
        ValueError: a value is out of range, not exactly one of window and budget is given, or the
            window does not hold the sinks and a token.
    """

    positions: ClassVar[Literal["renumber", "keep"]] = "keep"

    sinks: int = 8
    window: int | None = None
    budget: float | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        check_integer("sinks", self.sinks, 0)
        check_flag("reference", self.reference)
        if (self.window is None) == (self.budget is None):
            raise ValueError("give either window (tokens) or budget (share of the prompt's tokens)")
        if self.budget is not None:
            check_number("budget", self.budget, 0.0, 1.0, low_open=True)
        elif self.window is not None:
            check_integer("window", self.window, 1)
            if self.window <= self.sinks:
                raise ValueError(f"window={self.window} must be larger than sinks={self.sinks}, which are part of it")

    @classmethod
    def published(cls, **settings: Any) -> StreamingLLMConfig:
        """From ``init_num`` (the sinks), ``length_rate`` (the budget)."""
        return cls(**from_published(settings, {"init_num": "sinks", "length_rate": "budget"}), reference=True)

    @property
    def shares_prefix(self) -> bool:
        return self.window is not None

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return ()

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept | None:
        return None

    def visible(self, prompt_tokens: int) -> Callable[[Any, Any, Any, Any], Any]:
        """Keys among the sinks, and keys at most a window back."""
        sinks, window = self._sizes(prompt_tokens)

        def in_sight(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key < sinks) | (query - key < window - sinks)

        return in_sight

    def cache_stages(self, layers: int) -> Sequence[int]:
        return (0,)

    def edit_cache(self, cache: CacheView, state: State) -> None:
        """Evict what is older than the window, so that with the new token each layer holds
        ``window`` entries."""
        sinks, window = self._sizes(cache.prompt_tokens)
        kept: dict[int, torch.Tensor] = {}
        for layer in range(cache.layers):
            length = cache.length(layer)
            if length + 1 <= window:
                continue
            if length not in kept:
                kept[length] = torch.cat((torch.arange(sinks), torch.arange(length + 1 - window + sinks, length)))
            cache.keep(layer, kept[length])
            if self.reference:
                cache.rotate(layer, slice(sinks, None), -1)

    def _sizes(self, prompt_tokens: int) -> tuple[int, int]:
        """Sinks and window for a prompt of that many tokens."""
        if self.window is not None:
            return self.sinks, self.window
        assert self.budget is not None
        published = max(1, int(self.budget * prompt_tokens))
        window = published if self.reference else max_tokens(self.budget, prompt_tokens)
        return min(self.sinks, window - 1), window

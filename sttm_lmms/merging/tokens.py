"""The result every reduction method returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class MergedTokens:
    """Visual tokens of one video after reduction, in sequence order (t, then top y, then left x).

    Attributes:
        features: ``[N', C]``, dtype and device of the input.
        boxes: ``[N', 5]`` int64 ``(t, y0, x0, y1, x1)`` in grid cells, ends exclusive: the place of the token's
            representative. Its top-left cell gives the token its position.
        counts: ``[N']`` int64, original tokens in each token. They sum to T*H*W for methods that merge; a method that
            drops tokens leaves the dropped ones out.
        source_map: ``[T, H, W]`` int64, index of the token that now stands for each original cell; -1 where a cell
            was dropped.
        info: plain numbers worth reporting, such as the thresholds that a budget search found.
    """

    features: torch.Tensor
    boxes: torch.Tensor
    counts: torch.Tensor
    source_map: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def grid(self) -> tuple[int, int, int]:
        """The (T, H, W) of the input."""
        t, h, w = self.source_map.shape
        return t, h, w

    @property
    def budget(self) -> float:
        """Achieved budget: kept visual tokens / all visual tokens."""
        return len(self) / self.source_map.numel()

"""What the simple methods share: settings with a budget, and the tokens of a method that drops cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.config import MethodConfig, check_number
from sttm_lmms.methods.sttm import MergedTokens


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(MethodConfig):
    """Settings of a method with one knob.

    Attributes:
        budget: kept visual tokens / all visual tokens, in (0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    budget: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("budget", self.budget, 0.0, 1.0, low_open=True)


def most_within(budget: float, total: int) -> int:
    """The largest number that is at most ``budget`` of ``total``, but at least 1."""
    number = int(budget * total) + 1
    while number > 1 and number / total > budget:
        number -= 1
    return number


def keep_cells(features: torch.Tensor, cells: torch.Tensor) -> MergedTokens:
    """The tokens that remain of ``[T, H, W, C]`` if all cells but ``cells`` (ascending flat indices) are dropped."""
    frames, height, width, _ = features.shape
    t, y, x = cells // (height * width), cells // width % height, cells % width
    source_map = torch.full((frames * height * width,), -1, device=features.device)
    source_map[cells] = torch.arange(len(cells), device=features.device)
    return MergedTokens(
        features=features.flatten(0, 2)[cells],
        boxes=torch.stack((t, y, x, y + 1, x + 1), 1),
        counts=torch.ones_like(cells),
        source_map=source_map.view(frames, height, width),
    )

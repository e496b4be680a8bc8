"""Checks of settings: every one names the setting, its value and what is valid."""

from __future__ import annotations

import math
from typing import Any


def check_number(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    """Raise ``ValueError`` naming the setting, its value and the valid range unless
    ``low <= value <= high``."""
    valid = f"{'(' if low_open else '['}{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a number; it must be in {valid}")
    if not (low < value if low_open else low <= value) or value > high:
        raise ValueError(f"{name}={value!r} is out of range; it must be in {valid}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={value!r} is not valid; it must be an integer >= {low}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not valid; it must be one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not valid; it must be True or False")

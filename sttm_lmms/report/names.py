"""Short names of models and settings for tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping

_THRESHOLDS = ("spatial_threshold", "temporal_threshold")


def model_name(checkpoint: str) -> str:
    """A hub id as it is, a local folder by its last part."""
    local = checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1
    return checkpoint.rstrip("/").rsplit("/", 1)[-1] if local else checkpoint


def setting_words(settings: Mapping[str, str]) -> str:
    """Settings in words, what matters most in front: ``budget 0.5, start_layer=0``; empty for no settings."""
    rest = dict(settings)
    words = [rest.pop("preset")] if "preset" in rest else []
    if "budget" in rest:
        words.append(f"budget {rest.pop('budget')}")
    if all(key in rest for key in _THRESHOLDS):
        words.append("thresholds " + " / ".join(rest.pop(key) for key in _THRESHOLDS))
    return ", ".join([*words, *(f"{key}={value}" for key, value in sorted(rest.items()))])

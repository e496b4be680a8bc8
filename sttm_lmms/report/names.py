"""Short names of models and settings for tables and pictures."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

_THRESHOLDS = ("spatial_threshold", "temporal_threshold")


def model_names(checkpoints: Iterable[str]) -> dict[str, str]:
    """Short names of checkpoints, each of its own: a hub id as it is, a local folder by its last
    part, or by so many of its last parts that no other folder has them, too."""
    paths = {checkpoint: posixpath.normpath(checkpoint.replace("\\", "/")) for checkpoint in checkpoints}
    folders = {path for checkpoint, path in paths.items() if _is_local(checkpoint)}
    names: dict[str, str] = {path: path for path in paths.values()}
    for path in folders:
        parts = path.split("/")
        tails = ("/".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = {other for other in paths.values() if other != path}
        names[path] = next((t for t in tails if not any(f"/{other}".endswith(f"/{t}") for other in others)), path)
    return {checkpoint: names[path] for checkpoint, path in paths.items()}


def _is_local(checkpoint: str) -> bool:
    return checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1


def setting_words(settings: Mapping[str, str]) -> str:
    """Settings in words, what matters most in front: ``budget 0.5, start_layer=0``; empty for no
    settings."""
    rest = dict(settings)
    words = [rest.pop("preset")] if "preset" in rest else []
    if "budget" in rest:
        words.append(f"budget {rest.pop('budget')}")
    if all(key in rest for key in _THRESHOLDS):
        words.append("thresholds " + " / ".join(rest.pop(key) for key in _THRESHOLDS))
    return ", ".join([*words, *(f"{key}={value}" for key, value in sorted(rest.items()))])

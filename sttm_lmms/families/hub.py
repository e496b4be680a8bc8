"""The published checkpoints, and what the hub's answers mean for a user."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

PUBLISHED: dict[str, tuple[str, ...]] = {
    "llava_video": (
        "lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only",
        "lmms-lab/LLaVA-Video-7B-Qwen2",
        "lmms-lab/LLaVA-Video-72B-Qwen2",
    ),
    "llava_onevision": (
        "lmms-lab/llava-onevision-qwen2-0.5b-ov",
        "lmms-lab/llava-onevision-qwen2-7b-ov",
        "lmms-lab/llava-onevision-qwen2-72b-ov-sft",
        "lmms-lab/llava-onevision-qwen2-7b-ov-chat",
        "lmms-lab/llava-onevision-qwen2-72b-ov-chat",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    ),
    "qwen2_vl": ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
}
"""Family -> ids on the hub."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(folder: str | Path) -> str | None:
    """The hub commit of a folder of the hub's cache (``.../snapshots/COMMIT``); None for any other folder."""
    folder = Path(folder)
    known = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if known else None


def explain(name: str, revision: str | None, error: Exception) -> str:
    """One sentence about why a checkpoint cannot be had from the hub, with the way out."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    close = get_close_matches(name, [id for ids in PUBLISHED.values() for id in ids if id != name], n=1, cutoff=0.7)
    if "GatedRepoError" in kinds:
        way_out = "accept its terms on the hub and log in: hf auth login"
    elif "RevisionNotFoundError" in kinds:
        way_out = f"it has no revision {revision!r}: give a branch, a tag or a commit, or leave revision out"
    elif "RepositoryNotFoundError" in kinds:
        way_out = "check the spelling, or log in if it is private: hf auth login"
    else:
        way_out = f"give a local folder, check the spelling, or fetch it where there is a network: hf download {name}"
    hint = f" Did you mean {close[0]!r}?" if close and "RevisionNotFoundError" not in kinds else ""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
    return f"{name}: not a local folder, and the hub gave {type(error).__name__}: {reason}; {way_out}.{hint}"

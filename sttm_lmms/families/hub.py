"""Checkpoints on the hub: the ids that are known, and sentences for what goes wrong on the way to
them."""

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
    "qwen2_5_vl": tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
    "qwen3_vl": tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")),
    "qwen3_5": tuple(f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B", "35B-A3B", "122B-A10B")),
    "smolvlm": (
        *(f"HuggingFaceTB/SmolVLM2-{size}-Video-Instruct" for size in ("256M", "500M")),
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    ),
    "glm4v": tuple(f"zai-org/GLM-{name}" for name in ("4.1V-9B-Thinking", "4.5V", "4.6V-Flash", "4.6V")),
    "internvl": (
        *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
        *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
    ),
}
"""Family -> ids on the hub."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

KNOWN_IDS = tuple(name for names in PUBLISHED.values() for name in names)


def commit_of(folder: str | Path) -> str | None:
    """The hub commit of a folder of the hub's cache (``.../snapshots/COMMIT``); None for any other
    folder."""
    folder = Path(folder)
    known = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if known else None


_ACCEPT = "accept its terms on its page of the hub, then log in with that account (hf auth login, or HF_TOKEN)"
_REPOSITORY = re.compile(r"(?<![\w/.:])([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*[\w])(?![\w/])")


def closest_id(name: str) -> str | None:
    """The known id that ``name`` may have meant; None if it is one, or like none."""
    if name in KNOWN_IDS:
        return None
    by_lower = {known.lower(): known for known in KNOWN_IDS}
    longer = sorted((known for known in by_lower if known.startswith(name.lower())), key=len)
    close = longer or get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[close[0]] if close else None


def hub_sentence(name: str, error: BaseException, revision: str | None = None) -> str:
    """Why the hub did not give the checkpoint ``name``, and what to do: one sentence.

    Args:
        revision: that was asked for.
        error: what the hub's client raised.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return f"{name} is gated: {_ACCEPT}"
    if "RevisionNotFoundError" in kinds:
        return f"{name} has no revision {revision!r}: give a branch, a tag or a commit, or leave revision out"
    meant = closest_id(name)
    hint = f"did you mean {meant}? If not, " if meant else ""
    if "RepositoryNotFoundError" in kinds:
        return (
            f"{name}: not a local folder, and the hub gave nothing under that id: {hint}check the spelling; a private "
            "one needs a login (hf auth login, or HF_TOKEN)"
        )
    return (
        f"{name}: not a local folder, and the hub gave nothing that is not in the cache ({_reason(error)}): {hint}"
        f"check spelling and network, or give a local folder, or fill the cache first: hf download {meant or name}"
    )


def data_set_sentence(error: BaseException) -> str:
    """Why a task's data set could not be had, and what to do: one sentence."""
    name = next(iter(_REPOSITORY.findall(str(error))), "")
    what = f"the data set {name}" if name else "the data set of a task"
    if "gated" in f"{type(error).__name__} {error}".lower():
        return f"{what} is gated: {_ACCEPT}"
    return (
        f"{what} could not be had ({_reason(error)}): check the network, or fill the cache where there is one (hf "
        f"download {name or 'NAME'} --repo-type dataset), or take a task of ours, such as sttm_videomme, which reads "
        "local data; 'sttm-lmms check MODEL --task TASK' says what a task would download"
    )


def _reason(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or "Offline" in type(error).__name__:
        return "HF_HUB_OFFLINE is set"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")

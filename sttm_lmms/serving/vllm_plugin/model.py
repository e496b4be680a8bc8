"""What our subclasses of vLLM's models have in common. Imports vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.multimodal.hasher import MultiModalHasher

from sttm_lmms.methods.base import Method
from sttm_lmms.serving.vllm_plugin.reduction import Grid, method_of, salt

logger = init_logger("vllm.sttm_lmms")  # vLLM sets up the loggers below its own name


def asked_for(hf_config: Any, mm_config: Any) -> Method | None:
    """The method that the server's ``--hf-overrides '{"sttm": {...}}'`` asks for, None if it says
    nothing.

    Raises:
        ValueError: it does, but vLLM's own switch is off, so that vLLM would drop the positions.
    """
    settings = getattr(hf_config, "sttm", None)
    if settings is None:
        return None
    if not mm_config.is_multimodal_pruning_enabled():
        raise ValueError(
            "hf_config.sttm is set without vLLM's own switch; give --video-pruning-rate as well (any rate above 0), "
            "or start the server with `sttm-lmms serve`"
        )
    return method_of(settings)


def token_grid(grid_thw: torch.Tensor, hf_config: Any) -> Grid:
    """(T, H, W) in tokens of a grid in patches."""
    t, h, w = (int(side) for side in grid_thw)
    merge = hf_config.vision_config.spatial_merge_size
    return t, h // merge, w // merge


def salted(hashes: Mapping[str, Sequence[str]], info: Any) -> dict[str, list[str]]:
    """Keys of images and videos that differ between methods, settings and versions."""
    mm_config = info.ctx.get_mm_config()
    method = asked_for(info.get_hf_config(), mm_config)
    if method is None:
        return {modality: list(keys) for modality, keys in hashes.items()}
    algorithm = mm_config.mm_hasher_algorithm
    return {
        modality: [MultiModalHasher.hash_kwargs(algorithm, mm_hash=key, sttm=salt(method)) for key in keys]
        for modality, keys in hashes.items()
    }


def log_reduction(method: Method, grid: Grid, kept: int, joined: bool) -> None:
    """One line a video."""
    t, h, w = grid
    below = "; tokens were joined below STTM's own floor" if joined else ""
    logger.info("video of %dx%dx%d tokens: %d -> %d by %s%s", t, h, w, t * h * w, kept, method.name, below)

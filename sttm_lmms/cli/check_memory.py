"""The GPU memory that a run will need, as a table; and what to lower where a GPU is too small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sttm_lmms.cli.prompt_preview import long_video, preview_video
from sttm_lmms.errors import STTMError
from sttm_lmms.families import layout_of
from sttm_lmms.families.checkpoint import fetch_headers
from sttm_lmms.runtime.memory import (
    GIB,
    MemoryEstimate,
    Workload,
    estimate_memory,
    most_frames,
    spread,
    suggest_settings,
)
from sttm_lmms.video import VideoSettings

ASSUMED_GIB = 80.0


def check_memory(
    checkpoint: str,
    revision: str | None,
    frames: int,
    budget: float,
    start_layer: int,
    gpus: int,
    gpu_memory: float | None,
) -> Iterator[str]:
    """GiB that a run on videos of ``frames`` frames needs, whatever the task.

    Raises:
        STTMError: that is more than a GPU has, or the checkpoint is not as it should be.
    """
    files = fetch_headers(checkpoint, revision)
    family = layout_of(files.folder)[0]
    model: Any = family.load_model(files.folder, headers=files.headers, dtype=torch.bfloat16)
    settings = VideoSettings(max_frames=frames)
    t, h, w = preview_video(family, model.config, long_video(settings), settings).tensor.shape[:3]
    work = Workload((t, h, w), kept=budget, start_layer=start_layer)
    yield f"{work.visual:,} visual tokens, {round(work.visual * budget):,} kept, bfloat16"
    yield from memory_lines(model, work, frames, gpus, gpu_memory)


def memory_lines(
    model: Any, work: Workload, frames: int, gpus: int, gpu_memory: float | None, *, four_bit: bool = False
) -> Iterator[str]:
    """The table of what each GPU needs.

    Args:
        frames: ``max_frames``; a step of ``work.grid`` may be several of them.
        gpu_memory: GiB of each GPU; None takes this machine's.

    Raises:
        STTMError: a GPU is too small; the message says what to lower.
    """
    limit, source = _gpu_bytes(gpu_memory)
    estimate = partial(estimate_memory, model, places=spread(model, gpus, limit), four_bit=four_bit)
    needs = estimate(work)
    yield f"memory on {gpus} GPU(s) of {limit / GIB:.0f} GiB ({source}), for a video of {frames} frames:"
    kinds = ("weights", "kv", "features", "activations", "allowance", "total")
    rows = [[device, *(f"{getattr(need, kind) / GIB:.2f}" for kind in kinds)] for device, need in needs.items()]
    yield from ("  " + " ".join(cell.rjust(11) for cell in row) for row in [["GiB", *kinds], *rows])
    device, need = max(needs.items(), key=lambda item: item[1].total)
    if need.total > limit:
        lack = f"{device} would need {need.total / GIB:.1f} GiB and has {limit / GIB:.0f}"
        if need.weights >= limit:
            raise STTMError(
                f"{lack}: the weights alone are too large: --gpus N spreads the model over more of them, "
                "--model-args load_in_4bit=True makes it smaller"
            )
        raise STTMError(f"{lack}: lower {_what_to_lower(work, frames, limit, estimate)}")


def _gpu_bytes(gpu_memory: float | None) -> tuple[int, str]:
    """Memory of a GPU, and who says so."""
    if gpu_memory is not None:
        return int(gpu_memory * GIB), "--gpu-memory"
    if not torch.cuda.is_available():
        return int(ASSUMED_GIB * GIB), "assumed, there is none here; --gpu-memory says another size"
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(sizes), "this machine's"


def _what_to_lower(
    work: Workload, frames: int, limit: int, estimate: Callable[[Workload], Mapping[str, MemoryEstimate]]
) -> str:
    def needed(steps: int) -> int:
        shorter = replace(work, grid=(steps, *work.grid[1:]))
        return max(need.total for need in estimate(shorter).values())

    fit = most_frames(needed, limit, work.grid[0])
    ways = suggest_settings(
        batch_size=work.batch_size, keep=work.keep, eager=work.eager, frames=frames, reduced=work.kept < 1
    )
    return ways + (f"; max_frames={fit * frames // work.grid[0]} would fit" if fit else "")

"""Time to first token on this machine, in a decoder of a real model's shape: small models cannot
show it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms import STTMConfig, reduce_tokens
from sttm_lmms.testing.shapes import SHAPES, DecoderShape, build_decoder, video_prompt

FRAMES, START_LAYER = 16, 2
BUDGETS = (1.0, 0.5, 0.3)


@dataclass(frozen=True)
class Speed:
    """One prefill.

    Attributes:
        budget: kept visual tokens / all visual tokens; 1 runs without a reduction.
        visual_tokens: in the decoder layers after the reduction.
        seconds: time to first token, merging included.
        ideal_speedup: against all tokens, by the count of operations.
    """

    budget: float
    visual_tokens: int
    seconds: float
    ideal_speedup: float


@torch.inference_mode()
def measure_speed(
    shape: DecoderShape = SHAPES["qwen2-0.5b"], *, frames: int = FRAMES, budgets: Sequence[float] = BUDGETS
) -> list[Speed]:
    """Time one prefill for each budget, in float32 on the CPU with random weights; the first budget
    has to be 1."""
    decoder, head = build_decoder(shape)
    inputs, span = video_prompt(shape, frames)
    short, _ = video_prompt(shape, shape.frames_per_step)
    decoder(**short)  # the first pass also reads the weights into memory
    found = []
    for budget in budgets:
        began = time.perf_counter()
        if budget < 1:
            config = STTMConfig(budget=budget, start_layer=START_LAYER)
            with reduce_tokens(decoder, config, spans=[span]) as report:
                states = decoder(**inputs).last_hidden_state
            kept = report.kept_tokens
        else:
            states, kept = decoder(**inputs).last_hidden_state, span.length
        head(states[:, -1]).argmax(dim=-1)
        seconds = time.perf_counter() - began
        full = shape.operations(span.length, span.length, 0)
        found.append(Speed(budget, kept, seconds, full / shape.operations(span.length, kept, START_LAYER)))
    return found


def speed_table(rows: Sequence[Speed], shape: DecoderShape = SHAPES["qwen2-0.5b"], *, frames: int = FRAMES) -> Any:
    """The prefills as a rich table."""
    from rich.table import Table

    title = f"Speed: Qwen2-0.5B's decoder ({shape.layers} layers, {shape.hidden} wide), random weights, {frames} frames"
    table = Table(title=title)
    for column in ("Visual tokens", "Kept", "Time to first token", "Speed-up", "By operation count"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row.visual_tokens:,}",
            f"{row.visual_tokens / rows[0].visual_tokens:.0%}",
            f"{row.seconds:.1f} s",
            f"{rows[0].seconds / row.seconds:.1f}x",
            f"{row.ideal_speedup:.1f}x",
        )
    return table

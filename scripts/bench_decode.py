#!/usr/bin/env python
"""Tokens per second of decode steps after a reduced prefill, with our hooks and without, on the
same KV cache.

    python scripts/bench_decode.py --shape llava-video-7b --frames 128
    python scripts/bench_decode.py --shape small --frames 16      (a CPU)

Needs torch and transformers only. Both ways decode the same number of tokens from the same cache,
by turns, and the cache is cut back after each; "without" is the stock decoder. Operations are those
that torch dispatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from benchlib import about, arguments, dtype_of, median, publish, timed
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache

from sttm_lmms import STTMConfig
from sttm_lmms.decoder import CACHE
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.testing.shapes import SHAPES, build_decoder, video_prompt

COLUMNS = [
    ("budget", "g"),
    ("start_layer", ""),
    ("kv_tokens", ",d"),
    ("stock_ms", ".3f"),
    ("hooks_ms", ".3f"),
    ("slower", ".1%"),
    ("stock_operations", "d"),
    ("hooks_operations", "d"),
    ("tokens_per_s", ".1f"),
]


class CountOperations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def measure(decoder: Any, inputs: dict[str, Any], span: Any, config: STTMConfig | None, options: Any) -> dict[str, Any]:
    """Milliseconds and operations a step, both ways."""
    cache = DynamicCache(config=decoder.config)
    token = inputs["inputs_embeds"][:, -1:]
    how = {"repeats": options.repeats, "warmup": 1, "device": options.device}
    length = inputs["inputs_embeds"].shape[1]

    def decode(steps: int, cache: Any) -> None:
        for step in range(steps):
            positions = torch.full((1, 1), length + step, device=token.device)
            if "position_ids" in inputs:
                positions = positions.expand(3, 1, 1)
            decoder(inputs_embeds=token, use_cache=True, position_ids=positions, **{CACHE: cache})
        cache.crop(-steps)

    seconds: dict[str, list[float]] = {"stock": [], "hooks": []}
    operations = {}
    reducer = TokenReducer(decoder, config, spans=[span])
    with reducer:
        decoder(**inputs, **{CACHE: cache})
    stock = DynamicCache(config=decoder.config)  # the same keys and values, without what the hooks go by
    stock.layers = cache.layers
    kept = length - span.length + (reducer.report.kept_tokens if config is not None else span.length)
    for way in ("stock", "hooks") * 2:
        with reducer if way == "hooks" else nullcontext():
            run = partial(decode, cache=cache if way == "hooks" else stock)
            seconds[way] += timed(partial(run, options.tokens), **how)
            operations[way] = _operations(run)
    each = {way: median(values) / options.tokens for way, values in seconds.items()}
    return {
        "budget": 1.0 if config is None else config.budget,
        "start_layer": None if config is None else config.start_layer,
        "kv_tokens": kept,
        "stock_ms": each["stock"] * 1000,
        "hooks_ms": each["hooks"] * 1000,
        "slower": each["hooks"] / each["stock"] - 1,
        "stock_operations": operations["stock"],
        "hooks_operations": operations["hooks"],
        "tokens_per_s": 1 / each["hooks"],
        "runs_s": seconds,
    }


def _operations(run: Any) -> int:
    """Operations of one step, as the difference between five steps and four (tables are made every
    64 steps)."""
    counts = []
    for steps in (4, 5):
        with CountOperations() as counter:
            run(steps)
        counts.append(counter.operations)
    return counts[1] - counts[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "decode")
    parser.add_argument("--shape", choices=SHAPES, default="llava-video-7b")
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--start-layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2 or eager")
    parser.add_argument("--tokens", type=int, default=64, help="decoded tokens in each run")
    options = parser.parse_args(argv)
    shape, dtype = SHAPES[options.shape], dtype_of(options)
    decoder, _ = build_decoder(shape, attention=options.attention, dtype=dtype, device=options.device)
    inputs, span = video_prompt(shape, options.frames, dtype=dtype, device=options.device)
    settings = [None] + [STTMConfig(budget=b, start_layer=s) for s in options.start_layers for b in options.budgets]
    rows = [measure(decoder, inputs, span, config, options) for config in settings]
    header = about(options.device) | {"shape": options.shape, **asdict(shape), "dtype": options.dtype}
    publish(options.out / f"{options.shape}-{options.device.split(':')[0]}", rows, COLUMNS, header)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Time to first token of a decoder, full and with reduced tokens: random weights at true shapes, or
a language model.

    python scripts/bench_prefill.py --shape llava-video-7b --frames 32 64 128 256
    python scripts/bench_prefill.py --shape small --frames 16 32 64      (a CPU)
    python scripts/bench_prefill.py --model FOLDER --gguf FILE --frames 16 32
    python scripts/bench_prefill.py --model FOLDER --gguf FILE --random  (its shape, weights drawn anew)

Needs torch and transformers only. Thresholds are those that a budget's search finds; a column has
the time with the search. The ideal speed-up is that of the operation count: what would be left if
merging and launches were free.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchlib import about, arguments, dtype_of, median, peak_bytes, publish, timed
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sttm_lmms import STTMConfig, reduce_tokens
from sttm_lmms.testing.shapes import SHAPES, DecoderShape, build_decoder, video_prompt
from sttm_lmms.types import VideoSpan

COLUMNS = [
    ("attention", ""),
    ("frames", "d"),
    ("budget", "g"),
    ("start_layer", ""),
    ("visual_tokens", ",d"),
    ("ttft_s", ".3f"),
    ("ttft_with_search_s", ".3f"),
    ("merge_s", ".4f"),
    ("speedup", ".2f"),
    ("ideal_speedup", ".2f"),
    ("of_ideal", ".1%"),
    ("peak_bytes", ",d"),
]


@torch.inference_mode()
def measure(
    decoder: Any, head: nn.Module, inputs: dict[str, Any], span: VideoSpan, config: STTMConfig | None, **how: Any
) -> dict[str, Any]:
    """TTFT and memory of one setting, and what a reduction did; ``how`` goes to :func:`timed`."""

    def first_token() -> None:
        output = decoder(**inputs)
        head(output.last_hidden_state[:, -1]).argmax(dim=-1)

    def result() -> dict[str, Any]:
        seconds = timed(first_token, **how)
        return {"ttft_s": median(seconds), "runs_s": seconds, "peak_bytes": peak_bytes(first_token, how["device"])}

    if config is None:
        return result() | {"visual_tokens": span.length}
    with reduce_tokens(decoder, config, spans=[span]) as report:
        measured = result()
    (event,) = report.latest
    with reduce_tokens(decoder, config, spans=[span], timing=True) as report:
        first_token()
    info = event.merged.info if event.merged else {}
    return measured | {"visual_tokens": event.after, "info": info, "merge_s": report.latest[0].seconds}


def reduced_row(shape: DecoderShape, full: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its speed-up over ``full``, and what the operation count allows."""
    visual, kept, start = row["visual_before"], row["visual_tokens"], row["start_layer"]
    row["kv_bytes"] = shape.kv_bytes(visual, kept, start)
    if full is not None:
        row["speedup"] = full["ttft_s"] / row["ttft_s"]
        row["ideal_speedup"] = shape.operations(visual, visual, 0) / shape.operations(visual, kept, start)
        row["of_ideal"] = row["speedup"] / row["ideal_speedup"]
        row["merge_share_of_full"] = row["merge_s"] / full["ttft_s"]
    return row


def shape_of(config: Any) -> DecoderShape:
    """A language model's shape, with LLaVA-Video's 14x14 tokens a frame."""
    return DecoderShape(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        config.vocab_size,
        (14, 14),
    )


def read_decoder(options: argparse.Namespace, *, attention: str, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    """Decoder and output head of ``--model``, with its weights or, for ``--random``, with others."""
    more: dict[str, Any] = {"gguf_file": options.gguf} if options.gguf else {}
    if options.random:
        config = AutoConfig.from_pretrained(options.model, **more)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    else:
        more |= {"attn_implementation": attention, "dtype": dtype}
        model = AutoModelForCausalLM.from_pretrained(options.model, **more)
    model = model.to(options.device).eval()
    return model.model, model.get_output_embeddings()


def run(shape: DecoderShape, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All settings of one shape, row by row."""
    dtype = dtype_of(options)
    how = {"repeats": options.repeats, "warmup": options.warmup, "device": options.device}
    for attention in options.attention:
        if options.model:
            decoder, head = read_decoder(options, attention=attention, dtype=dtype)
        else:
            decoder, head = build_decoder(shape, attention=attention, dtype=dtype, device=options.device)
        for frames in options.frames:
            inputs, span = video_prompt(shape, frames, dtype=dtype, device=options.device)
            common = {"attention": attention, "frames": frames, "visual_before": span.length}
            try:
                full = measure(decoder, head, inputs, span, None, **how)
            except torch.OutOfMemoryError:
                print(f"{frames} frames do not fit at full length")
                full = None
            else:
                yield {**common, "budget": 1.0, "start_layer": None, **full}
            for start in options.start_layers:
                for budget in options.budgets:
                    searched = measure(decoder, head, inputs, span, STTMConfig(budget=budget, start_layer=start), **how)
                    thresholds = (searched["info"][f"{name}_threshold"] for name in ("spatial", "temporal"))
                    row = measure(decoder, head, inputs, span, STTMConfig(*thresholds, start_layer=start), **how)
                    row |= {"ttft_with_search_s": searched["ttft_s"], "budget": budget, "start_layer": start}
                    yield reduced_row(shape, full, common | row)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "prefill")
    parser.add_argument("--shape", choices=SHAPES, default="llava-video-7b")
    parser.add_argument("--model", help="hub id, or folder; with --gguf the folder of that file")
    parser.add_argument("--gguf", help="name of a GGUF file in --model; it is dequantised")
    parser.add_argument("--random", action="store_true", help="draw the weights of --model anew")
    parser.add_argument("--name", help="of the result files; by default the shape's or the model's")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    parser.add_argument("--start-layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="sdpa, flash_attention_2, eager")
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args(argv)
    shape, rows = SHAPES[options.shape], []
    if options.model:
        more = {"gguf_file": options.gguf} if options.gguf else {}
        shape = shape_of(AutoConfig.from_pretrained(options.model, **more))
    for row in run(shape, options):
        rows.append(row)
        print({key: row[key] for key, _ in COLUMNS if row.get(key) is not None}, flush=True)
    name = options.name or (Path(options.gguf or options.model).stem if options.model else options.shape)
    header = about(options.device) | {"shape": name, **asdict(shape), "dtype": options.dtype}
    publish(options.out / f"{name}-{options.device.split(':')[0]}", rows, COLUMNS, header)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Time to first token of a decoder with random weights at true shapes, full and with reduced tokens.

    python scripts/bench_prefill.py --shape llava-video-7b --frames 32 64 128 256
    python scripts/bench_prefill.py --shape small --frames 16 32 64      (a CPU)

Needs torch and transformers only. Writes JSON, a table and plots into results/bench/prefill/. The ideal speed-up is
that of the operation count (2*P*N + 2*d*N^2 a layer): what would be left if merging and launches were free.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchlib import about, markdown_table, median, peak_bytes, timed, write_json
from torch import nn

from sttm_lmms import STTMConfig
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.testing.shapes import SHAPES, DecoderShape, build_decoder, video_prompt
from sttm_lmms.types import VideoSpan


@torch.inference_mode()
def measure(
    decoder: Any, head: nn.Linear, inputs: dict[str, Any], span: VideoSpan, config: STTMConfig | None, **how: Any
) -> dict[str, Any]:
    """TTFT and memory of one setting; ``how`` goes to :func:`timed`."""

    def first_token() -> None:
        output = decoder(**inputs)
        head(output.last_hidden_state[:, -1]).argmax(dim=-1)

    with TokenReducer(decoder, config, spans=[span]) as reducer:
        seconds = timed(first_token, **how)
        peak = peak_bytes(first_token, how["device"])
    result: dict[str, Any] = {"ttft_s": median(seconds), "runs_s": seconds, "peak_bytes": peak}
    if config is not None:
        (event,) = reducer.report.latest
        result |= {"visual_tokens": event.after, "info": event.merged.info if event.merged else {}}
        with TokenReducer(decoder, config, spans=[span], timing=True) as reducer:
            first_token()
            result["merge_s"] = reducer.report.latest[0].seconds
    return result


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All settings of one shape, row by row."""
    shape = SHAPES[options.shape]
    dtype = getattr(torch, options.dtype)
    how = {"repeats": options.repeats, "warmup": options.warmup, "device": options.device}
    rows: list[dict[str, Any]] = []
    for attention in options.attention:
        decoder, head = build_decoder(shape, attention=attention, dtype=dtype, device=options.device)
        for frames in options.frames:
            inputs, span = video_prompt(shape, frames, dtype=dtype, device=options.device)
            visual = span.length
            common = {"attention": attention, "frames": frames, "visual_before": visual}
            try:
                full = measure(decoder, head, inputs, span, None, **how)
            except torch.OutOfMemoryError:
                print(f"{frames} frames do not fit at full length")
                full = None
            else:
                rows.append({**common, "budget": 1.0, "start_layer": None, "visual_tokens": visual, **full})
                _show(rows[-1])
            for start in options.start_layers:
                for budget in options.budgets:
                    searched = measure(decoder, head, inputs, span, STTMConfig(budget=budget, start_layer=start), **how)
                    info = searched["info"]
                    fixed = STTMConfig(info["spatial_threshold"], info["temporal_threshold"], start_layer=start)
                    row = {**common, "budget": budget, "start_layer": start}
                    row |= measure(decoder, head, inputs, span, fixed, **how)
                    row["ttft_with_search_s"] = searched["ttft_s"]
                    row["kv_bytes"] = shape.kv_bytes(visual, row["visual_tokens"], start)
                    if full is not None:
                        row["speedup"] = full["ttft_s"] / row["ttft_s"]
                        row["ideal_speedup"] = shape.operations(visual, visual, 0) / shape.operations(
                            visual, row["visual_tokens"], start
                        )
                        row["of_ideal"] = row["speedup"] / row["ideal_speedup"]
                        row["merge_share_of_full"] = row["merge_s"] / full["ttft_s"]
                    rows.append(row)
                    _show(row)
            del inputs
        del decoder, head
    return rows


def growth(shape: DecoderShape, rows: list[dict[str, Any]], start_layer: int) -> list[dict[str, Any]]:
    """TTFT and KV memory up to 1,024 frames: measured where a row exists, else from the operation count.

    The rate (operations per second) is that of the longest measured full prefill.
    """
    full = [row for row in rows if row["budget"] == 1.0]
    if not full:
        return []
    longest = max(full, key=lambda row: row["frames"])
    rate = shape.operations(longest["visual_before"], longest["visual_before"], 0) / longest["ttft_s"]
    points = []
    for frames in (32, 64, 128, 256, 512, 1024):
        for budget in sorted({row["budget"] for row in rows}, reverse=True):
            start = None if budget == 1.0 else start_layer
            match = [r for r in rows if (r["frames"], r["budget"], r["start_layer"]) == (frames, budget, start)]
            visual = shape.visual_tokens(frames)
            kept = match[0]["visual_tokens"] if match else round(budget * visual)
            seconds = match[0]["ttft_s"] if match else shape.operations(visual, kept, start or 0) / rate
            points.append(
                {
                    "frames": frames,
                    "budget": budget,
                    "ttft_s": seconds,
                    "kv_bytes": shape.kv_bytes(visual, kept, start or 0),
                    "measured": bool(match),
                }
            )
    return points


def plot(points: list[dict[str, Any]], name: str, path: Path) -> None:
    """TTFT and KV memory against frames; open circles come from the operation count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for budget in sorted({p["budget"] for p in points}, reverse=True):
        line = [p for p in points if p["budget"] == budget]
        label = "all tokens" if budget == 1.0 else f"budget {budget:g}"
        frames = [p["frames"] for p in line]
        (drawn,) = left.plot(frames, [p["ttft_s"] for p in line], label=label)
        for p in line:
            face = drawn.get_color() if p["measured"] else "white"
            left.plot(p["frames"], p["ttft_s"], "o", color=drawn.get_color(), markerfacecolor=face)
        right.plot(frames, [p["kv_bytes"] / 2**30 for p in line], "o-", label=label)
    left.set(title="Time to first token", xlabel="frames", ylabel="seconds", xscale="log", yscale="log")
    right.set(title="KV cache (bfloat16, from its shape)", xlabel="frames", ylabel="GiB", xscale="log", yscale="log")
    left.legend(title="filled: measured, open: operation count", fontsize=8, title_fontsize=8)
    for axes in (left, right):
        axes.set_xticks([32, 64, 128, 256, 512, 1024], labels=["32", "64", "128", "256", "512", "1024"], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(name)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"))


def _show(row: dict[str, Any]) -> None:
    speed = f" {row['speedup']:.2f}x of ideal {row['ideal_speedup']:.2f}x" if "speedup" in row else ""
    print(
        f"{row['attention']} {row['frames']} frames, budget {row['budget']:g}, start layer {row['start_layer']}: "
        f"{row['visual_tokens']} tokens, {row['ttft_s']:.3f} s{speed}",
        flush=True,
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llava-video-7b")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.15])
    parser.add_argument("--start-layers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="sdpa, flash_attention_2, eager")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, float32 on a CPU unless given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/bench/prefill"))
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    rows = run(options)
    header = about(options.device) | {"shape": options.shape, **asdict(SHAPES[options.shape]), "dtype": options.dtype}
    points = growth(SHAPES[options.shape], rows, options.start_layers[-1])
    name = f"{options.shape}-{options.device.split(':')[0]}"
    write_json(options.out / f"{name}.json", about=header, rows=rows, growth=points)
    table = markdown_table(rows, COLUMNS, header)
    (options.out / f"{name}.md").write_text(table)
    print(table)
    try:
        plot(points, f"{options.shape} on {header['device']}", options.out / f"{name}-growth")
    except ImportError:
        print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    main()

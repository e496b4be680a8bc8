#!/usr/bin/env python
"""Seconds per question with and without reuse, everything included: video decoding, vision tower, prefill, answer.

    python scripts/bench_reuse.py                       (a mid-size random LLaVA-Video model, for a CPU)
    python scripts/bench_reuse.py --shape 7b --frames 128      (the sizes of LLaVA-Video-7B, for a GPU)

One video is asked 1, 2, 3, 4 and 8 questions, with all tokens and with budgets. Writes JSON, a table and a plot into
results/bench/reuse/.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchlib import about, markdown_table, median, timed, write_json

from sttm_lmms import STTMConfig
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.testing.tiny import TinySizes, tiny_model
from sttm_lmms.video import VideoSettings, write_video

SHAPES = {
    "mid": TinySizes(
        hidden_size=512,
        intermediate_size=1536,
        layers=8,
        heads=8,
        kv_heads=2,
        vision_hidden_size=128,
        vision_layers=4,
        image_size=216,
        patch_size=8,
        vocab_size=4096,
    ),
    "7b": TinySizes(
        hidden_size=3584,
        intermediate_size=18944,
        layers=28,
        heads=28,
        kv_heads=4,
        vision_hidden_size=1152,
        vision_layers=26,
        image_size=384,
        patch_size=14,
        vocab_size=152064,
    ),
}
QUESTION = "Which of these happens first in the video? A. one B. two C. three D. four. Question number {number}."


def footage(frames: int, height: int = 360, width: int = 640) -> np.ndarray:
    """``[T, H, W, 3]`` uint8: a textured scene under a moving camera, with a cut every 16 frames."""
    rng = np.random.default_rng(0)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        if t % 16 == 0:
            coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 24, 40))).float()
            scene = torch.nn.functional.interpolate(coarse, size=(height + 64, width + 64), mode="bicubic")
            scene = scene.clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(np.uint8)
        shift = 4 * (t % 16)
        clip[t] = scene[shift : shift + height, shift : shift + width]
    return clip


def questions(video: Path, count: int, new_tokens: int) -> list[Request]:
    """``count`` different questions about one video."""
    settings = GenerationSettings(max_new_tokens=new_tokens, extra=(("min_new_tokens", new_tokens),))
    return [
        Request(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": str(video)},
                        {"type": "text", "text": QUESTION.format(number=number)},
                    ],
                }
            ],
            settings,
        )
        for number in range(count)
    ]


def run(options: argparse.Namespace, video: Path) -> list[dict[str, Any]]:
    """One row for each budget, reuse and number of questions."""
    with torch.device(options.device):
        model, processor = tiny_model("llava_video", sizes=SHAPES[options.shape])
    model = model.to(getattr(torch, options.dtype))
    settings = VideoSettings(max_frames=options.frames, fps=1.0)
    rows: list[dict[str, Any]] = []
    for budget in options.budgets:
        config = None if budget == 1.0 else STTMConfig(budget=budget)
        for reuse in ("none", "features", "prefix"):
            for count in options.questions:
                requests = questions(video, count, options.new_tokens)

                def answer(
                    config: STTMConfig | None = config, reuse: Any = reuse, requests: list[Request] = requests
                ) -> None:
                    engine = Engine(
                        model, processor, config, video=settings, newline="no_token", reuse=reuse, timing=False
                    )
                    engine.generate(requests)

                warmup = 1 if not rows else 0
                seconds = timed(answer, repeats=options.repeats, warmup=warmup, device=options.device)
                rows.append(
                    {
                        "budget": budget,
                        "reuse": reuse,
                        "questions": count,
                        "seconds_per_question": median(seconds) / count,
                        "runs_s": seconds,
                    }
                )
                print(f"{budget:g} {reuse} {count}: {rows[-1]['seconds_per_question']:.3f} s a question", flush=True)
    for row in rows:
        base = next(r for r in rows if (r["budget"], r["reuse"], r["questions"]) == (1.0, "none", row["questions"]))
        row["speedup"] = base["seconds_per_question"] / row["seconds_per_question"]
    return rows


def plot(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Seconds per question against questions per video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    styles = {"none": ":", "features": "--", "prefix": "-"}
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    for colour, budget in enumerate(budgets):
        for reuse, style in styles.items():
            line = [row for row in rows if (row["budget"], row["reuse"]) == (budget, reuse)]
            tokens = "all tokens" if budget == 1.0 else f"budget {budget:g}"
            axes.plot(
                [row["questions"] for row in line],
                [row["seconds_per_question"] for row in line],
                style,
                marker="o",
                markersize=4,
                color=f"C{colour}",
                label=f"{tokens}, reuse={reuse}",
            )
    axes.set(xlabel="questions per video", ylabel="seconds per question", title=name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.savefig(path.with_suffix(".svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.5, 0.3])
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, float32 on a CPU unless given")
    parser.add_argument("--out", type=Path, default=Path("results/bench/reuse"))
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "footage.mp4"
        write_video(video, footage(options.frames), 1.0)
        rows = run(options, video)
    header = about(options.device) | {"shape": options.shape, "frames": options.frames, "dtype": options.dtype}
    name = f"{options.shape}-{options.device.split(':')[0]}"
    write_json(options.out / f"{name}.json", about=header, rows=rows)
    columns = [("budget", "g"), ("reuse", ""), ("questions", "d"), ("seconds_per_question", ".3f"), ("speedup", ".2f")]
    table = markdown_table(rows, columns, header)
    (options.out / f"{name}.md").write_text(table)
    print(table)
    try:
        plot(rows, f"{options.shape} shape, {options.frames} frames, {header['device']}", options.out / name)
    except ImportError:
        print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    main()

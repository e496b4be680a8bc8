#!/usr/bin/env python
"""Seconds per question with and without reuse, everything included: video decoding, vision tower,
prefill, answer.

    python scripts/bench_reuse.py                       (a mid-size random LLaVA-Video model, for a CPU)
    python scripts/bench_reuse.py --shape 7b --frames 128      (the sizes of LLaVA-Video-7B, for a GPU)

One video is asked 1, 2, 3, 4 and 8 questions, with all tokens and with budgets.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchlib import about, arguments, dtype_of, median, publish, timed

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
COLUMNS = [("budget", "g"), ("reuse", ""), ("questions", "d"), ("seconds_per_question", ".3f"), ("speedup", ".2f")]


def footage(frames: int, height: int = 360, width: int = 640) -> np.ndarray:
    """``[T, H, W, 3]`` uint8: a textured scene under a moving camera, with a cut every 16
    frames."""
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
    texts = [{"type": "text", "text": QUESTION.format(number=number)} for number in range(count)]
    shown = {"type": "video", "video": str(video)}
    return [Request([{"role": "user", "content": [shown, text]}], settings) for text in texts]


def run(options: argparse.Namespace, video: Path) -> list[dict[str, Any]]:
    """One row for each budget, reuse and number of questions."""
    with torch.device(options.device):
        model, processor = tiny_model("llava_video", sizes=SHAPES[options.shape])
    model = model.to(dtype_of(options))
    settings = VideoSettings(max_frames=options.frames, fps=1.0)
    rows: list[dict[str, Any]] = []
    for budget, reuse, count in product(options.budgets, ("none", "features", "prefix"), options.questions):
        config = None if budget == 1.0 else STTMConfig(budget=budget)
        requests = questions(video, count, options.new_tokens)

        def answer(config: Any = config, reuse: Any = reuse, requests: list[Request] = requests) -> None:
            # A new engine for every run: nothing is remembered from the last one.
            engine = Engine(model, processor, config, video=settings, newline="no_token", reuse=reuse, timing=False)
            engine.generate(requests)

        seconds = timed(answer, repeats=options.repeats, warmup=0 if rows else 1, device=options.device)
        row = {"budget": budget, "reuse": reuse, "questions": count, "runs_s": seconds}
        row["seconds_per_question"] = median(seconds) / count
        rows.append(row)
        print(f"{budget:g} {reuse} {count}: {row['seconds_per_question']:.3f} s a question", flush=True)
    for row in rows:
        base = next(r for r in rows if (r["budget"], r["reuse"], r["questions"]) == (1.0, "none", row["questions"]))
        row["speedup"] = base["seconds_per_question"] / row["seconds_per_question"]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "reuse", repeats=3)
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.5, 0.3], help="the first one has to be 1")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--new-tokens", type=int, default=4)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "footage.mp4"
        write_video(video, footage(options.frames), 1.0)
        rows = run(options, video)
    header = about(options.device) | {"shape": options.shape, "frames": options.frames, "dtype": options.dtype}
    publish(options.out / f"{options.shape}-{options.device.split(':')[0]}", rows, COLUMNS, header)


if __name__ == "__main__":
    main()

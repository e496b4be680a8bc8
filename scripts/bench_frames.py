#!/usr/bin/env python
"""More frames at the same cost: few frames in full against many frames at a small budget.

    python scripts/bench_frames.py

Generated needle videos that are longer than few frames can cover, asked about with an embedded
checkpoint. Each row gives the decoder's later layers about the same number of visual tokens. Writes
JSON and a table, with 95% intervals clustered by video and paired differences, into
results/bench/frames/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from benchlib import about, write_json

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.presets import ALL_FRAMES
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.benchmarks.scores import score_reply
from sttm_lmms.report.stats import clustered_interval
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.video import VideoSettings


def answers_of(engine: Engine, root: Path) -> dict[str, Any]:
    """Scores of all questions of the generated benchmark below ``root``, and what they took."""
    questions = load_benchmark("vnbench", root)
    requests = []
    for question in questions:
        video = str(root / "vnbench" / "videos" / f"{question.video_id}.mp4")
        text = build_prompt(question.question, question.options)
        content = [{"type": "video", "video": video}, {"type": "text", "text": text}]
        requests.append(Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=2)))
    answers = engine.generate(requests, batch_size=4)
    scores = [score_reply(a.text, q.letters, str(q.answer))[1] for q, a in zip(questions, answers, strict=True)]
    return {
        "visual_tokens": fmean(answer.visual_tokens for answer in answers),
        "tokens_into_the_llm": fmean(answer.kept_tokens for answer in answers),
        "accuracy": fmean(scores),
        "interval": clustered_interval(scores, [question.video_id for question in questions]),
        "scores": scores,
        "videos": [question.video_id for question in questions],
    }


def gain(row: dict[str, Any], base: dict[str, Any], draws: int = 2000) -> tuple[float, float, float]:
    """Accuracy less that of ``base`` on the same questions, and its 95% interval (bootstrap over
    videos)."""
    names = sorted(set(row["videos"]))
    by_video: dict[str, list[float]] = {name: [] for name in names}
    for name, ours, theirs in zip(row["videos"], row["scores"], base["scores"], strict=True):
        by_video[name].append(ours - theirs)
    means = np.array([fmean(by_video[name]) for name in names])
    found = means[np.random.default_rng(0).integers(len(means), size=(draws, len(means)))].mean(axis=1)
    low, high = np.quantile(found, (0.025, 0.975))
    return float(means.mean()), float(low), float(high)


def table(rows: Sequence[dict[str, Any]], header: dict[str, Any]) -> str:
    """Markdown; the first row is the one that the others are compared with."""
    lines = [
        "| frames | budget | visual tokens | visual tokens into the LLM | accuracy | against few frames in full |",
        "|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        mean, less, more = row["gain"]
        cells = [
            str(row["frames"]),
            "all" if row["budget"] is None else f"{row['budget']:.0%}",
            f"{row['visual_tokens']:.0f}",
            f"{row['tokens_into_the_llm']:.0f}",
            f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
            f"{100 * mean:+.1f} [{100 * less:+.1f}, {100 * more:+.1f}]",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{header['command']}`, {header['device']}, {header['date']}"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="by default the LLaVA-Video-shaped one of the package")
    parser.add_argument("--videos", type=int, default=60, help="a third for each kind of question; four tries each")
    parser.add_argument("--seconds", type=float, nargs="+", default=[14.0, 15.0], help="lengths of the videos")
    parser.add_argument("--seed", type=int, default=140)
    parser.add_argument(
        "--pairs", nargs="+", default=["4", "8:0.5", "16:0.25", "40:0.1"], help="FRAMES or FRAMES:BUDGET"
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench/frames"))
    options = parser.parse_args(arguments)
    from sttm_lmms.demo import shipped

    model, processor = load_pretrained(options.checkpoint or shipped("llava_video"), dtype=torch.float32)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(folder, videos=options.videos, seed=options.seed, split="test", lengths=options.seconds)
        for pair in options.pairs:
            frames, _, budget = pair.partition(":")
            share = float(budget) if budget else None
            config = None if share is None else STTMConfig(budget=share)
            video = VideoSettings(max_frames=int(frames), fps=ALL_FRAMES)
            row = answers_of(Engine(model, processor, config, video=video, newline="no_token"), Path(folder))
            row |= {"frames": int(frames), "budget": share}
            rows.append({**row, "gain": gain(row, rows[0] if rows else row)})
            print(table(rows, {"command": "", "device": "", "date": ""}).splitlines()[-3], flush=True)
    header = about("cpu")
    write_json(options.out / "cpu.json", **header, seconds=options.seconds, videos=options.videos, rows=rows)
    (options.out / "cpu.md").write_text(table(rows, header))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Measure an embedded checkpoint on held-out Mini-VNBench videos, reduced in different ways.

``python -m train_tiny.evaluate --subject llava_video --work WORK --out results/tiny/llava_video`` generates the test
videos (once), runs every setting through the engine on real mp4 files, and writes ``accuracy.json`` and
``accuracy.md``, with 95% intervals clustered by video. Stopped, it goes on with the settings that are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import MiniVideo, plan_video, write_benchmark
from sttm_lmms.benchmarks.mini.writer import TRIES
from sttm_lmms.benchmarks.question import Question
from sttm_lmms.benchmarks.scores import score_reply, vnbench_kind
from sttm_lmms.families import family_of
from sttm_lmms.methods.sttm import merge_video_tokens
from sttm_lmms.report.stats import clustered_interval
from sttm_lmms.runtime import Engine
from sttm_lmms.runtime.hidden import video_states
from sttm_lmms.types import VisionFeatures

from .fixed import ask
from .settings import SUBJECTS, TABLES, Setting, Subject, needle_cells, oracle_config

KINDS = ("retrieval", "ordering", "counting")
SEED = 100


@dataclass(frozen=True)
class Seen:
    """What every setting sees: vision features of the test videos, and their cells ``(t, y, x)`` with needles."""

    features: dict[str, VisionFeatures]
    cells: dict[str, set[tuple[int, int, int]]]
    grid: int

    def load(self, vid: str) -> VisionFeatures:
        return self.features[vid]


@dataclass(frozen=True)
class Test:
    """Held-out videos and their questions."""

    folder: Path
    questions: list[Question]
    plans: Mapping[str, MiniVideo]

    def number(self, question: Question) -> int:
        """Number of the question's video."""
        return list(self.plans).index(question.video_id)


def prepare(subject: Subject, work: Path, videos: int) -> Test:
    """The test videos, written once, and how they were planned."""
    root = work / f"test-{subject.videos}-{videos}"
    if not (root / "vnbench" / "annotations").is_dir():
        write_benchmark(root, videos=videos, seed=SEED, split="test", **subject.benchmark)
    plans = [plan_video(number, seed=SEED, split="test", **subject.benchmark) for number in range(videos)]
    return Test(root / "vnbench" / "videos", load_benchmark("vnbench", root), {plan.name: plan for plan in plans})


@torch.inference_mode()
def see(model: Any, processor: Any, test: Test, subject: Subject) -> Seen:
    """Read every mp4 file and run the vision tower over its sampled frames."""
    family = family_of(model)
    seen = Seen({}, {}, next(iter(test.plans.values())).scenery.grid)
    for name, plan in test.plans.items():
        video = family.read_video(test.folder / f"{name}.mp4", subject.video)
        seen.features[name] = family.project(model, family.vision_features(model, processor, video))
        seen.cells[name] = needle_cells(plan, video.timestamps, subject.frames_per_step)
    return seen


def measure(model: Any, processor: Any, test: Test, seen: Seen, setting: Setting) -> dict[str, Any]:
    """Accuracy by kind of question and the kept share of one setting."""
    engine = Engine(model, processor, setting.config, features=seen, reuse=setting.reuse, timing=False)
    began = time.monotonic()
    questions = [q for q in test.questions if setting.videos is None or test.number(q) < setting.videos]
    requests = [
        ask(question, test.folder, oracle_config(seen.cells[question.video_id], seen.grid, setting.oracle))
        for question in questions
    ]
    answers = engine.generate(requests, batch_size=4)
    if setting.oracle is None:
        engine.check_reduced()
    scores: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "all")}
    videos: dict[str, list[str]] = {kind: [] for kind in scores}
    shares = []
    for question, answer in zip(questions, answers, strict=True):
        assert question.answer is not None
        _, score = score_reply(answer.text, question.letters, question.answer)
        for kind in (vnbench_kind(question.categories["task_type"]), "all"):
            scores[kind].append(score)
            videos[kind].append(question.video_id)
        shares.append(answer.kept_tokens / answer.visual_tokens)
    row: dict[str, Any] = {"setting": setting.name, "kept": sum(shares) / len(shares), "questions": len(answers)}
    for kind, values in scores.items():
        row[kind] = {"accuracy": sum(values) / len(values), "interval": clustered_interval(values, videos[kind])}
    row["smallest"] = smallest(questions)
    if isinstance(setting.config, STTMConfig):
        row["removed_in_space"] = removed_in_space(model, processor, seen, setting.config)
    row["per_question"] = "".join(str(int(value)) for value in scores["all"])
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


@torch.inference_mode()
def removed_in_space(model: Any, processor: Any, seen: Seen, config: STTMConfig, videos: int = 60) -> float:
    """Share of the removed tokens that merging in space removes, over the first ``videos``; the rest goes in time."""
    in_space = removed = 0
    for name in list(seen.features)[:videos]:
        states = video_states(model, processor, seen.load(name), config.start_layer)
        merged = merge_video_tokens(states, config)
        total = merged.source_map.numel()
        in_space += total - int(merged.info["after_spatial"])
        removed += total - len(merged)
    return in_space / removed


def smallest(questions: Sequence[Question]) -> float:
    """Share of the counting questions that saying the smallest number would get right: the best blind guess."""
    counting = [q for q in questions if vnbench_kind(q.categories["task_type"]) == "counting"]
    return sum(q.answer == min(q.options, key=lambda option: option[3:])[0] for q in counting) / len(counting)


def relative(row: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[float, float, float]:
    """Accuracy / accuracy with all tokens on the same questions, and its 95% interval (bootstrap over videos)."""
    ours, theirs = (np.array([*map(int, r["per_question"])], dtype=float).reshape(-1, TRIES) for r in (row, base))
    theirs = theirs[: len(ours)]
    draws = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    ratios = ours.mean(1)[draws].mean(1) / theirs.mean(1)[draws].mean(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def percent(mean: float, interval: Sequence[float]) -> str:
    return f"{100 * mean:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; 95% intervals in brackets, all numbers but the first in percent."""
    spatial = any("removed_in_space" in row for row in rows)
    head = ["setting", "questions", "kept", *(["removed in space"] if spatial else []), *KINDS, "all"]
    lines = [f"| {' | '.join([*head, 'relative to all tokens'])} |", "|---" * (len(head) + 1) + "|"]
    for row in rows:
        cells = [row["setting"], str(row["questions"]), f"{100 * row['kept']:.1f}"]
        if spatial:
            cells.append(f"{100 * row['removed_in_space']:.1f}" if "removed_in_space" in row else "")
        cells += [percent(row[kind]["accuracy"], row[kind]["interval"]) for kind in (*KINDS, "all")]
        ratio, low, high = relative(row, rows[0])
        lines.append(f"| {' | '.join([*cells, percent(ratio, (low, high))])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=SUBJECTS, required=True, help="checkpoint and videos")
    parser.add_argument("--table", choices=TABLES, default="controls", help="which settings")
    parser.add_argument("--checkpoint", type=Path, help="by default the one that comes with the package")
    parser.add_argument("--work", type=Path, required=True, help="folder for the generated test videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for accuracy.json and accuracy.md")
    parser.add_argument("--videos", type=int, default=900, help="test videos, a third for each kind; four tries each")
    parser.add_argument("--only", nargs="*", help="names of settings to run, by default all")
    options = parser.parse_args()
    subject = SUBJECTS[options.subject]
    model, processor = load_pretrained(options.checkpoint or subject.checkpoint, dtype=torch.float32, device_map="cpu")
    test = prepare(subject, options.work, options.videos)
    seen = see(model, processor, test, subject)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "accuracy.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for setting in TABLES[options.table](subject):
        wanted = options.only is None or setting.name in options.only
        if wanted and setting.name not in [row["setting"] for row in rows]:
            rows.append(measure(model, processor, test, seen, setting))
            print(table([rows[0], rows[-1]]).splitlines()[-1], f"{rows[-1]['seconds']} s", flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (options.out / "accuracy.md").write_text(table(rows))


if __name__ == "__main__":
    main()

"""A small fixed set of held-out videos whose answers are recorded: what the shipped checkpoints say on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.benchmarks.question import Question
from sttm_lmms.benchmarks.scores import score_reply
from sttm_lmms.methods.random import RandomConfig
from sttm_lmms.runtime import Engine, GenerationSettings, Request

from .settings import Subject

CONFIGS = {"all": None, "sttm": STTMConfig(budget=0.3), "random": RandomConfig(budget=0.3)}
VIDEOS, SEED = 18, 77


def fixed_answers(subject: Subject, root: Path) -> dict[str, dict[str, Any]]:
    """``{setting: {"accuracy", "kept", "answers"}}`` on 18 videos, 72 questions, which are written under ``root``."""
    write_benchmark(root, videos=VIDEOS, seed=SEED, split="test", **subject.benchmark)
    questions = load_benchmark("vnbench", root)
    model, processor = load_pretrained(subject.checkpoint, dtype=torch.float32, device_map="cpu")
    found: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        engine = Engine(model, processor, config, video=subject.video, timing=False)
        answers = engine.generate([ask(question, root / "vnbench" / "videos") for question in questions], batch_size=4)
        scores = [score_reply(a.text, q.letters, str(q.answer))[1] for q, a in zip(questions, answers, strict=True)]
        found[name] = {
            "accuracy": sum(scores) / len(scores),
            "kept": sum(a.kept_tokens for a in answers) / sum(a.visual_tokens for a in answers),
            "answers": {q.question_id: a.text for q, a in zip(questions, answers, strict=True)},
        }
    return found


def ask(question: Question, folder: Path, config: Any = None) -> Request:
    """A question about a video in ``folder``, as the benchmark asks it; ``config`` is for this one alone."""
    content = [
        {"type": "video", "video": str(folder / f"{question.video_id}.mp4")},
        {"type": "text", "text": build_prompt(question.question, question.options)},
    ]
    generation = GenerationSettings(max_new_tokens=2)
    return Request(
        [{"role": "user", "content": content}], generation=generation, config=config, video_id=question.video_id
    )

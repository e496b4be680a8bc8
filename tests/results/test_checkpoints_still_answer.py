"""The shipped checkpoints on the first test videos: they still answer what is committed under
results/.

A regression in the generated videos, in reading them, in merging or in the engine shows as other
answers here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_frames import answers_of

from sttm_lmms import STTMConfig, get_method, load_pretrained
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.demo import QWEN_VIDEO, SQUARE_SIZES, shipped
from sttm_lmms.runtime import Engine
from sttm_lmms.video import VideoSettings

RESULTS = Path(__file__).parents[2] / "results"
VIDEOS = 9
QUESTIONS = 4 * VIDEOS
RANDOM = get_method("random")(budget=0.3)
ROWS = {
    "tiny/llava_video": {"all tokens": None, "STTM, budget 30%": STTMConfig(budget=0.3), "random tokens, 30%": RANDOM},
    "tiny/qwen2_vl": {"all tokens": None, "STTM, budget 30%": STTMConfig(budget=0.3), "random tokens, 30%": RANDOM},
    "spatial/plain": {"all tokens": None, "both, 30%": STTMConfig(budget=0.3), "random tokens, 30%": RANDOM},
}
CHECKPOINTS = {"tiny/llava_video": "llava_video", "tiny/qwen2_vl": "qwen2_vl", "spatial/plain": "llava_video_fine"}
BENCHMARKS = {
    "tiny/llava_video": {},
    "tiny/qwen2_vl": {"sizes": SQUARE_SIZES, "lengths": (8, 9.5, 11, 13, 14.5, 16)},
    "spatial/plain": {"scenery": "plain"},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=ROWS)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def answers(folder, tmp_path_factory):
    """``{row of the table: what the checkpoint answers now}`` on the first videos of the committed
    test set."""
    root = tmp_path_factory.mktemp("mini")
    write_benchmark(root, videos=VIDEOS, seed=100, split="test", **BENCHMARKS[folder])
    model, processor = load_pretrained(shipped(CHECKPOINTS[folder]), dtype=torch.float32, device_map="cpu")
    video = VideoSettings(**QWEN_VIDEO) if folder.endswith("qwen2_vl") else VideoSettings()
    return {
        name: answers_of(Engine(model, processor, config, video=video, timing=False), root)
        for name, config in ROWS[folder].items()
    }


def test_the_answers_are_the_committed_ones(answers, folder):
    """But for a question: another build of x264 may encode a video a little differently."""
    rows = {row["setting"]: row for row in json.loads((RESULTS / folder / "accuracy.json").read_text())}
    for name in ("all tokens", *(name for name in answers if "30%" in name and "random" not in name)):
        committed = [int(right) for right in rows[name]["per_question"][:QUESTIONS]]
        same = [now == then for now, then in zip(answers[name]["scores"], committed, strict=True)]
        assert sum(same) >= QUESTIONS - 1


def test_budgets_are_met_and_random_dropping_loses_answers(answers):
    full, merged, dropped = answers.values()
    assert full["tokens_into_the_llm"] == full["visual_tokens"]
    for reduced in (merged, dropped):
        assert 0.28 <= reduced["tokens_into_the_llm"] / reduced["visual_tokens"] <= 0.3
    assert dropped["accuracy"] <= full["accuracy"] - 0.15

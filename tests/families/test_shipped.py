"""The checkpoints that come with the package load like any other, and answer."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms import STTMConfig, encode_video, load_pretrained
from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.demo import QWEN_VIDEO, shipped
from sttm_lmms.video import VideoSettings

VIDEO = {"llava_video": VideoSettings(max_frames=16), "qwen2_vl": VideoSettings(**QWEN_VIDEO)}


@pytest.mark.parametrize("family", VIDEO)
def test_one_prefix_answers_all_tries_of_a_question(family, tmp_path):
    write_benchmark(tmp_path, videos=1, lengths=(10,), sizes=((128, 128),))
    questions = load_benchmark("vnbench", tmp_path)
    (video,) = (tmp_path / "vnbench" / "videos").iterdir()
    model, processor = load_pretrained(shipped(family), dtype=torch.float32, device_map="cpu")
    prefix = encode_video(model, processor, video, STTMConfig(budget=0.3), settings=VIDEO[family])
    said = [prefix.ask(build_prompt(question.question, question.options)) for question in questions]
    assert len(said) == 4
    assert said == [question.answer for question in questions]

"""The two sets of Mini-VNBench differ where it matters to merging: in what resembles what."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import plan_video, write_benchmark
from sttm_lmms.benchmarks.mini.scenery import SCENERIES


def cells(name: str, number: int) -> torch.Tensor:
    """Mean colours ``[T, G, G, 3]`` of a clip's cells, one frame a second."""
    scenery = SCENERIES[name]
    footage = scenery.footage(np.random.default_rng((4, number)), 8)
    frames = footage.render(np.arange(8) + 0.01, 8 * scenery.grid, 8 * scenery.grid)
    return F.avg_pool2d(frames, 8).permute(0, 2, 3, 1)


def differences(name: str) -> tuple[float, float]:
    """Typical (median) difference of a cell to its neighbour, and to itself a second later."""
    clips = [cells(name, number) for number in range(20)]
    space = torch.cat([(clip[:, :, 1:] - clip[:, :, :-1]).abs().mean(-1).flatten() for clip in clips])
    time = torch.cat([(clip[1:] - clip[:-1]).abs().mean(-1).flatten() for clip in clips])
    return space.median().item(), time.median().item()


def test_plain_footage_is_smooth_in_space_and_changes_in_time():
    space, time = differences("plain")
    assert space < 0.02
    assert time > 4 * space


def test_textured_footage_is_not():
    space, time = differences("textured")
    assert time < 4 * space


@pytest.mark.parametrize("number", range(6))
def test_needles_of_the_plain_set_are_half_as_large(number):
    plan = plan_video(number, seed=0, split="test", scenery="plain")
    assert plan.scenery.grid == 14
    for event in plan.events:
        for centre in (event.x, event.y):
            assert abs(centre * 14 % 1 - 0.5) <= 0.25 + 1e-9, "well inside a cell"


def test_the_plain_set_loads_as_vnbench(tmp_path):
    write_benchmark(tmp_path, videos=3, scenery="plain", sizes=((64, 48),), fps=(4.0,))
    questions = load_benchmark("vnbench", tmp_path)
    assert len(questions) == 12


def test_an_unknown_scenery_is_refused():
    with pytest.raises(ValueError, match="scenery 'bare' is not one of textured, plain"):
        plan_video(0, seed=0, split="test", scenery="bare")


def test_the_first_set_is_what_it_was():
    """Recorded before there was a second one: the frames of two videos, by their mean and by what
    is asked."""
    for number, digest in RECORDED.items():
        plan = plan_video(number, seed=100, split="test")
        frames = np.stack(list(plan.frames()))
        said = f"{plan.name} {plan.size} {plan.question.text} {plan.question.options} {frames.mean():.2f}"
        assert hashlib.sha256(said.encode()).hexdigest()[:16] == digest, said


RECORDED = {0: "abec5d2cde2a0828", 4: "d7c4e36a4191cc04"}

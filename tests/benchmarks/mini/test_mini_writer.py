"""Files of Mini-VNBench: they load as VNBench does, needles are where the annotations say, splits
share nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sttm_lmms.benchmarks.data import load_benchmark
from sttm_lmms.benchmarks.mini import plan_video, write_benchmark
from sttm_lmms.benchmarks.mini.objects import object_colour
from sttm_lmms.video import probe, read_frames, sample_uniform_fps

SMALL = {"lengths": (7, 8.5), "sizes": ((64, 48), (48, 64)), "fps": (4.0, 6.25)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    write_benchmark(folder, videos=12, seed=3, **SMALL)
    return folder


def test_it_loads_as_vnbench(root):
    questions = load_benchmark("vnbench", root)
    assert len(questions) == 48
    assert {q.categories["task_type"] for q in questions} == {
        f"{kind}_{style}1" for kind in ("ret", "ord", "cnt") for style in ("edit", "insert")
    }
    assert {q.categories["duration"] for q in questions} == {"short"}


def test_four_tries_put_the_answer_everywhere(root):
    records = json.loads((root / "vnbench/annotations/VNBench-main-4try_v2.json").read_text())
    for i in range(0, len(records), 4):
        tries = records[i : i + 4]
        assert [record["try"] for record in tries] == [0, 1, 2, 3]
        assert sorted(record["answer"] for record in tries) == list("ABCD")
        right = {r["options"]["ABCD".index(r["answer"])][3:] for r in tries}
        assert len(right) == 1
        assert len({r["question"] for r in tries}) == 1


def test_the_files_are_as_long_as_annotated(root):
    for record in json.loads((root / "vnbench/annotations/VNBench-main-4try_v2.json").read_text())[::4]:
        info = probe(root / "vnbench/videos" / f"{record['videoID']}.mp4")
        assert info.duration == pytest.approx(record["video_second"], abs=0.02)
        assert record["length"] <= record["video_second"] + 0.25


@pytest.mark.parametrize("number", range(6))
def test_sampled_frames_show_the_needles(root, number):
    """At one frame a second, a needle's colour is at its centre in its second, and not where there
    is no needle."""
    plan = plan_video(number, seed=3, split="test", **SMALL)
    path = root / "vnbench/videos" / f"{plan.name}.mp4"
    indices = sample_uniform_fps(probe(path), 1.0, 128)
    assert len(indices) == int(np.ceil(plan.seconds)) + 1
    frames = read_frames(path, indices).frames
    empty = set(range(len(frames))) - {event.second for event in plan.events}
    for event in plan.events:
        seen = [distance(frame, event) for frame in frames]
        assert seen[event.second] < 0.25
        assert seen[event.second] < min(seen[second] for second in empty)


def distance(frame, event):
    """How far the nearest pixel around the needle's centre is from the needle's colour."""
    height, width = frame.shape[:2]
    y, x, reach = int(event.y * height), int(event.x * width), max(2, int(0.5 * event.size / 7 * min(height, width)))
    patch = frame[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] / 255
    return float(np.abs(patch - object_colour(event.index).numpy()).max(-1).min())


def test_the_same_seed_gives_the_same_frames_and_records():
    first, second = (plan_video(4, seed=9, split="test", **SMALL) for _ in range(2))
    assert first.records() == second.records()
    for a, b in zip(first.frames(), second.frames(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_train_and_test_share_nothing():
    train, test = (plan_video(0, seed=0, split=split, **SMALL) for split in ("train", "test"))
    assert train.name != test.name
    assert train.seed != test.seed
    assert train.events != test.events
    a, b = (next(iter(video.frames())) for video in (train, test))
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train, test"):
        write_benchmark(tmp_path, videos=1, split="dev")

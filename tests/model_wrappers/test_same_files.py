"""Threads, videos read ahead and processes change when things happen, and nothing in the files but
times."""

from __future__ import annotations

import json

import pytest
from warm_ranks import run_ranks
from wrapper_runs import TASKS, read_run

from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.demo import shipped

pytestmark = pytest.mark.slow

WAYS = ((1, 0), (1, 4), (2, 4), (4, 4))
"""Threads, videos ahead."""
VIDEOS, QUESTIONS = 4, 15
"""Three processes are dealt five questions each, so that three videos are cut before they exchange
them."""


def without_times(sample):
    (record,) = sample["token_counts"]
    timed = ("timing_s", "run")
    return {**sample, "token_counts": [{name: value for name, value in record.items() if name not in timed}]}


def lines(run):
    """The lines of the sample file without times."""
    return [json.dumps(without_times(sample)) for sample in run.samples["vnbench"]]


def counters(run):
    times = ("_s", "_s_per_token", "_time", "_speed")
    return {name: pytest.approx(value) for name, value in run.throughput.items() if not name.endswith(times)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    data = folder / "data"
    file = write_benchmark(data, videos=VIDEOS, lengths=(6, 20), sizes=((64, 64),), fps=(8,))
    file.write_text(json.dumps(json.loads(file.read_text())[:QUESTIONS]))

    def run(world, workers, prefetch):
        out = folder / f"{world}-{workers}-{prefetch}"
        settings = f"budget=0.5,max_frames=4,device=cpu,prefetch={prefetch},prefetch_workers={workers}"
        arguments = [
            *("--model", "sttm_llava_video", "--model_args", f"pretrained={shipped('llava_video')},{settings}"),
            *("--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples", "--gen_kwargs", "max_new_tokens=4"),
            *("--output_path", str(out)),
        ]
        return read_run(out, run_ranks(data, out, arguments, world))

    return {(world, *way): run(world, *way) for world in (1, 3) for way in (WAYS if world == 1 else WAYS[::3])}


def test_the_same_lines_whatever_the_threads_videos_ahead_and_processes(runs):
    expected = lines(runs[1, 1, 0])
    assert len(expected) == QUESTIONS
    assert all(lines(run) == expected for run in runs.values())


def test_counters(runs):
    expected = counters(runs[1, 1, 0])
    assert expected["avg_questions"] == QUESTIONS
    assert expected["avg_videos_decoded"] == VIDEOS
    for way, run in runs.items():
        assert counters(run) == expected, way

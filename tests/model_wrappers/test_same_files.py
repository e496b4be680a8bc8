"""Threads, videos read ahead and processes change when things happen, and nothing in the files but times."""

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
"""Three processes are dealt five questions each, so that three videos are cut before they exchange them."""


def without_times(sample):
    (record,) = sample["token_counts"]
    return {**sample, "token_counts": [{name: value for name, value in record.items() if name != "timing_s"}]}


def lines(run):
    """The lines of the sample file without times."""
    return [json.dumps(without_times(sample)) for sample in run.samples["vnbench"]]


def questions(run):
    """Lines by question, without what depends on the process: lmms-eval's number of the document, and the description
    of the run, which the first answer of each process carries."""
    found = {}
    for sample in map(without_times, run.samples["vnbench"]):
        del sample["doc_id"]
        sample["token_counts"][0].pop("provenance", None)
        found[sample["accuracy"]["question_id"]] = json.dumps(sample)
    return found


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


def test_one_process_writes_the_same_lines(runs):
    first, *others = [lines(runs[1, workers, prefetch]) for workers, prefetch in WAYS]
    assert len(first) == QUESTIONS
    assert all(found == first for found in others)


def test_three_processes_write_the_same_lines(runs):
    first, second = (lines(runs[3, workers, prefetch]) for workers, prefetch in WAYS[::3])
    assert first == second


def test_one_process_and_three_say_the_same_about_every_question(runs):
    expected = questions(runs[1, 1, 0])
    assert len(expected) == QUESTIONS
    assert all(questions(runs[3, workers, prefetch]) == expected for workers, prefetch in WAYS[::3])


def test_counters(runs):
    expected = counters(runs[1, 1, 0])
    assert expected["avg_questions"] == QUESTIONS
    assert expected["avg_videos_decoded"] == VIDEOS
    for way, run in runs.items():
        assert counters(run) == expected, way

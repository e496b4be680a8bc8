"""``kill -9`` in the middle of a run of one process with the response cache on: nothing is lost or
asked twice."""

from __future__ import annotations

import os
import signal
import time

import pytest
from warm_ranks import run_ranks, start_ranks
from wrapper_runs import QUESTIONS, TASKS, read_run, stored_answers

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on_where_it_was(data, checkpoints, tmp_path):
    cache = tmp_path / "cache"
    args = [
        *("--model", "sttm_llava_video", "--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples"),
        *("--model_args", f"pretrained={checkpoints['llava_video']},budget=0.5,max_frames=4,device=cpu"),
        *("--gen_kwargs", "max_new_tokens=200", "--output_path", str(tmp_path / "out")),
    ]
    command = [*args, "--use_cache", str(cache)]
    (process,) = start_ranks(data, tmp_path / "log", command, 1)
    deadline = time.monotonic() + 200
    while stored_answers(cache) < 2 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = stored_answers(cache)
    assert 2 <= kept < QUESTIONS, "the run was not stopped in its middle"
    assert read_run(tmp_path / "out").results is None

    run_ranks(data, tmp_path / "second", command, 1)
    second = read_run(tmp_path / "out")
    assert second.throughput["avg_questions"] <= QUESTIONS - kept + 1  # a line cut off by the kill is asked again
    assert len(second.answers()) == QUESTIONS

    run_ranks(data, tmp_path / "whole", [*args[:-1], str(tmp_path / "third")], 1)
    whole = read_run(tmp_path / "third")
    assert second.answers() == whole.answers()
    assert second.results["results"]["vnbench"] == whole.results["results"]["vnbench"]

"""``kill -9`` in the middle of a run with the response cache on: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from wrapper_runs import QUESTIONS, TASKS, lmms_eval, read_run, stored_answers

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on_where_it_was(data, checkpoints, tmp_path):
    cache = tmp_path / "cache"
    args = [
        *("--model", "sttm_llava_video", "--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples"),
        *("--model_args", f"pretrained={checkpoints['llava_video']},budget=0.5,max_frames=4,device=cpu"),
        *("--gen_kwargs", "max_new_tokens=200", "--output_path", str(tmp_path / "out")),
    ]
    command = [sys.executable, "-m", "sttm_lmms", "eval", *args, "--use_cache", str(cache)]
    environment = {**os.environ, "STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while stored_answers(cache) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = stored_answers(cache)
    assert 2 <= kept < QUESTIONS, "the run was not stopped in its middle"
    assert read_run(tmp_path / "out").results is None

    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )
    second = read_run(tmp_path / "out", done.stdout)
    assert second.results is not None, second.printed[-3000:]
    assert second.throughput["avg_questions"] <= QUESTIONS - kept + 1  # a line cut off by the kill is asked again
    assert len(second.answers()) == QUESTIONS

    whole = lmms_eval(data, tmp_path / "whole", *args[: args.index("--output_path")])
    assert second.answers() == whole.answers()
    assert second.results["results"]["vnbench"] == whole.results["results"]["vnbench"]

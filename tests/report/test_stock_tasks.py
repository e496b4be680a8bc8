"""lmms-eval's own tasks of the benchmarks, run by its command line: our accuracy is the one it
reports."""

from statistics import fmean

import pytest
from warm_ranks import warm_command

from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.table import benchmark_of

pytest.importorskip("lmms_eval")


@pytest.mark.slow
def test_scores_are_those_that_lmms_eval_reports(stock_tasks, tmp_path):
    for folder in stock_tasks.videos.values():
        for name in ("clip0.mp4", "clip1.mp4"):
            (folder / name).touch()  # the dummy model does not open them
    command = ["--model", "dummy", "--model_args", "response=A", "--batch_size", "1"]
    command += ["--tasks", ",".join(stock_tasks.names), "--include_path", str(stock_tasks.include_path)]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    log = tmp_path / "log.txt"
    warm_command(command, {"HF_HOME": str(stock_tasks.hf_home), "HF_HUB_OFFLINE": "1"}, log)
    (run,) = load_runs([tmp_path / "out"])
    assert sorted(task.task for task in run.tasks) == sorted(stock_tasks.names), log.read_text()[-2000:]
    for task in run.tasks:
        scores = task.samples["score"]
        assert 0 <= fmean(scores) < 1, "the dummy always says A"
        if not task.task.startswith("mlvu"):  # whose own score is a mean over task types, not over questions
            assert fmean(scores) == pytest.approx(task.reported_share, abs=1e-4), task.task
        assert f"({task.task})" in benchmark_of(task.task), "a column of its own"
    assert sum(task.samples["score"].mean() > 0 for task in run.tasks) >= 4

"""What ``sttm-lmms eval`` hands to lmms-eval, which a function plays here, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sttm_lmms.cli.evaluate import evaluate, option, tasks_folder
from sttm_lmms.errors import STTMError

harness = pytest.importorskip("sttm_lmms.model_wrappers.harness")
MODEL = ("--model", "somebodys", "--tasks", "vnbench")


@pytest.fixture
def handed(monkeypatch):
    """The arguments that lmms-eval gets, and the runs of its ``--config``."""

    def plan(*args: str) -> tuple[list[str], list[dict]]:
        seen: list = []

        def run(args):
            config = option(args, "--config")
            seen.append((args, yaml.safe_load(Path(config).read_text()) if config else []))

        monkeypatch.setattr(harness, "run_lmms_eval", run)
        evaluate(args)
        return seen[0]

    return plan


@pytest.mark.parametrize(
    ("args", "added"),
    [
        (["--model", "m", "--tasks", "vnbench"], ["--include_path", str(tasks_folder())]),
        (["--tasks=vnbench"], ["--include_path", str(tasks_folder())]),
        (["--tasks", "vnbench", "--include_path", "mine"], []),
        (["--help"], []),
        (["tasks", "list"], ["--include-path", str(tasks_folder())]),
        (["tasks", "groups", "--include-path=mine"], []),
    ],
)
def test_our_tasks_are_found(handed, args, added):
    assert handed(*args)[0] == args + added


def test_a_config_of_several_runs(handed, tmp_path):
    file = tmp_path / "runs.yaml"
    runs = [{"model": "m", "tasks": "vnbench"}, {"model": "n", "tasks": "other", "include_path": "mine", "limit": 3}]
    file.write_text(yaml.safe_dump(runs))
    args, planned = handed("--config", str(file), "--verbosity", "INFO")
    assert args[:2] == ["--verbosity", "INFO"]
    assert planned == [runs[0] | {"include_path": str(tasks_folder())}, runs[1]]
    assert handed("--config", str(file), "--include_path=theirs")[1] == [
        run | {"include_path": "theirs"} for run in runs
    ]
    file.write_text(yaml.safe_dump(runs[0]))
    assert handed("--config", str(file))[1] == [runs[0] | {"include_path": str(tasks_folder())}]


@pytest.mark.parametrize("model_args", ["pretrained={},method=none,max_frames=2", {"method": "none", "max_frames": 2}])
def test_answers_of_our_models_go_into_our_cache(handed, tmp_path, checkpoint, model_args):
    given = {"model": "sttm_llava_video", "tasks": "vnbench", "use_cache": str(tmp_path / "cache")}
    if isinstance(model_args, str):
        text = model_args.format(checkpoint)
        args, _ = handed(*(f"--{name}={value}" for name, value in given.items()), "--model_args", text)
        planned = {"model_args": option(args, "--model_args"), "use_cache": option(args, "--use_cache")}
    else:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(given | {"model_args": {"pretrained": str(checkpoint), **model_args}}))
        (planned,) = handed("--config", str(file))[1]
    expected = [f"cache={tmp_path / 'cache'}", "max_frames=2", "method=none", f"pretrained={checkpoint}"]
    assert sorted(planned["model_args"].split(",")) == expected
    assert planned.get("use_cache") is None


def test_other_models_keep_the_cache_of_lmms_eval(handed):
    args, _ = handed(*MODEL, "--use_cache", "there")
    assert option(args, "--use_cache") == "there"


def test_a_failed_run_is_an_error_with_or_without_an_output_path(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "run_lmms_eval", lambda args: "no such task")
    for output in ((), ("--output_path", str(tmp_path))):
        with pytest.raises(STTMError, match="no such task"):
            evaluate([*MODEL, *output])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "sttm_llava_video", "--tasks", "vnbenchh"], "Tasks not found: vnbenchh"),
        (["--model", "sttm_llava_vide", "--tasks", "vnbench"], "sttm_llava_vide"),
        (["--model", "sttm_llava_video", "--tasks", "vnbench", "--log_samples"], "Specify --output_path"),
        (["--model", "sttm_llava_video"], "Need to specify task"),
    ],
)
def test_whatever_stops_lmms_eval_is_an_error(args, words, monkeypatch):
    """In this process, without lmms-eval's own tasks."""
    from functools import partial

    import lmms_eval.__main__ as command

    monkeypatch.setattr(command, "TaskManager", partial(command.TaskManager, include_defaults=False))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    with pytest.raises(STTMError, match=words):
        evaluate(args)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("budget=1.0", "budget=1 keeps all tokens"),
        ("budget=1", "method=none is that baseline"),
    ],
)
def test_what_reduces_nothing_is_refused_at_the_start(handed, checkpoint, given, words):
    args = ("--model", "sttm_llava_video", "--model_args", f"pretrained={checkpoint},{given}", "--tasks", "vnbench")
    with pytest.raises(ValueError, match=words):
        handed(*args)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    from sttm_lmms.demo import shipped

    return shipped("llava_video")

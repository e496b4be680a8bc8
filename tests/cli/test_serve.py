"""``sttm-lmms serve``: what becomes of its arguments; the server itself is tested by
``make test-vllm``."""

from __future__ import annotations

import json
import shlex

import pytest

from sttm_lmms.cli import main
from sttm_lmms.cli.serve import server_command
from sttm_lmms.demo import shipped

MODEL = str(shipped("qwen2_vl"))


def option(command, name):
    return command[command.index(name) + 1]


def test_the_budget_travels_as_itself():
    settings = {"method": "sttm", "budget": 0.9, "root_level": 2}
    command = server_command("m", settings, ["--port", "8001", "--hf-overrides", '{"rope_theta": 2}'])
    assert json.loads(option(command, "--hf-overrides")) == {"rope_theta": 2, "sttm": settings}
    assert 0 < float(option(command, "--video-pruning-rate")) < 1
    assert command[-2:] == ["--port", "8001"]
    assert command.count("--hf-overrides") == 1


def test_the_command_can_be_looked_at(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", MODEL, "--budget", "0.3", "--setting", "root_level=2", "--max-model-len", "4096", "--dry-run"])
    assert stopped.value.code == 0
    switch, *command = shlex.split(capsys.readouterr().out)
    assert switch == "STTM_VLLM=1"
    assert option(command, "--model") == MODEL
    assert json.loads(option(command, "--hf-overrides"))["sttm"] == {"method": "sttm", "budget": 0.3, "root_level": 2}
    assert option(command, "--max-model-len") == "4096"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([MODEL, "--budget", "1.5"], "budget=1.5 is out of range"),
        ([MODEL, "--budget", "0.3", "--method", "fastv"], "depends on the video"),
        ([MODEL, "--budget", "0.3", "--method", "tomee"], "Did you mean 'tome'"),
        ([MODEL, "--budget", "0.3", "--setting", "root_levl=2"], "Did you mean 'root_level'"),
        ([MODEL, "--budget", "0.3", "--setting", "root_level"], "give NAME=VALUE"),
        ([MODEL, "--budget", "0.3", "--video-pruning-rate", "0.5"], "what --budget sets"),
        ([MODEL, "--budget", "0.3", "--hf-overrides", "{"], "not a JSON object"),
        ([str(shipped("llava_video")), "--budget", "0.3"], "LlavaQwenForCausalLM"),
    ],
)
def test_mistakes_are_refused_before_vllm_starts(args, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *args])
    assert stopped.value.code == 1
    assert reason in capsys.readouterr().err

"""scripts/reproduce.sh in dry run: every cell of the paper's tables."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sttm_lmms import STTMConfig
from sttm_lmms.benchmarks import FORMATS

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.sh"
TASKS = Path(__file__).parents[2] / "tasks"
CELLS = yaml.safe_load((Path(__file__).parents[1] / "golden" / "reproduce" / "cells.yaml").read_text())


def budgets(model: str) -> list[str]:
    return ["100", "50", "30", *(["50-root2", "30-root2"] if "qwen2" in model else ["100-newline"])]


ALL = [
    (model, b, budget) for model, row in CELLS["models"].items() for b in row["thresholds"] for budget in budgets(model)
]


def run(*arguments):
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def option(words, name):
    return words[words.index(name) + 1]


def settings_of(words):
    """What the wrapper makes of the command's arguments, with the checkpoint's own newline layout
    filled in."""
    from lmms_eval.utils import simple_parse_args_string

    from sttm_lmms.families import get_family
    from sttm_lmms.model_wrappers.arguments import parse_arguments
    from sttm_lmms.model_wrappers.settings import task_settings

    family = get_family(option(words, "--model").removeprefix("sttm_"))
    arguments = parse_arguments(simple_parse_args_string(option(words, "--model_args")))
    settings = task_settings(arguments, family.name, option(words, "--tasks"))
    newline = arguments.newline or ("no_token" if settings.config else getattr(family, "default_newline", None))
    return arguments, settings, newline


def check_cell(model, benchmark, budget, words):
    cell = CELLS["models"][model]
    arguments, settings, newline = settings_of(words)
    assert option(words, "--model") == cell["wrapper"]
    assert arguments.pretrained == cell["checkpoint"]
    frames = cell["max_frames"].get(benchmark, cell["max_frames"]["default"])
    video = settings.video
    assert (video.max_frames, video.fps, video.sampling) == (frames, cell["fps"], CELLS["sampling"])
    if cell["newline"] is not None:
        assert newline == cell["newline"].get(budget, cell["newline"]["default"])
    if budget.startswith("100"):
        assert settings.config is None
    else:
        spatial, temporal = cell["thresholds"][benchmark][budget.removesuffix("-root2")]
        assert settings.config == STTMConfig(
            spatial,
            temporal,
            root_level=2 if budget.endswith("root2") else cell["root_level"],
            start_layer=cell["start_layer"],
            decode_positions=cell["decode_positions"],
        )
    assert option(words, "--tasks") == f"sttm_{benchmark}"
    assert (TASKS / benchmark / f"sttm_{benchmark}.yaml").is_file()
    assert "**Prompt.**" in (TASKS.parent / CELLS["prompts"].format(benchmark=benchmark)).read_text()
    assert "--log_samples" in words
    assert ("CUDA_VISIBLE_DEVICES=0,1,2,3" in words) == ("72b" in model)


def dry_run(model, benchmark, budget):
    done = run(model, benchmark, budget, "--dry-run")
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.mark.slow  # more than sixty processes
@pytest.mark.parametrize(("model", "benchmark", "budget"), ALL)
def test_every_cell(model, benchmark, budget, monkeypatch):
    pytest.importorskip("lmms_eval")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_cell(model, benchmark, budget, dry_run(model, benchmark, budget))


@pytest.mark.parametrize(
    ("model", "benchmark", "budget"),
    [
        ("llava-video-7b", "mlvu", "50"),
        ("llava-onevision-7b", "vnbench", "100-newline"),
        ("qwen2-vl-7b", "videomme", "30-root2"),
        ("llava-video-72b", "videomme", "30"),
    ],
)
def test_a_cell_of_each_model(model, benchmark, budget, monkeypatch):
    test_every_cell(model, benchmark, budget, monkeypatch)


def test_the_table_has_every_cell_of_the_paper():
    models = CELLS["models"]
    assert {model: len(row["thresholds"]) for model, row in models.items()} == {
        "llava-video-7b": 6,
        "llava-video-72b": 1,
        "llava-onevision-7b": 6,
        "qwen2-vl-7b": 3,
    }
    assert (
        set(models["llava-video-7b"]["thresholds"]) == set(models["llava-onevision-7b"]["thresholds"]) == set(FORMATS)
    )


@pytest.mark.parametrize(
    ("model", "budget"), [("llava-video-7b", "50"), ("qwen2-vl-7b", "100"), ("llava-video-72b", "30")]
)
def test_wrappers_take_these_arguments(model, budget):
    pytest.importorskip("lmms_eval")
    from lmms_eval.utils import simple_parse_args_string

    from sttm_lmms.model_wrappers.arguments import parse_arguments

    words = shlex.split(run(model, "videomme", budget, "--dry-run").stdout)
    parsed = parse_arguments(simple_parse_args_string(option(words, "--model_args")))
    assert parsed.preset == (None if budget == "100" else f"paper-{budget}:{model.rsplit('-', 1)[1]}")


def test_the_7b_checkpoint_is_the_one_of_the_published_runs():
    words = shlex.split(run("llava-video-7b", "mlvu", "50", "--dry-run").stdout)
    assert option(words, "--model_args").startswith("pretrained=lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only,")


def test_eight_gpus_hold_a_copy_each():
    words = shlex.split(run("qwen2-vl-7b", "videomme", "50", "8", "--dry-run").stdout)
    assert words[1:8] == ["-m", "accelerate.commands.launch", "--num_processes", "8", "-m", "sttm_lmms", "eval"]


def test_a_large_model_is_spread_over_the_gpus():
    words = shlex.split(run("llava-video-72b", "videomme", "50", "2", "--dry-run").stdout)
    assert words[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    assert "device_map=auto" in option(words, "--model_args")
    assert "accelerate.commands.launch" not in words


def test_gpus_that_the_user_chose_are_kept(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    words = shlex.split(run("llava-video-72b", "videomme", "50", "--dry-run").stdout)
    assert words[1:4] == ["-m", "sttm_lmms", "eval"]


@pytest.mark.parametrize(("model", "argument"), [("llava-video-7b", ""), ("llava-onevision-7b", ",newline=grid")])
def test_newline_baseline(model, argument):
    words = shlex.split(run(model, "mlvu", "100-newline", "--dry-run").stdout)
    assert option(words, "--model_args").endswith(",method=none,max_frames=128,fps=1.0" + argument)


@pytest.mark.parametrize(
    ("benchmark", "budget", "arguments", "frames"),
    [("field", "30", "preset=field-32,budget=0.30", 32), ("field-64", "100", "preset=field-64,method=none", 64)],
)
def test_the_harness_own_tasks(benchmark, budget, arguments, frames):
    words = dry_run("llava-onevision-7b", benchmark, budget)
    assert option(words, "--tasks") == "sttm_field"
    assert option(words, "--model_args") == f"pretrained=lmms-lab/llava-onevision-qwen2-7b-ov,{arguments}"
    _, settings, _ = settings_of(words)
    assert settings.video.max_frames == frames
    assert (settings.config.budget if settings.config else None) == (None if budget == "100" else 0.3)


def test_options_are_handed_on(tmp_path):
    checkpoint = str(tmp_path / "my checkpoint")
    done = run(
        "llava-video-7b", "mlvu", "50", "--dry-run", "--pretrained", checkpoint, "--output", "out", "--", "--limit", "8"
    )
    words = shlex.split(done.stdout)
    assert option(words, "--model_args").startswith(f"pretrained={checkpoint},")
    assert option(words, "--output_path") == "out"
    assert words[-2:] == ["--limit", "8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava-video-8b", "mlvu", "50"], "unknown model 'llava-video-8b'"),
        (["llava-video-7b", "mvlu", "50"], "Did you mean 'mlvu'"),
        (["llava-video-7b", "mlvu", "40"], "unknown budget '40'"),
        (["llava-video-7b", "field", "50-root2"], "unknown budget '50-root2'"),
        (["llava-video-7b", "mlvu", "50", "none"], "GPUS must be a positive number"),
        (["llava-video-7b", "mlvu", "50", "--dry"], "unknown option --dry"),
        (["qwen2-vl-7b", "mlvu", "50"], "qwen2_vl 7b on vnbench, videomme, longvideobench"),
        (["llava-video-72b", "mlvu", "30"], "llava_video 72b on videomme"),
        (["qwen2-vl-7b", "vnbench", "100-newline"], "Qwen2-VL has no newline tokens"),
        (["llava-video-7b"], "usage:"),
    ],
)
def test_mistakes_end_before_anything_runs(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""

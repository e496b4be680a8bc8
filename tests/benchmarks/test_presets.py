"""Published thresholds: the table of the paper, typed in a second time."""

import pytest

from sttm_lmms.benchmarks.presets import benchmark_of, preset_names, resolve_frames, resolve_preset, size_of

# benchmark: (LLaVA-Video-7B 50%, 30%, OneVision-7B 50%, 30%, Qwen2-VL-7B 50%, 30%)
TABLE = {
    "vnbench": "85/65 80/60 90/65 85/65 80/65 75/50",
    "videomme": "85/55 80/50 85/65 85/55 85/60 80/60",
    "egoschema": "85/55 80/60 90/60 85/60 - -",
    "nextqa": "85/65 80/65 95/65 90/60 - -",
    "longvideobench": "85/60 80/55 90/60 85/60 85/65 80/60",
    "mlvu": "85/55 80/55 90/55 85/60 - -",
}
COLUMNS = [(f, b) for f in ("llava_video", "llava_onevision", "qwen2_vl") for b in (50, 30)]
CELLS = [
    (family, benchmark, budget, cell)
    for benchmark, row in TABLE.items()
    for (family, budget), cell in zip(COLUMNS, row.split(), strict=True)
]


@pytest.mark.parametrize(("family", "benchmark", "budget", "cell"), CELLS)
def test_every_cell_of_the_paper(family, benchmark, budget, cell):
    name = f"paper-{budget}"
    if cell == "-":
        with pytest.raises(ValueError, match="qwen2_vl 7b on vnbench, videomme, longvideobench"):
            resolve_preset(name, family=family, size="7b", task=f"sttm_{benchmark}")
        return
    preset = resolve_preset(name, family=family, size="7b", task=f"sttm_{benchmark}")
    spatial, temporal = (int(x) / 100 for x in cell.split("/"))
    assert (preset.spatial_threshold, preset.temporal_threshold) == (spatial, temporal)
    assert (preset.start_layer, preset.root_level) == (2, 1)
    assert preset.config.spatial_threshold == spatial
    expected = {("qwen2_vl", True): (360, 2), ("qwen2_vl", False): (256, 2), True: (180, 1), False: (128, 1)}
    assert preset.sampling == "uniform_fps"
    assert preset.config.decode_positions == ("continue" if family == "qwen2_vl" else "reference")
    needle = benchmark == "vnbench"
    assert (preset.max_frames, preset.fps) == expected[("qwen2_vl", needle) if family == "qwen2_vl" else needle]


@pytest.mark.parametrize(("name", "thresholds"), [("paper-50", (0.94, 0.82)), ("paper-30", (0.9, 0.9))])
def test_72b_merges_in_front_of_the_first_layer(name, thresholds):
    preset = resolve_preset(name, family="llava_video", checkpoint="lmms-lab/LLaVA-Video-72B-Qwen2", task="videomme")
    assert (preset.spatial_threshold, preset.temporal_threshold) == thresholds
    assert (preset.start_layer, preset.decode_positions) == (0, "reference")


@pytest.mark.parametrize("budget", [50, 30])
@pytest.mark.parametrize("task", ["vnbench", "videomme", "longvideobench"])
def test_qwen2_vl_also_starts_one_level_finer(budget, task):
    paper = resolve_preset(f"paper-{budget}", family="qwen2_vl", size="7b", task=task)
    finer = resolve_preset(f"paper-{budget}-root2", family="qwen2_vl", size="7b", task=task)
    assert (paper.root_level, finer.root_level) == (1, 2)
    assert paper.config == type(paper.config)(**{**vars(finer.config), "root_level": 1})


@pytest.mark.parametrize(
    ("task", "benchmark"),
    [
        ("vnbench", "vnbench"),
        ("sttm_vnbench", "vnbench"),
        ("videomme", "videomme"),
        ("videomme_w_subtitle", "videomme"),
        ("mlvu_dev", "mlvu"),
        ("longvideobench_val_v", "longvideobench"),
        ("egoschema", "egoschema"),
        ("egoschema_subset", "egoschema"),
        ("nextqa_mc_test", "nextqa"),
        ("mmmu_val", None),
        ("videommethod", None),
    ],
)
def test_benchmark_of_a_task(task, benchmark):
    assert benchmark_of(task) == benchmark


@pytest.mark.parametrize(
    ("checkpoint", "size"),
    [
        ("lmms-lab/LLaVA-Video-7B-Qwen2", "7b"),
        ("lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only", "7b"),
        ("lmms-lab/llava-onevision-qwen2-0.5b-ov", "0.5b"),
        ("llava-hf/llava-onevision-qwen2-72b-ov-hf", "72b"),
        ("Qwen/Qwen2-VL-2B-Instruct", "2b"),
        ("checkpoints/tiny", ""),
        ("checkpoints/3bears", ""),
    ],
)
def test_size_of_a_checkpoint(checkpoint, size):
    assert size_of(checkpoint) == size


def test_size_given_with_the_preset():
    assert resolve_preset("paper-50:72b", family="llava_video", checkpoint="tiny", task="videomme").start_layer == 0
    with pytest.raises(ValueError, match="preset=paper-50:7b"):
        resolve_preset("paper-50", family="llava_video", checkpoint="tiny", task="videomme")


def test_unknown_names_list_what_exists():
    with pytest.raises(ValueError, match="Did you mean 'paper-50'"):
        resolve_preset("paper_50", family="llava_video", size="7b", task="videomme")
    with pytest.raises(ValueError, match="Did you mean 'qwen2_vl'"):
        resolve_frames("qwen2vl", "videomme")
    with pytest.raises(ValueError, match="llava_onevision 7b on vnbench"):
        resolve_preset("paper-50", family="llava_video", size="7b", task="mmmu_val")
    assert preset_names() == ["field-32", "field-64", "paper-30", "paper-30-root2", "paper-50", "paper-50-root2"]


def test_frames_of_tasks_outside_the_paper():
    assert (resolve_frames("llava_video", "mmmu_val").max_frames, resolve_frames("qwen2_vl", "mmmu_val").fps) == (
        128,
        2,
    )


def test_a_preset_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "models:\n"
        "  - {family: llava_video, size: 7b, start_layer: 4, max_frames: 64,"
        " thresholds: {mlvu: [0.9, 0.5], default: [0.8, 0.7]}}\n"
    )
    mlvu = resolve_preset(str(path), family="llava_video", size="7B", task="mlvu_dev")
    assert (mlvu.spatial_threshold, mlvu.start_layer, mlvu.max_frames, mlvu.fps) == (0.9, 4, 64, 1.0)
    assert (mlvu.decode_positions, mlvu.sampling) == ("continue", "uniform_fps")
    assert resolve_preset(str(path), family="llava_video", size="7b", task="mvbench").temporal_threshold == 0.7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [", "is not a YAML file"),
        ("[]", "no list called 'models'"),
        ("models: []", "no list called 'models'"),
        ("models: [{family: x, size: 7b}]", "model 0: thresholds missing"),
        ("models: [{family: x, size: 7b, startlayer: 1, thresholds: {}}]", "Did you mean 'start_layer'"),
        ("models: [{family: x, size: 7b, thresholds: {mlvu: 0.5}}]", "must be \\[spatial, temporal\\]"),
    ],
)
def test_malformed_preset_files(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        resolve_preset(str(path), family="llava_video", size="7b", task="mlvu")


def test_missing_preset_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        resolve_preset(str(tmp_path / "none.yaml"), family="llava_video", size="7b", task="mlvu")


def test_presets_of_frames_have_no_thresholds():
    with pytest.raises(ValueError, match="preset='field-32' has frames and no thresholds: give budget or method"):
        resolve_preset("field-32", family="llava_video", size="7b", task="videomme")

"""The visualize command on a small video: every file it writes, with a model and without."""

import numpy as np
import pytest
import torch
import typer
from method_settings import NAMES, method
from PIL import Image
from typer.testing import CliRunner

from sttm_lmms.families import family_of
from sttm_lmms.report.page import Setting
from sttm_lmms.report.pictures import TokenMap
from sttm_lmms.report.visualize import (
    Film,
    make_config,
    merge_in_model,
    parse_settings,
    pixel_features,
    visualize,
    write_pictures,
)
from sttm_lmms.testing.tiny import build_tiny_checkpoint, tiny_model
from sttm_lmms.video import Video, read_frames, write_video

app = typer.Typer()
app.command()(visualize)
THRESHOLDS = "spatial_threshold=0.8,temporal_threshold=0.6"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def frames():
    """A square that moves over a gradient: 6 frames."""
    y, x = np.mgrid[0:96, 0:128]
    still = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    moving = np.repeat(still[None], 6, axis=0)
    for n in range(6):
        moving[n, 20:50, 15 * n : 15 * n + 30] = (250, 240, 30)
    return moving


@pytest.fixture(scope="module")
def video(frames, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "square.mp4", frames, fps=2)


def clip_of(frames):
    return Video(frames, [n / 2 for n in range(6)], list(range(6)), 2.0, 3.0, "square.mp4", 2.0)


def test_pixels_preview(video, tmp_path):
    result = invoke(video, "--pixels", "--out", tmp_path, "--setting", THRESHOLDS, "--fps", 2)
    assert result.exit_code == 0, result.output
    names = ["film-thresholds-0.8-0.6.gif", "index.html", "sheet-thresholds-0.8-0.6.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert all(f"wrote {tmp_path / name}" in result.stdout for name in names)
    assert "A preview without a model" in (tmp_path / "index.html").read_text()
    with Image.open(tmp_path / names[0]) as gif:
        assert gif.n_frames == 6


def test_mp4(video, tmp_path):
    result = invoke(video, "--pixels", "--out", tmp_path, "--setting", THRESHOLDS, "--fps", 2, "--film", "mp4")
    assert result.exit_code == 0, result.output
    assert len(read_frames(tmp_path / "film-thresholds-0.8-0.6.mp4", range(6)).frames) == 6


@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl"])
def test_with_a_model(video, tmp_path, family):
    checkpoint = build_tiny_checkpoint(tmp_path / family, family)
    out = tmp_path / "out"
    result = invoke(video, "--model", checkpoint, "--out", out, "--setting", THRESHOLDS, "--fps", 2, "--film", "none")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == ["index.html", "sheet-thresholds-0.8-0.6.png"]
    assert "A preview without a model" not in (out / "index.html").read_text()


def test_the_map_is_that_of_the_models_own_reduction(frames):
    model, processor = tiny_model("llava_onevision")
    features = family_of(model).vision_features(model, processor, clip_of(frames))
    none = merge_in_model(
        model,
        processor,
        features,
        make_config("sttm", parse_settings("spatial_threshold=2,temporal_threshold=0,root_level=9")),
    )
    some = merge_in_model(
        model, processor, features, make_config("sttm", parse_settings("spatial_threshold=-1,temporal_threshold=0"))
    )
    assert none.grid == some.grid
    assert none.grid[0] == 6
    assert none.budget == 1
    assert some.budget < 1


@pytest.fixture(scope="module")
def seen(frames):
    """A small model and its features of the video."""
    model, processor = tiny_model("llava_video")
    return model, processor, family_of(model).vision_features(model, processor, clip_of(frames))


@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.base.BudgetWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_be_drawn_with_a_model(seen, frames, tmp_path, name):
    merged = merge_in_model(*seen, method(name), "What moves?")
    assert merged.grid == (6, 7, 7)
    assert len(merged) < 6 * 49 or name == "streaming_llm"
    setting = Setting(name, TokenMap.of(merged), merged.info)
    files = list(write_pictures(frames, [setting], tmp_path, name, film=Film.none))
    assert all(file.is_file() for file in files)
    assert len(files) == 2


def test_what_a_method_that_reads_attention_keeps_depends_on_the_question(seen):
    first, same, other = (
        merge_in_model(*seen, method("fastv"), text).source_map for text in ("What moves?", "What moves?", "Why? 123")
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_drawn_from_pixels_or_refused(video, tmp_path, name):
    options = ("--pixels", "--method", name, "--setting", "budget=0.5", "--film", "none")
    result = invoke(video, *options, "--out", tmp_path)
    if method(name).reads == "attention" or name == "streaming_llm":
        assert result.exit_code == 1
        assert f"method={name} needs a model (--model)" in str(result.exception)
        return
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sheet-budget-0.5.png").is_file()


def test_pixel_features_are_centred(frames):
    features = pixel_features(frames, side=7)
    assert features.shape == (6, 7, 7, 48)
    assert features.mean().abs() < 1e-5


def test_a_model_or_pixels(video, tmp_path):
    for arguments in ([], ["--pixels", "--model", "x"]):
        result = invoke(video, "--out", tmp_path, *arguments)
        assert isinstance(result.exception, ValueError)
        assert "either --model" in str(result.exception)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget", "setting 'budget' has no value; write budget=value"),
        ("bugdet=0.5", "unknown setting of sttm 'bugdet'. Did you mean 'budget'"),
        ("budget=7", r"budget=7 is out of range"),
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(ValueError, match=message):
        make_config("sttm", parse_settings(text))

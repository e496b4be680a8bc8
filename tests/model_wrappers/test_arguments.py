"""``--model_args``: what is taken, and how everything else is refused."""

import re

import pytest

from sttm_lmms import STTMConfig
from sttm_lmms.model_wrappers.arguments import parse_arguments
from sttm_lmms.model_wrappers.settings import task_settings

MINIMAL = {"pretrained": "some/model", "budget": 0.5}


def test_values_are_read_by_type():
    given = {
        **MINIMAL,
        "start_layer": "3",
        "per_head": "True",
        "fps": 2,
        "max_frames": 64.0,
        "reproduce": "false",
        "newline": "no_token",
        "features": "some/folder",
    }
    arguments = parse_arguments(given)
    assert arguments.method_settings == {"budget": 0.5, "start_layer": 3, "per_head": True}
    assert (arguments.fps, arguments.max_frames, arguments.reproduce) == (2.0, 64, False)
    assert isinstance(arguments.fps, float)
    assert isinstance(arguments.max_frames, int)
    assert arguments.features.name == "folder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgt": 0.5}, "unknown argument 'budgt'. Did you mean 'budget'?"),
        ({"method": "sttn"}, "unknown method 'sttn'. Did you mean 'sttm'?"),
        ({"on_error": "skipp"}, "unknown on_error 'skipp'. Did you mean 'skip'? Known: raise, skip"),
        ({"dtype": "fp16"}, "Known: auto, bfloat16, float16, float32"),
        ({"reuse": "kv"}, "Known: features, none, prefix"),
        ({"attn_implementation": "flash_attn"}, "Did you mean 'flash_attention_2'"),
        ({"max_frames": "many"}, "max_frames='many' is not valid; it must be an integer"),
        ({"max_frames": 1.5}, "max_frames=1.5 is not valid; it must be an integer"),
        ({"batch_size": "auto"}, "batch_size='auto' is not valid; it must be an integer"),
        ({"batch_size": 0}, "batch_size=0 is not valid; it must be an integer >= 1"),
        ({"budget": True}, "budget=True is not valid; it must be a number"),
        ({"reproduce": 1}, "reproduce=1 is not valid; it must be True or False"),
        ({"pretrained": ""}, "pretrained is missing"),
        ({"method": "none"}, "budget=0.5 is no setting of method=none"),
        ({"preset": "paper-50"}, "preset='paper-50' sets the thresholds: leave out budget"),
        ({"preset": "field-32", "video": "official"}, "preset='field-32' is video='frames-32': leave out video"),
        ({"video": "none"}, "video='none' leaves nothing to reduce: give method=none beside it"),
        ({"phase": 0.5, "features": "folder"}, "phase=0.5 takes other frames than those whose features are stored"),
        ({"preset": "field-128"}, "preset='field-128' sets the thresholds: leave out budget"),
        ({"method": "none", "preset": "paper-50", "budget": None}, "budget=None is no setting of method=none"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments({**MINIMAL, **change})


def test_sttm_must_be_told_how_much_to_merge():
    with pytest.raises(ValueError, match=r"give budget .* or spatial_threshold and temporal_threshold, or preset"):
        parse_arguments({"pretrained": "some/model"})


def test_an_argument_of_another_family_is_refused():
    with pytest.raises(ValueError, match="max_pixels=100 has no meaning for this model family"):
        parse_arguments({**MINIMAL, "max_pixels": 100}, refused=("max_pixels",))


def test_one_threshold_alone_is_refused():
    arguments = parse_arguments({"pretrained": "some/model", "spatial_threshold": 0.8})
    with pytest.raises(ValueError, match="give both spatial_threshold and temporal_threshold"):
        task_settings(arguments, "llava_video", "vnbench")


@pytest.mark.parametrize("family", ["llava_video", "llava_onevision", "qwen2_vl"])
def test_our_tasks_and_presets_sample_as_published(family):
    def sampling(task, **given):
        arguments = parse_arguments({"pretrained": "some/model-7b", **given})
        return task_settings(arguments, family, task).video.sampling

    none = {"method": "none"}
    assert [sampling(task, **none) for task in ("vnbench", "sttm_videomme", "sttm_mlvu")] == ["uniform_fps"] * 3
    assert [sampling(task, **none) for task in ("videomme", "mlvu_dev", "mmmu_val")] == ["model"] * 3
    assert sampling("videomme", preset="paper-50") == "uniform_fps"
    assert sampling("sttm_videomme", sampling="model", **none) == "model"


def test_frames_follow_the_task_unless_they_are_given():
    arguments = parse_arguments({"pretrained": "some/model", "method": "none"})
    assert task_settings(arguments, "llava_video", "vnbench").video.max_frames == 180
    assert task_settings(arguments, "qwen2_vl", "videomme").video.fps == 2.0
    arguments = parse_arguments({"pretrained": "some/model", "method": "none", "max_frames": 8})
    assert task_settings(arguments, "llava_video", "vnbench").video.max_frames == 8


def test_a_preset_is_resolved_for_each_task():
    arguments = parse_arguments(
        {"pretrained": "lmms-lab/LLaVA-Video-7B-Qwen2", "preset": "paper-50", "odd_edge": "masked"}
    )
    config = task_settings(arguments, "llava_video", "vnbench").config
    assert config == STTMConfig(0.85, 0.65, odd_edge="masked", decode_positions="reference")
    assert task_settings(arguments, "llava_video", "egoschema_subset").config.temporal_threshold == 0.55


@pytest.mark.parametrize("given", [{"method": "cluster", "budget": 0.1}, {"method": "none"}, {"budget": 0.3}])
def test_a_preset_of_frames_goes_with_every_method(given):
    arguments = parse_arguments({"pretrained": "some/model", "preset": "field-32", **given})
    settings = task_settings(arguments, "llava_onevision", "mvbench_action_count")
    assert (settings.video.max_frames, settings.video.sampling) == (32, "model")
    assert (
        settings.video
        == task_settings(
            parse_arguments({"pretrained": "some/model", "video": "frames-32", **given}), "llava_onevision", "lvbench"
        ).video
    )
    assert getattr(settings.config, "budget", None) == given.get("budget")

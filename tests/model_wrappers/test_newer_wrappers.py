"""The wrappers of Qwen2.5-VL and all later families: answers, settings, and no silent no-op."""

from __future__ import annotations

import pytest
from PIL import Image
from test_wrapper import QUESTIONS, ask, texts

from sttm_lmms.errors import CheckpointError, NothingReducedError
from sttm_lmms.model_wrappers.arguments import parse_arguments
from sttm_lmms.model_wrappers.models import (
    Glm4v,
    InternVL,
    Qwen3VL,
    Qwen25VL,
    Qwen35,
    SimpleGlm4v,
    SimpleInternVL,
    SimpleQwen3VL,
    SimpleQwen25VL,
    SimpleQwen35,
    SimpleSmolVLM,
    SmolVLM,
)
from sttm_lmms.model_wrappers.settings import task_settings
from sttm_lmms.testing.tiny import build_tiny_checkpoint

WRAPPERS = {
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_5": Qwen35,
    "glm4v": Glm4v,
    "internvl": InternVL,
    "smolvlm": SmolVLM,
}
SIMPLE = {
    "qwen2_5_vl": SimpleQwen25VL,
    "qwen3_vl": SimpleQwen3VL,
    "qwen3_5": SimpleQwen35,
    "glm4v": SimpleGlm4v,
    "internvl": SimpleInternVL,
    "smolvlm": SimpleSmolVLM,
}
families = pytest.mark.parametrize("family", WRAPPERS)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    root = tmp_path_factory.mktemp("newer")
    return {family: build_tiny_checkpoint(root / family, family) for family in WRAPPERS}


@pytest.fixture
def build(newer):
    def make(family, classes=WRAPPERS, **arguments):
        size = {} if family in ("internvl", "smolvlm") else {"max_pixels": 160 * 160}
        settings = {"max_frames": 4, "budget": 0.5, "root_level": 0, **size, **arguments}
        settings = {name: value for name, value in settings.items() if value is not None}
        return classes[family](pretrained=str(newer[family]), device="cpu", **settings)

    return make


@pytest.fixture
def videos(data):
    return sorted((data / "vnbench" / "videos").iterdir())


@families
def test_answers_do_not_depend_on_what_is_shared(family, build, videos):
    documents = [(video, question) for question in QUESTIONS for video in videos]
    wrapper = build(family)
    results = wrapper.generate_until(ask(wrapper, documents))
    found = texts(results)
    records = [result.token_counts.to_dict() for result in results]
    assert all(record["reduced"] for record in records)
    assert all(0 < record["kept_tokens"] < record["visual_tokens"] for record in records)
    alone = build(family, reuse="none")
    assert found == texts(alone.generate_until(ask(alone, documents)))
    batched = build(family, batch_size=3)
    assert found == texts(batched.generate_until(ask(batched, documents)))
    wrapper.clean()


@families
def test_several_videos_and_images_in_one_prompt(family, build, videos, tmp_path):
    pictures = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for picture in pictures:
        Image.new("RGB", (48, 64), picture.stem).save(picture)

    def messages(document):
        seen = [{"type": "image", "url": str(pictures[0])}, {"type": "video", "url": str(videos[0])}]
        more = [{"type": "text", "text": "and"}, {"type": "image", "url": str(pictures[1])}]
        last = [{"type": "video", "url": str(videos[1])}, {"type": "text", "text": document[1]}]
        return [{"role": "user", "content": [*seen, *more, *last]}]

    found = []
    for reuse in ("prefix", "none"):
        wrapper = build(family, reuse=reuse)
        requests = ask(wrapper, [(videos[0], question) for question in QUESTIONS])
        for request in requests:
            request.arguments = (request.args[0], messages, *request.args[2:])
        results = wrapper.generate_until(requests)
        found.append(texts(results))
        assert all(result.token_counts.to_dict()["kept_tokens"] > 0 for result in results)
        assert all(result.token_counts.to_dict()["reduced"] for result in results)
    assert found[0] == found[1]


# SmolVLM's processor takes a template of its own where there is a video.
@pytest.mark.parametrize("family", [family for family in WRAPPERS if family != "smolvlm"])
def test_a_prompt_without_video_markers_fails(family, build, videos):
    wrapper = build(family)
    wrapper.processor.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match="holds 0 of the placeholders"):
        list(wrapper.generate_until(ask(wrapper, [(videos[0], "Why?")])))


@families
def test_a_run_that_reduces_nothing_fails(family, build, videos):
    wrapper = build(family, budget=None, root_level=None, spatial_threshold=2.0, temporal_threshold=0.0)
    list(wrapper.generate_until(ask(wrapper, [(videos[0], "Why?")])))
    with pytest.raises(NothingReducedError, match="none of 1 answers had fewer visual tokens"):
        wrapper.clean()


@families
def test_the_simple_wrapper_scores(family, build):
    assert SIMPLE[family].is_simple
    assert SIMPLE[family].family == family == build(family, SIMPLE).family


def test_start_layer_is_the_family_s_unless_given():
    for family, layer in (("qwen2_5_vl", 2), ("qwen3_vl", 3), ("qwen3_5", 3), ("internvl", 2)):
        arguments = parse_arguments({"pretrained": "x", "budget": 0.5})
        assert task_settings(arguments, family, "videomme").config.start_layer == layer
        given = parse_arguments({"pretrained": "x", "budget": 0.5, "start_layer": 1})
        assert task_settings(given, family, "videomme").config.start_layer == 1
    fastv = parse_arguments({"pretrained": "x", "method": "fastv", "budget": 0.5})
    assert task_settings(fastv, "qwen3_5", "videomme").config.layer == 4


def test_the_makers_settings_by_name():
    arguments = parse_arguments({"pretrained": "x", "method": "none", "video": "official", "fps": 1})
    qwen = task_settings(arguments, "qwen3_vl", "videomme").video
    assert (qwen.max_frames, qwen.fps, qwen.min_pixels, qwen.max_pixels) == (768, 1, 128 * 1024, 768 * 1024)
    assert task_settings(arguments, "internvl", "videomme").video.max_frames == 32
    with pytest.raises(ValueError, match="video='official' has nothing for llava_video"):
        task_settings(arguments, "llava_video", "videomme")
    with pytest.raises(ValueError, match="preset='paper-50' holds the frames"):
        parse_arguments({"pretrained": "x", "preset": "paper-50", "video": "official"})


def test_a_number_of_frames_by_name():
    for frames, budget in ((16, None), (32, 0.5), (64, 0.25), (160, 0.1)):
        how = {"method": "none"} if budget is None else {"budget": budget}
        arguments = parse_arguments({"pretrained": "x", "video": f"frames-{frames}", **how})
        for family in ("llava_video", "qwen3_vl", "internvl"):
            video = task_settings(arguments, family, "vnbench").video
            assert (video.max_frames, video.fps) == (frames, 1000.0)
    arguments = parse_arguments({"pretrained": "x", "method": "none", "video": "frames"})
    with pytest.raises(ValueError, match=r"unknown video 'frames'.*frames-16"):
        task_settings(arguments, "qwen3_vl", "vnbench")


@families
def test_a_checkpoint_of_another_family_is_refused(family, newer):
    other = next(name for name in WRAPPERS if name != family)
    with pytest.raises(CheckpointError, match=f"is a {other} checkpoint: use --model sttm_{other}"):
        WRAPPERS[family](pretrained=str(newer[other]), budget=0.5, device="cpu")

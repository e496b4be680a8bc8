"""What is remembered is what was given: a video is known by its content, not by its name or its
place in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import moving_squares
from PIL import Image

from sttm_lmms import STTMConfig, encode_video
from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.runtime.identity import content_key
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoSettings, write_video
from sttm_lmms.video.source_file import file_record

CONFIG = STTMConfig(budget=0.3)
VIDEO = VideoSettings(max_frames=4, fps=1.0)


def clip(seed: int) -> np.ndarray:
    return moving_squares(seed, 4)


def request(source, text: str = "What moves?", **changes) -> Request:
    content = [{"type": "video", "video": source}, {"type": "text", "text": text}]
    return Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=4), **changes)


class Buffers:
    """Sources that live at one place: a buffer that is filled again, a file that is written
    over."""

    def __init__(self, folder: Path) -> None:
        self.array, self.tensor = clip(0), torch.from_numpy(clip(0))
        self.images = [Image.fromarray(frame) for frame in clip(0)]
        self.path = folder / "upload.mp4"

    def refill_array(self, seed):
        self.array[:] = clip(seed)
        return self.array

    def refill_tensor(self, seed):
        return self.tensor.copy_(torch.from_numpy(clip(seed)))

    def refill_list(self, seed):
        self.array[:] = clip(seed)
        return list(self.array)

    def refill_images(self, seed):
        for image, frame in zip(self.images, clip(seed), strict=True):
            image.paste(Image.fromarray(frame))
        return self.images

    def overwrite(self, seed):
        write_video(self.path, clip(seed), 1.0)
        return self.path

    def overwrite_str(self, seed):
        return str(self.overwrite(seed))

    def overwrite_pictures(self, seed):
        for number, frame in enumerate(clip(seed)):
            Image.fromarray(frame).save(self.path.parent / f"{number}.png")
        return self.path.parent

    def overwrite_list(self, seed):
        return sorted(self.overwrite_pictures(seed).glob("*.png"))

    def overwrite_animation(self, seed):
        first, *others = (Image.fromarray(frame) for frame in clip(seed))
        first.save(self.path.with_suffix(".gif"), save_all=True, append_images=others, duration=1000)
        return self.path.with_suffix(".gif")


SOURCES = {
    "array": lambda buffers, seed: clip(seed),
    "tensor": lambda buffers, seed: torch.from_numpy(clip(seed)),
    "channels first": lambda buffers, seed: torch.from_numpy(clip(seed)).permute(0, 3, 1, 2),
    "window of a stream": lambda buffers, seed: np.concatenate([clip(seed), clip(seed)])[::2],
    "list of arrays": lambda buffers, seed: list(clip(seed)),
    "list of images": lambda buffers, seed: [Image.fromarray(frame) for frame in clip(seed)],
    "refilled array": Buffers.refill_array,
    "refilled tensor": Buffers.refill_tensor,
    "list over a refilled array": Buffers.refill_list,
    "refilled images": Buffers.refill_images,
    "overwritten path": Buffers.overwrite,
    "overwritten str": Buffers.overwrite_str,
    "folder of overwritten pictures": Buffers.overwrite_pictures,
    "list of overwritten pictures": Buffers.overwrite_list,
    "overwritten animation": Buffers.overwrite_animation,
}


SEEDS = range(3)


@pytest.fixture(scope="module")
def fresh(tiny, tmp_path_factory):
    """``fresh(form)``: the answer to each seed's clip by an engine that has seen nothing else.
    Forms that lose nothing show the same clip."""
    known: dict[str, list[str]] = {}

    def answers(form: str) -> list[str]:
        shown = form if "path" in form or "str" in form or "animation" in form else "array"
        if shown not in known:
            buffers = Buffers(tmp_path_factory.mktemp("fresh"))
            engines = [Engine(*tiny("llava_video"), CONFIG, video=VIDEO) for _ in SEEDS]
            known[shown] = [
                engine.generate([request(SOURCES[shown](buffers, seed))])[0].text
                for seed, engine in zip(SEEDS, engines, strict=True)
            ]
        return known[shown]

    return answers


@pytest.mark.parametrize("form", SOURCES)
def test_every_question_is_answered_about_the_video_that_was_given(tiny, tmp_path, fresh, form):
    """Sources live no longer than their call, so that the next one may get their place in
    memory."""
    buffers, engine = Buffers(tmp_path), Engine(*tiny("llava_video"), CONFIG, video=VIDEO)
    found = [engine.generate([request(SOURCES[form](buffers, seed))])[0] for seed in SEEDS]
    assert [answer.text for answer in found] == fresh(form)
    assert not any(answer.reused for answer in found)
    assert engine.counters.vision_passes == len(SEEDS)


@pytest.mark.parametrize("form", SOURCES)
def test_the_same_content_is_remembered(tiny, tmp_path, form):
    engine = Engine(*tiny("llava_video"), CONFIG, video=VIDEO)
    source = SOURCES[form](Buffers(tmp_path), 1)
    first, second = (engine.generate([request(source, text)])[0] for text in ("a?", "b?"))
    assert (first.reused, second.reused) == (False, True)
    if "overwritten" not in form:
        again = SOURCES[form](Buffers(tmp_path), 1)
        assert engine.generate([request(again, "c?")])[0].reused


FRAMES = clip(1)
DIFFERENT = {
    "other frames": (FRAMES, clip(2)),
    "one byte": (FRAMES, np.where(np.arange(FRAMES.size).reshape(FRAMES.shape) == 77, FRAMES ^ 1, FRAMES)),
    "other shape": (FRAMES, FRAMES.reshape(2, 2 * 96, 128, 3)),
    "other dtype": (FRAMES, FRAMES.view(np.int8)),
    "fewer frames": (FRAMES, FRAMES[:-1]),
    "frames apart": (list(FRAMES), list(FRAMES[::-1])),
    "bfloat16": (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.float16)),
    "images of two sizes": (Image.new("RGB", (4, 6)), Image.new("RGB", (6, 4))),
    "palettes": tuple(Image.new("P", (2, 2)) for _ in range(2)),
    "objects": (np.array([FRAMES, None], dtype=object),) * 2,
    "what cannot be read": (object(), object()),
    "two paths": ("a.mp4", "b.mp4"),
    "lists of paths": (["a.jpg", "b.jpg"], ["b.jpg", "a.jpg"]),
}
DIFFERENT["palettes"][1].putpalette([9, 9, 9] * 256)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_content_has_different_keys(name):
    one, other = DIFFERENT[name]
    assert content_key(one) != content_key(other)


EQUAL = {
    "a copy": FRAMES.copy(),
    "strides": np.asfortranarray(FRAMES),
    "a view": np.concatenate([FRAMES, FRAMES], axis=2)[:, :, :128],
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_content_has_one_key(name):
    assert content_key(EQUAL[name]) == content_key(FRAMES)
    assert content_key(torch.from_numpy(EQUAL[name])) == content_key(torch.from_numpy(FRAMES))


def test_files_and_folders_are_known_by_what_is_in_them(tmp_path):
    one, folder = tmp_path / "one.bin", tmp_path / "folder"
    folder.mkdir()
    one.write_bytes(b"first")
    (folder / "1.jpg").write_bytes(b"first")
    before = [content_key(source) for source in (one, str(one), one.as_uri(), folder, [one, str(one)])]
    assert len(set(before[:3])) == 1
    dates = one.stat().st_atime_ns, one.stat().st_mtime_ns
    one.write_bytes(b"other")
    os.utime(one, ns=dates)
    (folder / "1.jpg").write_bytes(b"other")
    after = [content_key(source) for source in (one, str(one), one.as_uri(), folder, [one, str(one)])]
    assert not set(before) & set(after)


def test_an_image_file_is_known_without_being_decoded(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "red").save(path)
    with Image.open(path) as image:
        key = content_key(image)
        assert image.tile
    Image.new("RGB", (8, 8), "blue").save(path)
    with Image.open(path) as image:
        assert content_key(image) != key


def test_frames_that_are_overwritten_before_their_turn_are_an_error(tiny):
    """Two requests over one buffer: the engine cannot know what was in it."""
    engine, buffer = Engine(*tiny("llava_video"), CONFIG, video=VIDEO, prefetch=0), clip(0)
    answers = engine.stream([request(clip(3)), request(buffer)])
    next(answers)
    buffer[:] = clip(1)
    (_, answer) = next(answers)
    assert "overwritten before" in answer.error
    engine = Engine(*tiny("llava_video"), CONFIG, video=VIDEO, prefetch=0, on_error="raise")
    answers = engine.stream([request(clip(3)), request(buffer)])
    next(answers)
    buffer[:] = clip(2)
    with pytest.raises(VideoError, match="give the engine a copy"):
        next(answers)


@pytest.mark.parametrize("kind", ["buffer", "file"])
def test_an_encoded_video_stays_what_it_was(tiny, tmp_path, kind):
    buffers, model = Buffers(tmp_path), tiny("llava_video")
    fill = Buffers.refill_array if kind == "buffer" else Buffers.overwrite
    prefix = encode_video(*model, fill(buffers, 1), CONFIG, settings=VIDEO)
    expected = encode_video(*model, fill(buffers, 1), CONFIG, settings=VIDEO).ask("Why?", max_new_tokens=6)
    fill(buffers, 2)
    answer = prefix.answer("Why?", max_new_tokens=6)
    assert (answer.text, answer.reused) == (expected, True)


def test_a_prefix_is_asked_from_several_threads(tiny):
    prefix = encode_video(*tiny("llava_video"), clip(0), CONFIG, settings=VIDEO)
    questions = [f"{number}?" for number in range(4)]
    expected = [prefix.ask(question, max_new_tokens=8) for question in questions]
    found: dict[str, str] = {}

    def ask(question):
        found[question] = prefix.ask(question, max_new_tokens=8)

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(question) for question in questions] == expected


class Stored:
    """A feature store of one video."""

    def __init__(self, features: VisionFeatures) -> None:
        self.features = features

    def load(self, vid: str) -> VisionFeatures:
        return self.features


def test_stored_features_of_another_file_are_refused(tiny, tmp_path):
    model, processor = tiny("llava_video")
    one, other = tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4"
    for seed, path in enumerate((one, other)):
        path.parent.mkdir()
        write_video(path, clip(seed), 1.0)
    family = Engine(model, processor).family
    features = family.vision_features(model, processor, family.read_video(one, VIDEO))
    features.metadata["source"] = file_record(one)
    engine = Engine(model, processor, CONFIG, video=VIDEO, features=Stored(features), on_error="raise")
    assert engine.generate([request(one)])[0].text
    with pytest.raises(FeatureError, match="made from another file"):
        engine.generate([request(other)])
    with pytest.raises(FeatureError, match="no name to find stored features by"):
        engine.generate([request(clip(0))])
    assert engine.generate([request(tmp_path / "gone" / "clip.mp4")])[0].text

"""What the wrappers make of a task's requests: prompts, system instructions, pictures, videos that
are no files."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from argparse import Namespace

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask
from PIL import Image

from sttm_lmms.errors import NothingAnsweredError, STTMError
from sttm_lmms.model_wrappers import WRAPPERS, models
from sttm_lmms.model_wrappers.documents import generation_settings, read_instance, user_turn
from sttm_lmms.model_wrappers.models import LlavaVideo, Qwen2VL, SimpleLlavaVideo
from sttm_lmms.model_wrappers.task_defaults import STOCK_WRAPPERS
from sttm_lmms.runtime import GenerationSettings


class Task(ConfigurableMessagesTask):
    """A task of lmms-eval without a data set: only what makes messages."""

    def __init__(self, visuals, *, entries=None, metadata=None, model_name="sttm_llava_video", **args):
        self._config = Namespace(
            task="t",
            doc_to_messages=None,
            doc_to_visual=visuals,
            doc_to_text=self.text,
            lmms_eval_specific_kwargs=dict(entries) if entries else None,
            model_specific_target_kwargs=None,
            model_specific_generation_kwargs=None,
            metadata=metadata,
            num_fewshot=0,
        )
        self.model_name, self.args, self.prompt, self.features = model_name, Namespace(**args), None, ()
        self._prepare_model_specific_config()

    @staticmethod
    def text(doc, lmms_eval_specific_kwargs=None):
        return (lmms_eval_specific_kwargs or {}).get("pre_prompt", "") + "What moves?"


class Rounds(Task):
    @staticmethod
    def text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
        return [], f"Round {round_idx}?", False, previous_output, previous_round_info


def request(task, doc_id=0, **gen_kwargs):
    arguments = ("", task.doc_to_messages, {"max_new_tokens": 2, **gen_kwargs}, doc_id, "t", "test")
    return Instance("generate_until", arguments, 0, {"task": "t", "doc_id": doc_id, "repeats": 1})


def messages_of(task, doc=0):
    return read_instance(request(task), {"t": {"test": [doc]}}, simple=False).first_turn()


@pytest.fixture
def wrapper(checkpoints):
    def make(cls=LlavaVideo, **arguments):
        family = cls.family
        made = cls(**{"pretrained": str(checkpoints[family]), "device": "cpu", "max_frames": 4, **arguments})
        made.task_dict = {"t": {"test": list(range(200))}}
        return made

    return make


@pytest.fixture
def video(data):
    return min((data / "vnbench" / "videos").iterdir())


# -- how long an answer may be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "given", "tokens"), [(LlavaVideo, {}, 1024), (Qwen2VL, {}, 128), (Qwen2VL, {"max_new_tokens": 7}, 7)]
)
def test_where_the_task_is_silent_an_answer_is_as_long_as_in_lmms_evals_wrapper(cls, given, tokens, wrapper, video):
    model, seen = wrapper(cls, method="none"), []
    stream = model._engine.stream
    model._engine.stream = lambda requests, **more: (seen.extend(requests), stream([], **more))[1]
    task = Task(lambda doc: [str(video)])
    silent = request(task)
    silent.arguments = (*silent.args[:2], given, *silent.args[3:])
    results = model.generate_until([silent])
    with pytest.raises(RuntimeError):  # there is no answer
        results[0]
    assert [one.generation for one in seen] == [GenerationSettings(max_new_tokens=tokens)]


def test_every_family_has_a_wrapper_in_lmms_eval_to_follow():
    from lmms_eval.models import AVAILABLE_CHAT_TEMPLATE_MODELS, AVAILABLE_SIMPLE_MODELS

    families = {getattr(models, name.split(".")[1]).family for name in WRAPPERS.values() if "vllm" not in name}
    assert set(STOCK_WRAPPERS) == families
    # lmms-eval has none for SmolVLM2, whose prompts are those of any model.
    assert [family for family, (wrappers, _) in STOCK_WRAPPERS.items() if not wrappers] == ["smolvlm"]
    for wrappers, _ in STOCK_WRAPPERS.values():
        assert not wrappers or wrappers[0] in {**AVAILABLE_SIMPLE_MODELS, **AVAILABLE_CHAT_TEMPLATE_MODELS}


def test_a_seed_among_the_generation_settings_of_a_task():
    assert generation_settings({"temperature": 1.0, "do_sample": True, "seed": 0}).do_sample


# -- what a task words for a model -------------------------------------------------------------------------------

ENTRIES = {"default": {"pre_prompt": "Default. "}, "llava_vid": {"pre_prompt": "For llava_vid. "}}


@pytest.mark.parametrize(
    ("cls", "entries", "prompt"),
    [
        (LlavaVideo, ENTRIES, "For llava_vid. What moves?"),
        (Qwen2VL, ENTRIES, "Default. What moves?"),
        (LlavaVideo, {**ENTRIES, "sttm_llava_video": {"pre_prompt": "Mine. "}}, "Mine. What moves?"),
    ],
)
def test_a_prompt_for_the_familys_own_wrapper_is_ours_too(cls, entries, prompt, wrapper, video):
    task = Task(lambda doc: [str(video)], entries=entries)
    model, seen = wrapper(cls, method="none"), []
    prepare = model._engine.family.prepare

    def spy(model, processor, messages, features, **more):
        seen.append(messages[-1]["content"][-1]["text"])
        return prepare(model, processor, messages, features, **more)

    model._engine.family.prepare = spy
    list(model.generate_until([request(task)]))
    assert set(seen) == {prompt}


def test_a_system_instruction_reaches_the_model():
    system, user = messages_of(Task(lambda doc: ["v.mp4"], system_instruction="Be brief."))
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert user["role"] == "user"
    assert [message["role"] for message in messages_of(Task(lambda doc: ["v.mp4"]))] == ["user"]
    talk = read_instance(
        request(Rounds(lambda doc: [], system_instruction="Be brief.")), {"t": {"test": [0]}}, simple=False
    )
    messages, over, _, _ = talk.next_turn(1, ["yes"], None)
    assert ([message["role"] for message in messages], over) == (["system", "user"], False)


# -- pictures ----------------------------------------------------------------------------------------------------


def test_images_are_opened_when_their_turn_comes(wrapper):
    made = []

    def visuals(doc):
        made.append(doc)
        return [Image.new("RGB", (64, 64), (doc, 0, 0))]

    task = Task(visuals)
    model = wrapper(Qwen2VL, method="none", min_pixels=784, max_pixels=3136)
    results = model.generate_until([request(task, n) for n in range(50)])
    for answers in (1, 2, 3):
        assert results[answers - 1].token_counts.to_dict()["visual_tokens"] > 0
        assert len(made) == answers + 1  # that it is a task of images was seen at the first one


def test_a_reduction_of_a_task_without_videos_is_refused_before_the_first_answer(wrapper):
    task = Task(lambda doc: [Image.new("RGB", (64, 64))])
    model = wrapper(budget=0.5)
    with pytest.raises(STTMError, match=r"budget=0\.5: task t shows no videos"):
        model.generate_until([request(task, n) for n in range(50)])[0]
    assert model._engine.counters.questions == 0


@pytest.mark.parametrize(("metadata", "kinds"), [(None, ["video"]), ({"task_type": "image"}, ["image"] * 4)])
def test_pictures_of_one_size_are_a_video_unless_the_task_says_otherwise(metadata, kinds):
    pictures = [Image.new("RGB", (32, 24), (n, n, n)) for n in range(4)]
    (message,) = messages_of(Task(lambda doc: pictures, metadata=metadata))
    assert [part["type"] for part in message["content"]] == [*kinds, "text"]


def test_lists_and_folders_among_the_visuals_are_videos(tmp_path):
    pictures = [Image.new("RGB", (32, 24)), Image.new("RGB", (8, 8))]
    (message,) = user_turn([pictures, str(tmp_path), pictures[0]], "Which image?")
    assert [part["type"] for part in message["content"]] == ["video", "video", "image", "text"]
    assert message["content"][0]["video"] == pictures


def test_a_folder_of_pictures_and_an_animated_gif_are_reduced(wrapper, tmp_path):
    pictures = [Image.new("RGB", (64, 48), (60 * n, 0, 0)) for n in range(4)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    gif = tmp_path.with_suffix(".gif")
    pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=100)
    model = wrapper(budget=0.5)
    for visual in (str(tmp_path), pictures, str(gif)):
        task = Task(lambda doc, visual=visual: visual if isinstance(visual, list) else [visual])
        (result,) = model.generate_until([request(task)])
        record = result.token_counts.to_dict()
        assert (record.get("error"), record["kept_tokens"]) == (None, record["visual_tokens"] // 2)


# -- videos elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, video):
    shutil.copy(video, tmp_path / "clip.mp4")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_videos_named_by_a_url(wrapper, server, video, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    model = wrapper(budget=0.5)
    found = []
    for name in (str(video), video.as_uri(), f"{server}/clip.mp4", f"{server}/gone.mp4"):
        (result,) = model.generate_until([request(Task(lambda doc, name=name: [name]))])
        found.append((result.text, result.token_counts.to_dict()))
    texts = [text for text, _ in found]
    assert texts[0] == texts[1] == texts[2]
    assert [bool(record.get("error")) for _, record in found] == [False, False, False, True]
    assert "gone.mp4: cannot be fetched" in found[3][1]["error"]


# -- questions without an answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LlavaVideo, SimpleLlavaVideo])
def test_a_run_in_which_nothing_was_answered_is_no_result(cls, wrapper, tmp_path):
    model = wrapper(cls, budget=0.5)
    if cls is LlavaVideo:
        list(model.generate_until([request(Task(lambda doc: [str(tmp_path / "gone.mp4")]), n) for n in range(2)]))
    else:
        meta = {"task": "t", "doc_id": 0, "repeats": 1}
        arguments = [("Q", text, lambda doc: [str(tmp_path / "gone.mp4")], 0, "t", "test") for text in (" A", " B")]
        results = model.loglikelihood([Instance("loglikelihood", one, n, meta) for n, one in enumerate(arguments)])
        assert [result.text for result in results] == [(float("inf"), False)] * 2
        assert all("gone.mp4" in result.token_counts.to_dict()["error"] for result in results)
    with pytest.raises(NothingAnsweredError, match=r"none of the 2 questions .*gone\.mp4"):
        model.clean()


def test_no_more_questions_together_than_max_batch_size(wrapper):
    model = wrapper(method="none", batch_size=8, max_batch_size=3)
    assert model.batch_size == 3


def test_without_visuals_the_texts_stay():
    from sttm_lmms.model_wrappers.documents import shows_video, without_visuals

    messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Why?"}]}]
    assert without_visuals(messages) == [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    assert shows_video(messages), "the messages given are left as they are"

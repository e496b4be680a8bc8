"""From lmms-eval's requests to chat messages: chat tasks, and tasks that only have visuals and a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.protocol import ChatMessages
from PIL import Image

from sttm_lmms.benchmarks.annotations import video_seconds
from sttm_lmms.errors import STTMError, VideoError
from sttm_lmms.runtime import GenerationSettings
from sttm_lmms.video import is_animated
from sttm_lmms.video.container import open_video

Messages = list[dict[str, Any]]
Turn = tuple[Messages | None, bool, Sequence[str], Any]
"""Messages of a round, whether the conversation is over, the answers so far, and the task's own notes."""


# What tasks of lmms-eval write among their generation settings without meaning ``generate``.
_OF_TASKS = (
    *("until", "stop_sequences", "do_sample", "image_aspect_ratio", "visual_cot", "max_agentic_steps"),
    "skip_special_tokens",
)


# Words of questions about several images, which are not the frames of a video.
_OF_IMAGES = re.compile(r"<image|\b(images?|pictures?|photos?|photographs?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """What a request of lmms-eval asks, whatever its layout.

    Attributes:
        task: name of the task.
        first_turn: makes the messages; it may open files.
        next_turn: makes the messages of a later round from its number, the answers so far and the task's notes.
        gen_kwargs: of the task, with ``--gen_kwargs`` merged in.
        continuation: text to be scored, in loglikelihood requests.
        seconds: about how long the video is, 0 where the task's document does not say.
    """

    task: str
    first_turn: Callable[[], Messages]
    next_turn: Callable[[int, list[str], Any], Turn] | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    continuation: str = ""
    seconds: float = 0.0


def is_padding(instance: Instance) -> bool:
    """True for the repeated requests with which lmms-eval evens out its processes; their answers are thrown away."""
    return bool(instance.metadata.get("__padding_only__"))


def read_instance(instance: Instance, datasets: Mapping[str, Any], *, simple: bool) -> Document:
    """The document behind a request. ``datasets`` is lmms-eval's ``task_dict``: task -> split -> document id."""
    args = instance.args
    if len(args) == 2:  # loglikelihood of a choice without any context
        context, continuation = args
        return Document(instance.task_name, lambda: user_turn([], context), continuation=continuation)
    doc_id, task, split = args[-3:]
    doc = datasets[task][split][doc_id]
    if instance.request_type == "loglikelihood":
        context, continuation, doc_to_visual = args[:3]
        text = continuation(doc) if callable(continuation) else continuation
        return Document(task, lambda: user_turn(doc_to_visual(doc), context), continuation=str(text))
    seconds = video_seconds(doc) if isinstance(doc, Mapping) else 0.0
    if not simple:
        _, doc_to_messages, gen_kwargs = args[:3]
        rounds = _chat_rounds(doc_to_messages, doc)
        return Document(task, lambda: chat_messages(doc_to_messages(doc)), rounds, gen_kwargs, seconds=seconds)
    context, gen_kwargs, doc_to_visual = args[:3]
    several = instance.request_type == "generate_until_multi_round"
    turns = _simple_rounds(args[3], doc) if several else None
    return Document(task, lambda: user_turn(doc_to_visual(doc), context), turns, gen_kwargs, seconds=seconds)


def make_turn(document: Document, make: Callable[[], Any]) -> Any:
    """Call ``make``, with a task's ways to give up on a missing file turned into ``STTMError``."""
    try:
        return make()
    except (OSError, AssertionError, SystemExit) as error:
        raise STTMError(f"task {document.task}: {error}") from error


def user_turn(visuals: Sequence[Any] | None, text: str) -> Messages:
    """One user message from ``doc_to_visual`` and ``doc_to_text``, made by lmms-eval's own rule for chat models."""
    return chat_messages(ConfigurableMessagesTask._build_user_turn(visuals, text))


def generation_settings(gen_kwargs: Mapping[str, Any]) -> GenerationSettings:
    """What a task and ``--gen_kwargs`` ask for.

    As in lmms-eval's own wrappers, a temperature above 0 means sampling and 0 means greedy.

    Raises:
        ValueError: a name that neither ``generate`` nor any task of lmms-eval knows.
    """
    chosen = {name: value for name, value in gen_kwargs.items() if name not in _OF_TASKS and value is not None}
    temperature = chosen.get("temperature")
    do_sample = gen_kwargs.get("do_sample")
    chosen["do_sample"] = temperature != 0 and bool(temperature if do_sample is None else do_sample)
    until = gen_kwargs.get("until") or gen_kwargs.get("stop_sequences") or ()
    chosen["until"] = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    return GenerationSettings.of(**chosen)


def without_effect(gen_kwargs: Mapping[str, Any]) -> list[str]:
    """The settings of sampling that a greedy request holds, such as ``"top_k=20"``; they are ignored."""
    if generation_settings(gen_kwargs).do_sample:
        return []
    neutral = {"do_sample": False, "temperature": 0, "top_p": 1, "top_k": None, "min_p": None, "typical_p": 1}
    return [f"{name}={gen_kwargs[name]}" for name, idle in neutral.items() if gen_kwargs.get(name) not in (None, idle)]


def first_video(messages: Sequence[Mapping[str, Any]]) -> str:
    """File name of the first video, without its folder and suffix; empty if there is none."""
    for message in messages:
        for part in message["content"]:
            if part["type"] == "video" and isinstance(part["video"], (str, Path)):
                return Path(part["video"]).stem
    return ""


def chat_messages(raw: Sequence[Mapping[str, Any]]) -> Messages:
    """A task's messages in the layout of chat templates; images are opened."""
    messages = ChatMessages(messages=list(raw)).to_hf_messages()
    return [{"role": m["role"], "content": [_part(part) for part in _with_frames(m["content"])]} for m in messages]


def _with_frames(content: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """``content`` with the frames of a video, which tasks such as MVBench's return as PIL images, as that video.

    Frames are two or more images of one size in front of a text that does not speak of images, pictures or photos.
    """
    *visuals, last = content or [{"type": ""}]
    images = [part.get("image") for part in visuals]
    if len(images) < 2 or last["type"] != "text" or _OF_IMAGES.search(last["text"]):
        return content
    if not all(isinstance(image, Image.Image) for image in images) or len({image.size for image in images}) > 1:
        return content
    return [{"type": "video", "video": images}, last]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "audio":
        part = {"type": "video", "video": _video_in_disguise(part["audio"])}
    source = part.get(part["type"])
    if isinstance(source, Mapping) or "video_start" in part or "video_end" in part:
        raise STTMError(f"{source}: a section of a video is not supported; cut it into a file of its own")
    if part["type"] == "image" and isinstance(source, (str, Path)):
        if is_animated(source):
            return {"type": "video", "video": source}
        with Image.open(source) as image:
            return {"type": "image", "image": image.convert("RGB")}
    return {"type": part["type"], part["type"]: source}


def _video_in_disguise(source: Any) -> Any:
    """A file that lmms-eval took for audio by its ending (.webm) but that holds a video."""
    refused = "audio is not supported: these models take videos, images and text"
    if not isinstance(source, (str, Path)):
        raise STTMError(refused)
    try:
        container, _ = open_video(source)
    except VideoError as error:
        raise STTMError(f"{refused} ({error})") from error
    container.close()
    return source


def _chat_rounds(doc_to_messages: Callable[..., Any], doc: Any) -> Callable[[int, list[str], Any], Turn]:
    def next_turn(number: int, outputs: list[str], notes: Any) -> Turn:
        turn = doc_to_messages(doc, round_idx=number, previous_output=list(outputs), previous_round_info=notes)
        if not isinstance(turn, tuple):
            return None, True, outputs, notes
        raw, over, outputs, notes = turn
        return (None if over else chat_messages(raw)), over, outputs, notes

    return next_turn


def _simple_rounds(doc_to_text: Callable[..., Any], doc: Any) -> Callable[[int, list[str], Any], Turn]:
    def next_turn(number: int, outputs: list[str], notes: Any) -> Turn:
        turn = doc_to_text(doc, round_idx=number, previous_output=list(outputs), previous_round_info=notes)
        if not isinstance(turn, tuple):
            return None, True, outputs, notes
        visuals, text, over, outputs, notes = turn
        return (None if over else user_turn(visuals, text)), over, outputs, notes

    return next_turn

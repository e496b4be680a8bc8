"""From lmms-eval's requests to chat messages: chat tasks, and tasks that only have visuals and a
text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.protocol import ChatMessages
from PIL import Image

from sttm_lmms.errors import STTMError, VideoError
from sttm_lmms.model_wrappers.task_defaults import generation_settings
from sttm_lmms.video import is_animated
from sttm_lmms.video.container import open_video
from sttm_lmms.video.remote import local_file

__all__ = ["Document", "Messages", "chat_messages", "generation_settings", "read_instance", "user_turn"]

Messages = list[dict[str, Any]]
Turn = tuple[Messages | None, bool, Sequence[str], Any]
"""Messages of a round, whether the conversation is over, the answers so far, and the task's own
notes."""

# Words of questions about several images, which are not the frames of a video.
_OF_IMAGES = re.compile(r"<image|\b(images?|pictures?|photos?|photographs?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """What a request of lmms-eval asks, whatever its layout.

    Attributes:
        task: name of the task.
        doc_id: number of the document within it.
        first_turn: makes the messages; it may open files.
        load: reads the task's own record out of its data set. Records may hold decoded images, so
            none is kept.
        next_turn: makes the messages of a later round from its number, the answers so far and the
            task's notes.
        gen_kwargs: of the task, with ``--gen_kwargs`` merged in.
        continuation: makes the text to be scored, in loglikelihood requests.
        source: lmms-eval's task object; None where the request does not lead to one.
    """

    task: str
    doc_id: int
    first_turn: Callable[[], Messages]
    load: Callable[[], Any] = dict
    next_turn: Callable[[int, list[str], Any], Turn] | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    continuation: Callable[[], str] = str
    source: Any = None


def is_padding(instance: Instance) -> bool:
    """True for the repeated requests with which lmms-eval evens out its processes; their answers
    are thrown away."""
    return bool(instance.metadata.get("__padding_only__"))


def read_instance(instance: Instance, datasets: Mapping[str, Any], *, simple: bool) -> Document:
    """The document behind a request. ``datasets`` is lmms-eval's ``task_dict``: task -> split ->
    document id."""
    args = instance.args
    if len(args) == 2:  # loglikelihood of a choice without any context
        context, text = args
        return Document(
            task=instance.task_name,
            doc_id=instance.doc_id,
            first_turn=lambda: user_turn([], context),
            continuation=lambda: str(text),
        )
    doc_id, task, split = args[-3:]

    def load() -> Any:
        return datasets[task][split][doc_id]

    known = partial(Document, task=task, doc_id=doc_id, load=load)
    if instance.request_type == "loglikelihood":
        context, continuation, doc_to_visual = args[:3]
        return known(
            first_turn=lambda: _with_visuals(doc_to_visual, load(), context),
            continuation=lambda: str(continuation(load()) if callable(continuation) else continuation),
            source=_task_of(doc_to_visual),
        )
    if not simple:
        _, doc_to_messages, gen_kwargs = args[:3]
        return known(
            first_turn=lambda: _first_messages(doc_to_messages, load()),
            next_turn=_rounds(
                doc_to_messages, load, lambda raw: _with_instruction(_task_of(doc_to_messages), chat_messages(raw))
            ),
            gen_kwargs=gen_kwargs,
            source=_task_of(doc_to_messages),
        )
    context, gen_kwargs, doc_to_visual = args[:3]
    several = instance.request_type == "generate_until_multi_round"
    return known(
        first_turn=lambda: _with_visuals(doc_to_visual, load(), context),
        next_turn=_rounds(args[3], load, user_turn) if several else None,
        gen_kwargs=gen_kwargs,
        source=_task_of(doc_to_visual),
    )


def make_turn(document: Document, make: Callable[[], Any]) -> Any:
    """Call ``make``, with a task's ways to give up on a missing file turned into ``STTMError``."""
    try:
        return make()
    except (OSError, AssertionError, SystemExit) as error:
        raise STTMError(f"task {document.task}: {error}") from error


def user_turn(visuals: Sequence[Any] | None, text: str, *, frames: bool | None = None) -> Messages:
    """One user message from ``doc_to_visual`` and ``doc_to_text``, made by lmms-eval's own rule for
    chat models.

    A list among the visuals is a video, given as its frames. ``frames`` as in
    :func:`chat_messages`.
    """
    found = list(visuals or ())
    lists = {n: {"type": "video", "video": list(v)} for n, v in enumerate(found) if isinstance(v, (list, tuple))}
    single = ["" if n in lists else visual for n, visual in enumerate(found)]
    (turn,) = chat_messages(ConfigurableMessagesTask._build_user_turn(single, text), frames=frames)
    if lists:
        turn["content"] = [lists.get(n, part) for n, part in enumerate(turn["content"])]
    return [turn]


def visual_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The videos and images among messages, in order."""
    return [part for message in messages for part in message["content"] if part["type"] != "text"]


def without_visuals(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """The texts alone."""
    return [
        {**message, "content": [part for part in message["content"] if part["type"] == "text"]} for message in messages
    ]


def shows_video(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a video among messages."""
    return any(part["type"] == "video" for part in visual_parts(messages))


def is_light(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether messages hold nothing but texts and the names of video files, so that many of them
    can wait."""
    return all(isinstance(part[part["type"]], (str, Path)) for part in visual_parts(messages))


def first_video(messages: Sequence[Mapping[str, Any]]) -> str:
    """File name of the first video, without its folder and suffix; empty if there is none."""
    paths = (part["video"] for part in visual_parts(messages) if part["type"] == "video")
    return next((Path(path).stem for path in paths if isinstance(path, (str, Path))), "")


def chat_messages(raw: Sequence[Mapping[str, Any]], *, frames: bool | None = None) -> Messages:
    """A task's messages in the layout of chat templates; images are opened.

    Args:
        frames: whether images in front of a text are the frames of one video, as tasks such as
            MVBench's return them. By default at least two in memory, of one size, are, where the
            text does not speak of images, pictures or photos.

    Raises:
        STTMError: a message holds what these models cannot take, or a file that cannot be had.
    """
    messages = ChatMessages(messages=list(raw)).to_hf_messages()
    contents = [_with_frames(message["content"], frames) for message in messages]
    return [
        {"role": message["role"], "content": [_part(part) for part in content]}
        for message, content in zip(messages, contents, strict=True)
    ]


def _with_frames(content: list[dict[str, Any]], frames: bool | None) -> list[dict[str, Any]]:
    *visuals, last = content or [{"type": ""}]
    if len(visuals) < 2 or last["type"] != "text" or any(part["type"] != "image" for part in visuals):
        return content
    images = [part["image"] for part in visuals]
    if frames is None:
        in_memory = [image for image in images if isinstance(image, Image.Image)]
        one_size = len(in_memory) == len(images) and len({image.size for image in in_memory}) == 1
        frames = one_size and not _OF_IMAGES.search(last["text"])
    return [{"type": "video", "video": images}, last] if frames else content


def _task_of(method: Any) -> Any:
    return getattr(method, "__self__", None)


def _first_messages(doc_to_messages: Callable[..., Any], doc: Any) -> Messages:
    task = _task_of(doc_to_messages)
    config = getattr(task, "config", None)
    if config is not None and config.doc_to_messages is None and config.doc_to_visual is not None:
        messages = _with_visuals(task.doc_to_visual, doc, task.doc_to_text(doc))
    else:
        messages = chat_messages(doc_to_messages(doc))
    return _with_instruction(task, messages)


def _with_instruction(task: Any, messages: Messages) -> Messages:
    """``messages`` behind ``--system_instruction``, which lmms-eval itself puts into texts of
    simple requests only."""
    instruction = getattr(getattr(task, "args", None), "system_instruction", None)
    if not instruction or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": instruction}]}, *messages]


def _with_visuals(doc_to_visual: Callable[[Any], Any], doc: Any, text: str) -> Messages:
    metadata = getattr(getattr(_task_of(doc_to_visual), "config", None), "metadata", None)
    kind = metadata.get("task_type") if isinstance(metadata, Mapping) else None  # lmms-eval's own mark
    return user_turn(doc_to_visual(doc), text, frames={"image": False, "video": True}.get(str(kind)))


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    source = part.get(kind)
    if isinstance(source, Mapping) or "video_start" in part or "video_end" in part:
        raise STTMError(f"{source}: a section of a video is not supported; cut it into a file of its own")
    if kind == "audio":
        return {"type": "video", "video": _webm_as_video(source)}
    if kind == "image" and isinstance(source, (str, Path)):
        file = local_file(source)
        if is_animated(file):
            return {"type": "video", "video": source}
        with Image.open(file) as image:
            return {"type": "image", "image": image.convert("RGB")}
    return {"type": kind, kind: source}


def _webm_as_video(source: Any) -> Any:
    """A file that lmms-eval took for audio by its ending (.webm) but that holds a video."""
    refused = "audio is not supported: these models take videos, images and text"
    if not isinstance(source, (str, Path)):
        raise STTMError(refused)
    try:
        container, _ = open_video(local_file(source))
    except VideoError as error:
        raise STTMError(f"{refused} ({error})") from error
    container.close()
    return source


def _rounds(
    ask: Callable[..., Any], load: Callable[[], Any], make_messages: Callable[..., Messages]
) -> Callable[[int, list[str], Any], Turn]:
    """The later rounds of a task's ``doc_to_messages`` or ``doc_to_text``. Both give what to show,
    whether it is over, the answers so far and notes; or no tuple where there is one round only."""

    def next_turn(number: int, outputs: list[str], notes: Any) -> Turn:
        turn = ask(load(), round_idx=number, previous_output=list(outputs), previous_round_info=notes)
        if not isinstance(turn, tuple):
            return None, True, outputs, notes
        *shown, over, outputs, notes = turn
        return None if over else make_messages(*shown), over, outputs, notes

    return next_turn

"""One document of a task as a run would see it, for what looks at a run before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config, simple_parse_args_string

from sttm_lmms.errors import STTMError
from sttm_lmms.model_wrappers.documents import Messages, chat_messages, user_turn

_PLACEHOLDER = "(a question of this task; its data set is not here yet)"


@dataclass(frozen=True)
class TaskPreview:
    """A task, and its first document where that is on this machine.

    Attributes:
        name: of the task.
        generation: its generation settings, with ``--gen_kwargs`` merged in.
        messages: of the first document, or of a placeholder.
        video: the document's video; None if it has none or is a placeholder.
        questions: documents of the task; None if they are not here.
        data_set: hub id of a data set that the run would download; empty if the data are local.
    """

    name: str
    generation: Mapping[str, Any]
    messages: Messages
    video: Path | None = None
    questions: int | None = None
    data_set: str = ""


def preview_task(name: str, include_path: str, gen_kwargs: str = "") -> TaskPreview:
    """Look a task up as ``lmms-eval --tasks NAME --include_path PATH`` does, without downloading
    anything.

    Raises:
        STTMError: lmms-eval has no such task, it is a group, or its local data are not as they
            should be.
    """
    manager = TaskManager("ERROR", include_path=include_path, include_defaults=False)
    if name not in manager.task_index:  # seconds are spent on the thousand files of lmms-eval's own
        manager = TaskManager("ERROR", include_path=include_path)
    index = manager.task_index
    if name not in index:
        close = get_close_matches(name, index, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "is its folder in --include-path?"
        raise STTMError(f"lmms-eval has no task {name!r}; {hint} 'lmms-eval tasks' lists them all")
    if index[name]["type"] in ("group", "tag"):
        raise STTMError(f"{name} is a group of tasks; check one of its tasks, since frames and prompts differ")
    config = load_yaml_config(index[name]["yaml_path"], mode="simple")
    generation = {**(config.get("generation_kwargs") or {}), **simple_parse_args_string(gen_kwargs)}
    source = str(config.get("dataset_path", ""))
    if source not in ("json", "parquet", "csv"):
        return TaskPreview(name, generation, user_turn(["video.mp4"], _PLACEHOLDER), data_set=source)
    return _local(manager, name, generation)


def _local(manager: TaskManager, name: str, generation: Mapping[str, Any]) -> TaskPreview:
    """The first document of a task whose data are files; made by lmms-eval's own task class."""
    task: Any = manager.load_task_or_group([name], task_type="chat")[name]
    docs = task.eval_docs
    messages = chat_messages(task.doc_to_messages(docs[0]))
    videos = [part["video"] for m in messages for part in m["content"] if part["type"] == "video"]
    return TaskPreview(name, generation, messages, Path(videos[0]) if videos else None, len(docs))

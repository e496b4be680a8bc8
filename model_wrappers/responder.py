"""From documents to replies: out of the answer cache where they are known, else by the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from sttm_lmms.benchmarks.annotations import video_seconds
from sttm_lmms.benchmarks.presets import BLIND
from sttm_lmms.errors import STTMError
from sttm_lmms.model_wrappers.answers import AnswerCache, open_cache
from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.documents import (
    Document,
    Messages,
    first_video,
    is_light,
    make_turn,
    shows_video,
    visual_parts,
    without_visuals,
)
from sttm_lmms.model_wrappers.identity import question_identity, run_identity, source_identity, task_identity
from sttm_lmms.model_wrappers.settings import TaskSettings
from sttm_lmms.model_wrappers.task_defaults import STOCK_WRAPPERS, generation_settings
from sttm_lmms.runtime import Answer, Engine, Failure, LogLikelihood, Request
from sttm_lmms.video.features import FeatureStore

Reply = Answer | LogLikelihood
Progress = Callable[[int], Any]
Opened = Mapping[int, Messages | str]
"""Messages of documents by their index; or, where visuals cannot be had, why."""

_LOOKED_AT = 16
"""Documents of a task that are opened to see whether it shows videos."""


class Responder:
    """Replies to documents, each once.

    Args:
        engine: the loaded model.
        arguments: those of the wrapper.
        settings: the reduction and the frames of a task.
        store: stored features that take the place of the videos.
        rank: of this process.
        opened_at_once: documents with images, or with videos that are no files, that are in memory
            at a time.
    """

    def __init__(
        self,
        engine: Engine,
        arguments: WrapperArguments,
        settings: Callable[[str], TaskSettings],
        *,
        store: FeatureStore | None,
        rank: int,
        opened_at_once: int,
    ) -> None:
        self._engine, self._arguments, self._settings, self._store = engine, arguments, settings, store
        self._opened_at_once = opened_at_once
        self._task_identities: dict[str, Any] = {}
        self.cache: AnswerCache | None = open_cache(arguments.cache, rank)
        self.output_tokens = 0
        """Tokens that the model generated; not those of answers in the cache."""

    def stream(
        self, documents: Sequence[Document], progress: Progress = lambda number: None, *, kind: type[Reply] = Answer
    ) -> Iterator[tuple[int, Any, str]]:
        """``(index of the document, reply, name of its video)``, as soon as each is known.

        First the documents whose videos are files, or that show nothing, video by video. Those with
        images in memory follow one by one, each opened when its turn comes.
        """
        ready, waiting = self.open(documents)
        yield from self._reply(documents, ready, progress, kind)
        for start in range(0, len(waiting), self._opened_at_once):
            chunk = waiting[start : start + self._opened_at_once]
            yield from self._reply(documents, {index: self._open(documents[index]) for index in chunk}, progress, kind)

    def open(self, documents: Sequence[Document]) -> tuple[Opened, list[int]]:
        """The documents that can wait with their messages; and the indices of the others.

        That a task has images in memory is known from its first document.
        """
        ready: dict[int, Messages | str] = {}
        waiting: list[int] = []
        tasks_with_images: set[str] = set()
        for index, document in enumerate(documents):
            if document.task not in tasks_with_images:
                messages = self._open(document)
                if isinstance(messages, str) or is_light(messages):
                    ready[index] = messages
                    continue
                tasks_with_images.add(document.task)
            waiting.append(index)
        return ready, waiting

    def shows_videos(self, documents: Sequence[Document]) -> dict[str, bool]:
        """For each task that is to be reduced: whether a few documents spread over it show a video,
        or something that cannot be opened and may be one."""
        tasks: dict[str, list[Document]] = {}
        for document in documents:
            if self._settings(document.task).config is not None:
                tasks.setdefault(document.task, []).append(document)
        found = {}
        for task, members in tasks.items():
            turns = map(self._open, members[:: max(1, len(members) // _LOOKED_AT)])
            found[task] = any(isinstance(turn, str) or shows_video(turn) for turn in turns)
        return found

    def movable_video(self, document: Document, messages: Messages | str) -> tuple[tuple[str, ...] | None, float]:
        """The video files of a document if any process may answer about them, else None; and how
        many seconds its video has."""
        if isinstance(messages, str) or not shows_video(messages):
            return None, 0.0
        doc = document.load()
        seconds = video_seconds(doc) if isinstance(doc, Mapping) else 0.0
        # A known answer is no work, so it would only spoil the balance.
        if self._find(self._key(document, self._request(document, messages), Answer), Answer):
            return None, seconds
        return tuple(str(part["video"]) for part in visual_parts(messages)), seconds

    # -- one document ------------------------------------------------------------------------------

    def _open(self, document: Document) -> Messages | str:
        """Messages of a document; or, if errors are skipped, why its visuals cannot be had."""
        try:
            messages: Messages = make_turn(document, document.first_turn)
            return without_visuals(messages) if self._arguments.video == BLIND else messages
        except STTMError as error:
            if self._arguments.on_error == "raise":
                raise
            return str(error)

    def _request(self, document: Document, messages: Messages) -> Request:
        settings = self._settings(document.task)
        _, max_new_tokens = STOCK_WRAPPERS[self._engine.family.name]
        generation = generation_settings(document.gen_kwargs or {}, max_new_tokens=max_new_tokens)
        return Request(messages, generation, settings.config, settings.video)

    def _reply(
        self, documents: Sequence[Document], opened: Opened, progress: Progress, kind: type[Reply]
    ) -> Iterator[tuple[int, Any, str]]:
        """Replies to what could not be opened, replies out of the cache, then the model's, which
        are kept in it."""
        asked: list[tuple[int, Request, str]] = []
        for index, messages in opened.items():
            if isinstance(messages, str):
                self._engine.failures.append(Failure(documents[index].task, messages, 1))
                progress(1)
                yield index, kind(error=messages), ""
                continue
            request = self._request(documents[index], messages)
            key = self._key(documents[index], request, kind)
            if (known := self._find(key, kind)) is None:
                asked.append((index, request, key))
                continue
            self._engine.replies.append(known)  # so that the run's numbers are those of all its answers
            progress(1)
            yield index, known, first_video(messages)
        for number, reply in self._ask(documents, asked, progress, kind):
            index, request, key = asked[number]
            self.output_tokens += reply.output_tokens
            if key and self.cache is not None:
                self.cache.put(key, reply, task=documents[index].task, doc_id=documents[index].doc_id)
            yield index, reply, first_video(request.messages)

    def _ask(
        self,
        documents: Sequence[Document],
        asked: Sequence[tuple[int, Request, str]],
        progress: Progress,
        kind: type[Reply],
    ) -> Iterator[tuple[int, Any]]:
        if kind is Answer:
            requests = [request for _, request, _ in asked]
            return self._engine.stream(requests, batch_size=self._arguments.effective_batch_size, progress=progress)
        pairs = [(request, documents[index].continuation()) for index, request, _ in asked]
        return self._engine.stream_loglikelihood(pairs, progress=progress)

    # -- answers that are kept ---------------------------------------------------------------------

    @cached_property
    def _run_identity(self) -> dict[str, Any]:
        return run_identity(self._arguments, self._engine.family.name, self._engine.model.dtype)

    def _key(self, document: Document, request: Request, kind: type[Reply]) -> str:
        """The key of a question in the cache; "" where there is no cache or the answer is a matter
        of chance."""
        if self.cache is None or request.generation.do_sample:
            return ""
        if document.task not in self._task_identities:
            self._task_identities[document.task] = task_identity(self._settings(document.task))
        identity = {
            "run": self._run_identity,
            "task": self._task_identities[document.task],
            "question": question_identity(request, continuation=None if kind is Answer else document.continuation()),
        }
        if self._store is not None:
            identity["features"] = source_identity(self._store.path(first_video(request.messages)))
        return AnswerCache.key(identity)

    def _find(self, key: str, kind: type[Reply]) -> Reply | None:
        return self.cache.get(key, kind) if key and self.cache is not None else None

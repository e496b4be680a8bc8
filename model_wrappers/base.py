"""The wrapper that all families share: requests of lmms-eval in, answers with token counts out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from torch import nn
from tqdm import tqdm

from sttm_lmms.benchmarks.annotations import video_seconds
from sttm_lmms.errors import STTMError
from sttm_lmms.families import get_family
from sttm_lmms.families.placement import Placement
from sttm_lmms.launched import end_with_launcher
from sttm_lmms.model_wrappers import screen, sharding
from sttm_lmms.model_wrappers.answers import AnswerCache
from sttm_lmms.model_wrappers.arguments import parse_arguments, refused_arguments
from sttm_lmms.model_wrappers.documents import (
    STOCK_WRAPPERS,
    Document,
    Messages,
    first_video,
    generation_settings,
    is_light,
    is_padding,
    make_turn,
    read_instance,
    shows_video,
    use_prompt_of,
    visual_parts,
    without_effect,
)
from sttm_lmms.model_wrappers.finish import finish_run
from sttm_lmms.model_wrappers.identity import question_identity, run_identity, source_identity, task_identity
from sttm_lmms.model_wrappers.load import explain_out_of_memory, load, make_reproducible, place
from sttm_lmms.model_wrappers.results import AnswerRecord, Results, in_order, to_result
from sttm_lmms.model_wrappers.settings import RunSettings, TaskSettings
from sttm_lmms.provenance import PROVENANCE_KEY, RUN_KEY, collect_provenance
from sttm_lmms.runtime import Answer, Engine, Failure, LogLikelihood, Request
from sttm_lmms.runtime.stored import open_store
from sttm_lmms.video import VideoSettings, available_backends
from sttm_lmms.video.features import FeatureStore

Reply = Answer | LogLikelihood
Progress = Callable[[int], Any]

_LOOKED_AT = 16
"""Documents of a task that are looked at, before a reduction of a task without any video is
refused."""


class STTMWrapper(lmms):
    """A video model with token reduction. Subclasses name the family.

    Raises:
        ValueError: an argument is unknown or has a value it cannot have; before anything is loaded.
        CheckpointError: the checkpoint cannot be read, or is of another family.
    """

    is_simple = False
    family: ClassVar[str]
    opened_at_once: ClassVar[int] = 1
    """Requests with images, or with videos that are no files, that are in memory at a time."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        screen.install()
        end_with_launcher()
        self.run_settings = self.read(values)
        self.arguments, self._family = self.run_settings.arguments, self.run_settings.family
        placement = place(self.arguments)
        if self.arguments.reproduce:
            make_reproducible()
        self.device, self._rank, self._world_size = placement.device, placement.rank, placement.world_size
        self.model, self.processor = self._load(placement)
        self._task_identities: dict[str, Any] = {}
        self._prepared_tasks: set[str] = set()
        self._described: list[dict[str, Any]] = []
        """Records of the answers that describe the run."""
        self._output_tokens = 0
        self._seconds = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunSettings:
        """Arguments, model family and settings, with all that can be refused before anything is
        loaded."""
        return RunSettings(parse_arguments(values, refused=refused_arguments(get_family(cls.family))), cls.family)

    def _load(self, placement: Placement) -> tuple[nn.Module, Any]:
        return load(self.arguments, placement, self._family)

    @cached_property
    def _engine(self) -> Engine:
        """Made at the first request: only then are the tasks known."""
        settings = self.run_settings.default
        return self._make_engine(
            settings.config,
            family=get_family(self._family),
            video=settings.video,
            newline=self.arguments.newline,
            reuse=self.arguments.reuse,
            keep=self.arguments.keep,
            host_cache_gb=self.arguments.host_cache_gb,
            prefetch=self.arguments.prefetch,
            prefetch_workers=self.arguments.prefetch_workers,
            on_error=self.arguments.on_error,
            features=self._store,
        )

    def _make_engine(self, config: Any, **settings: Any) -> Engine:
        return Engine(self.model, self.processor, config, **settings)

    @cached_property
    def _store(self) -> FeatureStore | None:
        if self.arguments.features is None:
            return None
        sampled = {self._settings(task).video for task in self.task_dict}
        if len(sampled) != 1:
            raise ValueError(
                f"features={self.arguments.features} holds one sampling of frames, these tasks have {len(sampled)}: "
                "give max_frames and fps, or run the tasks one by one"
            )
        dtype = str(self.model.dtype).removeprefix("torch.")
        return open_store(
            self.arguments.features,
            self.arguments.pretrained,
            sampled.pop(),
            dtype,
            revision=self.arguments.revision,
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> STTMWrapper:
        """``--model_args`` wins over lmms-eval's own options, which always come along
        (``batch_size`` as 1)."""
        options = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **simple_parse_args_string(arg_string)})

    @property
    def batch_size(self) -> int:
        return min(self.arguments.batch_size, self.arguments.max_batch_size or self.arguments.batch_size)

    # -- what lmms-eval calls ----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> Sequence[GenerationResult]:
        """Answers in the order of the requests, computed as they are taken.

        With several processes each answers about whole videos; all answers are then computed first.
        """
        if sharding.is_enabled():
            return self._sharded_answers(requests)
        return Results(len(requests), self._answers(requests))

    def _answers(self, requests: list[Instance]) -> Iterator[GenerationResult]:
        with self._running("Answering", requests) as (documents, bar):
            self._check_reducible(documents)
            replies = self._stream(documents, bar.update)
            yield from self._in_order(requests, self._results(documents, replies, _first_of_tasks(documents)))

    def _sharded_answers(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers to all ranks' requests, whole videos on each of them."""
        with self._running("Answering", requests) as (documents, bar):
            self._check_reducible(documents, sharded=True)
            local = [instance for instance in requests if not is_padding(instance)]
            opened, _ = self._open(documents)
            keys = sharding.gather(
                [
                    sharding.request_key(instance, *self._moving_video(documents[index], opened.get(index, "")))
                    for index, instance in enumerate(local)
                ]
            )
            mine = sharding.assign(keys)[self.rank]
            templates = {instance.task_name: instance for instance in requests}  # of every task: lmms-eval pads
            asked = []
            for rank, position in mine:
                if rank == self.rank:
                    asked.append(documents[position])
                    continue
                key = keys[rank][position]
                remote = sharding.rebuild_request(templates[key.task], key)
                asked.append(read_instance(remote, self.task_dict, simple=self.is_simple))
            bar.total = len(mine)
            described = sharding.first_per_task(keys)
            positions = {index for index, address in enumerate(mine) if address in described}
            found = dict(self._results(asked, self._stream(asked, bar.update), positions))
            results = {address: found[index] for index, address in enumerate(mine)}
            for others in sharding.gather({at: result for at, result in results.items() if at[0] != self.rank}):
                results |= {at: result for at, result in others.items() if at[0] == self.rank}
            own = ((at[1], result) for at, result in results.items() if at[0] == self.rank)
            return list(self._in_order(requests, own))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request. One round of all requests runs together, then
        the next."""
        with self._running("Answering in rounds", requests) as (documents, bar):
            outputs: list[list[str]] = [[] for _ in documents]
            notes: list[Any] = [None] * len(documents)
            asked, number = dict(enumerate(documents)), 0
            while asked:
                numbers, number = list(asked), number + 1
                for position, answer, _ in self._stream(list(asked.values())):
                    outputs[numbers[position]].append(answer.text)
                following: dict[int, Document] = {}
                for index, document in asked.items():
                    if document.next_turn is None:
                        continue
                    turn, over, so_far, notes[index] = document.next_turn(number, outputs[index], notes[index])
                    outputs[index] = list(so_far)
                    if not over:
                        following[index] = replace(document, first_turn=partial(list, turn or ()))
                bar.update(len(asked) - len(following))
                asked = following
        finished = iter(outputs)
        return [[] if is_padding(instance) else next(finished) for instance in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Mean negative log-likelihood per token of each continuation, and whether greedy decoding
        gives it.

        lmms-eval takes the smallest value for the best choice. A video that cannot be read gives
        infinity for all choices, and the record of each says so. The ``text`` of each result is a
        :class:`Score`.
        """
        with self._running("Scoring", requests) as (documents, bar):
            self._check_reducible(documents)
            replies = self._stream(documents, bar.update, kind=LogLikelihood)
            return list(self._in_order(requests, self._results(documents, replies, _first_of_tasks(documents))))

    def clean(self) -> None:
        """End of a run: totals of all processes into the result file, the certificate checked,
        memory freed.

        lmms-eval calls this once on every process when the last request is answered, by the model
        or from its cache.
        """
        try:
            if self._cache is not None and self._cache.found:
                logger.info("{} answers were there already, in {}", self._cache.found, self._cache.folder)
            reduction, tokens = self.arguments.reduction, self._output_tokens
            totals = finish_run(self._engine, reduction=reduction, output_tokens=tokens, seconds=self._seconds)
            for record in self._described if totals is not None else ():
                record[RUN_KEY] = totals.metrics()  # lmms-eval writes the records after this
        finally:
            del self._engine, self.processor
            super().clean()

    # -- documents to answers ----------------------------------------------------------------------------------

    @contextmanager
    def _running(self, what: str, requests: Sequence[Instance]) -> Iterator[tuple[list[Document], tqdm]]:
        """The documents behind the requests that count, and a progress bar. Time and errors are
        looked after."""
        real = [instance for instance in requests if not is_padding(instance)]
        started = time.perf_counter()
        try:
            with tqdm(total=len(real), desc=what, disable=self.rank != 0) as bar:
                documents = [read_instance(instance, self.task_dict, simple=self.is_simple) for instance in real]
                for document in documents:
                    self._prepare_task(document)
                yield documents, bar
        except Exception as caught:
            error = explain_out_of_memory(caught, self.arguments, list(self.run_settings.tasks.values()), self.device)
            if self.world_size == 1:
                raise error from (None if error is caught else caught)
            # lmms-eval would print the error and end this process as if all were well, while the
            # others wait for it until they time out. A process that fails is what makes the
            # launcher stop them.
            logger.exception("Process {} of {} failed", self.rank, self.world_size)
            screen.print_error(error)
            raise SystemExit(1) from error
        finally:
            self._seconds += time.perf_counter() - started

    def _prepare_task(self, document: Document) -> None:
        """Choose a task's prompt, and say once what is taken for granted about it."""
        if document.task in self._prepared_tasks:
            return
        self._prepared_tasks.add(document.task)
        wrappers, max_new_tokens = STOCK_WRAPPERS[self._family]
        if not self.is_simple and (entry := use_prompt_of(document.source, wrappers)):
            logger.info("{}: prompt as for lmms-eval's own wrapper {}", document.task, entry)
        given = document.gen_kwargs
        if given is None:
            return
        if given.get("max_new_tokens") is None:
            logger.info(
                "{}: at most {} new tokens, as in lmms-eval's own wrapper (the task does not say; --gen_kwargs "
                "max_new_tokens=N does)",
                document.task,
                max_new_tokens,
            )
        if idle := without_effect(given):
            logger.warning(
                "{}: {} without effect, because nothing is sampled (do_sample=True and a temperature above 0 do)",
                document.task,
                ", ".join(idle),
            )

    def _check_reducible(self, documents: Sequence[Document], *, sharded: bool = False) -> None:
        """Refuse a reduction of a task that shows no video, before the first answer.

        Raises:
            STTMError: a few documents spread over the task have none.
        """
        tasks: dict[str, list[Document]] = {}
        for document in documents:
            if self._settings(document.task).config is not None:
                tasks.setdefault(document.task, []).append(document)
        reducible: dict[str, bool] = {}
        for task, found in tasks.items():
            turns = (self._messages(document) for document in found[:: max(1, len(found) // _LOOKED_AT)])
            # What cannot be opened may be a video: such questions are reported as unanswered.
            reducible[task] = any(isinstance(turn, str) or shows_video(turn) for turn in turns)
        for others in sharding.gather(reducible) if sharded else ():
            reducible |= {task: known or reducible.get(task, False) for task, known in others.items()}
        for task, known in reducible.items():
            if not known:
                raise STTMError(
                    f"{self.arguments.reduction}: task {task} shows no videos, so nothing in it can be reduced; run it "
                    "with method=none"
                )

    def _moving_video(self, document: Document, messages: Messages | str) -> tuple[tuple[str, ...] | None, float]:
        """The video files of a document if any rank may answer about them, else None; and how long
        its video is."""
        if isinstance(messages, str) or not shows_video(messages):
            return None, 0.0
        doc = document.load()
        seconds = video_seconds(doc) if isinstance(doc, Mapping) else 0.0
        if self._known(self._key(document, messages), Answer):
            return None, seconds
        return tuple(str(part["video"]) for part in visual_parts(messages)), seconds

    def _messages(self, document: Document) -> Messages | str:
        """Messages of a document; or, if errors are skipped, why its visuals cannot be had."""
        try:
            return make_turn(document, document.first_turn)
        except STTMError as error:
            if self.arguments.on_error == "raise":
                raise
            return str(error)

    def _request(self, document: Document, messages: Messages) -> Request:
        settings = self._settings(document.task)
        generation = generation_settings(document.gen_kwargs or {}, max_new_tokens=STOCK_WRAPPERS[self._family][1])
        return Request(messages, generation, settings.config, settings.video)

    def _stream(
        self, documents: Sequence[Document], progress: Progress = lambda number: None, *, kind: type[Reply] = Answer
    ) -> Iterator[tuple[int, Any, str]]:
        """``(index of the document, reply, name of its video)``.

        First the documents whose videos are files, or that show nothing, video by video. Those with
        images in memory follow one by one, each opened when its turn comes; that a task has such is
        known from its first document.
        """
        ready, waiting = self._open(documents)
        yield from self._ask(documents, ready, progress, kind)
        for start in range(0, len(waiting), self.opened_at_once):
            opened = {index: self._messages(documents[index]) for index in waiting[start : start + self.opened_at_once]}
            yield from self._ask(documents, opened, progress, kind)

    def _open(self, documents: Sequence[Document]) -> tuple[dict[int, Messages | str], list[int]]:
        """Messages of the documents that can wait with them, by index; and the indices of the
        others.

        Of a task with images only the first document is looked at.
        """
        ready: dict[int, Messages | str] = {}
        waiting: list[int] = []
        tasks_with_images: set[str] = set()
        for index, document in enumerate(documents):
            messages = "" if document.task in tasks_with_images else self._messages(document)
            if messages and (isinstance(messages, str) or is_light(messages)):
                ready[index] = messages
            else:
                tasks_with_images.add(document.task)
                waiting.append(index)
        return ready, waiting

    def _lost(self, document: Document, error: str, kind: type[Reply]) -> Reply:
        self._engine.failures.append(Failure(document.task, error, 1))
        return kind(error=error)

    def _ask(
        self, documents: Sequence[Document], opened: Mapping[int, Messages | str], progress: Progress, kind: type[Reply]
    ) -> Iterator[tuple[int, Any, str]]:
        """Replies to what could not be opened, replies out of the cache, then the model's, which
        are kept in it."""
        asked: list[tuple[int, Request, str]] = []
        for index, messages in opened.items():
            if isinstance(messages, str):
                progress(1)
                yield index, self._lost(documents[index], messages, kind), ""
                continue
            key = self._key(documents[index], messages, kind)
            reply = self._known(key, kind)
            if reply is None:
                asked.append((index, self._request(documents[index], messages), key))
                continue
            self._engine.replies.append(reply)  # so that the run's numbers are those of all its answers
            progress(1)
            yield index, reply, first_video(messages)
        requests = [request for _, request, _ in asked]
        replies: Iterator[tuple[int, Any]]
        if kind is Answer:
            replies = self._engine.stream(requests, batch_size=self.batch_size, progress=progress)
        else:
            pairs = [(request, documents[index].continuation()) for index, request, _ in asked]
            replies = self._engine.stream_loglikelihood(pairs, progress=progress)
        for number, reply in replies:
            index, request, key = asked[number]
            self._output_tokens += getattr(reply, "output_tokens", 0)
            if key and self._cache is not None:
                self._cache.put(key, reply, task=documents[index].task, doc_id=documents[index].doc_id)
            yield index, reply, first_video(request.messages)

    # -- answers that are kept ---------------------------------------------------------------------------------

    @cached_property
    def _cache(self) -> AnswerCache | None:
        if self.arguments.cache is None:
            if self.rank == 0 and "--use_cache" in {word.partition("=")[0] for word in sys.argv}:
                logger.warning(
                    "lmms-eval's own response cache tells runs by the words of --model_args: it does not see other "
                    "weights, presets, methods or videos behind the same words. 'sttm-lmms eval --use_cache', or "
                    "cache=FOLDER in --model_args, does"
                )
            return None
        return AnswerCache(self.arguments.cache, self.rank)

    @cached_property
    def _run_identity(self) -> dict[str, Any]:
        return run_identity(self.arguments, self._family, self.model.dtype)

    def _key(self, document: Document, messages: Messages, kind: type[Reply] = Answer) -> str:
        """The key of a question in the cache; "" where there is no cache or the answer is a matter
        of chance."""
        if self._cache is None:
            return ""
        request = self._request(document, messages)
        if request.generation.do_sample:
            return ""
        settings = self._settings(document.task)
        if document.task not in self._task_identities:
            self._task_identities[document.task] = task_identity(settings, _backend(settings.video))
        identity = {
            "run": self._run_identity,
            "task": self._task_identities[document.task],
            "question": question_identity(request, continuation=None if kind is Answer else document.continuation()),
        }
        if self._store is not None:
            identity["features"] = source_identity(self._store.path(first_video(messages)))
        return AnswerCache.key(identity)

    def _known(self, key: str, kind: type[Reply]) -> Reply | None:
        return self._cache.get(key, kind) if key and self._cache is not None else None

    # -- results and their description -------------------------------------------------------------------------

    def _results(
        self, documents: Sequence[Document], replies: Iterable[tuple[int, Any, str]], described: set[int]
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Results of replies; those of the documents ``described`` carry a description of the
        run."""
        for index, reply, video in replies:
            provenance = self._provenance(documents[index].task) if index in described else None
            yield index, to_result(reply, video=video, provenance=provenance)

    def _in_order(
        self, requests: Sequence[Instance], results: Iterable[tuple[int, GenerationResult]]
    ) -> Iterator[GenerationResult]:
        for result in in_order(requests, results):
            counts = result.token_counts
            if isinstance(counts, AnswerRecord) and PROVENANCE_KEY in counts.record:
                self._described.append(counts.record)
            yield result

    def _settings(self, task: str) -> TaskSettings:
        return self.run_settings.of(task)

    def _provenance(self, task: str) -> Any:
        settings = self._settings(task)
        return collect_provenance(
            self.model,
            method=self.arguments.method,
            config=settings.config,
            checkpoint=self.arguments.pretrained,
            family=self._family,
            video=replace(settings.video, backend=_backend(settings.video), sampling=self._sampling(settings.video)),
            newline=get_family(self._family).newline_mode(
                self.model.config, self.arguments.newline, reduced=settings.config is not None
            ),
            reuse=self.arguments.reuse,
        )

    def _sampling(self, video: VideoSettings) -> str:
        """The frame sampling that ran, by its own name."""
        return get_family(self._family).model_sampling if video.sampling == "model" else video.sampling


def _backend(video: VideoSettings) -> str:
    return available_backends()[0] if video.backend == "auto" else video.backend


def _first_of_tasks(documents: Sequence[Document]) -> set[int]:
    """The first document of each task; its answer describes the run."""
    first: dict[str, int] = {}
    for index, document in enumerate(documents):
        first.setdefault(document.task, index)
    return set(first.values())

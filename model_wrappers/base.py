"""What lmms-eval asks of a model, and what it gets: requests in, answers with token counts out.

A request is read into a document (``documents.py``); documents are answered out of the answer cache
or by the engine (``responder.py``), video by video also where several processes share them
(``sharding.py``); replies become results with a record of what they cost (``results.py``). The run
ends with its totals and the check that tokens were reduced (``finish.py``).
"""

from __future__ import annotations

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

from sttm_lmms.errors import STTMError
from sttm_lmms.families import get_family
from sttm_lmms.families.placement import Placement
from sttm_lmms.launched import end_with_launcher
from sttm_lmms.model_wrappers import screen, sharding
from sttm_lmms.model_wrappers.arguments import parse_arguments, refused_arguments
from sttm_lmms.model_wrappers.documents import Document, is_padding, read_instance
from sttm_lmms.model_wrappers.finish import finish_run
from sttm_lmms.model_wrappers.load import explain_out_of_memory, load, make_reproducible, place
from sttm_lmms.model_wrappers.responder import Reply, Responder
from sttm_lmms.model_wrappers.results import Results, in_order, to_result
from sttm_lmms.model_wrappers.settings import RunSettings, TaskSettings
from sttm_lmms.model_wrappers.task_defaults import fill_in
from sttm_lmms.provenance import PROVENANCE_KEY, RUN_KEY, Provenance
from sttm_lmms.runtime import Answer, Engine, LogLikelihood
from sttm_lmms.runtime.stored import open_store
from sttm_lmms.video.features import FeatureStore


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
        self._announced: set[str] = set()
        self._described: list[dict[str, Any]] = []
        """Records of the answers that describe the run."""
        self._seconds = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunSettings:
        """Arguments, model family and settings, with all that can be refused before anything is
        loaded."""
        return RunSettings(parse_arguments(values, refused=refused_arguments(get_family(cls.family))), cls.family)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> STTMWrapper:
        """``--model_args`` wins over lmms-eval's own options, which always come along
        (``batch_size`` as 1)."""
        options = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **simple_parse_args_string(arg_string)})

    @property
    def batch_size(self) -> int:
        return self.arguments.effective_batch_size

    # -- what lmms-eval calls ----------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> Sequence[GenerationResult]:
        """Answers in the order of the requests, computed as they are taken.

        With several processes each answers about whole videos; all answers are then computed first.
        """
        if sharding.is_enabled():
            return self._sharded_answers(requests)
        return Results(len(requests), self._replies("Answering", requests, Answer))

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Mean negative log-likelihood per token of each continuation, and whether greedy decoding
        gives it.

        lmms-eval takes the smallest value for the best choice. A video that cannot be read gives
        infinity for all choices, and the record of each says so. The ``text`` of each result is a
        :class:`~sttm_lmms.model_wrappers.results.Score`.
        """
        return list(self._replies("Scoring", requests, LogLikelihood))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request. One round of all requests runs together, then
        the next."""
        with self._running("Answering in rounds", requests) as (documents, bar):
            outputs: list[list[str]] = [[] for _ in documents]
            notes: list[Any] = [None] * len(documents)  # the task's own, handed back to it as they are
            asked, number = dict(enumerate(documents)), 0
            while asked:
                numbers, number = list(asked), number + 1
                for position, answer, _ in self._responder.stream(list(asked.values())):
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

    def clean(self) -> None:
        """End of a run: totals of all processes into the result file, the certificate checked,
        memory freed.

        lmms-eval calls this once on every process when the last request is answered, by the model
        or from its cache.
        """
        try:
            cache = self._responder.cache
            if cache is not None and cache.found:
                logger.info("{} answers were there already, in {}", cache.found, cache.folder)
            totals = finish_run(
                self._engine,
                reduction=self.arguments.reduction,
                output_tokens=self._responder.output_tokens,
                seconds=self._seconds,
                rank=self.rank,
            )
            if totals is not None:
                for record in self._described:
                    record[RUN_KEY] = totals.metrics()  # lmms-eval writes the records only now
        finally:
            del self._responder, self._engine, self.processor
            super().clean()

    # -- requests to results -----------------------------------------------------------------------

    def _replies(self, what: str, requests: list[Instance], kind: type[Reply]) -> Iterator[GenerationResult]:
        with self._running(what, requests) as (documents, bar):
            self._check_reducible(documents)
            tasks = [document.task for document in documents]
            first = {tasks.index(task) for task in set(tasks)}
            replies = self._responder.stream(documents, bar.update, kind=kind)
            yield from self._handed_over(requests, self._results(documents, replies, first))

    def _sharded_answers(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers to this process' requests, given by the processes that got their videos."""
        with self._running("Answering", requests) as (documents, bar):
            self._check_reducible(documents, everywhere=sharding.gather)
            opened, _ = self._responder.open(documents)
            local = [instance for instance in requests if not is_padding(instance)]
            keys = [
                sharding.request_key(instance, *self._responder.movable_video(document, opened.get(index, "")))
                for index, (instance, document) in enumerate(zip(local, documents, strict=True))
            ]

            def answer(instances: list[Instance], described: set[int]) -> dict[int, GenerationResult]:
                bar.total = len(instances)
                mine = [read_instance(instance, self.task_dict, simple=self.is_simple) for instance in instances]
                return dict(self._results(mine, self._responder.stream(mine, bar.update), described))

            return list(self._handed_over(requests, sharding.exchange(requests, keys, answer, self.rank)))

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
                    if document.task not in self._announced:
                        self._announced.add(document.task)
                        task, source, given = document.task, document.source, document.gen_kwargs
                        fill_in(task, source, given, self._family, simple=self.is_simple)
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

    def _check_reducible(
        self, documents: Sequence[Document], everywhere: Callable[[Any], list[Any]] = lambda mine: [mine]
    ) -> None:
        """Refuse a reduction of a task that shows no video, before the first answer.

        Args:
            everywhere: from what this process knows to what each of them does.

        Raises:
            STTMError: a few documents spread over the task have none.
        """
        shown: dict[str, bool] = {}
        for found in everywhere(self._responder.shows_videos(documents)):
            shown |= {task: known or shown.get(task, False) for task, known in found.items()}
        for task, known in shown.items():
            if not known:
                raise STTMError(
                    f"{self.arguments.reduction}: task {task} shows no videos, so nothing in it can be reduced; run it "
                    "with method=none"
                )

    def _results(
        self, documents: Sequence[Document], replies: Iterable[tuple[int, Any, str]], described: set[int]
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Results of replies; those of the documents ``described`` carry a description of the
        run."""
        for index, reply, video in replies:
            provenance = self._provenance(documents[index].task) if index in described else None
            yield index, to_result(reply, video=video, provenance=provenance)

    def _handed_over(
        self, requests: Sequence[Instance], results: Iterable[tuple[int, GenerationResult]]
    ) -> Iterator[GenerationResult]:
        """Results in the order of the requests; the records that describe the run are kept for its
        totals."""
        for result in in_order(requests, results):
            record = getattr(result.token_counts, "record", {})
            if PROVENANCE_KEY in record:
                self._described.append(record)
            yield result

    # -- what a wrapper is made of -----------------------------------------------------------------

    def _load(self, placement: Placement) -> tuple[nn.Module, Any]:
        return load(self.arguments, placement, self._family)

    @cached_property
    def _responder(self) -> Responder:
        return Responder(
            self._engine,
            self.arguments,
            self._settings,
            store=self._store,
            rank=self.rank,
            opened_at_once=self.opened_at_once,
        )

    @cached_property
    def _engine(self) -> Engine:
        """Made at the first request: only then are the tasks known."""
        arguments, settings = self.arguments, self.run_settings.default
        names = ("newline", "reuse", "keep", "host_cache_gb", "prefetch", "prefetch_workers", "on_error")
        return self._make_engine(
            settings.config,
            family=get_family(self._family),
            video=settings.video,
            features=self._store,
            **{name: getattr(arguments, name) for name in names},
        )

    def _make_engine(self, config: Any, **settings: Any) -> Engine:
        return Engine(self.model, self.processor, config, **settings)

    @cached_property
    def _store(self) -> FeatureStore | None:
        arguments = self.arguments
        if arguments.features is None:
            return None
        sampled = {self._settings(task).video for task in self.task_dict}
        if len(sampled) != 1:
            raise ValueError(
                f"features={arguments.features} holds one sampling of frames, these tasks have {len(sampled)}: "
                "give max_frames and fps, or run the tasks one by one"
            )
        dtype = str(self.model.dtype).removeprefix("torch.")
        return open_store(arguments.features, arguments.pretrained, sampled.pop(), dtype, revision=arguments.revision)

    def _settings(self, task: str) -> TaskSettings:
        return self.run_settings.of(task)

    def _provenance(self, task: str) -> Provenance:
        return self.run_settings.describe(self.model, self._settings(task))

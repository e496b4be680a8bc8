"""The wrapper that all families share: requests of lmms-eval in, answers with token counts out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from torch import nn
from tqdm import tqdm

from sttm_lmms.errors import OutOfMemoryError, STTMError
from sttm_lmms.explain import is_out_of_memory
from sttm_lmms.families import get_family
from sttm_lmms.launched import end_with_launcher
from sttm_lmms.model_wrappers import exchange, screen
from sttm_lmms.model_wrappers.arguments import WrapperArguments, parse_arguments
from sttm_lmms.model_wrappers.documents import (
    Document,
    Messages,
    first_video,
    generation_settings,
    is_padding,
    make_turn,
    read_instance,
    without_effect,
)
from sttm_lmms.model_wrappers.finish import finish_run
from sttm_lmms.model_wrappers.loading import load
from sttm_lmms.model_wrappers.placement import Placement, make_reproducible, place
from sttm_lmms.model_wrappers.results import Results
from sttm_lmms.model_wrappers.rounds import Conversation
from sttm_lmms.model_wrappers.settings import TaskSettings, default_settings, task_settings
from sttm_lmms.provenance import collect_provenance, sample_record
from sttm_lmms.runtime import Answer, Engine, Failure, Request
from sttm_lmms.runtime.memory import Work, ways_out
from sttm_lmms.runtime.stored import open_store
from sttm_lmms.video import VideoSettings, available_backends
from sttm_lmms.video.features import FeatureStore

Progress = Callable[[int], Any]
Turn = tuple[Document, Callable[[], Messages]]
T = TypeVar("T")


@dataclass
class AnswerRecord(TokenCounts):
    """Token counts that carry everything measured about an answer into lmms-eval's sample file."""

    record: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return self.record


class Score(tuple[float, bool]):
    """What a loglikelihood request gets: the loss, and whether the text is what greedy decoding gives.

    lmms-eval 0.7 turns a bare tuple into text, also when its response cache gives one back. So it travels inside of a
    ``GenerationResult``, and calls itself blank, which keeps it out of that cache.
    """

    def strip(self) -> str:
        return ""


class STTMWrapper(lmms):
    """A video model with token reduction. Subclasses name the family and its frame sampling.

    Raises:
        ValueError: an argument is unknown or has a value it cannot have; before anything is loaded.
        CheckpointError: the checkpoint cannot be read, or is of another family.
    """

    is_simple = False
    family: ClassVar[str]
    refused: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        super().__init__()
        screen.install()
        end_with_launcher()
        self.arguments, self._family = self.read(values)
        placement = place(self.arguments)
        if self.arguments.reproduce:
            make_reproducible()
        self.device, self._rank, self._world_size = placement.device, placement.rank, placement.world_size
        self.model, self.processor = self._load(placement)
        self._task_settings: dict[str, TaskSettings] = {}
        self._tasks_warned: set[str] = set()
        self._output_tokens = 0
        self._seconds = 0.0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> tuple[WrapperArguments, str]:
        """The arguments and the name of the model family, with all that can be refused before anything is loaded."""
        arguments = parse_arguments(values, refused=cls.refused)
        default_settings(arguments, cls.family)
        return arguments, cls.family

    def _load(self, placement: Placement) -> tuple[nn.Module, Any]:
        return load(self.arguments, placement, self._family)

    @cached_property
    def _engine(self) -> Engine:
        """Made at the first request: only then are the tasks known."""
        settings = default_settings(self.arguments, self._family)
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
            features=self._store(),
        )

    def _make_engine(self, config: Any, **settings: Any) -> Engine:
        return Engine(self.model, self.processor, config, **settings)

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
        """``--model_args`` wins over lmms-eval's own options, which always come along (``batch_size`` as 1)."""
        options = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **simple_parse_args_string(arg_string)})

    @property
    def batch_size(self) -> int:
        return self.arguments.batch_size

    # What lmms-eval calls.

    def generate_until(self, requests: list[Instance]) -> Sequence[GenerationResult]:
        """Answers in the order of the requests, computed as they are taken.

        With several processes each answers about whole videos; all answers are then computed first.
        """
        if exchange.possible():
            return self._answers_together(requests)
        return Results(len(requests), self._answers_one_by_one(requests))

    def _answers_one_by_one(self, requests: list[Instance]) -> Iterator[GenerationResult]:
        with self._running("Answering", requests) as (documents, bar):
            messages = [self._messages(document, document.first_turn) for document in documents]
            answers = self._stream(documents, messages, bar.update)
            known: dict[int, Answer] = {}
            described: set[str] = set()
            positions = iter(range(len(documents)))
            for request in requests:
                if is_padding(request):
                    yield GenerationResult("")
                    continue
                position = next(positions)
                while position not in known:
                    index, answer = next(answers)
                    known[index] = answer
                task = documents[position].task
                describes = task not in described
                described.add(task)
                yield self._result(documents[position], messages[position], known.pop(position), describes=describes)

    def _answers_together(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers of all processes' requests, whole videos on each of them."""
        with self._running("Answering", requests) as (documents, bar):
            real = [instance for instance in requests if not is_padding(instance)]
            messages = [self._messages(document, document.first_turn) for document in documents]
            known = zip(real, messages, (document.seconds for document in documents), strict=True)
            cards = exchange.gather([exchange.card(*each) for each in known])
            here = exchange.assign(cards)[self.rank]
            like = {instance.task_name: instance for instance in requests}  # of every task: lmms-eval pads with one
            asked: list[Document] = []
            said: list[Messages | None] = []
            for rank, position in here:
                if rank == self.rank:
                    asked.append(documents[position])
                    said.append(messages[position])
                    continue
                item = cards[rank][position]
                guest = read_instance(exchange.borrowed(like[item.task], item), self.task_dict, simple=self.is_simple)
                asked.append(guest)
                said.append(self._messages(guest, guest.first_turn))
            bar.total = len(here)
            answers = dict(self._stream(asked, said, bar.update))
            described = exchange.described(cards)
            found = {
                address: self._result(asked[i], said[i], answers[i], describes=address in described)
                for i, address in enumerate(here)
            }
            guests = {address: result for address, result in found.items() if address[0] != self.rank}
            for others in exchange.gather(guests):
                found |= {address: result for address, result in others.items() if address[0] == self.rank}
            return _with_padding(
                requests, [found[self.rank, position] for position in range(len(real))], GenerationResult("")
            )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request. One round of all requests runs together, then the next."""
        with self._running("Answering in rounds", requests) as (documents, bar):
            conversations = [Conversation.open(document) for document in documents]
            active = conversations
            while active:
                asked = [conversation.document for conversation in active]
                messages = [self._messages(talk.document, talk.turn) for talk in active]
                answers = self._answer(asked, messages)
                still = [talk for talk, answer in zip(active, answers, strict=True) if talk.answer(answer.text)]
                bar.update(len(active) - len(still))
                active = still
        return _with_padding(requests, [conversation.outputs for conversation in conversations], [])

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Mean negative log-likelihood per token of each continuation, and whether greedy decoding gives it.

        lmms-eval takes the smallest value for the best choice. A video that cannot be read gives infinity. The ``text``
        of each result is a :class:`Score`.
        """
        with self._running("Scoring", requests) as (documents, bar):
            messages = [self._messages(document, document.first_turn) for document in documents]
            ready = [index for index, found in enumerate(messages) if found is not None]
            pairs = [(self._request(documents[i], messages[i]), documents[i].continuation) for i in ready]
            scores = [Score((float("inf"), False))] * len(documents)
            for i, found in zip(ready, self._engine.loglikelihood(pairs, progress=bar.update), strict=True):
                if found.error is None:
                    scores[i] = Score((-found.logprob / max(1, found.tokens), found.is_greedy))
        return _with_padding(requests, [GenerationResult(score) for score in scores], GenerationResult(""))

    def clean(self) -> None:
        """End of a run: totals of all processes into the result file, the certificate checked, memory freed.

        lmms-eval calls this once on every process when the last request is answered, by the model or from its cache.
        """
        try:
            finish_run(self._engine, asked=self._asked(), output_tokens=self._output_tokens, seconds=self._seconds)
        finally:
            del self._engine, self.processor
            super().clean()

    # The same for every kind of request.

    @contextmanager
    def _running(self, what: str, requests: Sequence[Instance]) -> Iterator[tuple[list[Document], tqdm]]:
        """The documents behind the requests that count, and a progress bar. Time and errors are looked after."""
        real = [instance for instance in requests if not is_padding(instance)]
        started = time.perf_counter()
        try:
            with tqdm(total=len(real), desc=what, disable=self.rank != 0) as bar:
                yield [read_instance(instance, self.task_dict, simple=self.is_simple) for instance in real], bar
        except Exception as caught:
            error = self._explained(caught)
            if self.world_size == 1:
                raise error from (None if error is caught else caught)
            # lmms-eval would print the error and end this process as if all were well, while the others wait for it
            # until they time out. A process that fails is what makes the launcher stop them.
            logger.exception("Process {} of {} failed", self.rank, self.world_size)
            screen.say(error)
            raise SystemExit(1) from error
        finally:
            self._seconds += time.perf_counter() - started

    def _explained(self, error: Exception) -> Exception:
        """``error``, or what is to be done about it where that depends on the settings."""
        if not is_out_of_memory(error):
            return error
        arguments, settings = self.arguments, list(self._task_settings.values())
        frames = max((known.video.max_frames for known in settings), default=arguments.max_frames)
        reduced = arguments.method != "none"
        work = Work(
            (1, 1, 1),
            kept=0.5 if reduced else 1.0,
            batch_size=arguments.batch_size,
            keep=arguments.keep,
            eager=arguments.attn_implementation == "eager",
        )
        ways = ways_out(work, host_cache_gb=arguments.host_cache_gb, frames=frames)
        return OutOfMemoryError(f"out of memory on {self.device} while answering: lower {' or '.join(ways)}")

    def _messages(self, document: Document, turn: Callable[[], Messages]) -> Messages | None:
        """Messages of a turn; None, and the failure noted, if its visuals cannot be had and errors are skipped."""
        try:
            return make_turn(document, turn)
        except STTMError as error:
            if self.arguments.on_error == "raise":
                raise
            self._engine.failures.append(Failure(document.task, str(error), 1))
            return None

    def _request(self, document: Document, messages: Messages) -> Request:
        settings = self._settings(document.task)
        given = document.gen_kwargs or {}
        if document.task not in self._tasks_warned and (idle := without_effect(given)):
            logger.warning(
                "{}: {} without effect, because nothing is sampled (do_sample=True and a temperature above 0 do)",
                document.task,
                ", ".join(idle),
            )
        self._tasks_warned.add(document.task)
        return Request(messages, generation_settings(given), settings.config, settings.video)

    def _stream(
        self, documents: Sequence[Document], messages: Sequence[Messages | None], progress: Progress | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """``(index of the document, answer)``, video by video."""
        ready = []
        for index, found in enumerate(messages):
            if found is None:
                yield index, Answer(error="its visuals could not be had")
            else:
                ready.append(index)
        requests = [self._request(documents[i], messages[i]) for i in ready]
        for index, answer in self._engine.stream(requests, batch_size=self.batch_size, progress=progress):
            self._output_tokens += answer.output_tokens
            yield ready[index], answer

    def _answer(self, documents: Sequence[Document], messages: Sequence[Messages | None]) -> list[Answer]:
        """One answer for each document, in order."""
        answers = dict(self._stream(documents, messages))
        return [answers[index] for index in range(len(documents))]

    def _result(
        self, document: Document, messages: Messages | None, answer: Answer, *, describes: bool
    ) -> GenerationResult:
        """Text and record of an answer, with a description of the run where the answer is to carry it."""
        provenance = self._provenance(document.task) if describes else None
        record = sample_record(answer, video=first_video(messages or []), reused=answer.reused, provenance=provenance)
        return GenerationResult(answer.text, AnswerRecord(answer.input_tokens, answer.output_tokens, record=record))

    def _settings(self, task: str) -> TaskSettings:
        if task not in self._task_settings:
            self._task_settings[task] = task_settings(self.arguments, self._family, task)
        return self._task_settings[task]

    def _asked(self) -> str | None:
        """The reduction that was asked for, in words; None for the baseline."""
        arguments = self.arguments
        if arguments.method == "none":
            return None
        settings = {**({"preset": arguments.preset} if arguments.preset else {}), **arguments.method_settings}
        return ",".join(f"{name}={value}" for name, value in {"method": arguments.method, **settings}.items())

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


def _with_padding(requests: Sequence[Instance], results: Sequence[T], filler: T) -> list[T]:
    """``results`` of the real requests, and ``filler`` for the padding between them."""
    found = iter(results)
    return [filler if is_padding(instance) else next(found) for instance in requests]

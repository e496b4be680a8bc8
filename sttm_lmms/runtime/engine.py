"""Questions about videos -> answers: group by video, see once, prefill once, ask many times."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import nn

from sttm_lmms.config import check_choice, check_integer
from sttm_lmms.decoder import CACHE
from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families import family_of
from sttm_lmms.families.base import Family
from sttm_lmms.methods import check_method
from sttm_lmms.methods.base import Method
from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.generation import answer_text, continuation_ids, continuation_score, generate_ids
from sttm_lmms.runtime.prefix import Prefix, Prompt, continued, decoder_inputs, prefill_prefix, visual_counts
from sttm_lmms.runtime.recent import RecentPrefixes
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.requests import Answer, Counters, Failure, LogLikelihood, Reply, Request
from sttm_lmms.runtime.sources import Group, SourceReader, Store, resolved, source_key
from sttm_lmms.runtime.summary import check_answers_reduced, summarise
from sttm_lmms.runtime.timing import Phases, Stopwatch, first_pass_end, peak_memory
from sttm_lmms.types import PreparedInput, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings

Reuse = Literal["prefix", "features", "none"]
OnError = Literal["skip", "raise"]
R = TypeVar("R", Answer, LogLikelihood)
Ready = TypeVar("Ready")
Prompts = Iterator[tuple[int, Prompt | str]]
"""Prompts by the number of their request; a text says why there is none."""

logger = logging.getLogger(__name__)


class Engine:
    """A loaded model that answers requests, with or without reduced tokens. Threads may share it.

    Args:
        model, processor: from :func:`sttm_lmms.load_pretrained`.
        config: settings of a reduction method, None for the baseline of the same code path.
        family: the model's family; found by itself if left out.
        video: frame sampling.
        newline: newline mode of the LLaVA family. None is the checkpoint's own for the baseline,
            and ``no_token`` for a reduction (the published setting).
        reuse: ``"prefix"`` shares the KV cache of [text before, video] between the questions of a
            video, ``"features"`` only the vision tower's output, ``"none"`` nothing.
        on_error: ``"skip"`` leaves questions about unreadable videos unanswered and counts them,
            ``"raise"`` stops.
        features: a feature store; no video file is opened then.
        keep: prefixes (and features) kept at a time.
        host_cache_gb: host memory for prefixes that were pushed out, for runs that come back to a
            video.
        prefetch: videos that are decoded and preprocessed ahead, in threads; 0 for none. They wait
            in host memory.
        prefetch_workers: those threads; by default one for each video, and no more than there are
            CPU cores.
        timing: times of the device's work instead of the host's; by events on one CUDA device, so
            that nothing waits.
    """

    reader_class: ClassVar[type[SourceReader]] = SourceReader

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        config: Any = None,
        *,
        family: Family | None = None,
        video: VideoSettings | None = None,
        newline: str | None = None,
        reuse: Reuse = "prefix",
        on_error: OnError = "skip",
        features: Store | None = None,
        keep: int = 1,
        host_cache_gb: float = 0.0,
        prefetch: int = 2,
        prefetch_workers: int | None = None,
        timing: bool = True,
    ) -> None:
        from sttm_lmms.video import VideoSettings  # not above: it loads FFmpeg, which hooks do without

        check_choice("reuse", reuse, get_args(Reuse))
        check_choice("on_error", on_error, get_args(OnError))
        self.model, self.processor = model, processor
        self.config: Method | None = None if config is None else check_method(config)
        self.family = family or family_of(model)
        self.video = video or VideoSettings()
        self.newline, self.reuse, self.on_error, self.timing = newline, reuse, on_error, timing
        self._refused: set[Method] = set()
        if reuse == "prefix" and not self._shares_prefix(self.config):
            self.reuse = "features"
        self._stopwatch = Stopwatch(model, enabled=timing)
        self._reader = self.reader_class(
            model,
            processor,
            self.family,
            self._stopwatch,
            store=features,
            keep=keep,
            prefetch=prefetch,
            workers=prefetch_workers,
        )
        self._prefixes = RecentPrefixes(keep, int(host_cache_gb * 2**30))
        self.replies: list[Reply] = []
        """All answers and scores so far."""
        self._lock = threading.RLock()  # one group at a time: threads share the prefixes and the features

    # -- results -----------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """Decoded videos, vision passes, prefills and questions so far."""
        return self._reader.counters

    @property
    def failures(self) -> list[Failure]:
        """Videos that could not be read so far."""
        return self._reader.failures

    def summary(self) -> RunSummary:
        """The numbers of all answers so far."""
        return summarise([self.replies], self.counters, self.failures, self.config, peak_memory(self.model))

    def check_reduced(self) -> None:
        """Raise :class:`NothingReducedError` if a reduction was asked for and no answer had fewer
        tokens."""
        check_answers_reduced(self.replies, None if self.config is None else f"{self.config.name} ({self.config})")

    # -- questions ---------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 1, progress: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer all requests, in their order; requests about one video run together.

        Args:
            batch_size: questions of one video that run as one batch.
            progress: called with the number of requests that were just answered.

        Raises:
            VideoError, FeatureError: a source could not be read and ``on_error`` is ``"raise"``.
        """
        answers = dict(self.stream(requests, batch_size=batch_size, progress=progress))
        return [answers[index] for index in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], *, batch_size: int = 1, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """As :meth:`generate`, answer by answer as soon as it is known:
        ``(index of the request, answer)``.

        The order is that of the videos' first questions, so a caller that stores answers as they
        come loses no more than the current video's when it is stopped.
        """
        check_integer("batch_size", batch_size, 1)

        def answers(reducer: TokenReducer, prompts: Prompts) -> Iterator[tuple[int, Answer]]:
            batch: dict[int, Prompt] = {}
            for index, prompt in prompts:
                if isinstance(prompt, str):
                    yield index, Answer(error=prompt)
                    continue
                if batch and not prompt.runs_with(next(iter(batch.values()))):
                    yield from self._answer(reducer, batch)
                    batch = {}
                batch[index] = prompt
                if len(batch) == batch_size or prompt.prefix is None or reducer.edits_cache:
                    yield from self._answer(reducer, batch)
                    batch = {}
            if batch:
                yield from self._answer(reducer, batch)

        for group in self._groups(requests):
            yield from self._yield_and_count(self._run(group, answers), progress)

    def loglikelihood(
        self, requests: Sequence[tuple[Request, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[LogLikelihood]:
        """Score a continuation after each request's prompt, in their order."""
        scores = dict(self.stream_loglikelihood(requests, progress=progress))
        return [scores[index] for index in range(len(requests))]

    def stream_loglikelihood(
        self, requests: Sequence[tuple[Request, str]], *, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """As :meth:`loglikelihood`, video by video: ``(index of the request, score)``."""

        def scores(reducer: TokenReducer, prompts: Prompts) -> Iterator[tuple[int, LogLikelihood]]:
            for index, prompt in prompts:
                if isinstance(prompt, str):
                    yield index, LogLikelihood(error=prompt)
                else:
                    yield index, self._score(reducer, prompt, requests[index][1])

        for group in self._groups([request for request, _ in requests]):
            yield from self._yield_and_count(self._run(group, scores), progress)

    def prepare(self, request: Request) -> PreparedInput:
        """The decoder's input for a request, unreduced."""
        request = resolved(request, {}, self.config, self.video)
        return self._prepare(request, self._features(request, Phases(self._stopwatch)))

    # -- groups of requests that show the same visuals ----------------------------------------------------------

    def _groups(self, requests: Sequence[Request]) -> Iterator[Group]:
        """Requests that share visuals and settings, in order of first appearance; the next videos
        are read ahead."""
        groups: dict[Hashable, Group] = {}
        requests = list(requests)  # keeps alive what `known` names by id
        known: dict[int, Hashable] = {}
        for index, given in enumerate(requests):
            request = resolved(given, known, self.config, self.video)
            key = source_key(request), request.config
            groups.setdefault(key if request.sources else ("text", index), []).append((index, request))
        yield from self._reader.ahead(groups.values())

    def _run(
        self, group: Group, ask: Callable[[TokenReducer, Prompts], Iterator[tuple[int, R]]]
    ) -> list[tuple[int, R]]:
        """All replies to a group. A list, because no hooks and no lock may be left while the caller
        is at work."""
        config = group[0][1].config
        with self._lock, TokenReducer(self.model, config, spans=(), timing=self.timing) as reducer:
            return list(ask(reducer, self._prompts(group, partial(self._prompt, reducer))))

    def _yield_and_count(
        self, replies: list[tuple[int, R]], progress: Callable[[int], None] | None
    ) -> Iterator[tuple[int, R]]:
        for index, reply in replies:
            with self._lock:
                self.replies.append(reply)
            if progress:
                progress(1)
            yield index, reply

    def _shares_prefix(self, config: Method | None) -> bool:
        """Whether questions may continue one prefix; warns once if the method cannot share it."""
        if self.reuse != "prefix" or config is None or config.shares_prefix:
            return self.reuse == "prefix"
        if config not in self._refused:
            self._refused.add(config)
            logger.warning("%s depends on the question, so a prefix cannot be shared: reuse=features", config.name)
        return False

    # -- from a request to a prompt -----------------------------------------------------------------------------

    def _prompts(
        self, group: Group, make: Callable[[Request, Sequence[VisionFeatures], Phases], Ready]
    ) -> Iterator[tuple[int, Ready | str]]:
        """What ``make`` makes of each request of a group and its features; or why its visuals, and
        so those of all requests after it, cannot be had."""
        self.counters.questions += len(group)
        for position, (index, request) in enumerate(group):
            phases = Phases(self._stopwatch)
            try:
                features = self._features(request, phases)
            except (VideoError, FeatureError) as error:
                if self.on_error == "raise":
                    raise
                unanswered = group[position:]
                self._reader.fail(error, len(unanswered))
                logger.warning("skipped %d question(s): %s", len(unanswered), error)
                yield from ((later, str(error)) for later, _ in unanswered)
                return
            yield index, make(request, features, phases)

    def _features(self, request: Request, phases: Phases) -> list[VisionFeatures]:
        return self._reader.features(request, phases, reuse=self.reuse != "none")

    def _prepare(self, request: Request, features: Sequence[VisionFeatures]) -> PreparedInput:
        reduced = request.config is not None
        # A mode that was asked for goes on in any family, so that one without newline tokens can
        # refuse it.
        newline = self.newline or self.family.newline_mode(self.model.config, None, reduced=reduced)
        with torch.inference_mode():
            prepared = self.family.prepare(self.model, self.processor, request.messages, features, newline=newline)
        videos = sum(feature.kind == "video" for feature in features)
        if reduced and len(prepared.spans) < videos:
            raise ValueError(
                f"newline={self.newline!r} puts tokens between the rows or frames of a video, so it cannot be reduced; "
                "use newline=no_token (the published setting) or one_token"
            )
        return prepared

    def _prompt(
        self, reducer: TokenReducer, request: Request, features: Sequence[VisionFeatures], phases: Phases
    ) -> Prompt:
        prepared = self._prepare(request, features)
        length = prepared.input_ids.shape[1]
        if not prepared.visual_tokens or not self._shares_prefix(request.config):
            self.counters.prefills += 1
            return Prompt(request, length, phases, prepared.input_ids[0], whole=prepared)
        key = self._prefix_key(request, prepared)
        prefix = self._prefixes.get(key)
        if computed := prefix is None:
            self._prefixes.make_room()
            prefix = self._prefill(reducer, prepared, phases)
            self.counters.prefills += 1
            self._prefixes.put(key, prefix)
        question = prepared.input_ids[0, prepared.prefix_length :]
        return Prompt(request, length, phases, question, prefix=prefix, reused=not computed)

    def _prefix_key(self, request: Request, prepared: PreparedInput) -> Hashable:
        """The same for all requests that begin with the same text and visuals and reduce them
        alike."""
        begin = prepared.input_ids[0, : prepared.prefix_length]
        return source_key(request), request.config, tuple(begin.tolist())

    def _prefill(
        self, reducer: TokenReducer, prepared: PreparedInput, phases: Phases, length: int | None = None
    ) -> Prefix:
        began = self._stopwatch.mark()
        prefix = prefill_prefix(reducer, prepared, length)
        phases.add("prefill", began, self._stopwatch.mark())
        if prefix.reductions:
            phases.include(reducer.report.last_prefill)
        return prefix

    # -- from a prompt to a reply -------------------------------------------------------------------------------

    def _answer(self, reducer: TokenReducer, batch: Mapping[int, Prompt]) -> Iterator[tuple[int, Answer]]:
        """Generate for one whole prompt, or for questions that continue one prefix, by the number
        of the request."""
        prompts = list(batch.values())
        settings, report, mark = prompts[0].request.generation, reducer.report, self._stopwatch.mark
        kv_before = report.kv_counts
        with decoder_inputs(reducer, prompts) as inputs, first_pass_end(self.model, mark) as first_end:
            began = mark()
            penalised = self.family.penalises_prompt()
            rows = generate_ids(self.model, self.processor, settings, penalise_prompt=penalised, **inputs)
            ended = mark()
        kv_share = report.kv_share_since(kv_before)
        for (index, prompt), ids in zip(batch.items(), rows, strict=True):
            if prompt.prefix is not None:
                tokens = visual_counts(prompt.prefix.visual_tokens, prompt.prefix.reductions)
            else:
                assert prompt.whole is not None
                reductions = report.latest[:: settings.num_beams] if prompt.whole.spans else []
                tokens = visual_counts(prompt.whole.visual_tokens, reductions)
                prompt.phases.include(report.last_prefill if reductions else None)
            prompt.phases.add("decode", began, ended)
            prompt.phases.add("prefill", began, *(first_end or [ended]), within="decode")
            yield (
                index,
                Answer(
                    text=answer_text(self.processor, ids, settings.until),
                    input_tokens=prompt.length,
                    output_tokens=len(ids),
                    reused=prompt.reused,
                    kv_share=kv_share,
                    timing=prompt.phases.seconds_of_answer(),
                    **tokens,
                ),
            )

    @torch.inference_mode()
    def _score(self, reducer: TokenReducer, prompt: Prompt, text: str) -> LogLikelihood:
        """Log-probability of ``text`` behind the prompt. A method that looks at the question sees
        all of the prompt and nothing of ``text``, as when it generates."""
        targets = continuation_ids(self.processor, text).to(prompt.question)
        if not len(targets):
            return LogLikelihood(0.0, True, 0)
        kv_before = reducer.report.kv_counts
        prefix, question = prompt.prefix, prompt.question
        if prefix is None:
            assert prompt.whole is not None
            prefix, question = self._prefill(reducer, prompt.whole, prompt.phases, prompt.length), question[:0]
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        logits = [] if len(question) else [head(prefix.last_state)[0]]
        ids = torch.cat([question, targets[:-1]])[None]
        if ids.numel():
            reducer.expect((), unpadded=True)
            with continued(reducer, prefix, 1) as cache:
                output = self.model(
                    input_ids=ids,
                    use_cache=True,
                    return_dict=True,
                    logits_to_keep=min(len(targets), ids.shape[1]),
                    **{CACHE: cache},
                )
            logits.append(output.logits[0])
        return LogLikelihood(
            *continuation_score(torch.cat(logits), targets),
            len(targets),
            input_tokens=prompt.length,
            reused=prompt.reused,
            kv_share=reducer.report.kv_share_since(kv_before),
            **visual_counts(prefix.visual_tokens, prefix.reductions),
        )

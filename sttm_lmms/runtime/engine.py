"""Questions about videos -> answers: group by video, see once, prefill once, ask many times."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from sttm_lmms.config import check_choice, check_integer
from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.methods import check_method
from sttm_lmms.methods.base import Method
from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.asking import Asking, Question, reductions
from sttm_lmms.runtime.prefix import continued, kept_tokens, mean_layer_tokens, prefill_prefix
from sttm_lmms.runtime.prefix_cache import PrefixCache
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.requests import Answer, Counters, Failure, LogLikelihood, Request
from sttm_lmms.runtime.sources import Encoded, SourceReader, Store, source_key, with_key
from sttm_lmms.runtime.summary import Totals
from sttm_lmms.runtime.timing import Stopwatch, peak_memory
from sttm_lmms.types import PreparedInput

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings

Reuse = Literal["prefix", "features", "none"]
OnError = Literal["skip", "raise"]

logger = logging.getLogger(__name__)


class Engine:
    """A loaded model that answers requests, with or without reduced tokens. Threads may share it.

    Args:
        model, processor: from :func:`sttm_lmms.load_pretrained`.
        config: settings of a reduction method, None for the baseline of the same code path.
        family: the model's family; found by itself if left out.
        video: frame sampling.
        newline: newline mode of the LLaVA family. None is the checkpoint's own for the baseline, and ``no_token``
            for a reduction (the published setting).
        reuse: ``"prefix"`` shares the KV cache of [text before, video] between the questions of a video,
            ``"features"`` only the vision tower's output, ``"none"`` nothing.
        on_error: ``"skip"`` leaves questions about unreadable videos unanswered and counts them, ``"raise"`` stops.
        features: a feature store; no video file is opened then.
        keep: prefixes (and features) kept at a time.
        host_cache_gb: host memory for prefixes that were pushed out, for runs that come back to a video.
        prefetch: videos that are decoded and preprocessed ahead, in threads; 0 for none. They wait in host memory.
        prefetch_workers: those threads; by default one for each video, and no more than there are CPU cores.
        timing: times of the device's work instead of the host's; by events on one CUDA device, so that nothing waits.
    """

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
        from sttm_lmms.families import family_of
        from sttm_lmms.video import VideoSettings

        check_choice("reuse", reuse, get_args(Reuse))
        check_choice("on_error", on_error, get_args(OnError))
        self.model, self.processor = model, processor
        self.config: Method | None = None if config is None else check_method(config)
        self.family = family or family_of(model)
        self.video = video or VideoSettings()
        self.newline, self.on_error, self.timing = newline, on_error, timing
        self.reuse = reuse
        self._refused: set[Method] = set()
        if self.config is not None and not self._shares_prefix(self.config):
            self.reuse = "features" if reuse == "prefix" else reuse
        self._stopwatch = Stopwatch(model, enabled=timing)
        self._reader = SourceReader(
            model,
            processor,
            self.family,
            self._stopwatch,
            store=features,
            keep=keep,
            prefetch=prefetch,
            workers=prefetch_workers,
        )
        self._asking = Asking(model, processor, self.family, self._stopwatch)
        self._prefixes = PrefixCache(keep, int(host_cache_gb * 2**30))
        self._totals = Totals()
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

    @property
    def totals(self) -> Totals:
        """Numbers of the answers so far; those of several processes can be added."""
        return self._totals

    def summary(self) -> RunSummary:
        """Totals so far."""
        return self._totals.summary(self.counters, self.failures, self.config, peak_memory(self.model))

    def check_reduced(self) -> None:
        """Raise :class:`NothingReducedError` if a reduction was asked for and no answer had fewer tokens."""
        self._totals.check_reduced(None if self.config is None else f"{self.config.name} ({self.config})")

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
        """As :meth:`generate`, answer by answer as soon as it is known: ``(index of the request, answer)``.

        The order is that of the videos' first questions, so a caller that stores answers as they come loses no more
        than the current video's when it is stopped.
        """
        check_integer("batch_size", batch_size, 1)
        for group in self._groups(requests):
            # A list, because no hooks and no lock may be left while the caller is at work.
            with self._lock:
                answers = list(self._answer_group(group, batch_size))
            yield from self._given(answers, progress)

    def _given(
        self, answers: Sequence[tuple[int, Answer]], progress: Callable[[int], None] | None
    ) -> Iterator[tuple[int, Answer]]:
        """Count each answer as it is handed over."""
        for index, answer in answers:
            with self._lock:
                self.totals.add(answer)
            if progress:
                progress(1)
            yield index, answer

    def loglikelihood(
        self, requests: Sequence[tuple[Request, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[LogLikelihood]:
        """Score a continuation after each request's prompt, in their order."""
        scores: dict[int, LogLikelihood] = {}
        texts = [text for _, text in requests]
        for group in self._groups([request for request, _ in requests]):
            with self._lock:
                done = dict(self._score_group(group, texts))
            scores |= done
            if progress:
                progress(len(done))
        return [scores[index] for index in range(len(requests))]

    # -- groups ------------------------------------------------------------------------------------------------

    def _config(self, request: Request) -> Any:
        """Settings of the reduction; None for a request without a video, where there is nothing to reduce."""
        if not any(kind == "video" for kind, _ in request.sources):
            return None
        return self.config if request.config is None else request.config

    def _video(self, request: Request) -> VideoSettings:
        return self.video if request.video is None else request.video

    def _shares_prefix(self, config: Method | None) -> bool:
        """Whether questions may continue one prefix; said once where a method does not allow it."""
        if self.reuse != "prefix" or config is None or config.shares_prefix:
            return self.reuse == "prefix"
        if config not in self._refused:
            self._refused.add(config)
            logger.warning("%s depends on the question, so a prefix cannot be shared: reuse=features", config.name)
        return False

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Request]]]:
        """Requests that share visuals and settings, in order of first appearance; the next videos are read ahead."""
        groups: dict[Hashable, list[tuple[int, Request]]] = {}
        requests = list(requests)  # keeps alive what `known` names by id
        known: dict[int, Hashable] = {}
        for index, given in enumerate(requests):
            request = with_key(given, known)
            key = (source_key(request, self._video(request)), self._config(request))
            groups.setdefault(key if request.sources else ("text", index), []).append((index, request))
        yield from self._reader.ahead(groups.values(), self._video)

    def _encode(self, group: Sequence[tuple[int, Request]], request: Request) -> Encoded | str:
        """The visuals of a request, or why they cannot be had."""
        try:
            return self._reader.encode(request, self._video(request), reuse=self.reuse != "none")
        except (VideoError, FeatureError) as error:
            if self.on_error == "raise":
                raise
            self._reader.fail(error, len(group))
            logger.warning("skipped %d question(s): %s", len(group), error)
            return str(error)

    def _answer_group(self, group: list[tuple[int, Request]], batch_size: int) -> Iterator[tuple[int, Answer]]:
        self.counters.questions += len(group)
        config = self._config(group[0][1])
        with TokenReducer(self.model, config, spans=(), timing=self.timing) as reducer:
            batch: list[Question] = []
            for position, (index, request) in enumerate(group):
                encoded = self._encode(group[position:], request)
                if isinstance(encoded, str):
                    yield from ((later, Answer(error=encoded)) for later, _ in group[position:])
                    break
                prepared = self._prepare(request, encoded, config)
                if not self._shares_prefix(config) or not prepared.visual_tokens:
                    self.counters.prefills += 1
                    yield index, self._asking.answer_at_once(reducer, request, prepared, encoded)
                    continue
                question = self._question(reducer, index, request, prepared, encoded)
                if batch and (len(batch) == batch_size or reducer.edits_cache or not question.runs_with(batch[-1])):
                    yield from self._asking.answer_batch(reducer, batch)
                    batch = []
                batch.append(question)
            if batch:
                yield from self._asking.answer_batch(reducer, batch)

    def _prepare(self, request: Request, encoded: Encoded, config: Any) -> PreparedInput:
        # A mode that was asked for goes on in any family, so that one without newline tokens can refuse it.
        newline = self.newline or self.family.newline_mode(self.model.config, None, reduced=config is not None)
        with torch.inference_mode():
            prepared = self.family.prepare(
                self.model, self.processor, request.messages, encoded.features, newline=newline
            )
        videos = sum(feature.kind == "video" for feature in encoded.features)
        if config is not None and len(prepared.spans) < videos:
            raise ValueError(
                f"newline={self.newline!r} puts tokens between the rows or frames of a video, so it cannot be reduced; "
                "use newline=no_token (the published setting) or one_token"
            )
        return prepared

    def _prefix_key(self, request: Request, prepared: PreparedInput) -> Hashable:
        """The same for all requests that begin with the same text and visuals and reduce them alike."""
        begin = prepared.input_ids[0, : prepared.prefix_length]
        return source_key(request, self._video(request)), self._config(request), tuple(begin.tolist())

    def _question(
        self, reducer: TokenReducer, index: int, request: Request, prepared: PreparedInput, encoded: Encoded
    ) -> Question:
        """Find or compute the prefix of a request."""
        cut, key = prepared.prefix_length, self._prefix_key(request, prepared)
        prefix, paid, timeline = self._prefixes.get(key), None, None
        if prefix is None:
            self._prefixes.make_room()
            began = self._stopwatch.mark()
            prefix = prefill_prefix(reducer, prepared)
            paid = (began, self._stopwatch.mark())
            timeline = reducer.report.timeline if prefix.reductions else None
            self.counters.prefills += 1
            self._prefixes.put(key, prefix)
        return Question(
            index=index,
            request=request,
            ids=prepared.input_ids[0, cut:],
            prefix=prefix,
            paid=paid,
            timeline=timeline,
            encoded=encoded,
            prompt_tokens=prepared.input_ids.shape[1],
        )

    def _score_group(
        self, group: list[tuple[int, Request]], texts: Sequence[str]
    ) -> Iterator[tuple[int, LogLikelihood]]:
        self.counters.questions += len(group)
        config = self._config(group[0][1])
        with TokenReducer(self.model, config, spans=(), timing=self.timing) as reducer:
            for position, (index, request) in enumerate(group):
                encoded = self._encode(group[position:], request)
                if isinstance(encoded, str):
                    lost = LogLikelihood(float("-inf"), False, 0, error=encoded)
                    yield from ((later, lost) for later, _ in group[position:])
                    return
                prepared = self._prepare(request, encoded, config)
                if not prepared.visual_tokens:
                    yield index, self._asking.score(prepared.input_ids[0], texts[index])
                    continue
                if not self._shares_prefix(config):
                    self.counters.prefills += 1
                    yield index, self._asking.score_at_once(reducer, prepared, texts[index])
                    self._count_score(reducer, prepared)
                    continue
                question = self._question(reducer, index, request, prepared, encoded)
                prefix = question.prefix
                reducer.expect((), unpadded=True)
                with continued(reducer, prefix, 1) as cache:
                    score = self._asking.score(question.ids, texts[index], cache)
                yield index, score
                self._totals.count_reduction(prefix.visual_tokens, prefix.kept_tokens, prefix.layer_tokens)

    def _count_score(self, reducer: TokenReducer, prepared: PreparedInput) -> None:
        before, events = prepared.visual_tokens, reductions(reducer, prepared)
        after, layer_tokens = kept_tokens(before, events), mean_layer_tokens(before, events)
        self._totals.count_reduction(before, after, layer_tokens, reducer.report.kv_share)

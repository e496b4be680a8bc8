"""Questions about videos -> answers: group by video, see once, prefill once, ask many times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sttm_lmms.config import check_choice, check_integer
from sttm_lmms.errors import FeatureError, VideoError
from sttm_lmms.families.base import Family
from sttm_lmms.methods import check_method
from sttm_lmms.methods.base import Method
from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.generation import answer_text, continuation_score, generate_ids, tokenizer_of
from sttm_lmms.runtime.prefix import Prefix, continued, mean_layer_tokens, prefill_prefix, question_batch
from sttm_lmms.runtime.prefix_cache import PrefixCache
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.report import Timeline
from sttm_lmms.runtime.requests import Answer, Counters, Failure, LogLikelihood, Request
from sttm_lmms.runtime.sources import Encoded, SourceReader, Store, source_key
from sttm_lmms.runtime.summary import Totals
from sttm_lmms.runtime.timing import FirstForward, Mark, Stopwatch, peak_memory
from sttm_lmms.types import PreparedInput

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings

Reuse = Literal["prefix", "features", "none"]
OnError = Literal["skip", "raise"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Question:
    """One request on its way through a prefix."""

    index: int
    request: Request
    ids: torch.Tensor
    prefix: Prefix
    paid: tuple[Mark, Mark] | None
    """When the prefix was computed for this question; None if an earlier one paid for it."""
    timeline: Timeline | None
    encoded: Encoded
    prompt_tokens: int


class Engine:
    """A loaded model that answers requests, with or without reduced tokens.

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
        self._prefixes = PrefixCache(keep, int(host_cache_gb * 2**30))
        self._totals = Totals()

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
            # A list, because no hooks may be left while the caller is at work.
            yield from self._given(list(self._answer_group(group, batch_size)), progress)

    def _given(
        self, answers: Sequence[tuple[int, Answer]], progress: Callable[[int], None] | None
    ) -> Iterator[tuple[int, Answer]]:
        """Count each answer as it is handed over."""
        for index, answer in answers:
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
        for index, request in enumerate(requests):
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
            batch: list[_Question] = []
            for position, (index, request) in enumerate(group):
                encoded = self._encode(group[position:], request)
                if isinstance(encoded, str):
                    yield from ((later, Answer(error=encoded)) for later, _ in group[position:])
                    break
                prepared = self._prepare(request, encoded, config)
                if not self._shares_prefix(config) or not prepared.visual_tokens:
                    yield index, self._answer_at_once(reducer, request, prepared, encoded)
                    continue
                question = self._question(reducer, index, request, prepared, encoded)
                if batch and (len(batch) == batch_size or reducer.edits_cache or not _batchable(batch[-1], question)):
                    yield from self._answer_batch(reducer, batch)
                    batch = []
                batch.append(question)
            if batch:
                yield from self._answer_batch(reducer, batch)

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
    ) -> _Question:
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
        return _Question(
            index=index,
            request=request,
            ids=prepared.input_ids[0, cut:],
            prefix=prefix,
            paid=paid,
            timeline=timeline,
            encoded=encoded,
            prompt_tokens=prepared.input_ids.shape[1],
        )

    def _answer_batch(self, reducer: TokenReducer, batch: list[_Question]) -> Iterator[tuple[int, Answer]]:
        """Questions that continue one prefix, as one batch."""
        prefix, settings = batch[0].prefix, batch[0].request.generation
        input_ids, mask = question_batch(prefix, [question.ids for question in batch])
        reducer.expect((), unpadded=len(batch) == 1)
        mark, seconds, report = self._stopwatch.mark, self._stopwatch.seconds, reducer.report
        seen, stored = report.kv_seen, report.kv_stored
        began = mark()
        with (
            continued(reducer, prefix, len(batch) * settings.num_beams) as cache,
            FirstForward(self.model, mark) as first,
        ):
            rows = generate_ids(
                self.model,
                self.processor,
                settings,
                input_ids=input_ids,
                penalise_prompt=self.family.penalises_prompt(),
                attention_mask=mask,
                position_ids=torch.arange(mask.shape[1], device=mask.device).expand(mask.shape),
                past_key_values=cache,
            )
        ended = mark()
        first_token = seconds(began, first.ended or ended)
        kv = (report.kv_seen - seen, report.kv_stored - stored)
        for question, ids in zip(batch, rows, strict=True):
            yield (
                question.index,
                self._answer(
                    question.request,
                    ids,
                    visual=(prefix.visual_tokens, prefix.kept_tokens),
                    prompt_tokens=question.prompt_tokens,
                    encoded=question.encoded,
                    phases=question.timeline.seconds() if question.timeline else {},
                    prefill=(seconds(*question.paid) if question.paid else 0.0) + first_token,
                    decode=seconds(began, ended) - first_token,
                    reused=question.paid is None,
                    layer_tokens=prefix.layer_tokens,
                    kv=kv,
                ),
            )

    def _answer_at_once(
        self, reducer: TokenReducer, request: Request, prepared: PreparedInput, encoded: Encoded
    ) -> Answer:
        """The whole prompt in one prefill."""
        reducer.expect(prepared.spans, unpadded=True, deepstack=prepared.deepstack)
        mark, seconds, report = self._stopwatch.mark, self._stopwatch.seconds, reducer.report
        seen, stored = report.kv_seen, report.kv_stored
        self.counters.prefills += 1
        positions = {} if prepared.position_ids is None else {"position_ids": prepared.position_ids}
        began = mark()
        with FirstForward(self.model, mark) as first:
            (ids,) = generate_ids(
                self.model,
                self.processor,
                request.generation,
                input_ids=prepared.input_ids,
                penalise_prompt=self.family.penalises_prompt(),
                inputs_embeds=prepared.inputs_embeds,
                attention_mask=torch.ones_like(prepared.input_ids),
                **positions,
            )
        ended = mark()
        first_token = seconds(began, first.ended or ended)
        events = reducer.report.latest if prepared.spans else []
        events = events[:: request.generation.num_beams]
        removed = sum(event.before - event.after for event in events)
        return self._answer(
            request,
            ids,
            visual=(prepared.visual_tokens, prepared.visual_tokens - removed),
            prompt_tokens=prepared.input_ids.shape[1],
            encoded=encoded,
            phases=report.phases if events else {},
            prefill=first_token,
            decode=seconds(began, ended) - first_token,
            reused=False,
            layer_tokens=mean_layer_tokens(prepared.visual_tokens, events),
            kv=(report.kv_seen - seen, report.kv_stored - stored),
        )

    def _answer(
        self,
        request: Request,
        ids: list[int],
        *,
        visual: tuple[int, int],
        prompt_tokens: int,
        encoded: Encoded,
        phases: dict[str, float],
        prefill: float,
        decode: float,
        reused: bool,
        layer_tokens: float,
        kv: tuple[float, float],
    ) -> Answer:
        seeing = encoded.timing()
        timing = {**seeing, **phases, "prefill": prefill, "ttft": prefill, "decode": decode}
        timing["end_to_end"] = sum(seeing.values()) + prefill + decode
        return Answer(
            text=answer_text(self.processor, ids, request.generation.until),
            visual_tokens=visual[0],
            kept_tokens=visual[1],
            input_tokens=prompt_tokens,
            output_tokens=len(ids),
            reduced=layer_tokens < visual[0] or kv[0] < kv[1],
            reused=reused,
            layer_tokens=layer_tokens,
            kv_share=kv[0] / kv[1] if kv[1] else 1.0,
            timing=timing,
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
                    yield index, self._score(prepared.input_ids[0], texts[index])
                    continue
                if not self._shares_prefix(config):
                    yield index, self._score_at_once(reducer, prepared, texts[index])
                    continue
                question = self._question(reducer, index, request, prepared, encoded)
                prefix = question.prefix
                reducer.expect((), unpadded=True)
                with continued(reducer, prefix, 1) as cache:
                    score = self._score(question.ids, texts[index], cache)
                yield index, score
                self._totals.count_reduction(prefix.visual_tokens, prefix.kept_tokens, prefix.layer_tokens)

    @torch.inference_mode()
    def _score_at_once(self, reducer: TokenReducer, prepared: PreparedInput, text: str) -> LogLikelihood:
        """As :meth:`_score` in one prefill of the whole prompt, for methods that look at the question.

        The continuation is fed after the prompt, so that the method sees what it would see when generating.
        """
        reducer.expect(prepared.spans, unpadded=True, deepstack=prepared.deepstack)
        self.counters.prefills += 1
        cache = DynamicCache(config=reducer.decoder.config)
        states = reducer.decoder(
            inputs_embeds=prepared.inputs_embeds,
            position_ids=prepared.position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        events = reducer.report.latest if prepared.spans else []
        kept = prepared.visual_tokens - sum(event.before - event.after for event in events)
        self._totals.count_reduction(
            prepared.visual_tokens, kept, mean_layer_tokens(prepared.visual_tokens, events), reducer.report.kv_share
        )
        tokenizer = tokenizer_of(self.processor)
        targets = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
        if not len(targets):
            return LogLikelihood(0.0, True, 0)
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        logits = [head(states[:, -1:])]
        reducer.adopt(cache, reducer.state_of(cache))
        if len(targets) > 1:
            ids = targets[None, :-1].to(prepared.input_ids.device)
            logits.append(self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits)
        return LogLikelihood(*continuation_score(torch.cat(logits, dim=1)[0], targets), len(targets))

    @torch.inference_mode()
    def _score(self, prompt: torch.Tensor, text: str, cache: Cache | None = None) -> LogLikelihood:
        """Score ``text`` after the prompt ``[L]``, which continues ``cache`` where one is given."""
        tokenizer = tokenizer_of(self.processor)
        targets = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
        if not len(targets):
            return LogLikelihood(0.0, True, 0)
        ids = torch.cat([prompt, targets.to(prompt)])[None]
        logits = self.model(
            input_ids=ids[:, :-1], past_key_values=cache, use_cache=cache is not None, logits_to_keep=len(targets)
        ).logits[0]
        return LogLikelihood(*continuation_score(logits, targets), len(targets))


def _batchable(a: _Question, b: _Question) -> bool:
    return a.prefix is b.prefix and a.request.generation == b.request.generation

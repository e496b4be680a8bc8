"""One prompt, or the questions that continue one prefix, through the model: answers and scores, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sttm_lmms.decoder import CACHE
from sttm_lmms.families.base import Family
from sttm_lmms.runtime.generation import answer_text, continuation_score, generate_ids, tokenizer_of
from sttm_lmms.runtime.prefix import Prefix, continued, kept_tokens, mean_layer_tokens, question_batch
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.report import Reduction, Timeline
from sttm_lmms.runtime.requests import Answer, LogLikelihood, Request
from sttm_lmms.runtime.sources import Encoded
from sttm_lmms.runtime.timing import FirstForward, Mark, Stopwatch
from sttm_lmms.types import PreparedInput


@dataclass(frozen=True)
class Question:
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

    def runs_with(self, other: Question) -> bool:
        """Whether both can be rows of one batch."""
        return self.prefix is other.prefix and self.request.generation == other.request.generation


@dataclass(frozen=True)
class Asking:
    """A loaded model that is asked, with hooks that the caller has attached."""

    model: nn.Module
    processor: Any
    family: Family
    stopwatch: Stopwatch

    def answer_batch(self, reducer: TokenReducer, batch: list[Question]) -> Iterator[tuple[int, Answer]]:
        """Questions that continue one prefix, as one batch."""
        prefix, settings = batch[0].prefix, batch[0].request.generation
        input_ids, mask = question_batch(prefix, [question.ids for question in batch])
        reducer.expect((), unpadded=len(batch) == 1)
        mark, seconds, report = self.stopwatch.mark, self.stopwatch.seconds, reducer.report
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
                **{CACHE: cache},
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

    def answer_at_once(
        self, reducer: TokenReducer, request: Request, prepared: PreparedInput, encoded: Encoded
    ) -> Answer:
        """The whole prompt in one prefill."""
        reducer.expect(prepared.spans, unpadded=True, deepstack=prepared.deepstack)
        mark, seconds, report = self.stopwatch.mark, self.stopwatch.seconds, reducer.report
        seen, stored = report.kv_seen, report.kv_stored
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
        events = reductions(reducer, prepared)[:: request.generation.num_beams]
        return self._answer(
            request,
            ids,
            visual=(prepared.visual_tokens, kept_tokens(prepared.visual_tokens, events)),
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

    @torch.inference_mode()
    def score_at_once(self, reducer: TokenReducer, prepared: PreparedInput, text: str) -> LogLikelihood:
        """As :meth:`score` in one prefill of the whole prompt, for methods that look at the question.

        The continuation is fed after the prompt, so that the method sees what it would see when generating.
        """
        reducer.expect(prepared.spans, unpadded=True, deepstack=prepared.deepstack)
        cache = DynamicCache(config=reducer.decoder.config)
        states = reducer.decoder(
            inputs_embeds=prepared.inputs_embeds,
            position_ids=prepared.position_ids,
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state
        targets = self._targets(text)
        if not len(targets):
            return LogLikelihood(0.0, True, 0)
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        logits = [head(states[:, -1:])]
        reducer.adopt(cache, reducer.state_of(cache))
        if len(targets) > 1:
            ids = targets[None, :-1].to(prepared.input_ids.device)
            logits.append(self.model(input_ids=ids, use_cache=True, **{CACHE: cache}).logits)
        return LogLikelihood(*continuation_score(torch.cat(logits, dim=1)[0], targets), len(targets))

    @torch.inference_mode()
    def score(self, prompt: torch.Tensor, text: str, cache: Cache | None = None) -> LogLikelihood:
        """Score ``text`` after the prompt ``[L]``, which continues ``cache`` where one is given."""
        targets = self._targets(text)
        if not len(targets):
            return LogLikelihood(0.0, True, 0)
        ids = torch.cat([prompt, targets.to(prompt)])[None]
        logits = self.model(
            input_ids=ids[:, :-1], use_cache=cache is not None, logits_to_keep=len(targets), **{CACHE: cache}
        ).logits[0]
        return LogLikelihood(*continuation_score(logits, targets), len(targets))

    def _targets(self, text: str) -> torch.Tensor:
        """``[n]`` token ids of a continuation."""
        ids = tokenizer_of(self.processor)(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)


def reductions(reducer: TokenReducer, prepared: PreparedInput) -> Sequence[Reduction]:
    """What the last prefill, of ``prepared``, took away: one for each video and row."""
    return reducer.report.latest if prepared.spans else []

"""Questions about videos -> answers of vLLM: see and merge here, decode there, many videos and
questions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sttm_lmms.config import check_number
from sttm_lmms.runtime.engine import Engine
from sttm_lmms.runtime.generation import answer_text, check_decoding, end_ids, until_end
from sttm_lmms.runtime.recent import Recent
from sttm_lmms.runtime.requests import Answer, LogLikelihood, Request
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.serving.connection import LLM
from sttm_lmms.serving.limits import check_served
from sttm_lmms.serving.merged import MergedPrefix, merge_prefix, on_host
from sttm_lmms.serving.sampling import sampling_fields
from sttm_lmms.types import VisionFeatures

_MOST_AT_ONCE = 1024  # prompts in one call, however small they are


@dataclass(frozen=True)
class VLLMPrompt:
    """One request on its way through vLLM.

    Attributes:
        prefix: what all questions of its video begin with.
        embeds: ``[Q, C]`` on the host, what stands behind it.
        sampling: fields of ``SamplingParams``.
        length: tokens of the whole prompt, before reduction.
        phases: the time that it took in front of vLLM.
    """

    request: Request
    prefix: MergedPrefix
    embeds: torch.Tensor
    sampling: dict[str, Any]
    length: int
    phases: Phases

    @property
    def nbytes(self) -> int:
        """Memory of the whole prompt, as vLLM gets it."""
        return self.prefix.embeds.nbytes + self.embeds.nbytes


class VLLMEngine(Engine):
    """An :class:`Engine` whose decoder is vLLM's.

    A video's merged tokens are one tensor that all its questions begin with, so vLLM's prefix
    cache, which hashes the bytes of embeddings, prefills them once. Answers come in packs: what is
    decoded, seen and merged waits in host memory until ``queue_gb`` are full, and is then answered
    by continuous batching.

    Args:
        model, processor: of a LLaVA family; the decoder's layers may be missing.
        config: settings of a method that acts in front of layer 0, None for the baseline.
        llm: a running vLLM with the same checkpoint's decoder.
        queue_gb: GiB of prompts that one call of vLLM gets.
        settings: as of :class:`Engine`.

    Raises:
        ValueError: the method acts where vLLM cannot be reached.
    """

    def __init__(
        self, model: nn.Module, processor: Any, config: Any = None, *, llm: LLM, queue_gb: float = 2.0, **settings: Any
    ) -> None:
        check_number("queue_gb", queue_gb, 0.0, 1e6, low_open=True)
        super().__init__(model, processor, config, **settings)
        check_served(self.config, self.family.name)
        check_decoding(model)
        self.llm = llm
        self.prompt_tokens = self.cached_tokens = 0
        self._queue_bytes = int(queue_gb * 2**30)
        self._merged: Recent[MergedPrefix] = Recent(settings.get("keep", 1))
        self._ends = end_ids(model, processor)

    def stream(
        self, requests: Sequence[Request], *, batch_size: int = 1, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """As :meth:`Engine.stream`, pack by pack; ``batch_size`` is vLLM's own business.

        A caller that is stopped loses no more than one pack.
        """
        waiting: dict[int, VLLMPrompt] = {}
        size = 0
        for group in self._groups(requests):
            check_served(group[0][1].config, self.family.name)
            with self._lock:
                prompts = list(self._prompts(group, self._merge))
            for index, prompt in prompts:
                if isinstance(prompt, str):
                    yield from self._yield_and_count([(index, Answer(error=prompt))], progress)
                    continue
                waiting[index] = prompt
                size += prompt.nbytes
                if size >= self._queue_bytes or len(waiting) >= _MOST_AT_ONCE:
                    yield from self._yield_and_count(self._answers(waiting), progress)
                    waiting, size = {}, 0
        if waiting:
            yield from self._yield_and_count(self._answers(waiting), progress)

    def stream_loglikelihood(
        self, requests: Sequence[tuple[Request, str]], *, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, LogLikelihood]]:
        """Refused: vLLM gives no log-probabilities of prompts that are embeddings."""
        raise ValueError(
            "vLLM does not score the tokens of prompts that are embeddings, so tasks of type multiple_choice and "
            f"loglikelihood need --model sttm_{self.family.name}"
        )

    def close(self) -> None:
        """Stop vLLM."""
        self.llm.close()

    # -- one pack ----------------------------------------------------------------------------------------------

    def _merge(self, request: Request, features: Sequence[VisionFeatures], phases: Phases) -> VLLMPrompt:
        sampling = sampling_fields(request.generation, self.model.generation_config, self._ends)
        prepared = self._prepare(request, features)
        key = self._prefix_key(request, prepared)
        prefix = self._merged.get(key) if self.reuse == "prefix" else None
        if prefix is None:
            mark = self._stopwatch.mark
            began = mark()
            prefix = merge_prefix(request.config, prepared, self.model.config)
            phases.add("merge", began, mark())
            self._merged.put(key, prefix)
        question = on_host(prepared.inputs_embeds[0, prepared.prefix_length :])
        return VLLMPrompt(request, prefix, question, sampling, prepared.input_ids.shape[1], phases)

    def _answers(self, pack: dict[int, VLLMPrompt]) -> list[tuple[int, Answer]]:
        with self._lock:
            replies = self.llm.ask([(prompt.prefix.embeds, prompt.embeds, prompt.sampling) for prompt in pack.values()])
            return [
                (index, self._answer_of(prompt, *reply))
                for (index, prompt), reply in zip(pack.items(), replies, strict=True)
            ]

    def _answer_of(self, prompt: VLLMPrompt, new: list[int], cached: int) -> Answer:
        ids, prefix = until_end(new, self._ends), prompt.prefix
        self.prompt_tokens += len(prefix.embeds) + len(prompt.embeds)
        self.cached_tokens += cached
        reused = cached > prefix.text_before  # the text in front of it is the same for all videos
        self.counters.prefills += not reused
        return Answer(
            text=answer_text(self.processor, ids, prompt.request.generation.until),
            visual_tokens=prefix.visual_tokens,
            kept_tokens=prefix.kept_tokens,
            input_tokens=prompt.length,
            output_tokens=len(ids),
            reused=reused,
            layer_tokens=float(prefix.kept_tokens),
            timing=prompt.phases.seconds(),
        )

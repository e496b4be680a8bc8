"""Questions about videos -> answers of vLLM: see and merge here, decode there, many videos and questions at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sttm_lmms.config import check_number
from sttm_lmms.runtime.engine import Engine
from sttm_lmms.runtime.generation import answer_text, check_decoding, end_ids, until_end
from sttm_lmms.runtime.requests import Answer, LogLikelihood, Request
from sttm_lmms.serving.connection import LLM
from sttm_lmms.serving.limits import check_served
from sttm_lmms.serving.merged import MergedPrefix, merge_prefix, on_host
from sttm_lmms.serving.sampling import sampling_fields
from sttm_lmms.serving.vllm_process import Prompt, Reply

_MOST_AT_ONCE = 1024  # prompts in one call, however small they are


@dataclass(frozen=True)
class _Asked:
    """One request on its way through vLLM."""

    index: int
    request: Request
    prefix: MergedPrefix
    prompt: Prompt
    seeing: Callable[[], dict[str, float]]
    """Seconds in front of the decoder, see :meth:`Encoded.timing`."""
    input_tokens: int
    paid: bool

    @property
    def nbytes(self) -> int:
        """Memory of its whole prompt."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.prompt[:2])


class VLLMEngine(Engine):
    """An :class:`Engine` whose decoder is vLLM's.

    A video's merged tokens are one tensor that all its questions begin with, so vLLM's prefix cache, which hashes the
    bytes of embeddings, prefills them once. Answers come in packs: what is decoded, seen and merged waits in host
    memory until ``queue_gb`` are full, and is then answered by continuous batching.

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
        self._merged: OrderedDict[Hashable, MergedPrefix] = OrderedDict()
        self._keep = max(1, settings.get("keep", 1))
        self._ends = end_ids(model, processor)

    def stream(
        self, requests: Sequence[Request], *, batch_size: int = 1, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """As :meth:`Engine.stream`, pack by pack; ``batch_size`` is vLLM's own business.

        A caller that is stopped loses no more than one pack.
        """
        waiting: list[_Asked] = []
        size = 0
        for group in self._groups(requests):
            for found in self._see_group(group):
                if not isinstance(found, _Asked):
                    yield from self._given(found, progress)
                    continue
                waiting.append(found)
                size += found.nbytes
                if size >= self._queue_bytes or len(waiting) >= _MOST_AT_ONCE:
                    yield from self._given(self._answers(waiting), progress)
                    waiting, size = [], 0
        if waiting:
            yield from self._given(self._answers(waiting), progress)

    def loglikelihood(
        self, requests: Sequence[tuple[Request, str]], *, progress: Callable[[int], None] | None = None
    ) -> list[LogLikelihood]:
        """Refused: vLLM gives no log-probabilities of prompts that are embeddings."""
        raise ValueError(
            "vLLM does not score the tokens of prompts that are embeddings, so tasks of type multiple_choice and "
            f"loglikelihood need --model sttm_{self.family.name}"
        )

    def close(self) -> None:
        """Stop vLLM."""
        self.llm.close()

    # -- one pack ----------------------------------------------------------------------------------------------

    def _see_group(self, group: list[tuple[int, Request]]) -> Iterator[_Asked | list[tuple[int, Answer]]]:
        """The prompts of requests that show the same visuals; or, where these cannot be had, the answers."""
        self.counters.questions += len(group)
        config = self._config(group[0][1])
        check_served(config, self.family.name)
        for position, (index, request) in enumerate(group):
            sampling = sampling_fields(request.generation, self.model.generation_config, self._ends)
            encoded = self._encode(group[position:], request)
            if isinstance(encoded, str):
                yield [(later, Answer(error=encoded)) for later, _ in group[position:]]
                return
            prepared = self._prepare(request, encoded, config)
            cut, key = prepared.prefix_length, self._prefix_key(request, prepared)
            prefix = self._merged.get(key) if self.reuse == "prefix" else None
            if paid := prefix is None:
                prefix = merge_prefix(config, prepared, self.model.config, self._stopwatch.mark)
                self._merged[key] = prefix
                while len(self._merged) > self._keep:
                    self._merged.popitem(last=False)
            yield _Asked(
                index=index,
                request=request,
                prefix=prefix,
                prompt=(prefix.embeds, on_host(prepared.inputs_embeds[0, cut:]), sampling),
                seeing=replace(encoded, features=[]).timing,  # the features need not wait
                input_tokens=prepared.input_ids.shape[1],
                paid=paid,
            )

    def _answers(self, pack: Sequence[_Asked]) -> list[tuple[int, Answer]]:
        replies = self.llm.ask([asked.prompt for asked in pack])
        return [(asked.index, self._answer_of(asked, reply)) for asked, reply in zip(pack, replies, strict=True)]

    def _answer_of(self, asked: _Asked, reply: Reply) -> Answer:
        new, cached = reply
        ids = until_end(new, self._ends)
        self.prompt_tokens += sum(len(tensor) for tensor in asked.prompt[:2])
        self.cached_tokens += cached
        prefix, timing = asked.prefix, asked.seeing()
        if asked.paid:
            timing["merge"] = self._stopwatch.seconds(prefix.began, prefix.ended)
        reused = cached > prefix.text_before  # the text in front of it is the same for all videos
        self.counters.prefills += not reused
        return Answer(
            text=answer_text(self.processor, ids, asked.request.generation.until),
            visual_tokens=prefix.visual_tokens,
            kept_tokens=prefix.kept_tokens,
            input_tokens=asked.input_tokens,
            output_tokens=len(ids),
            reduced=prefix.kept_tokens < prefix.visual_tokens,
            reused=reused,
            layer_tokens=float(prefix.kept_tokens),
            timing=timing,
        )

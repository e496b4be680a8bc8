"""Questions about videos -> answers of vLLM, many videos and questions at a time; how a prompt
reaches vLLM is a subclass's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sttm_lmms.config import check_number
from sttm_lmms.runtime.engine import Engine
from sttm_lmms.runtime.generation import answer_text, check_decoding, end_ids, until_end
from sttm_lmms.runtime.requests import Answer, LogLikelihood, Request
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.serving.connection import LLM, Reply
from sttm_lmms.serving.sampling import sampling_fields

_MOST_AT_ONCE = 1024  # prompts in one call, however small they are


@dataclass(frozen=True)
class VLLMPrompt:
    """One request on its way through vLLM.

    Attributes:
        inputs: the prompt as vLLM takes it.
        nbytes: host memory that it takes.
        text_before: tokens in front of the first visual one.
        removed: visual tokens that the reduction takes away.
        kept_tokens: visual tokens that are left; None counts them in what vLLM says it has read.
        phases: the time that it took in front of vLLM.
    """

    request: Request
    inputs: dict[str, Any]
    nbytes: int
    text_before: int
    removed: int
    phases: Phases
    kept_tokens: int | None = None


class VLLMEngine(Engine):
    """An :class:`Engine` whose decoder is vLLM's.

    All questions about a video begin with the same tokens, so vLLM's prefix cache prefills them
    once. Answers come in packs: what was read waits in host memory until ``queue_gb`` are full, and
    is then answered by continuous batching.

    Args:
        model, processor: the same checkpoint's; the model needs no more weights than the subclass
            runs.
        config: settings of a method that acts in front of layer 0, None for the baseline.
        llm: a running vLLM.
        queue_gb: GiB of prompts that one call of vLLM gets.
        settings: as of :class:`Engine`.
    """

    def __init__(
        self, model: nn.Module, processor: Any, config: Any = None, *, llm: LLM, queue_gb: float = 2.0, **settings: Any
    ) -> None:
        check_number("queue_gb", queue_gb, 0.0, 1e6, low_open=True)
        super().__init__(model, processor, config, **settings)
        check_decoding(model)
        self.llm = llm
        self.prompt_tokens = self.cached_tokens = 0
        self._queue_bytes = int(queue_gb * 2**30)
        self._ends = end_ids(model, processor)
        model_config: Any = model.config
        self._pads = (model_config.video_token_id, model_config.image_token_id)

    @abstractmethod
    def _vllm_prompt(self, request: Request, visuals: Sequence[Any], phases: Phases) -> VLLMPrompt:
        """What vLLM gets for a request, whose visuals have been read."""

    @abstractmethod
    def _check(self, config: Any) -> None:
        """Raise ``ValueError`` unless this method, which a request asks for, can run here."""

    def stream(
        self, requests: Sequence[Request], *, batch_size: int = 1, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """As :meth:`Engine.stream`, pack by pack; ``batch_size`` is vLLM's own business.

        A caller that is stopped loses no more than one pack.
        """
        waiting: dict[int, VLLMPrompt] = {}
        size = 0
        for group in self._groups(requests):
            self._check(group[0][1].config)
            with self._lock:
                prompts = list(self._prompts(group, self._vllm_prompt))
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
        """Refused: continuations are not scored through vLLM."""
        raise ValueError(
            "vLLM does not score continuations here, so tasks of type multiple_choice and loglikelihood need "
            f"--model sttm_{self.family.name}"
        )

    def close(self) -> None:
        """Stop vLLM."""
        self.llm.close()

    # -- one pack ----------------------------------------------------------------------------------------------

    def _answers(self, pack: dict[int, VLLMPrompt]) -> list[tuple[int, Answer]]:
        defaults = self.model.generation_config
        with self._lock:
            replies = self.llm.ask(
                [
                    (prompt.inputs, sampling_fields(prompt.request.generation, defaults, self._ends))
                    for prompt in pack.values()
                ]
            )
            return [
                (index, self._answer_of(prompt, reply))
                for (index, prompt), reply in zip(pack.items(), replies, strict=True)
            ]

    def _answer_of(self, prompt: VLLMPrompt, reply: Reply) -> Answer:
        ids, kept = until_end(list(reply.new), self._ends), prompt.kept_tokens
        if kept is None:
            kept = sum(token in self._pads for token in reply.prompt)
        self.prompt_tokens += len(reply.prompt)
        self.cached_tokens += reply.cached
        reused = reply.cached > prompt.text_before  # the text in front of it is the same for all videos
        self.counters.prefills += not reused
        return Answer(
            text=answer_text(self.processor, ids, prompt.request.generation.until),
            visual_tokens=kept + prompt.removed,
            kept_tokens=kept,
            input_tokens=len(reply.prompt) + prompt.removed,
            output_tokens=len(ids),
            reused=reused,
            layer_tokens=float(kept),
            timing=prompt.phases.seconds(),
        )

"""One request on its way through the decoder: a whole prompt, or a question that continues a
prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms.decoder import CACHE
from sttm_lmms.runtime.prefix import Prefix, continued, question_batch
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.requests import Request
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.types import PreparedInput


@dataclass(frozen=True)
class Prompt:
    """A request that is ready for the decoder.

    Attributes:
        request: what was asked.
        length: tokens of the whole prompt, before reduction.
        phases: the time that it took so far.
        question: ``[Q]`` ids of what stands behind the prefix.
        prefix: what it continues; None where the whole prompt runs at once.
        whole: the decoder's input where there is no prefix.
        reused: whether an earlier request paid for the prefix.
    """

    request: Request
    length: int
    phases: Phases
    question: torch.Tensor
    prefix: Prefix | None = None
    whole: PreparedInput | None = None
    reused: bool = False

    def runs_with(self, other: Prompt) -> bool:
        """Whether both can be rows of one batch."""
        if self.prefix is None or self.prefix is not other.prefix:
            return False
        # Padding between prefix and question would let the state of a recurrent layer decay.
        fits = len(self.question) == len(other.question) or not self.prefix.recurrent
        return fits and self.request.generation == other.request.generation


@contextmanager
def decoder_inputs(reducer: TokenReducer, batch: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Arguments of ``generate`` for one whole prompt, or for questions that continue one prefix.

    A prefix is as before when the context ends.
    """
    whole, prefix = batch[0].whole, batch[0].prefix
    if prefix is None:
        assert whole is not None
        reducer.expect(whole.spans, unpadded=True, deepstack=whole.deepstack)
        yield {
            "input_ids": whole.input_ids,
            "inputs_embeds": whole.inputs_embeds,
            "attention_mask": torch.ones_like(whole.input_ids),
            **({} if whole.position_ids is None else {"position_ids": whole.position_ids}),
        }
        return
    ids, mask = question_batch(prefix, [prompt.question for prompt in batch])
    reducer.expect((), unpadded=len(batch) == 1)
    with continued(reducer, prefix, len(batch) * batch[0].request.generation.num_beams) as cache:
        positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        yield {"input_ids": ids, "attention_mask": mask, "position_ids": positions, CACHE: cache}

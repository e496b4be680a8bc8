"""What lmms-eval gets for its requests: results that are computed as it takes them, with records of
what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts

from sttm_lmms.model_wrappers.documents import is_padding
from sttm_lmms.provenance import Provenance
from sttm_lmms.runtime import Answer, LogLikelihood

T = TypeVar("T")


@dataclass
class AnswerRecord(TokenCounts):
    """Token counts that carry everything measured about an answer into lmms-eval's sample file."""

    record: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return self.record


class Score(tuple[float, bool]):
    """What a loglikelihood request gets: the loss, and whether the text is what greedy decoding
    gives.

    lmms-eval 0.7 turns a bare tuple into text, also when its response cache gives one back. So it
    travels inside of a ``GenerationResult``; ``strip()`` returns "" so that the response cache
    skips it.
    """

    def strip(self) -> str:
        return ""


def to_result(reply: Answer | LogLikelihood, *, video: str, provenance: Provenance | None) -> GenerationResult:
    """A reply of the engine for lmms-eval.

    Args:
        video: name of the first video; intervals are clustered by it.
        provenance: description of the run, for the reply that is to carry it.
    """
    record = reply.record(video=video, provenance=provenance)
    counts = AnswerRecord(reply.input_tokens, reply.output_tokens, record=record)
    if isinstance(reply, Answer):
        return GenerationResult(reply.text, counts)
    loss = float("inf") if reply.error else -reply.logprob / max(1, reply.tokens)
    score: Any = Score((loss, reply.is_greedy))
    return GenerationResult(score, counts)


def in_order(
    requests: Sequence[Instance], results: Iterable[tuple[int, GenerationResult]]
) -> Iterator[GenerationResult]:
    """Results in the order of the requests, each as soon as it is there; padding gets an empty one.

    Args:
        results: each with the number of its request, padding not counted.
    """
    found, known, number = iter(results), dict[int, GenerationResult](), 0
    for request in requests:
        if is_padding(request):
            yield GenerationResult("")
            continue
        while number not in known:
            index, result = next(found)
            known[index] = result
        yield known.pop(number)
        number += 1


class Results(Sequence[T]):
    """A sequence of known length whose items are computed one after the other, when they are first
    asked for.

    lmms-eval's response cache stores each item before it takes the next one. With a list it would
    get all answers at the end of the run, and a run that is killed would lose everything.
    """

    def __init__(self, length: int, items: Iterator[T]) -> None:
        self._length, self._items = length, items
        self._known: list[T] = []

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: Any) -> Any:
        last = max(range(self._length)[index], default=-1) if isinstance(index, slice) else range(self._length)[index]
        while len(self._known) <= last:
            self._known.append(next(self._items))
        if self._known and len(self._known) == self._length:
            next(self._items, None)  # lets the iterator finish: it has a clock and a progress bar to stop
        return self._known[index]

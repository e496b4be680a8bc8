"""A conversation of several rounds, led by the task: it sees the answers so far and gives the next question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sttm_lmms.model_wrappers.documents import Document, Messages


@dataclass
class Conversation:
    """One document's rounds.

    Attributes:
        document: what is talked about.
        turn: makes the messages of the round that is to be answered next; None when it is over.
        outputs: the answers so far, as the task last returned them.
        notes: what the task wants to have back in the next round.
    """

    document: Document
    turn: Callable[[], Messages] | None
    outputs: list[str] = field(default_factory=list)
    notes: Any = None
    number: int = 0

    @classmethod
    def open(cls, document: Document) -> Conversation:
        return cls(document, document.first_turn)

    def answer(self, text: str) -> bool:
        """Take the answer of this round and ask the task for the next one. False when there is none."""
        self.outputs.append(text)
        self.number += 1
        if self.document.next_turn is None:
            return False
        messages, over, outputs, self.notes = self.document.next_turn(self.number, self.outputs, self.notes)
        self.outputs = list(outputs)
        self.turn = None if over else (lambda: messages or [])
        return not over

"""The prompt of the published runs (arXiv 2507.07990, after Video-MME)."""

from __future__ import annotations

from collections.abc import Sequence

INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter ({letters}) of the correct option."
)
LEAD_OUT = "The best answer is:"


def letter_list(letters: Sequence[str]) -> str:
    """``"A, B, C, or D"``; two letters give ``"A or B"``."""
    if len(letters) == 2:
        return f"{letters[0]} or {letters[1]}"
    return f"{', '.join(letters[:-1])}, or {letters[-1]}"


def build_prompt(question: str, options: Sequence[str]) -> str:
    """Instruction, question, one option a line, lead-out; ``options`` carry their letters (``"A. Apples."``)."""
    letters = [option[0] for option in options]
    return "\n".join([INSTRUCTION.format(letters=letter_list(letters)), question, *options, LEAD_OUT])

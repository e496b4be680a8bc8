"""The prompt of the published runs (arXiv 2507.07990, after Video-MME)."""

from __future__ import annotations

from collections.abc import Sequence

from sttm_lmms.benchmarks.question import LETTERS

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


def build_prompt(question: str, options: Sequence[str], *, letters_beyond: int = 0) -> str:
    """Instruction, question, one option a line, lead-out.

    Args:
        options: with their letters (``"A. Apples."``).
        letters_beyond: how many letters the instruction names beyond the last option; see
            ``Format.letters_beyond``.
    """
    letters = LETTERS[: len(options) + letters_beyond]
    return "\n".join([INSTRUCTION.format(letters=letter_list(letters)), question, *options, LEAD_OUT])

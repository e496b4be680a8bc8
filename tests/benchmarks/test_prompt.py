"""The prompt, letter by letter."""

import pytest

from sttm_lmms.benchmarks.prompt import build_prompt, letter_list


def test_prompt_is_the_published_one():
    assert build_prompt("What is shown?", ["A. One.", "B. Two.", "C. Three.", "D. Four."]) == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "What is shown?\nA. One.\nB. Two.\nC. Three.\nD. Four.\nThe best answer is:"
    )


@pytest.mark.parametrize(
    ("letters", "text"),
    [("AB", "A or B"), ("ABC", "A, B, or C"), ("ABCDE", "A, B, C, D, or E"), ("ABCDEF", "A, B, C, D, E, or F")],
)
def test_letter_list_follows_the_options(letters, text):
    assert letter_list(letters) == text

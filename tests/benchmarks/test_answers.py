"""The answer parser over a table of replies, with what the published parser makes of them."""

import pytest

from sttm_lmms.benchmarks.answers import parse_answer

SAME_AS_PUBLISHED = [
    ("C", "C"),
    ("C.", "C"),
    ("(C)", "C"),
    ("[C]", "C"),
    (" C \n", "C"),
    ("C)", "C"),
    ("C:", "C"),
    ('"C"', "C"),
    ("C. The cup.", "C"),
    ("C) The cup", "C"),
    ("(C) The cup", "C"),
    ("C: the cup", "C"),
    ("C, the cup", "C"),
    ("C\nThe cup is on the table.", "C"),
    ("A. A man and a dog.", "A"),
    ("A.Apples", "A"),
    ("The best answer is C", "C"),
    ("The best answer is: C", "C"),
    ("The best answer is (C).", "C"),
    ("The correct answer is C.", "C"),
    ("The answer is C", "C"),
    ("The answer: C", "C"),
    ("the answer is C", "C"),
    ("The correct option is C", "C"),
    ("The best option is C", "C"),
    ("So the answer is D.", "D"),
    ("Option C", "C"),
    ("Option C: the cup", "C"),
    ("I think it is C.", "C"),
    ("It must be C", "C"),
    ("C or D", "C"),
    ("**C**", "C"),
    ("**C.** The cup", "C"),
    ("\\boxed{C}", "C"),
    ("$C$", "C"),
    ("<answer>C</answer>", "C"),
    ("答案是C。", "C"),
    ("'C'", "C"),
    ("", ""),
    ("   ", ""),
    (".", ""),
    ("yes", ""),
    ("the red cup on the table", ""),
    ("it is not possible to say which of the options is the right one here", ""),
    ("4", ""),
]

UNLIKE_PUBLISHED = [
    ("Best answer: C", "C"),
    ("Best option: C", "C"),
    ("Best option: (D)", "D"),
    ("Answer: C", "C"),
    ("ANSWER: C", "C"),
    ("Final Answer: D", "D"),
    ("Because he is late, C", "C"),
    ("Based on the video, the answer is C.", "C"),
    ("Blue is the color. The answer is D.", "D"),
    ("According to the video, the best answer is B.", "B"),
    ("A man is holding a cup. The answer is C.", "C"),
    ("A man is holding a cup.", ""),
    ("Apples", ""),
    ("Cannot be determined from the video.", ""),
    ("DVD", ""),
    ("Both are possible", ""),
    ("c", "C"),
    ("(c)", "C"),
    ("c.", "C"),
    ("the answer is c", "C"),
    ("Ｃ", "C"),
    ("B-roll footage, so C", "C"),
    ("U.S.A. wins: D", "D"),
    ("Dad's car, answer C", "C"),
]


@pytest.mark.parametrize(("reply", "letter"), SAME_AS_PUBLISHED + UNLIKE_PUBLISHED)
def test_reply(reply, letter):
    assert parse_answer(reply) == letter


@pytest.mark.parametrize(
    ("reply", "letters", "letter"),
    [
        ("E", "ABCD", ""),
        ("E", "ABCDE", "E"),
        ("The best answer is: E. crawl", "ABCDE", "E"),
        ("F. nobody", "ABCDEF", "F"),
        ("C", "AB", ""),
        ("e", "ABCD", ""),
        ("D. x", "ABC", ""),
        ("The answer is D, or perhaps B", "ABC", "B"),
    ],
)
def test_letters_follow_the_number_of_options(reply, letters, letter):
    assert parse_answer(reply, letters) == letter


def test_table_is_long_enough():
    assert len(dict(SAME_AS_PUBLISHED + UNLIKE_PUBLISHED)) >= 60


def test_none_is_unanswered():
    assert parse_answer(None) == ""

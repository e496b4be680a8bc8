"""The answer parser over a table of replies, with what the published parser makes of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ("Not A but C", "C"),
    ("D'accord", ""),
]


# What a model may write around the letter of an option, capital or small ("{small}").
AROUND_A_LETTER = r"""
{} | {}. | ({}) | [{}] | {{{}}} | "{}" | '{}' | “{}” | ‘{}’ | **{}** | <answer> {} </answer> | {}/B | 1. {} | {},
\boxed{{{}}} | $\boxed{{\text{{{}}}}}$ | **{}** man | {}. A man | {}.Apples | ({}) a man | {}: a man | {}, a man
{} - a man is here | {} – a man | {}-the third | {} (the red car) | {} red car | {} the red car | {} it is
Option {} | Option {} is correct. | Option ({}): a man | Choice {} fits best | Answer {} is right. | My guess: {}
Answer: {} | **Answer:** {} | Answer - {} | Final answer: {}. A dog | The answer is ({}). | The answer {} | Yes, {}.
The answer is {} because the man runs. | The answer is {} because D is never shown. | The answer is {} man
The best answer is {} as shown in the frames. | The correct option is {} and not the others. | {} rather than B
{} is the correct answer. | {} is right, B is wrong | {} or maybe C | {} and B | {} would be correct | {} seems right
{} matches the video | {} best fits the scene | I choose {} because the cat sleeps. | I'd go with {} here
I think it's {} | Only {} shows it | Based on the video, {} | It is {} who runs | A man is here. It is {}
Not {} but {} | It isn't {}, it is not the answer {} | 答案是{}。 | 选{}因为 | {}是对的
{small} | {small}. | ({small}) | {small}) the third | {small}. four | {small}: blue | {small}, because | ‘{small}’
{small}-the third | {small} is right | option {small} | answer: {small}. | the answer is {small}
the answer is {small} because the man runs | Option {small} is right
"""
TEMPLATES = [text for line in AROUND_A_LETTER.strip().splitlines() for text in line.split(" | ")]
TEMPLATES += ["{}\n\nBecause a man runs", "{small}\n\nbecause"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_letter_is_read_alike(template):
    read = {letter: parse_answer(template.format(letter, letter, small=letter.lower())) for letter in "ABCD"}
    assert read == {letter: letter for letter in "ABCD"}


SENTENCES = (
    "{} man is holding a cup. | {} person is walking a dog | {} dog runs across the street | {} few people are here | "
    "The man is holding {small} | {small} man is here | {small} red car | e.g. {small}"
)


@pytest.mark.parametrize("template", SENTENCES.split(" | "))
def test_no_letter_is_read_where_an_article_may_stand(template):
    assert {parse_answer(template.format(letter, small=letter.lower())) for letter in "ABCD"} == {""}


WORDS = ["the", "man", "is", "runs", "Option", "answer is", "not", "because", *"().:-\n'", "**", ", "]


@given(st.lists(st.sampled_from([*"ABCDabcd", *WORDS]), max_size=8), st.permutations("ABCD"))
def test_other_names_of_the_options_change_nothing_else(words, names):
    """Letters that trade places in a reply trade places in what is read."""
    renamed = dict(zip("ABCD", names, strict=True))
    renamed |= {old.lower(): new.lower() for old, new in renamed.items()}
    before = parse_answer(" ".join(words))
    after = parse_answer(" ".join(renamed.get(word, word) for word in words))
    assert after == renamed.get(before, "")


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


def test_none_is_unanswered():
    assert parse_answer(None) == ""

"""Which option a model's reply names. No rule here knows which letter it reads, so none is
favoured."""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(r"[*_`$#]+|\\boxed|\\text\w*|\\[()]")
_WRAPPING = " \t\r\n|().:,;!?'\"[]{}<>‘’“”«»「」『』【】、。"
_LEAD_IN = re.compile(
    r"\b(?:answers?|options?|choices?)(?:\s+(?:is|was|would\s+be|should\s+be))?\s*[:=–—-]?\s*", re.IGNORECASE
)
_DENIAL = re.compile(r"\b(?:not|neither|nor)\s+(?:(?:the\s+)?(?:answer|option|choice)\s+)?[^\w\s]*$", re.IGNORECASE)

# What follows a letter that names an option ("B is right", "B the red car"), and no article.
_AFTER_LETTER = re.compile(
    r"""(?x) (is|was|would|could|should|might|must|can|does|did|has|had)(n't)? | are | were | may | will | won't | can't
    | and | or | nor | but | because | since | as | so | if | while | when | where | that | which | who | whose
    | than | then | for | of | in | on | at | to | by | from | with | without | over | rather | instead | between
    | during | after | before | until | due | the | an | this | these | those | my | your | his | her | its
    | our | their | it | he | she | they | we | you | i | not | alone | here | there | again
    | best | better | most | please"""
)
# "A seems", "A matches": a verb, for an article takes no plural. "A glass" and "A bus" end
# otherwise.
_THIRD_PERSON = re.compile(r"[a-z]+[a-rtv-z]s")
_VERB = re.compile(r"is|are|was|were|has|have|had|do|does|did|can|could|will|would|may|might|must|should|\w{2,}ing")


def parse_answer(reply: str, letters: str = "ABCD") -> str:
    """The option letter a reply names, or "" if it names none (an empty reply, a sentence without a
    letter).

    A letter counts where it stands alone ("C", "(C)", "C.", "C is right"), never inside a word, and
    a small one only where it can be no article ("c) the third", "the answer is c"). Tried in this
    order: the whole reply, its beginning, what follows a lead-in such as "The best answer is" or
    "Option", the first capital that is not denied ("not A but C"), a capital in front of a hyphen.
    A letter at the beginning of a sentence that makes sense with an article in its place ("A man is
    holding a cup") is passed over, whichever letter it is.

    The published parser takes capitals out of the middle of words and lacks two commas in its list
    of lead-ins, so that it reads "Best answer: C" as B; on replies without such traps both agree.

    Args:
        reply: the text a model generated.
        letters: the option letters of the question.
    """
    # Markup becomes a sign, not a space: a letter in bold or in a box is no word of the sentence
    # around it.
    text = _MARKUP.sub("|", unicodedata.normalize("NFKC", reply or "")).strip()
    bare = text.strip(_WRAPPING)
    if len(bare) == 1:
        return bare.upper() if bare.upper() in letters else ""
    if found := _at_start(bare, letters):
        return found
    for lead_in in _LEAD_IN.finditer(text):
        rest = text[lead_in.end() :].lstrip(_WRAPPING)
        if (capital := _alone(letters).match(rest)) is not None:
            return capital.group(1)
        if found := _at_start(rest, letters):
            return found
    capitals = list(_alone(letters).finditer(text))
    named = [found for found in capitals if not _is_article(text, found)]
    named = [found for found in named if not _DENIAL.search(text[: found.start()])] or named
    compound = re.search(rf"(?<![A-Za-z0-9-])([{letters}])-[A-Za-z]", text)
    return named[0].group(1) if named else compound.group(1) if compound else ""


def _at_start(text: str, letters: str) -> str:
    """The letter, capital or small, that ``text`` opens with as one opens with an option: "c) ...",
    "b: ...", "c"."""
    found = re.match(rf"([{letters}{letters.lower()}])(?!\.[A-Za-z]\.)(.*)", text, re.DOTALL)
    if found is None:
        return ""
    letter, rest = found.group(1).upper(), found.group(2)
    # A closing quotation mark, unlike an apostrophe, has no letter behind it.
    if re.match(r"$|\s*[.):\]},;|”」』】、。–—]|[ \t]*\n|\s+-|['’\"](?![A-Za-z])", rest):
        return letter
    follower = re.match(r"[\s-]([a-z']+)(?!-)", rest)
    return letter if follower and _AFTER_LETTER.fullmatch(follower.group(1)) else ""


def _alone(letters: str) -> re.Pattern[str]:
    """A capital that is no part of a word, a contraction or an abbreviation such as U.S.A."""
    before = r"(?<![A-Za-z0-9-])(?<![A-Za-z]['’])(?<![A-Z]\.)"
    return re.compile(rf"{before}([{letters}])(?![A-Za-z0-9]|['’][A-Za-z]|-[A-Za-z])")


def _is_article(text: str, found: re.Match[str]) -> bool:
    """Whether a letter opens a sentence whose subject follows: a noun, then a verb."""
    before, after = text[: found.start()].rstrip(), text[found.end() :]
    words = re.findall(r"[\w'’]+", re.split(r"[.!?;:\n|]", after)[0].lower())
    if not re.match(r"\s+[a-z]", after) or (before and before[-1] not in ".!?\n"):
        return False
    noun, rest = words[0], words[1:7]
    if _AFTER_LETTER.fullmatch(noun) or _THIRD_PERSON.fullmatch(noun) or noun.endswith("ly"):
        return False
    return any(_VERB.fullmatch(word) or _THIRD_PERSON.fullmatch(word) for word in rest)

"""Which option a model's reply names."""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(r"[*_`$#]+|\\boxed|\\text")
_WRAPPING = " \t\n().:,;'\"[]{}"
_LEAD_IN = re.compile(
    r"\b(?:answers?|options?|choices?)(?:\s+(?:is|was|would\s+be|should\s+be))?\s*[:=]?\s*", re.IGNORECASE
)


def parse_answer(reply: str, letters: str = "ABCD") -> str:
    """The option letter a reply names, or "" if it names none (an empty reply, a sentence without a letter).

    A letter counts where it stands alone ("C", "(C)", "C.", "C: the cup"), never inside a word and, for "A", not as an
    article ("A man ..."). Tried in this order: the whole reply, the beginning of the reply, what follows a lead-in such
    as "The best answer is" or "Option", the first letter of all.

    The published parser takes capitals out of the middle of words and lacks two commas in its list of lead-ins, so that
    it reads "Best answer: C" as B; on replies without such traps both agree.

    Args:
        reply: the text a model generated.
        letters: the option letters of the question.
    """
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", reply or "")).strip()
    bare = text.strip(_WRAPPING)
    if len(bare) == 1:
        return bare.upper() if bare.upper() in letters else ""
    alone = rf"(?<![A-Za-z0-9'’-])(?<![A-Z]\.)([{letters}])(?![A-Za-z0-9'’]|-[A-Za-z])"
    if found := re.match(rf"[\s(\[{{'\"]*([{letters}])\s*[.):\]}},\n]", text):
        return found.group(1)
    for lead_in in _LEAD_IN.finditer(text):
        rest = text[lead_in.end() :].lstrip(_WRAPPING)
        if (found := re.match(alone, rest)) and not _is_article(rest, found):
            return found.group(1)
        if found := re.match(rf"([{letters.lower()}])(?:[.)\]}}]|$)", rest):
            return found.group(1).upper()
    for found in re.finditer(alone, text):
        if not _is_article(text, found):
            return found.group(1)
    return ""


def _is_article(text: str, found: re.Match[str]) -> bool:
    """Whether a lone "A" is a word of a sentence: it is followed by a space and another word."""
    return found.group(1) == "A" and re.match(r"\s+[a-z]", text[found.end() :]) is not None

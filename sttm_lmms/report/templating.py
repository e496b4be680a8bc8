"""The templates beside this module."""

from __future__ import annotations

import re
from typing import Any

_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "⚠": r"\textbf{!}",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
}


def render_template(name: str, **values: Any) -> str:
    """Fill a template of ``templates/``; values in HTML are escaped, a missing one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sttm_lmms.report"),
        autoescape=lambda template: ".html" in (template or ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breakable": _breakable,
        "latex": lambda text: "".join(_LATEX.get(char, char) for char in text),
        "value_and_detail": lambda text: re.split(r" (?=[\[(])", text, maxsplit=1),
        "number": _number,
    }
    return environment.get_template(name).render(**values)


def _breakable(word: str) -> Any:
    """A line may end inside of names such as LongVideoBench."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z])", word))


def _number(text: str) -> str:
    """The first number in a text, by which a column is sorted; "" without one."""
    found = re.search(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return found[0] if found else ""

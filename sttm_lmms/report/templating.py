"""The HTML templates beside this module."""

from __future__ import annotations

import re
from typing import Any


def render_template(name: str, **values: Any) -> str:
    """Fill a template of ``templates/``; values are escaped, a missing one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sttm_lmms.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(name).render(**values)


def _breakable(word: str) -> Any:
    """A line may end inside of names such as LongVideoBench."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z])", word))

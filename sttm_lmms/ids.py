"""Ids that become file names."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

_LONGEST = 200


def safe_id(value: object, what: str = "video id") -> str:
    """``value`` if it can be a file name that stays in its folder.

    Raises:
        ValueError: not a text, blank, too long, hidden (it starts with a dot, as ``..`` does), with
            unprintable characters, a path separator or a drive of any system.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} {value!r} is not a plain file name")
    if len(value.encode(errors="replace")) > _LONGEST:
        raise ValueError(f"{what} {value[:40]!r}... is longer than {_LONGEST} bytes")
    if not value.isprintable():
        raise ValueError(f"{what} {value!r} is not a plain file name: it has unprintable characters")
    if value.startswith(".") or value != PurePosixPath(value).name or value != PureWindowsPath(value).name:
        raise ValueError(f"{what} {value!r} is not a plain file name: it would leave its folder or be hidden")
    return value

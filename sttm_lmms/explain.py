"""One sentence about an error, whoever raised it: what was wrong, and the way out."""

from __future__ import annotations

from collections.abc import Iterator

from sttm_lmms.errors import STTMError
from sttm_lmms.families.hub import data_set_sentence


def format_error(error: BaseException) -> str:
    """What to print last about the error that ended a run.

    Ours are sentences already. Of others, a data set that could not be had and exhausted memory are
    explained; the rest is named by its type and first line.
    """
    for cause in chain(error):
        if isinstance(cause, (STTMError, ValueError)) and not _from_hub(cause):
            return str(cause)
        if is_out_of_memory(cause):
            return f"out of memory ({_first_line(cause)}): lower batch_size, keep, max_frames, budget or host_cache_gb"
        if _from_hub(cause):
            return data_set_sentence(cause)
    return f"{type(error).__name__}: {_first_line(error)}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what is behind it; the last attempt of a retry instead of the retry."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        attempt = getattr(current, "last_attempt", None)
        inner = attempt.exception() if attempt is not None else None
        if inner is None:
            yield current
        current = inner or current.__cause__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _from_hub(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("datasets", "huggingface_hub", "httpx", "requests") or (
        isinstance(error, (ConnectionError, FileNotFoundError)) and "hub" in str(error).lower()
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")

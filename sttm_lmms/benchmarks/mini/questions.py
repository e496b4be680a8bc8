"""Where the needles go and what is asked about them: retrieval, ordering and counting, with four
options each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS

KINDS: tuple[str, ...] = ("ret", "ord", "cnt")
RETRIEVAL = "Which of these objects appears in the video?"
ORDERING = "In which order do these objects appear in the video?"
COUNTING = ("How many times does the ", " appear in the video?")
MAX_COUNT = 5
MAX_DISTRACTORS = 4
ORDERED = 4
SIZES = (1.1, 2.5)


@dataclass(frozen=True)
class Event:
    """One needle, shown for one second of the finished video.

    Attributes:
        second: whole second at which it appears.
        index: into ``OBJECTS``.
        x, y: centre as a share of width and height.
        size: extent in cells (see ``objects.paint``).
    """

    second: int
    index: int
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Question:
    """A question with four options.

    Attributes:
        kind: ``ret``, ``ord`` or ``cnt``.
        text: the question.
        contents: what each option says: object indices (``ret``: one, ``ord``: several) or a count
            (``cnt``).
        answer: index of the right option.
        needles: the objects asked for.
    """

    kind: str
    text: str
    contents: tuple[tuple[int, ...], ...]
    answer: int
    needles: tuple[int, ...]

    @property
    def options(self) -> list[str]:
        """Option lines as VNBench writes them: ``"A. red disc."``."""
        return [f"{'ABCD'[i]}. {self._say(content)}." for i, content in enumerate(self.contents)]

    def _say(self, content: tuple[int, ...]) -> str:
        return str(content[0]) if self.kind == "cnt" else ", ".join(OBJECTS[i] for i in content)

    def shuffled(self, order: Sequence[int]) -> Question:
        """The same question with its options in another order."""
        contents = tuple(self.contents[i] for i in order)
        return Question(self.kind, self.text, contents, list(order).index(self.answer), self.needles)


def slots(seconds: float) -> int:
    """Seconds in which a needle may appear: all but the last begun one, which 1-fps sampling can
    hit twice."""
    return int(np.ceil(seconds)) - 1


def place(rng: np.random.Generator, objects: Sequence[int], seconds: float, grid: int = GRID) -> tuple[Event, ...]:
    """Events for ``objects`` in this order, at random seconds, needles of neighbouring seconds
    apart in space.

    Centres lie well inside a cell of a ``grid x grid`` division, so that each needle has one cell
    of its own.
    """
    times = sorted(rng.choice(slots(seconds), size=len(objects), replace=False).tolist())
    events: list[Event] = []
    before: tuple[int, int, int] | None = None
    for second, index in zip(times, objects, strict=True):
        size = float(rng.uniform(*SIZES))
        low = 0 if size <= 1.5 else 1
        while True:
            row, column = rng.integers(low, grid - low, 2).tolist()
            near = before is not None and before[0] == second - 1
            if not near or max(abs(row - before[1]), abs(column - before[2])) >= 2:  # type: ignore[index]
                break
        before = (second, row, column)
        dx, dy = rng.uniform(-0.25, 0.25, 2).tolist()
        events.append(Event(int(second), int(index), (column + 0.5 + dx) / grid, (row + 0.5 + dy) / grid, size))
    return tuple(events)


def sample_objects(rng: np.random.Generator, kind: str, room: int) -> tuple[list[int], tuple[int, ...]]:
    """Objects in order of appearance for one video, distractors mixed in, at most ``room``; and
    those asked for.

    For counting, the number of distractors varies independently of the count as far as there is
    room, and they may repeat as well, so that neither the total nor a repetition gives the count
    away.
    """
    fresh = rng.permutation(len(OBJECTS)).tolist()
    if kind == "cnt":
        asked = [fresh.pop()]
        wanted = asked * int(rng.integers(1, min(MAX_COUNT, room) + 1))
    else:
        asked = wanted = [fresh.pop() for _ in range(1 if kind == "ret" else ORDERED)]
    extra = int(rng.integers(0, min(MAX_DISTRACTORS, room - len(wanted)) + 1))
    others = rng.choice(fresh[: max(1, extra)], extra).tolist() if kind == "cnt" else fresh[:extra]
    mixed = [*wanted, *others]
    return [mixed[i] for i in rng.permutation(len(mixed))], tuple(asked)


def ask_retrieval(rng: np.random.Generator, events: Sequence[Event], wanted: int | None = None) -> Question:
    """Which one of four objects appears: ``wanted`` (else any that does) against three that do
    not."""
    present = sorted({event.index for event in events})
    wanted = int(rng.choice(present)) if wanted is None else wanted
    absent = [i for i in rng.permutation(len(OBJECTS)).tolist() if i not in present][:3]
    return _shuffle(rng, "ret", RETRIEVAL, [(wanted,), *((i,) for i in absent)], (wanted,))


def ask_ordering(rng: np.random.Generator, events: Sequence[Event], wanted: Sequence[int] | None = None) -> Question:
    """In which order ``ORDERED`` objects appear that are seen once each; ``wanted`` defaults to any
    such."""
    seen = Counter(event.index for event in events)
    order = [event.index for event in events if seen[event.index] == 1]
    if wanted is None:
        keep = sorted(rng.choice(len(order), ORDERED, replace=False).tolist())
        order = [order[i] for i in keep]
    else:
        order = [i for i in order if i in set(wanted)]
    options = [tuple(order)]
    while len(options) < 4:
        other = tuple(order[i] for i in rng.permutation(len(order)))
        if other not in options:
            options.append(other)
    return _shuffle(rng, "ord", ORDERING, options, tuple(order))


def ask_counting(rng: np.random.Generator, events: Sequence[Event], wanted: int) -> Question:
    """How often an object appears (1 to ``MAX_COUNT`` times)."""
    count = sum(event.index == wanted for event in events)
    others = [n for n in (rng.permutation(MAX_COUNT) + 1).tolist() if n != count][:3]
    text = OBJECTS[wanted].join(COUNTING)
    return _shuffle(rng, "cnt", text, [(count,), *((n,) for n in others)], (wanted,))


def _shuffle(
    rng: np.random.Generator, kind: str, text: str, contents: Sequence[tuple[int, ...]], needles: tuple[int, ...]
) -> Question:
    return Question(kind, text, tuple(contents), 0, needles).shuffled(rng.permutation(4).tolist())


def sample_video(
    rng: np.random.Generator, kind: str, seconds: float, grid: int = GRID
) -> tuple[tuple[Event, ...], Question]:
    """Needles of one video, placed on a ``grid x grid`` division, and the question about it.

    Raises:
        ValueError: ``kind`` is unknown, or the video is too short for its needles.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    room = slots(seconds)
    if room < ORDERED:
        raise ValueError(f"a video of {seconds} s has room for {room} needles; it needs at least {ORDERED + 1} s")
    objects, asked = sample_objects(rng, kind, room)
    events = place(rng, objects, seconds, grid)
    if kind == "ret":
        return events, ask_retrieval(rng, events, asked[0])
    if kind == "ord":
        return events, ask_ordering(rng, events, asked)
    return events, ask_counting(rng, events, asked[0])

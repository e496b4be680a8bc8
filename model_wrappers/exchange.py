"""One video's questions on one process, for tasks whose documents lmms-eval dealt out round robin.

lmms-eval gives process ``r`` of ``w`` the documents ``r, r + w, ...``, so the questions of a video land on several
processes, each of which would decode, encode and prefill it. Our own tasks order their documents against this; for all
others the processes exchange requests before they answer and answers afterwards. lmms-eval sees every answer where it
asked for it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from lmms_eval.api.instance import Instance

T = TypeVar("T")
Address = tuple[int, int]
"""A process, and the position of a request in its list."""


@dataclass(frozen=True)
class Card:
    """What another process has to know about a request: ``videos`` of its messages, None if it is to stay."""

    task: str
    context: Any
    doc: tuple[Any, ...]
    videos: Hashable = None


def possible(arguments: Sequence[str] | None = None) -> bool:
    """Whether every process is certain to be asked at the same point.

    With lmms-eval's response cache (``--use_cache``, or a ``--config`` that may hold it) a process whose answers are
    all known is not asked at all, and the others would wait for it.
    """
    words = [word.partition("=")[0] for word in (sys.argv if arguments is None else arguments)]
    alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    return not alone and "--tasks" in words and not {"--use_cache", "--config"} & set(words)


def card(instance: Instance, messages: Sequence[Mapping[str, Any]] | None) -> Card:
    """The card of a request, from its arguments and its messages (None if its visuals cannot be had)."""
    parts = [part for message in messages or () for part in message["content"] if part["type"] != "text"]
    paths = tuple(str(part["video"]) for part in parts if part["type"] == "video" and isinstance(part["video"], str))
    videos = paths if paths and len(paths) == len(parts) else None
    return Card(instance.task_name, instance.args[0], tuple(instance.args[-3:]), videos)


def assign(cards: Sequence[Sequence[Card]]) -> dict[Address, int]:
    """Who answers what: address of each request that moves -> process. Empty if nothing has to move.

    The questions of a video that several processes have go to the one of these that has least to do; every process
    computes the same.
    """
    load = [len(own) for own in cards]
    groups: dict[Hashable, list[Address]] = {}
    for rank, own in enumerate(cards):
        for position, item in enumerate(own):
            if item.videos is not None:
                groups.setdefault((item.task, item.videos), []).append((rank, position))
    split = [group for group in groups.values() if len({rank for rank, _ in group}) > 1]
    for group in split:
        for rank, _ in group:
            load[rank] -= 1
    moved: dict[Address, int] = {}
    for group in split:
        chosen = min(sorted({rank for rank, _ in group}), key=lambda rank: load[rank])
        load[chosen] += len(group)
        moved |= {address: chosen for address in group if address[0] != chosen}
    return moved


def borrowed(like: Instance, item: Card) -> Instance:
    """The request of another process, made from one of the same task that this process has."""
    instance = copy.copy(like)
    instance.metadata = dict(like.metadata, __padding_only__=False)
    instance.arguments = (item.context, *like.args[1:-3], *item.doc)
    return instance


def gather(mine: T) -> list[T]:
    """What every process has, by rank."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found

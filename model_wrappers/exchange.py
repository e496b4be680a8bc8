"""Whole videos for every process, whatever documents lmms-eval dealt to it.

lmms-eval gives process ``r`` of ``w`` the documents ``r, r + w, ...``: as many questions to each, whatever their videos
cost, and the questions of a video to several processes, each of which would decode, encode and prefill it. So the
processes exchange requests before they answer and answers afterwards: each video goes to one of them, and all have
about as much to do. lmms-eval sees every answer where it asked for it.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from lmms_eval.api.instance import Instance

from sttm_lmms.benchmarks.balance import FRAMES_PER_QUESTION, share_out, watching_cost
from sttm_lmms.benchmarks.order import requests_are_exchanged

T = TypeVar("T")
Address = tuple[int, int]
"""A process, and the position of a request in its list."""


@dataclass(frozen=True)
class Card:
    """What another process has to know about a request.

    Attributes:
        videos: files of its messages, None if it is to stay where it is.
        seconds: about how long its video is, 0 if that is not known.
    """

    task: str
    context: Any
    doc: tuple[int, str, str]
    videos: Hashable = None
    seconds: float = 0.0


def possible(arguments: Sequence[str] | None = None) -> bool:
    """Whether there are several processes, and each is certain to be asked at the same point."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return together and requests_are_exchanged(sys.argv if arguments is None else arguments)


def card(instance: Instance, messages: Sequence[Mapping[str, Any]] | None, seconds: float = 0.0) -> Card:
    """The card of a request, from its arguments, its messages (None if its visuals cannot be had) and the length of its
    video."""
    parts = [part for message in messages or () for part in message["content"] if part["type"] != "text"]
    paths = tuple(str(part["video"]) for part in parts if part["type"] == "video" and isinstance(part["video"], str))
    videos = paths if paths and len(paths) == len(parts) else None
    doc_id, task, split = instance.args[-3:]
    return Card(instance.task_name, instance.args[0], (doc_id, task, split), videos, seconds if parts else 0.0)


def assign(cards: Sequence[Sequence[Card]]) -> list[list[Address]]:
    """What each process answers, in its order: whole videos, the most expensive first.

    A video may go to a process that has no question of it. Requests that are to stay count as work of their process.
    Every process computes the same.
    """
    addresses = [(rank, position) for rank, own in enumerate(cards) for position in range(len(own))]
    groups: dict[Hashable, list[Address]] = {}
    for rank, position in sorted(addresses, key=lambda at: cards[at[0]][at[1]].doc):  # as one process would ask them
        item = cards[rank][position]
        key = (rank, position) if item.videos is None else (item.task, item.videos)
        groups.setdefault(key, []).append((rank, position))
    shares: list[list[tuple[float, list[Address]]]] = [[] for _ in cards]
    moving = []
    for group in groups.values():
        first = cards[group[0][0]][group[0][1]]
        if first.videos is not None:
            moving.append((watching_cost(first.seconds, len(group)), group))
        else:
            price = watching_cost(first.seconds, 1) if first.seconds else FRAMES_PER_QUESTION
            shares[group[0][0]].append((price, group))
    homes = [Counter(rank for rank, _ in group).most_common(1)[0][0] for _, group in moving]
    loads = [sum(price for price, _ in share) for share in shares]
    for rank, priced in zip(share_out([price for price, _ in moving], homes, loads), moving, strict=True):
        shares[rank].append(priced)
    first_to_last = (sorted(share, key=lambda priced: -priced[0]) for share in shares)
    return [[address for _, group in share for address in group] for share in first_to_last]


def described(cards: Sequence[Sequence[Card]]) -> set[Address]:
    """The requests whose answers describe the run, as with one process: the first of each task."""
    first: dict[str, Address] = {}
    for position, item in enumerate(cards[0]):
        first.setdefault(item.task, (0, position))
    return set(first.values())


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

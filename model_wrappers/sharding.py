"""Re-shard requests so that each video is processed by one rank.

lmms-eval gives rank ``r`` of ``w`` the documents ``r, r + w, ...``: the questions of a video go to
several ranks, each of which would decode, encode and prefill it, and a rank may get all of the long
videos. So the ranks exchange requests before they answer and answers afterwards. lmms-eval sees
every answer where it asked for it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import yaml
from lmms_eval.api.instance import Instance

from sttm_lmms.benchmarks.balance import FRAMES_PER_QUESTION, assign_ranks, video_cost

T = TypeVar("T")
Address = tuple[int, int]
"""A rank, and the position of a request in its list."""


@dataclass(frozen=True)
class RequestKey:
    """What another rank has to know about a request.

    Attributes:
        doc: document id, task and split.
        videos: files of its messages, None if it is to stay where it is.
        seconds: about how long its video is, 0 if that is not known.
    """

    task: str
    context: Any
    doc: tuple[int, str, str]
    videos: Hashable = None
    seconds: float = 0.0


def exchange(
    requests: Sequence[Instance],
    keys: Sequence[RequestKey],
    answer: Callable[[list[Instance], set[int]], Mapping[int, T]],
    rank: int,
) -> list[tuple[int, T]]:
    """``(position, result)`` of the requests behind ``keys``, wherever they were answered. Every
    rank calls this at the same point.

    Args:
        requests: all of this rank, padding included, so that each task has one to rebuild others
            from.
        keys: of its requests that count.
        answer: from the requests that this rank is to answer, and which of them describe the run,
            to results by their index.
    """
    everybodys = gather(list(keys))
    mine = assign(everybodys)[rank]
    templates = {instance.task_name: instance for instance in requests}
    wanted = [everybodys[owner][position] for owner, position in mine]
    described = first_per_task(everybodys)
    results = answer(
        [rebuild_request(templates[key.task], key) for key in wanted],
        {index for index, address in enumerate(mine) if address in described},
    )
    given = [(address, results[index]) for index, address in enumerate(mine)]
    return [(at[1], result) for others in gather(given) for at, result in others if at[0] == rank]


def is_enabled(arguments: Sequence[str] | None = None) -> bool:
    """Whether there are several ranks, and each is certain to be asked at the same point."""
    return is_distributed() and not harness_caches(sys.argv if arguments is None else arguments)


def harness_caches(arguments: Sequence[str]) -> bool:
    """Whether lmms-eval may answer out of its own response cache, and then not ask a rank at all.

    Args:
        arguments: of its command line. Without ``--tasks`` or ``--config`` it is a program that
            calls lmms-eval, of which nothing is known.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    options = dict(zip(words, [*words[1:], ""], strict=True))
    if "--config" in options:
        runs = yaml.safe_load(Path(options["--config"]).read_text(encoding="utf-8"))
        if any(run.get("use_cache") is not None for run in (runs if isinstance(runs, list) else [runs])):
            return True
    elif "--tasks" not in options:
        return True
    return "--use_cache" in options


def request_key(instance: Instance, videos: Hashable, seconds: float) -> RequestKey:
    """The key of a chat request or of a simple one, from its own arguments."""
    doc_id, task, split = instance.args[-3:]
    return RequestKey(instance.task_name, instance.args[0], (doc_id, task, split), videos, seconds)


def assign(keys: Sequence[Sequence[RequestKey]]) -> list[list[Address]]:
    """What each rank answers, in its order: whole videos, the most expensive first.

    A video may go to a rank that has no question of it. Requests that are to stay count as work of
    their rank. Every rank computes the same.

    Args:
        keys: of the requests of each rank.
    """
    addresses = [(rank, position) for rank, own in enumerate(keys) for position in range(len(own))]
    groups: dict[Hashable, list[Address]] = {}
    for rank, position in sorted(addresses, key=lambda at: keys[at[0]][at[1]].doc):  # as one rank would ask them
        key = keys[rank][position]
        name = (rank, position) if key.videos is None else (key.task, key.videos)
        groups.setdefault(name, []).append((rank, position))
    shares: list[list[tuple[float, list[Address]]]] = [[] for _ in keys]
    moving: list[tuple[float, list[Address]]] = []
    for group in groups.values():
        first = keys[group[0][0]][group[0][1]]
        if first.videos is not None:
            moving.append((video_cost(first.seconds, len(group)), group))
        else:
            shares[group[0][0]].append((video_cost(first.seconds, 1) if first.seconds else FRAMES_PER_QUESTION, group))
    loads = [sum(cost for cost, _ in share) for share in shares]
    for rank, piece in zip(assign_ranks([cost for cost, _ in moving], loads), moving, strict=True):
        shares[rank].append(piece)
    ordered = (sorted(share, key=lambda piece: -piece[0]) for share in shares)
    return [[address for _, group in share for address in group] for share in ordered]


def first_per_task(keys: Sequence[Sequence[RequestKey]]) -> set[Address]:
    """The first request of each task, whose answer describes the run, as with one rank."""
    first: dict[str, Address] = {}
    for position, key in enumerate(keys[0]):
        first.setdefault(key.task, (0, position))
    return set(first.values())


def rebuild_request(template: Instance, key: RequestKey) -> Instance:
    """The request of another rank, made from one of the same task that this rank has."""
    instance = copy.copy(template)
    instance.metadata = dict(template.metadata, __padding_only__=False)
    instance.arguments = (key.context, *template.args[1:-3], *key.doc)
    return instance


def is_distributed() -> bool:
    """Whether there are several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(mine: T) -> list[T]:
    """What every rank has, by rank."""
    if not is_distributed():
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found

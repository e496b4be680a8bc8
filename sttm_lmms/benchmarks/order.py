"""An order of the documents in which the questions of one video fall on one rank.

lmms-eval gives rank ``r`` of ``w`` the documents ``r, r + w, r + 2w, ...``: in the order of the file the questions of a
video land on different ranks, each of which decodes the video again and none of which can reuse its KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
Group = list[int]  # positions of the documents that belong together
Key = Callable[[T], Hashable]


def order_for_world(docs: Sequence[T], key: Key[T], world_size: int) -> list[T]:
    """A permutation of ``docs`` such that documents with equal ``key`` fall on one rank.

    Rank ``r`` has room for exactly ``ceil((len(docs) - r) / world_size)`` documents. Where the groups cannot fill these
    rooms (2,700 questions, three to a video, on eight ranks: 337.5 each), the few groups left over are split;
    :func:`split_groups` names them. On each rank the groups keep the order in which they first occur in ``docs``, their
    documents stay together, and no document is repeated. Deterministic: every rank computes the same order.

    Args:
        docs: the documents.
        key: what must stay together, for example the id of the video.
        world_size: number of ranks, at least 1.
    """
    if world_size < 1:
        raise ValueError(f"world_size={world_size} is not valid; it must be an integer >= 1")
    groups: dict[Hashable, Group] = {}
    for index, doc in enumerate(docs):
        groups.setdefault(key(doc), []).append(index)
    shares = _assign(list(groups.values()), _rooms(len(docs), world_size))
    ordered = list(docs)
    for rank, share in enumerate(shares):
        ordered[rank::world_size] = [docs[index] for group in sorted(share) for index in group]
    return ordered


def split_groups(ordered: Sequence[T], key: Key[T], world_size: int) -> list[Hashable]:
    """The keys whose documents fall on more than one rank, in order of first occurrence."""
    ranks: dict[Hashable, set[int]] = {}
    for index, doc in enumerate(ordered):
        ranks.setdefault(key(doc), set()).add(index % world_size)
    return [name for name, where in ranks.items() if len(where) > 1]


def _rooms(count: int, world_size: int) -> list[int]:
    return [len(range(rank, count, world_size)) for rank in range(world_size)]


def _assign(groups: list[Group], rooms: list[int]) -> list[list[Group]]:
    """Which groups each rank gets.

    The largest groups go first, each to the rank with the most room, until every rank is nearly full; the small ones
    that remain then fill each rank exactly where some subset does, and what fits nowhere is cut.
    """
    shares: list[list[Group]] = [[] for _ in rooms]
    space = list(rooms)
    reserve = 3 * max(map(len, groups), default=0)
    pool: list[Group] = []

    def give(rank: int, group: Group) -> None:
        shares[rank].append(group)
        space[rank] -= len(group)

    for group in sorted(groups, key=len, reverse=True):
        rank = _roomiest(space)
        if space[rank] - len(group) < reserve:
            pool.append(group)
        else:
            give(rank, group)
    for rank in range(len(rooms)):
        for group in _exact_fill(pool, space[rank]):
            pool.remove(group)
            give(rank, group)
    for group in pool:
        while group:
            fits = [rank for rank, free in enumerate(space) if free == len(group)]
            rank = fits[0] if fits else _roomiest(space)
            part, group = group[: space[rank]], group[space[rank] :]
            give(rank, part)
    return shares


def _exact_fill(pool: list[Group], room: int) -> list[Group]:
    """Groups of the pool with ``room`` documents in all, the largest first; none if no subset adds up."""
    reached: dict[int, list[Group]] = {0: []}
    for group in pool:
        for total, chosen in list(reached.items()):
            if total + len(group) <= room:
                reached.setdefault(total + len(group), [*chosen, group])
    return reached.get(room, [])


def _roomiest(space: list[int]) -> int:
    return max(range(len(space)), key=lambda rank: (space[rank], -rank))

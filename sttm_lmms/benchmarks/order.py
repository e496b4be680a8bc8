"""An order of the documents in which the questions of one video fall on one rank.

lmms-eval gives rank ``r`` of ``w`` the documents ``r, r + w, r + 2w, ...``: in the order of the file the questions of a
video land on different ranks, each of which decodes the video again and none of which can reuse its KV cache. Where
the ranks can exchange requests, they share out whole videos whatever the order (``balance.py``); with a response cache
they cannot, and the order decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

_SWAPS_PER_RANK, _PARTNERS = 4, 8

T = TypeVar("T")
Group = list[int]  # positions of the documents that belong together
Key = Callable[[T], Hashable]
Cost = Callable[[Sequence[T]], float]


def requests_are_exchanged(arguments: Sequence[str]) -> bool:
    """Whether several processes of this lmms-eval command line exchange requests, so that no order is needed.

    With the response cache (``--use_cache``, or a ``--config`` that may hold it) a process whose answers are all known
    is never asked, and the others would wait for it.
    """
    words = {word.partition("=")[0] for word in arguments}
    return "--tasks" in words and not {"--use_cache", "--config"} & words


def order_for_world(docs: Sequence[T], key: Key[T], world_size: int, cost: Cost[T] | None = None) -> list[T]:
    """A permutation of ``docs`` such that documents with equal ``key`` fall on one rank.

    Rank ``r`` has room for exactly ``ceil((len(docs) - r) / world_size)`` documents. Where the groups cannot fill these
    rooms (2,700 questions, three to a video, on eight ranks: 337.5 each), the few groups left over are split;
    :func:`split_groups` names them. On each rank the groups keep the order in which they first occur in ``docs``, their
    documents stay together and in order, and no document is repeated. Deterministic: every rank computes the same.

    Args:
        docs: the documents.
        key: what must stay together, for example the id of the video.
        world_size: number of ranks, at least 1.
        cost: of answering documents of one group; evens out what the ranks have to do, as far as their rooms allow, and
            puts each rank's most expensive groups first, so that none comes when the others have finished. Without it
            all groups of a size count the same.
    """
    if world_size < 1:
        raise ValueError(f"world_size={world_size} is not valid; it must be an integer >= 1")
    groups: dict[Hashable, Group] = {}
    for index, doc in enumerate(docs):
        groups.setdefault(key(doc), []).append(index)
    shares = _assign(list(groups.values()), _rooms(len(docs), world_size))
    prices: dict[int, float] = {}  # of a group, by its first document
    if cost is not None and world_size > 1:
        prices = {group[0]: cost([docs[index] for index in group]) for share in shares for group in share}
        shares = _even_out(shares, prices)
    places: dict[Hashable, list[int]] = {}
    for rank, share in enumerate(shares):
        share = sorted(share, key=lambda group: (-prices.get(group[0], 0.0), group))
        indices = (index for group in share for index in group)
        for place, index in zip(range(rank, len(docs), world_size), indices, strict=True):
            places.setdefault(key(docs[index]), []).append(place)
    ordered = list(docs)
    for name, group in groups.items():  # those of a split group, too, one after the other
        for place, index in zip(sorted(places[name]), group, strict=True):
            ordered[place] = docs[index]
    return ordered


def _even_out(shares: list[list[Group]], prices: dict[int, float]) -> list[list[Group]]:
    """Groups change places with others of their size until the ranks' costs are about equal.

    First by longest processing time: the most expensive group goes to the rank with the most free places of its size,
    and of these to the one with the least to do. Then the busiest rank swaps groups with idle ones while that helps.
    """
    free = [Counter(map(len, share)) for share in shares]
    loads = [0.0] * len(shares)
    result: list[list[Group]] = [[] for _ in shares]
    groups = [group for share in shares for group in share]
    for group in sorted(groups, key=lambda group: (-prices[group[0]], group)):
        rank = min(range(len(shares)), key=lambda rank: (-free[rank][len(group)], loads[rank], rank))
        free[rank][len(group)] -= 1
        loads[rank] += prices[group[0]]
        result[rank].append(group)
    for _ in range(_SWAPS_PER_RANK * len(shares)):
        if not _swap_down(result, loads, prices):
            break
    return result


def _swap_down(shares: list[list[Group]], loads: list[float], prices: dict[int, float]) -> bool:
    """One swap that takes work from the busiest rank; False if it is within 1% of the mean or none helps."""
    busiest = max(range(len(loads)), key=lambda rank: (loads[rank], -rank))
    if loads[busiest] <= 1.01 * sum(loads) / len(loads):
        return False
    idle = sorted(range(len(loads)), key=lambda rank: (loads[rank], rank))[:_PARTNERS]
    best, chosen = loads[busiest], None
    for rank in idle:
        for i, given in enumerate(shares[busiest]):
            for j, taken in enumerate(shares[rank]):
                less = prices[given[0]] - prices[taken[0]]
                if less > 0 and len(given) == len(taken):
                    after = max(loads[busiest] - less, loads[rank] + less)
                    if after < best:
                        best, chosen = after, (rank, i, j, less)
    if chosen is None:
        return False
    rank, i, j, less = chosen
    shares[busiest][i], shares[rank][j] = shares[rank][j], shares[busiest][i]
    loads[busiest] -= less
    loads[rank] += less
    return True


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

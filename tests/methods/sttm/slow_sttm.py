"""STTM written as plain loops over nodes and pairs, to be compared with the vectorised one on small
grids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sttm_lmms.methods.sttm import STTMConfig


@dataclass
class Node:
    """A node of a quadtree: its feature, its box in one frame, and what it is compared with."""

    feature: np.ndarray
    box: tuple[int, int, int, int]
    children: list[Node] = field(default_factory=list)
    compared: list[Node] = field(default_factory=list)

    @property
    def area(self) -> int:
        y0, x0, y1, x1 = self.box
        return (y1 - y0) * (x1 - x0)

    def contains(self, other: Node) -> bool:
        (a, b, c, d), (e, f, g, h) = self.box, other.box
        return a <= e and b <= f and c >= g and d >= h


@dataclass
class SlowToken:
    box: tuple[int, int, int, int, int]
    feature: np.ndarray
    count: int


def merge_slowly(features: np.ndarray, config: STTMConfig, head_dim: int | None = None) -> list[SlowToken]:
    """The tokens of float32 ``[T, H, W, C]``, in order."""
    heads = features.shape[-1] // head_dim if config.per_head and head_dim else 1
    frames = []
    for frame in features:
        leaves = [
            leaf for root in plant_frame(frame, config) for leaf in descend(root, config.spatial_threshold, heads)
        ]
        frames.append(sorted(leaves, key=lambda node: node.box))
    nodes = [(t, node) for t, leaves in enumerate(frames) for node in leaves]
    rep = merge_pairs(nodes, config.temporal_threshold, heads)

    tokens = []
    for i, (t, node) in enumerate(nodes):
        members = [nodes[j][1] for j in range(len(nodes)) if rep[j] == i]
        if members:
            weights = [member.area if config.weighted_avg else 1 for member in members]
            mean = sum(w * member.feature for w, member in zip(weights, members, strict=True)) / sum(weights)
            tokens.append(SlowToken((t, *node.box), mean, sum(member.area for member in members)))
    return tokens


def plant_frame(frame: np.ndarray, config: STTMConfig) -> list[Node]:
    """The root nodes of one frame ``[H, W, C]``."""
    height, width, _ = frame.shape
    levels = [[[Node(frame[y, x], (y, x, y + 1, x + 1)) for x in range(width)] for y in range(height)]]
    while min(len(levels[0]), len(levels[0][0])) > 2:
        finer = levels[0]
        rows, columns = groups(len(finer)), groups(len(finer[0]))
        levels.insert(0, [[parent_of(finer, ys, xs, config) for xs in columns] for ys in rows])
    roots = levels[min(config.root_level, len(levels) - 1)]
    return [node for row in roots for node in row]


def groups(side: int) -> list[list[int]]:
    alone = [[0]] if side % 2 else []
    return alone + [[i, i + 1] for i in range(side % 2, side, 2)]


def parent_of(finer: list[list[Node]], ys: list[int], xs: list[int], config: STTMConfig) -> Node:
    children = [finer[y][x] for y in ys for x in xs]
    weights = [child.area if config.weighted_avg else 1 for child in children]
    mean = sum(w * child.feature for w, child in zip(weights, children, strict=True)) / sum(weights)
    box = (*children[0].box[:2], *children[-1].box[2:])
    corner = [finer[0][0]] if len(children) < 4 and config.odd_edge == "reference" else []
    return Node(mean, box, children, children + corner)


def descend(node: Node, threshold: float, heads: int) -> list[Node]:
    if all(cosine(node.feature, other.feature, heads) >= threshold for other in node.compared):
        return [node]
    return [leaf for child in node.children for leaf in descend(child, threshold, heads)]


def merge_pairs(nodes: list[tuple[int, Node]], threshold: float, heads: int) -> list[int]:
    pairs = []
    for i, (t, a) in enumerate(nodes):
        for j, (u, b) in enumerate(nodes):
            overlap = u == t + 1 and (a.contains(b) or b.contains(a))
            if threshold > 0 and overlap and cosine(a.feature, b.feature, heads) >= threshold:
                pairs.append((i, j))
    rep = list(range(len(nodes)))
    while True:
        before = list(rep)
        for i, j in pairs:
            lower = min(before[i], before[j])
            rep[i], rep[j] = min(rep[i], lower), min(rep[j], lower)
        rep = [rep[r] for r in rep]
        if rep == [rep[r] for r in rep]:
            return rep


def cosine(a: np.ndarray, b: np.ndarray, heads: int) -> float:
    a, b = a.reshape(heads, -1), b.reshape(heads, -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())

"""The view graph: photos as nodes, pairs as edges. How many parts it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfm_lightglue.products import Pair


class Components:
    """The connected parts of a growing graph of n nodes, numbered from 0."""

    def __init__(self, num_nodes: int) -> None:
        self._root = list(range(num_nodes))

    def find(self, node: int) -> int:
        """The node that stands for the part of `node`. It may change when parts are joined."""
        root = self._root
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    def join(self, node0: int, node1: int) -> bool:
        """Joins the parts of two nodes. False if they were one part before."""
        root0, root1 = self.find(node0), self.find(node1)
        if root0 == root1:
            return False
        self._root[max(root0, root1)] = min(root0, root1)
        return True


@dataclass(frozen=True)
class GraphParts:
    """How connected a view graph is."""

    num_components: int
    """Connected parts; a photo without any pair is a part of its own."""
    largest_component: int
    """Photos of the largest part."""
    num_alone: int
    """Photos without any pair."""


def components_of(names: Sequence[str], pairs: Iterable[Pair]) -> dict[str, int]:
    """The number of the part of each photo. Parts are numbered from 0: the largest first, equal ones by their first photo.

    Args:
        names: The photos, each once.
        pairs: Pairs of these photos.
    """
    index = {name: i for i, name in enumerate(sorted(names))}
    graph = Components(len(index))
    for pair in pairs:
        graph.join(index[pair.name0], index[pair.name1])
    members: dict[int, list[str]] = {}
    for name, i in index.items():
        members.setdefault(graph.find(i), []).append(name)
    parts = sorted(members.values(), key=lambda part: (-len(part), part[0]))
    return {name: number for number, part in enumerate(parts) for name in part}


def graph_parts(names: Sequence[str], pairs: Iterable[Pair]) -> GraphParts:
    """How connected these photos are by these pairs."""
    sizes: dict[int, int] = {}
    for number in components_of(names, pairs).values():
        sizes[number] = sizes.get(number, 0) + 1
    return GraphParts(len(sizes), sizes.get(0, 0), sum(size == 1 for size in sizes.values()))

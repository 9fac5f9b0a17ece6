"""What a forest tells, and which clusters may merge: by looking at every threshold and at every pair, one by one."""

from collections.abc import Iterable

Edge = tuple[int, int, float, int]  # two clusters, height, key


def groups(edges: Iterable[Edge], nodes: Iterable[int]) -> dict[int, frozenset[int]]:
    """The nodes that hang together with each node."""
    found = {node: frozenset([node]) for node in nodes}
    for a, b, *_ in edges:
        if found[a] != found[b]:
            joined = found[a] | found[b]
            found |= dict.fromkeys(joined, joined)
    return found


def together(edges: list[Edge], terminals: set[int], rank: tuple[float, int]) -> set[frozenset[int]]:
    """Which terminals hang together by edges of a rank or better."""
    nodes = terminals | {end for edge in edges for end in edge[:2]}
    return {group & terminals for group in groups([edge for edge in edges if edge[2:] <= rank], nodes).values()
            if group & terminals}


def absorptions(edges: list[Edge], outside: list[Edge], incomplete: set[int]) -> set[tuple[int, int, Edge]]:
    """(cluster, what it merges with, edge) of every complete cluster that nothing can come before.

    Of two that are each other's best both are named.
    """
    nodes = {end for edge in [*edges, *outside] for end in edge[:2]}
    best = {node: min((edge for edge in edges if node in edge[:2]), key=lambda edge: edge[2:], default=None)
            for node in nodes}
    found = set()
    for cluster in nodes - incomplete:
        edge = best[cluster]
        other = edge[0] if edge[1] == cluster else edge[1]
        connected = groups([one for one in [*edges, *outside] if one[2:] < edge[2:]], nodes)[other]
        others = {end for one in edges if cluster in one[:2] for end in one[:2]} - {cluster, other}
        is_mutual = other not in incomplete and best[other] == edge
        if is_mutual or not others & connected:
            found.add((cluster, other, edge))
    return found

"""Region graphs voxel by voxel, and agglomeration by looking at every edge again after every merge."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def contacts(fragments, affs, offsets=NEAREST, volume_shape=None, origin=(0, 0, 0)):
    """{(u, v): [(affinity, key), ...]}, in raster order of the voxel that holds the affinity."""
    steps = [max(tuple(o), tuple(-s for s in o)) for o in offsets]
    nearest = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    digits = nearest if all(s in nearest for s in steps) else sorted(steps, reverse=True)
    whole = volume_shape or fragments.shape
    found = {}
    for voxel in np.ndindex(fragments.shape):
        for c, offset in enumerate(offsets):
            other = tuple(int(p + o) for p, o in zip(voxel, offset))
            if not all(0 <= p < s for p, s in zip(other, fragments.shape)):
                continue
            a, b = int(fragments[voxel]), int(fragments[other])
            if a == b or a == 0 or b == 0:
                continue
            later = [p + o for p, o in zip(max(voxel, other), origin)]
            index = (later[0] * whole[1] + later[1]) * whole[2] + later[2]
            key = index * max(3, len(offsets)) + digits.index(steps[c])
            found.setdefault((min(a, b), max(a, b)), []).append((float(affs[(c, *voxel)]), key))
    return found


@dataclass(frozen=True)
class Pooled:
    """What is known of an edge: a multiset of values, and the largest key."""

    values: tuple
    key: int


def pooled(a: Pooled, b: Pooled) -> Pooled:
    return Pooled(tuple(sorted(a.values + b.values)), max(a.key, b.key))


def mean_score(values):
    units = [int(value * 2**24) for value in values]
    return 1 - Fraction(sum(units), len(units) * 2**24)


def max_score(values):
    return 1 - Fraction(max(values))


def min_score(values):
    return 1 - Fraction(min(values))


def quantile_score(percent, bins):
    """Of values that are bins already, or of the values themselves for bins=0."""
    def score(values):
        value = sorted(values)[min(percent * len(values) // 100, len(values) - 1)]
        return 1 - (Fraction(value) if bins == 0 else (Fraction(value) + Fraction(1, 2)) / bins)
    return score


def first_edges(found, score_name, bins=0):
    """{(u, v): Pooled} as the score wants to start."""
    edges = {}
    for pair, seen in found.items():
        values = [value for value, _ in seen]
        key = max(key for _, key in seen)
        if score_name == "maxima":
            values = [max(values)]
        if bins:
            values = [min(int(value * bins), bins - 1) for value in values]
        edges[pair] = Pooled(tuple(sorted(values)), key)
    return edges


def _merge(edges, pair):
    a, b = pair
    merged = {}
    for (u, v), edge in edges.items():
        if (u, v) == pair:
            continue
        u, v = (a if u == b else u), (a if v == b else v)
        new = (min(u, v), max(u, v))
        merged[new] = pooled(merged[new], edge) if new in merged else edge
    return merged


def agglomerate(edges, score, random=None, limit=None):
    """Sorted merges (score, key): globally best first, or any edge that is the best of both its ends in random order.

    Also returns the edges that are left between clusters.
    """
    edges, events = dict(edges), []
    while True:
        ranks = {pair: (score(edge.values), edge.key) for pair, edge in edges.items()}
        if limit is not None:
            ranks = {pair: rank for pair, rank in ranks.items() if rank[0] < limit}
        if not ranks:
            return sorted(events), edges
        if random is None:
            pair = min(ranks, key=ranks.get)
        else:
            best = {}
            for pair, rank in ranks.items():
                for end in pair:
                    best[end] = min(best.get(end, rank), rank)
            mutual = [pair for pair, rank in ranks.items() if best[pair[0]] == rank == best[pair[1]]]
            pair = mutual[random.integers(len(mutual))]
        events.append(ranks[pair])
        edges = _merge(edges, pair)


def labels_at(fragments, found, events, threshold):
    """Labels after all merges below a threshold, numbered by the smallest fragment; a key names the contact."""
    owner = {key: pair for pair, seen in found.items() for _, key in seen}
    label = list(range(int(fragments.max(initial=0)) + 1))
    for score, key in events:
        if score < threshold:
            a, b = sorted(label[end] for end in owner[key])
            label = [a if value == b else value for value in label]
    names = {value: i for i, value in enumerate([0, *sorted(set(label) - {0})])}
    return np.array([names[value] for value in label], np.uint32)[fragments]


def size_linkage(found, sizes, size, affinity):
    """Cluster of every fragment: edges by falling maximum, each joining if either end is small."""
    sizes, label = list(sizes), list(range(len(sizes)))
    order = sorted(found, key=lambda pair: (-max(v for v, _ in found[pair]), max(k for _, k in found[pair])))
    for u, v in order:
        if max(value for value, _ in found[u, v]) <= affinity:
            break
        a, b = sorted((label[u], label[v]))
        if a != b and min(sizes[a], sizes[b]) < size:
            sizes[a] += sizes[b]
            label = [a if value == b else value for value in label]
    return label

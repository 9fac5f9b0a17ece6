"""Mutex watershed by the book: all edges sorted in Python, clusters as sets, one set of forbidden pairs."""

import itertools

import numpy as np


def mutex_watershed(weights, offsets, strides=None, mask=None):
    """Labels 1.. by first voxel from signed weights (c, z, y, x); strides is one triple a channel."""
    shape = weights.shape[1:]
    mask = np.ones(shape, bool) if mask is None else mask
    strides = [(1, 1, 1)] * len(offsets) if strides is None else strides
    edges = []
    for c, (offset, stride) in enumerate(zip(offsets, strides)):
        for voxel in itertools.product(*map(range, shape)):
            other = tuple(int(a + b) for a, b in zip(voxel, offset))
            if any(not 0 <= a < n for a, n in zip(other, shape)) or any(a % s for a, s in zip(voxel, stride)):
                continue
            weight = weights[c][voxel]
            if weight and mask[voxel] and mask[other]:
                edges.append((-abs(weight), c, voxel, other, weight > 0))
    cluster = {voxel: {voxel} for voxel in itertools.product(*map(range, shape))}
    apart = set()
    for _, _, first, second, attracts in sorted(edges):
        one, two = cluster[first], cluster[second]
        if one is two or any((a, b) in apart for a in one for b in two):
            continue
        if attracts:
            one |= two
            for voxel in two:
                cluster[voxel] = one
        else:
            apart |= {(first, second), (second, first)}
    labels = np.zeros(shape, np.uint32)
    for voxel in itertools.product(*map(range, shape)):
        if mask[voxel] and not labels[voxel]:
            labels[tuple(np.array(sorted(cluster[voxel])).T)] = labels.max() + 1
    return labels


def certain_clusters(nodes, weights, ends, incomplete):
    """(the cluster of every node as a set, pairs of nodes held apart): what edges in order say for certain.

    Incomplete nodes have edges that are not given. Everything is recomputed for every edge.
    """
    cluster = {node: {node} for node in range(nodes)}
    waits = {node for node in range(nodes) if incomplete[node]}
    links, apart = [], set()  # links: pairs that may be together by now

    def reached(start):
        found, before = set(start), None
        while found != before:
            before = set(found)
            for pair in [*links, *(cluster[node] for node in before)]:
                if found & set(pair):
                    found |= set(pair)
        return found

    for weight, (u, v) in zip(weights.tolist(), ends.tolist()):
        one, two = cluster[u], cluster[v]
        if one is two or any((a, b) in apart for a in one for b in two):
            continue
        if weight < 0:
            if not reached(one) & two:
                apart |= {(a, b) for a in one for b in two} | {(b, a) for a in one for b in two}
            continue
        if one & waits:
            one, two = two, one
        held = {b for a, b in apart if a in one}
        if not one & waits and not (two & waits and held & reached(two)):
            one |= two
            for node in two:
                cluster[node] = one
            apart |= {(a, b) for a in one for c, b in list(apart) if c in one}
            apart |= {(b, a) for a, b in apart}
        else:
            waits |= one | two
        links.append((u, v))
    return cluster, apart

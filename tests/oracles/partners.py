"""Slow and obvious: synaptic partners, voxel by voxel, from the rules that segment.partners states."""

from collections import Counter, defaultdict

import numpy as np

MARKS = (2**64 - 1, 2**64 - 2)


def neighbours(place, shape):
    """The voxels that share a face with one, each with the axis across."""
    for axis in range(3):
        for sign in (-1, 1):
            other = list(place)
            other[axis] += sign
            if 0 <= other[axis] < shape[axis]:
                yield tuple(other), axis


def partners(labels, synapses, kind, resolution, offset, share, direction=None):
    """Rows (synapse, place, size, pre, post, directed, confidence, area, pre place, post place)."""
    label = {place: 0 if int(value) in MARKS else int(value) for place, value in np.ndenumerate(labels)}
    ids = {place: int(value) for place, value in np.ndenumerate(synapses)
           if int(value) and not (int(value) in MARKS and synapses.dtype == np.uint64)}
    number = {place: (value + 1) // 2 if kind == "polarity" else value for place, value in ids.items()}
    voxels = defaultdict(list)
    for place, synapse in number.items():
        voxels[synapse].append(place)
    rows = []
    for synapse in sorted(voxels):
        votes = {side: defaultdict(list) for side in (0, 1)}
        for place in voxels[synapse]:
            side = 0 if kind == "clefts" else (ids[place] + 1) % 2
            around = [place] if kind == "polarity" else [place, *(other for other, _ in
                                                                  neighbours(place, labels.shape))]
            for other in around:
                if label[other]:
                    votes[side][label[other]].append(other)
        directed = kind == "polarity"
        if directed:
            pre, found, confidence = by_sides(votes, share)
        else:
            pre, found, confidence, directed = by_faces(votes[0], direction)
        middle = [sum(place[axis] for place in voxels[synapse]) / len(voxels[synapse]) for axis in range(3)]
        sides = (0, 1) if kind == "polarity" else (0, 0)
        for post in found:
            rows.append((synapse, in_nm(middle, resolution, offset), len(voxels[synapse]), pre, post, directed,
                         confidence(post), area(voxels[synapse], label, labels.shape, pre, post, resolution),
                         site(votes[sides[0]].get(pre), resolution, offset),
                         site(votes[sides[1]].get(post), resolution, offset)))
    return rows


def by_sides(votes, share):
    pre = min(votes[0], key=lambda one: (-len(votes[0][one]), len(votes[1].get(one, ())), one), default=0)
    others = sorted((one for one in votes[1] if one != pre), key=lambda one: (-len(votes[1][one]), one))
    total = sum(len(votes[1][one]) for one in others)
    found = [one for place, one in enumerate(others) if place == 0 or len(votes[1][one]) >= share * total] or [0]
    totals = [sum(map(len, votes[side].values())) for side in (0, 1)]

    def confidence(post):
        return len(votes[0][pre]) / totals[0] * (len(votes[1][post]) / totals[1]) if pre and post else 0

    return pre, found, confidence


def by_faces(votes, direction):
    pair = sorted(votes, key=lambda one: (-len(votes[one]), one))[:2]
    pair += [0] * (2 - len(pair))
    total = sum(map(len, votes.values()))
    confidence = 4 * np.prod([len(votes.get(one, ())) / max(total, 1) for one in pair])
    directed = False
    if 0 not in pair:
        pair.sort()
        if direction is not None:
            step = 65536 if direction.dtype.kind == "f" else 1
            means = [np.mean([round(float(direction[(0, *at)]) * step) - round(float(direction[(1, *at)]) * step)
                              for at in votes[one]]) for one in pair]
            directed = means[0] != means[1]
            if means[1] > means[0]:
                pair.reverse()
    return pair[0], [pair[1]], lambda _: confidence, directed


def in_nm(place, resolution, offset):
    return [at * size + start for at, size, start in zip(place, resolution, offset)]


def site(places, resolution, offset):
    if not places:
        return [np.nan] * 3
    mean = [sum(place[axis] for place in places) / len(places) for axis in range(3)]
    away = Counter({place: sum(((a - b) * size) ** 2 for a, b, size in zip(place, mean, resolution))
                    for place in set(places)})
    least = min(away.values())
    return in_nm(min(place for place in away if np.isclose(away[place], least, rtol=1e-12, atol=1e-12)), resolution,
                 offset)


def area(places, label, shape, pre, post, resolution):
    """Of the faces between two neurons that are a face of a voxel of the synapse."""
    faces = {(frozenset((place, other)), axis) for place in places for other, axis in neighbours(place, shape)
             if pre and post and {label[place], label[other]} == {pre, post} and pre != post}
    return sum(np.prod([resolution[a] for a in range(3) if a != axis]) for _, axis in faces)


def grids(shape, rng):
    """Shapes of blocks: single voxels, the whole, and some between."""
    yield shape
    for _ in range(3):
        yield tuple(int(rng.integers(1, length + 1)) for length in shape)



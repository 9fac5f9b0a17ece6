import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from tests.oracles import agglomeration as oracle


def volume(rng):
    shape = tuple(rng.integers(1, 6, 3))
    labels = rng.integers(0, 9, shape).astype(np.uint32)
    return labels, (rng.integers(0, 5, (3, *shape)) / 4).astype(np.float32)


def merge_small(labels, affs, size, affinity, remove):
    """Borders by falling mean, then rising key; labels by the smallest one of a segment."""
    found = oracle.contacts(labels, affs)
    edges = oracle.first_edges(found, "all")
    voxels = np.bincount(labels.ravel()).tolist()
    name = list(range(len(voxels)))
    for pair in sorted(edges, key=lambda p: (oracle.mean_score(edges[p].values), edges[p].key)):
        a, b = sorted(name[end] for end in pair)
        if 1 - float(oracle.mean_score(edges[pair].values)) > affinity and a != b and min(voxels[a], voxels[b]) < size:
            voxels[a] += voxels[b]
            name = [a if n == b else n for n in name]
    kept = [n for n in sorted(set(name)) if n and voxels[n] >= max(remove, 1)]
    return np.array([kept.index(n) + 1 if n in kept else 0 for n in name], np.uint32)[labels]


def test_dust_joins_the_neighbour_across_the_best_border_and_the_rest_of_it_goes():
    rng = np.random.default_rng(0)
    for _ in range(80):
        labels, affs = volume(rng)
        size, remove = rng.integers(0, (20, 9)).tolist()
        affinity = float(rng.choice([0, .25, .4, .5]))
        np.testing.assert_array_equal(segment.merge_small(labels, affs, size, affinity=affinity, remove_size=remove),
                                      merge_small(labels, affs, size, affinity, remove))


def test_removing_small_segments_keeps_the_labels_of_the_others():
    rng = np.random.default_rng(1)
    for scale in (1, 2**40):
        labels = rng.integers(0, 30, (4, 5, 6)).astype(np.uint64) * scale
        wanted = labels.copy()
        for label in np.unique(labels):
            if (labels == label).sum() < 4:
                wanted[labels == label] = 0
        labels.flags.writeable = False
        found = segment.remove_small(labels, 4)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == (np.uint32 if scale == 1 else np.uint64)
    assert segment.remove_small(np.zeros((0, 2, 2), np.uint32), 4).shape == (0, 2, 2)


def test_voxels_on_boundaries_are_cleared():
    rng = np.random.default_rng(2)
    labels, affs = rng.integers(0, 5, (3, 4, 5)), rng.random((3, 3, 4, 5)).astype(np.float32)
    wanted = np.where((affs[1] + affs[2]) / 2 < np.float32(.5), 0, labels)
    np.testing.assert_array_equal(segment.boundary_threshold(labels, affs, .5), wanted)
    earlier = np.stack([np.roll(a, -1, axis) for axis, a in enumerate(affs)])
    inside = (slice(None), slice(1, None), slice(1, None))
    cleared = segment.boundary_threshold(labels, segment.Affinities(earlier, edge="earlier"), .5)
    np.testing.assert_array_equal(cleared[inside], wanted[inside])
    codes = rng.integers(0, 256, affs.shape).astype(np.uint8)
    decoded = codes / np.float32(255)
    np.testing.assert_array_equal(segment.boundary_threshold(labels, codes, .5),
                                  np.where((decoded[1] + decoded[2]) / 2 < .5, 0, labels))


def test_bad_input_is_answered_with_a_sentence():
    labels, affs = np.ones((2, 3, 4), np.uint32), np.ones((3, 2, 3, 4), np.float32)
    for message, call in {
        "dust sizes must not be below 0": lambda: segment.merge_small(labels, affs, -1),
        "affinity must be 0 to 1": lambda: segment.merge_small(labels, affs, 1, affinity=2),
        "threshold must be 0 to 1; got 2": lambda: segment.boundary_threshold(labels, affs, 2),
        "over the labels' shape": lambda: segment.boundary_threshold(labels[1:], affs, .5),
        "labels must be whole-number labels": lambda: segment.remove_small(labels * .5, 3),
        "size must be a number of voxels, not below 0; got -5": lambda: segment.remove_small(labels, -5),
    }.items():
        with pytest.raises(InputError, match=message):
            call()

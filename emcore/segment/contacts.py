"""What is known of the contacts between fragments: whole numbers that pool exactly, in any order and any grouping.

A number of 0..1 is cut to units of 2**-24, a square to units of 2**-32. Every face between two fragments is looked at
for these quantities: the affinity across it; for every longer step the affinity of the pair that is centred on the
face; the larger height of its two voxels, the height being 1 minus the mean of a voxel's six affinities; and the least
affinity within one face along the axis. Pairs of longer steps are also counted for themselves, between fragments that
do not touch, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emcore.errors import InputError
from emcore.kernels import contacts as kernel
from emcore.segment.affinities import Affinities
from emcore.segment.graph import (
    LARGEST_LABEL,
    SUM_SCALE,
    Place,
    RegionGraph,
    check_fragments,
    decoded,
    region_graph,
)
from emcore.threads import run_parallel, slabs, thread_count

UNIT, SQUARE_UNIT = SUM_SCALE, 2.0**32
BINS = 16
MOST_GROUPS = 8  # steps besides the nearest; the kernel has room for so many
NODES = ("sizes", "least_height", "voxel_sums")  # columns of Contacts with a row for every fragment, from 0 on
_NO_VALUE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Pairs:
    """All pairs of one step between two different fragments, whether these touch or not; sorted by (u, v), u < v."""

    u: np.ndarray  # uint32
    v: np.ndarray
    count: np.ndarray  # int64, pairs
    sum: np.ndarray  # int64, affinities in units


@dataclass(frozen=True)
class Contacts:
    """Pairs of fragments that touch, sorted by (u, v) with u < v, and the fragments themselves.

    The columns of quantities are: near, one for each longer step, larger height, least near. Those of fragments are:
    height, near and one for each longer step, each the sum over the voxels of the fragment; of affinities a voxel has
    three, and one that leads out of the volume counts as 1.
    """

    steps: tuple[tuple[int, int, int], ...]  # z, y, x of every group of channels; the first is (1, 1, 1)
    u: np.ndarray  # uint32
    v: np.ndarray
    count: np.ndarray  # int64, faces
    z_faces: np.ndarray  # int64, those along z among them
    key: np.ndarray  # uint64, the largest key of a face: breaks ties
    sums: np.ndarray  # int64 (edges, quantities)
    squares: np.ndarray  # int64 (edges, quantities)
    least: np.ndarray  # int32 (edges, quantities)
    most: np.ndarray
    histograms: np.ndarray  # uint32 (edges, quantities, BINS)
    pairs: tuple[Pairs, ...]  # one entry a longer step
    sizes: np.ndarray  # int64, voxels of every fragment, from 0 on
    least_height: np.ndarray  # int32, of every fragment
    voxel_sums: np.ndarray  # int64 (fragments, 1 + groups)

    @property
    def fragments(self) -> int:
        """The largest fragment."""
        return len(self.sizes) - 1


def step_groups(offsets: Sequence[Sequence[int]]) -> tuple[list[list[int]], tuple[tuple[int, int, int], ...]]:
    """(channels along z, y, x of every group, its steps): the nearest neighbours, then longer and longer pairs.

    A group takes one step of every axis, by length; offsets that are not along one axis, and steps that another axis
    has no partner for, are left out.
    """
    found: list[dict[int, int]] = [{}, {}, {}]
    for channel, offset in enumerate(offsets):
        along = [axis for axis in range(3) if offset[axis]]
        if len(along) == 1:
            found[along[0]].setdefault(abs(int(offset[along[0]])), channel)
    if not all(1 in steps for steps in found) or any(len(steps) < 2 for steps in found):
        raise InputError("statistics of contacts need affinities of nearest neighbours and of at least one longer step "
                         f"along z, y and x; the offsets are {[tuple(offset) for offset in offsets]}")
    groups = list(zip(*(sorted(steps) for steps in found)))[:MOST_GROUPS + 1]
    return [[found[axis][group[axis]] for axis in range(3)] for group in groups], tuple(groups)


def measure_contacts(fragments: np.ndarray, affs: Affinities, *, place: Place | None = None,
                     threads: int | None = None) -> Contacts:
    """The statistics of all contacts between fragments (z, y, x), which are numbered densely from 1; 0 takes no part.

    affs: nearest neighbours and at least one longer step along each axis, with their offsets. place: that of a block in
    its volume, whose halo holds the fragments up to `reach` voxels before it; affs then also lead so far behind it,
    where the volume does, and the tables of all blocks pool to those of the volume.
    """
    fragments, largest = check_fragments(fragments, threads)
    origin, shape, halo = Place() if place is None else place
    shape = fragments.shape if shape is None else shape
    if affs.shape != fragments.shape and (place is None or np.less(affs.shape, fragments.shape).any()):
        raise InputError(f"affs must be (channels, z, y, x) over the fragments' shape {fragments.shape}; "
                         f"got {affs.values.shape}")
    groups, steps = step_groups(affs.offsets)
    affs.check_values([channel for group in groups for channel in group], threads)
    threads = thread_count(threads)
    own = Affinities(affs.values[(slice(None), *map(slice, fragments.shape))], affs.offsets, table=affs.table)
    near, *long = (region_graph(fragments, own, channels=group, threads=threads, place=place,
                                extras=("boxes",) if number == 0 else ())
                   for number, group in enumerate(groups))
    channels = np.array([[(group[axis], step[axis], step[axis] * (affs.offsets[group[axis]][axis] > 0))
                          for group, step in zip(groups, steps)] for axis in range(3)], np.int64)
    volume = np.stack([np.negative(origin), np.subtract(shape, origin)], axis=1).astype(np.int64)
    inside = np.array(halo, np.int64)
    values, decode = decoded(affs)
    height = np.empty(affs.shape, np.int32)
    run_parallel(lambda start, stop: kernel.heights(values, decode, channels, start, stop, height),
                 slabs(affs.shape[0], threads), threads)
    edges, quantities = len(near.u), len(groups) + 2
    sums, squares = np.zeros((2, edges, quantities), np.int64)
    least, most = np.full((edges, quantities), _NO_VALUE, np.int32), np.full((edges, quantities), -1, np.int32)
    histograms, z_faces = np.zeros((edges, quantities, BINS), np.uint32), np.zeros(edges, np.int64)
    starts = np.searchsorted(near.u, np.arange(largest + 2))

    def add(first: int, last: int, start: int, stop: int) -> None:
        kernel.add_contacts(fragments, values, decode, height, channels, volume, inside, starts, near.v, first, last,
                            start, stop, sums, squares, least, most, histograms, z_faces)

    if edges:
        sections = fragments.shape[0]
        run_parallel(add, [(0, largest + 1, int(inside[0]), sections)] if inside.any() else
                     _shares(near, starts, sections, threads), threads)

    def add_voxels(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        voxels, lowest = np.zeros((largest + 1, len(groups) + 1), np.int64), np.full(largest + 1, _NO_VALUE, np.int32)
        kernel.add_fragments(fragments, values, decode, height, channels, volume, inside, start, stop, voxels, lowest)
        return voxels, lowest

    parts = [(start + halo[0], stop + halo[0]) for start, stop in slabs(fragments.shape[0] - halo[0], threads)]
    (voxels, lowest), *found = run_parallel(add_voxels, parts or [(0, 0)], threads)
    for more, low in found:  # one after the other, as every one is a table of all fragments
        voxels += more
        np.minimum(lowest, low, out=lowest)
    return Contacts(steps, near.u, near.v, near.count, z_faces, near.key, sums, squares, least, most, histograms,
                    tuple(Pairs(graph.u, graph.v, graph.count, graph.sum) for graph in long), near.sizes,
                    lowest, voxels)


def reach_of(steps: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """How many voxels before a block, and behind it, decide with its own about its contacts, along z, y and x."""
    return tuple(max(2, *(group[axis] for group in steps)) for axis in range(3))


def _shares(graph: RegionGraph, starts: np.ndarray, sections: int, threads: int) -> list[tuple[int, int, int, int]]:
    """(first id, end of ids, first section, end of sections) for every thread: ids of about as many faces each.

    The faces of a fragment lie in the sections of its box and in the one after it.
    """
    before = np.concatenate([[0], np.cumsum(graph.count)])[starts]  # faces of lower ids, by id
    cuts = np.searchsorted(before, before[-1] * np.arange(1, threads) / threads)
    borders = np.unique([0, *cuts.tolist(), len(starts) - 1])
    shares = []
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist()):
        boxes = graph.boxes[max(first, 1):last]
        boxes = boxes[boxes[:, 3] >= boxes[:, 0]]
        if len(boxes):
            shares.append((first, last, int(boxes[:, 0].min()), min(sections, int(boxes[:, 3].max()) + 2)))
    return shares


def pool_contacts(contacts: Contacts, table: np.ndarray) -> Contacts:
    """The contacts of the clusters table[fragment], which number fragments densely from 1; table[0] is 0."""
    clusters = int(table.max(initial=0))
    u, v, order, starts = _grouped(table[contacts.u], table[contacts.v])

    def added(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[order], starts, axis=0, dtype=np.int64) if len(starts) else values[:0]

    histograms = added(contacts.histograms)
    if histograms.size and histograms.max() > LARGEST_LABEL:
        raise InputError("two clusters have more faces in common than 32 bits number; cut the volume into blocks")
    pairs = []
    for one in contacts.pairs:
        pair_u, pair_v, pair_order, pair_starts = _grouped(table[one.u], table[one.v])
        pooled = [np.add.reduceat(values[pair_order], pair_starts) if len(pair_starts) else values[:0]
                  for values in (one.count, one.sum)]
        pairs.append(Pairs(pair_u, pair_v, *pooled))
    extremes = [ufunc.reduceat(values[order], starts, axis=0) if len(starts) else values[:0]
                for ufunc, values in ((np.minimum, contacts.least), (np.maximum, contacts.most),
                                      (np.maximum, contacts.key))]
    return Contacts(contacts.steps, u, v, added(contacts.count), added(contacts.z_faces), extremes[2],
                    added(contacts.sums), added(contacts.squares), extremes[0], extremes[1],
                    histograms.astype(np.uint32), tuple(pairs),
                    **add_nodes({name: getattr(contacts, name) for name in NODES}, table, clusters))


def add_nodes(nodes: Mapping[str, np.ndarray], table: np.ndarray, clusters: int) -> dict[str, np.ndarray]:
    """The columns of fragments as those of the clusters table[fragment], from 0 to `clusters`."""
    sizes, lowest = np.zeros(clusters + 1, np.int64), np.full(clusters + 1, _NO_VALUE, np.int32)
    voxel_sums = np.zeros((clusters + 1, nodes["voxel_sums"].shape[1]), np.int64)
    np.add.at(sizes, table, nodes["sizes"])
    np.minimum.at(lowest, table, nodes["least_height"])
    np.add.at(voxel_sums, table, nodes["voxel_sums"])
    return dict(zip(NODES, (sizes, lowest, voxel_sums)))


def _grouped(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(u, v, order, starts): pairs of different clusters, and which rows each is made of."""
    names = np.minimum(one, other).astype(np.uint64) << np.uint64(32) | np.maximum(one, other).astype(np.uint64)
    order = np.flatnonzero(one != other)
    order = order[np.argsort(names[order], kind="stable")]
    names = names[order]
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]])) if len(names) else order
    names = names[starts]
    return (names >> np.uint64(32)).astype(np.uint32), names.astype(np.uint32), order, starts


def touching(contacts: Contacts, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(count, sum) of pairs of one step for every two that touch; 0 where there are none."""
    wanted, there = (rows.u.astype(np.uint64) << np.uint64(32) | rows.v for rows in (contacts, pairs))
    if len(there) == 0:
        return np.zeros((2, len(wanted)), np.int64)
    place = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
    found = there[place] == wanted
    return np.where(found, pairs.count[place], 0), np.where(found, pairs.sum[place], 0)


def first_graph(contacts: Contacts) -> RegionGraph:
    """The graph of the first merges: of every two that touch the mean over nearest and shortest longer pairs."""
    count, total = touching(contacts, contacts.pairs[0])
    least, most = ((values[:, 0] / UNIT).astype(np.float32) for values in (contacts.least, contacts.most))
    return RegionGraph(contacts.fragments, contacts.u, contacts.v, contacts.count + count,
                       contacts.sums[:, 0] + total, most, least, contacts.key, contacts.sizes)

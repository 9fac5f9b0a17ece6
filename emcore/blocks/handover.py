"""python -m emcore handover LABELS OUT: supervoxels, mapping, tables and lines for other programs; and back.

    python -m emcore handover a_labels.h5 a_handover                      # makes the folder a_handover
    python -m emcore handover a_labels.h5 a_handover --edits edits.csv    # with what people decided
    python -m emcore handover a_labels.h5 edits.csv --back changed.hdf5   # edits that make a changed mapping again

    supervoxels.precomputed   the fragments, which webknossos and Neuroglancer show
    agglomerates.hdf5         webknossos' mapping: which of them are one object, and the contacts within objects
    supervoxels.csv           a row for every supervoxel
    edges.csv                 a row for every contact between two, with its statistics
    merges                    lines of Neuroglancer: the weakest merges within objects
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emcore.blocks.editing import ranks
from emcore.blocks.explain import threshold_of
from emcore.blocks.label_statistics import write_rows
from emcore.blocks.tables import parts_of
from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.record import LABELS, has_labels, refuse_edits
from emcore.segment import Edit, Segmentation, read_edits, write_edits
from emcore.segment.agglomerates import numbered_objects, read_mapping, write_mapping
from emcore.segment.annotations import write_lines
from emcore.segment.edit_files import DROP, JOIN, SPLIT
from emcore.segment.edits import (
    NOT_OF_CLUSTERS,
    Decisions,
    decided,
    edited_objects,
    ids_at,
    note_labels,
    united,
)
from emcore.segment.graph import KEY_STEPS, RegionGraph
from emcore.segment.storage import no_tree
from emcore.volumes import Volume, create_volume, open_volume

SECTIONS = 16  # So many are read at a time.
MOST_SPLITS = 10**6  # A mapping that needs more is refused.
MOST_LINES = 10_000  # Neuroglancer gets the weakest merges, as each is a file.


@dataclass
class Supervoxels:
    """The fragments of labels: what they are made of, the objects that they belong to, and where they are."""

    segmentation: Segmentation
    fragments: Volume
    labels: Volume
    threshold: float
    objects: np.ndarray  # the label of the cluster of every fragment, 0 where that has none
    seen: np.ndarray  # whether a voxel of it has that label; boundaries may have cleared them all
    places: np.ndarray  # (fragments + 1, 3) a voxel in each: the first that has a label, or the first of all

    @property
    def graph(self) -> RegionGraph:
        return self.segmentation.graph

    def with_edits(self, ids: np.ndarray, decisions: Decisions) -> np.ndarray:
        """The label of every fragment with edits."""
        return edited_objects(self.segmentation, self.objects, self.threshold, ids, decisions)

    def ids(self, edits: Sequence[Edit]) -> np.ndarray:
        """The fragments that edits name."""
        def look(place: Sequence[int]) -> tuple[int, int]:
            box = tuple(slice(at, at + 1) for at in place)
            return int(self.fragments[box].item()), int(self.labels[box].item())

        return ids_at(edits, self.labels.shape, look)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore handover", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="a labels file of infer.py with decode.kind = affinities")
    parser.add_argument("out", type=Path, help="the folder to make; with --back the file of edits to write")
    parser.add_argument("--edits", metavar="FILE", help="edits to hold in what is handed over")
    parser.add_argument("--back", metavar="FILE",
                        help="a mapping of the same supervoxels that somebody changed: HDF5, or a folder of Zarr v3")
    options = parser.parse_args(arguments)
    if options.edits and options.back:
        raise InputError("--back compares a mapping with the labels as they are, and one that was handed over with "
                         "edits has these in it: leave --edits out")
    if not options.back and options.out.exists():
        raise InputError(f"{options.out} is there already; name a folder that is to be made, or remove it")
    found = look_at(options.labels)
    if options.back:
        edits = edits_of(found, read_mapping(options.back, len(found.objects) - 1))
        write_edits(options.out, edits)
        print(f"{options.out}: {len(edits)} edits")
        return 0
    edits = read_edits(options.edits) if options.edits else []
    hand_over(found, options.out, edits)
    print(f"{options.out}: {len(found.objects) - 1} supervoxels, {len(found.graph.u)} contacts")
    return 0


def look_at(path: Path) -> Supervoxels:
    """The supervoxels of a labels file; every voxel is read once."""
    parts, threshold = parts_of(path), threshold_of(path)
    if has_labels(path):
        refuse_edits(path, "name the labels without edits and give --edits")
    if parts is None:
        raise no_tree(path)
    if threshold is None:
        raise InputError(f"{path} does not say at which threshold it was cut, so its objects cannot be told")
    segmentation, fragments, labels = Segmentation.of_parts(parts), parts.fragments(), open_volume(path, LABELS)
    if fragments.shape != labels.shape:
        raise InputError(f"{path} has fragments of {fragments.shape} voxels and labels of {labels.shape}; decode the "
                         "prediction again")
    cut = segmentation.tree.table(threshold)
    table, plane = np.zeros(int(cut.max()) + 1, np.uint64), int(np.prod(labels.shape[1:]))
    first, labelled = np.full((2, len(cut)), -1, np.int64)
    for start in range(0, labels.shape[0], SECTIONS):
        ours, theirs = (volume[start:start + SECTIONS].reshape(-1) for volume in (fragments, labels))
        if ours.size and ours.max() >= len(cut):
            raise InputError(f"{path} has fragments that its merges do not know; decode the prediction again")
        if theirs.size and theirs.max() > 2 * len(cut):
            raise InputError(f"{path} has the label {theirs.max()}, and labels of {len(cut) - 1} fragments have "
                             "smaller numbers; these were changed since, so run infer.py again")
        if not note_labels(table, cut[ours], theirs):
            raise InputError(f"{path}: {NOT_OF_CLUSTERS}, as infer.py writes them; these were changed since, so run "
                             "infer.py again")
        has = np.flatnonzero(theirs)
        for places, voxels in ((labelled, has), (first, np.arange(ours.size))):
            new = voxels[places[ours[voxels]] < 0][::-1]  # The last one that is written stays: the first voxel.
            places[ours[new]] = new + start * plane
    places = np.where(labelled >= 0, labelled, np.maximum(first, 0))
    places = np.stack(np.unravel_index(places, labels.shape), axis=1)
    return Supervoxels(segmentation, fragments, labels, threshold, table[cut], labelled >= 0, places)


def hand_over(found: Supervoxels, out: Path, edits: Sequence[Edit]) -> None:
    """Writes the folder, which gets its name when all is there."""
    graph, labels = found.graph, found.labels
    objects = found.objects
    joined = np.zeros((0, 2), np.int64)
    if edits:
        ids = found.ids(edits)
        decisions = decided(edits, ids)
        objects, joined = found.with_edits(ids, decisions), decisions.joined.astype(np.int64)
    resolution = labels.resolution or (1.0, 1.0, 1.0)
    first = [round(at / size) for at, size in zip(labels.offset, resolution)]
    if min(first) < 0:
        raise InputError(f"{labels.name} begins at the voxel {first}, and a mapping of webknossos has no "
                         "places below 0: store the prediction again with an offset from 0 on, and decode it")
    with replaced(out) as folder:
        with reported(out):
            folder.mkdir(parents=True)
        with create_volume(folder / "supervoxels.precomputed", labels.shape, np.uint32, resolution,
                           labels.offset) as volume:
            for start in range(0, labels.shape[0], SECTIONS):
                volume[start:start + SECTIONS] = found.fragments[start:start + SECTIONS]
        kept = with_dropped(graph, found.objects, objects)
        write_mapping(folder / "agglomerates.hdf5", kept, *contacts_within(graph, kept, joined),
                      found.places + first)
        write_tables(folder, found, objects)
        with reported(out):
            write_merges(folder / "merges", found, objects, first, resolution)


def with_dropped(graph: RegionGraph, before: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The objects with numbers for what edits dropped, as a mapping has no word for it: what touches is one object."""
    gone = (before > 0) & (objects == 0)
    own = gone[graph.u] & (before[graph.u] == before[graph.v]) & gone[graph.v]
    pieces = united(len(objects), np.stack([graph.u[own], graph.v[own]], axis=1))
    found = objects.copy()
    _, number = np.unique(pieces[gone], return_inverse=True)
    found[gone] = objects.max() + 1 + number.astype(objects.dtype)
    return found


def contacts_within(graph: RegionGraph, objects: np.ndarray,
                    joined: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, v, mean affinity) of contacts within objects; what edits join without touching has a contact of 1."""
    own = np.flatnonzero((objects[graph.u] == objects[graph.v]) & (objects[graph.u] > 0))
    u, v, affinity = graph.u[own].astype(np.int64), graph.v[own].astype(np.int64), graph.mean[own]
    more = np.unique(np.sort(joined, axis=1), axis=0)
    more = more[more[:, 0] != more[:, 1]]
    more = more[~np.isin(more[:, 0] * len(objects) + more[:, 1], u * len(objects) + v)]
    return np.append(u, more[:, 0]), np.append(v, more[:, 1]), np.append(affinity, np.ones(len(more)))


def write_tables(folder: Path, found: Supervoxels, objects: np.ndarray) -> None:
    """supervoxels.csv and edges.csv; docs/proofreading.md tells their columns."""
    ids = np.arange(1, len(objects))
    sizes = sizes_of(found)
    write_rows(folder / "supervoxels.csv", ["id", "object", "voxels", "z", "y", "x"],
               [ids, objects[1:], sizes[1:], *found.places[1:].T])
    graph, tree = found.graph, found.segmentation.tree
    names = graph.u.astype(np.uint64) << np.uint64(32) | graph.v
    ends = np.sort(np.stack([tree.a, tree.b], axis=1), axis=1).astype(np.uint64)
    merge, known = ranks(names, ends[:, 0] << np.uint64(32) | ends[:, 1])
    height = np.full(len(names), "", object)
    height[merge[known]] = 1 - tree.height[known].astype(np.float64)
    voxel = np.stack(np.unravel_index((graph.key // KEY_STEPS).astype(np.int64), found.labels.shape), axis=1)
    write_rows(folder / "edges.csv",
               ["u", "v", "object_u", "object_v", "contacts", "mean", "least", "largest", "merge", "z", "y", "x"],
               [graph.u, graph.v, objects[graph.u], objects[graph.v], graph.count, graph.mean, graph.min, graph.max,
                height, *voxel.T])


def sizes_of(found: Supervoxels) -> np.ndarray:
    """Voxels of every fragment from 0 on."""
    if found.graph.sizes is not None:
        return found.graph.sizes
    sizes = np.zeros(len(found.objects), np.int64)
    for start in range(0, found.labels.shape[0], SECTIONS):
        sizes += np.bincount(found.fragments[start:start + SECTIONS].reshape(-1), minlength=len(sizes))
    return sizes


def write_merges(folder: Path, found: Supervoxels, objects: np.ndarray, first: Sequence[int],
                 resolution: Sequence[float]) -> None:
    """The weakest merges within objects as lines between the two fragments that they name."""
    tree = found.segmentation.tree
    own = np.flatnonzero((objects[tree.a] == objects[tree.b]) & (objects[tree.a] > 0))[::-1][:MOST_LINES]
    write_lines(folder, found.places[tree.a[own]], found.places[tree.b[own]], 1 - tree.height[own],
                first, found.labels.shape, resolution)


# ---- and back


def edits_of(found: Supervoxels, wanted: np.ndarray) -> list[Edit]:
    """A few edits that make of the labels the objects of a mapping; wanted: the object of every fragment.

    Each changed object gets a split for every two of its parts, a join with each object that it became one with, and a
    drop where it became 0. What would go to the wrong part by these is joined to the right one, until nothing is wrong.
    """
    before = numbered_objects(found.objects)
    _, which, count = np.unique(wanted, return_inverse=True, return_counts=True)
    odd = np.flatnonzero((found.objects == 0) & (wanted > 0) & (count[which] > 1))
    if len(odd):
        raise InputError(f"the mapping joins the supervoxel {odd[0]} to others, but in these labels it is 0, as dust "
                         "or boundary, and no edit reaches it: lower decode.remove_size and decode again")
    has = (found.objects > 0) & found.seen
    changed = changed_objects(before, wanted, has)
    inside = np.flatnonzero(np.isin(before, changed) & has)
    first: dict[tuple[int, int], int] = {}  # (old object, new object) -> the first fragment of both
    for one, *pair in zip(inside.tolist(), before[inside].tolist(), wanted[inside].tolist()):
        first.setdefault(tuple(pair), one)
    heads, parts = {}, {}
    for (old, new), one in first.items():
        heads[new] = min(one, heads.get(new, one))
        parts.setdefault(old, []).append((new, one))
    needed = sum(len(own) * (len(own) - 1) // 2 for own in parts.values())
    if needed > MOST_SPLITS:
        raise InputError(f"the mapping takes objects apart into so many parts that it needs {needed} splits, a split "
                         f"for every two, and {MOST_SPLITS} are the most: lower decode.threshold and decode "
                         "again, or change fewer objects at a time")
    edits = set()

    def put(one: int) -> None:
        """Says where a fragment belongs."""
        new = int(wanted[one])
        if new and heads[new] != one:
            edits.add((JOIN, heads[new], one))
        elif not new:
            edits.add((DROP, one, 0))
            edits.update((SPLIT, one, other) for another, other in parts[int(before[one])] if another)

    for (old, new), one in first.items():
        put(one)
        edits.update((SPLIT, one, other) for another, other in parts[old] if new and another and other > one)
    while wrong := strays(found, edits, inside, wanted):
        for one in wrong:
            put(one)
    return [as_edit(found, *row) for row in sorted(edits)]


def changed_objects(before: np.ndarray, wanted: np.ndarray, has: np.ndarray) -> np.ndarray:
    """The objects whose fragments are not those of one object of the mapping and of no other."""
    pairs = np.unique(np.stack([before[has], wanted[has]]), axis=1)
    olds, parts = np.unique(pairs[0], return_counts=True)
    news, sources = np.unique(pairs[1], return_counts=True)
    mixed = news[(sources > 1) | (news == 0)]
    return np.union1d(olds[parts > 1], pairs[0][np.isin(pairs[1], mixed)])


def strays(found: Supervoxels, edits: set, inside: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Fragments that edits leave in another part than the mapping says: of each wrong one the first."""
    if not edits:
        return []
    rows = [as_edit(found, *row) for row in sorted(edits)]
    ids = np.array([row[1:] for row in sorted(edits)], np.uint64)
    made = found.with_edits(ids, decided(rows, ids))[inside]
    aim, named = wanted[inside], np.isin(inside, ids)
    head = {int(new): int(label) for new, label, is_named in zip(aim, made, named) if is_named}
    right = np.array([head[new] for new in aim.tolist()], made.dtype)
    wrong = np.flatnonzero(made != right)
    _, which = np.unique(np.stack([made[wrong], aim[wrong]]), axis=1, return_index=True)
    return inside[wrong[which]].tolist()


def as_edit(found: Supervoxels, kind: str, one: int, other: int) -> Edit:
    """An edit of fragments by a voxel in each."""
    places = [tuple(found.places[at].tolist()) for at in (one, other) if at]
    return Edit(kind, *places)

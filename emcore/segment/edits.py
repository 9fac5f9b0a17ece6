"""Edits of objects: what people decided about places is held at every threshold, by fragments, graph and merges.

Edits are held after everything else: after the cut, dust and links. Objects that no edit names keep every voxel and
every number. What happens to the others follows from the set of edits alone:

1. Fragments that joins connect are one, and so are their objects.
2. In every object that has places to be held apart, the merges of the tree are made in their order up to the first one
   that would bring two such places together. What there is by then are the pieces of the object.
3. Pieces go on to merge, by the mean affinity over all contacts between the two, the largest first and equal ones by
   the largest key of a contact, as in agglomeration. Those that hold places apart never do. Every piece reaches some
   place in that way, so every part of an object holds a place of an edit. Where dust was joined across what lost all
   its voxels, a piece may reach none: it goes with the first part of its object that holds a place.
4. Places that joins name belong to neurons, so a dropped place is held apart from them. Its part becomes 0.

A part that has the first fragment of an old object keeps the number of that object, the smallest one where it has
several; other parts get new numbers above those of the cut.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from emcore.errors import InputError
from emcore.kernels import overlaps as kernel
from emcore.segment.arrays import within
from emcore.segment.edit_files import DROP, JOIN, SPLIT, Edit, Place, check_edits
from emcore.segment.graph import SUM_SCALE, label_view, largest_label
from emcore.segment.merge_tree import look_up
from emcore.segment.pooling import pool_edges
from emcore.segment.segmentation import Segmentation
from emcore.threads import run_parallel, slabs, thread_count

SCALE = int(SUM_SCALE)
EDGES = ("u", "v", "count", "sum", "key")
SHOWN = 5  # A sentence names so many edits.
MOST_PAIRS = 4 * 10**6  # More pairs of a dropped place and a neuron are refused; these take about 300 MB.
NOT_OF_CLUSTERS = "labels must be made of whole clusters of the threshold"


@dataclass(frozen=True)
class Decisions:
    """What edits say about fragments, by the ids of these."""

    joined: np.ndarray  # (n, 2)
    apart: np.ndarray  # (n, 2)
    dropped: np.ndarray


@dataclass(frozen=True)
class Inside:
    """What lies inside the objects that edits name: their fragments, and by the rank of these merges and contacts."""

    ids: np.ndarray  # the numbers of the fragments, rising
    objects: np.ndarray  # the label that each has
    merges: np.ndarray  # (n, 2), in their order up to the threshold
    edges: dict[str, np.ndarray]  # EDGES of fragments of one object; a pair may have several rows


def apply_edits(segmentation: Segmentation, labels: np.ndarray, threshold: float, edits: Iterable[Edit], *,
                threads: int | None = None) -> np.ndarray:
    """Holds edits in the labels of a segmentation.

    Args:
        segmentation: what the labels were made by.
        labels: integers (z, y, x) that it made at the threshold, with whatever followed the cut.
        threshold: 0 to 1, the one of the labels.
        edits: decisions of proofreaders, in any order.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A new array of labels (z, y, x) of the same type. Objects that no edit names are as they were.

    Raises:
        InputError: edits contradict each other or name no object, or the labels are not those of the segmentation.

    Cost:
        It takes 20 to 30 ns of one core per voxel, and 5 to 13 us per fragment of an object that is taken apart.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 8, 8), 0.9, np.float32)
        >>> affs[2, :, :, 4] = 0.2  # a membrane between x = 3 and x = 4
        >>> whole = segment.Segmentation(affs)
        >>> labels = whole.labels(0.5)
        >>> joined = segment.apply_edits(whole, labels, 0.5, [segment.Edit("join", (0, 0, 0), (0, 0, 7))])
        >>> int(labels.max()), int(joined.max())
        (2, 1)
    """
    if not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    edits, tree, fragments = check_edits(edits), segmentation.tree, label_view(segmentation.fragments)
    labels = label_view(labels, "labels")
    if labels.shape != fragments.shape:
        raise InputError(f"labels must be those that this segmentation made, {fragments.shape}; got {labels.shape}")
    if largest_label(fragments, threads) > tree.fragments:
        raise InputError(f"fragments hold labels above {tree.fragments}, which the merge tree does not know")
    ids = ids_at(edits, labels.shape, lambda place: (int(fragments[place]), int(labels[place])))
    objects = objects_of(fragments, labels, tree.table(threshold))
    return held(fragments, labels, edited_objects(segmentation, objects, threshold, ids, decided(edits, ids)), threads)


def edited_objects(segmentation: Segmentation, objects: np.ndarray, threshold: float, ids: np.ndarray,
                   decisions: Decisions) -> np.ndarray:
    """The label of every fragment with edits; objects are those without, ids the fragments that edits name."""
    tree, graph = segmentation.tree, segmentation.graph
    made = int(np.searchsorted(tree.height, tree.height.dtype.type(threshold), side="left"))
    named = np.isin(objects, objects[np.unique(ids)]) & (objects != 0)
    rank = np.cumsum(named) - 1
    merges = np.stack([tree.a[:made], tree.b[:made]], axis=1)
    merges = rank[merges[named[merges[:, 0]] & named[merges[:, 1]]]]
    own = np.flatnonzero(named[graph.u] & (objects[graph.u] == objects[graph.v]))
    edges = {name: getattr(graph, name)[own] for name in EDGES}
    edges |= {end: rank[edges[end]] for end in "uv"}
    inside = Inside(np.flatnonzero(named).astype(np.uint64), objects[named], merges, edges)
    table = objects.copy()
    table[named] = edited(inside, decisions, max(int(tree.table(threshold).max()), int(objects.max())))
    return table


def ids_at(edits: Sequence[Edit], shape: Sequence[int], look: Callable[[Place], tuple[int, int]]) -> np.ndarray:
    """The fragments (edits, 2) that edits name, 0 for the second of a drop; look: (fragment, label) of a place."""
    ids = np.zeros((len(edits), 2), np.uint64)
    for row, edit in zip(ids, edits):
        for side, place in enumerate(places_of(edit)):
            if any(at >= length for at, length in zip(place, shape)):
                raise InputError(f"{edit}: the voxel {told(place)} lies outside of the volume of {tuple(shape)} voxels")
            fragment, label = look(place)
            if label == 0:
                raise InputError(f"{edit}: the voxel {told(place)} has the label 0 at this threshold, so it belongs to "
                                 "no object; name a voxel inside of one")
            row[side] = fragment
    return ids


def places_of(edit: Edit) -> list[Place]:
    return [edit.place] if edit.other is None else [edit.place, edit.other]


def places_of_edits(edits: Iterable[Edit], shape: Sequence[int]) -> set[Place]:
    """Every place that edits name within a volume."""
    return {place for edit in edits for place in places_of(edit)
            if all(at < length for at, length in zip(place, shape))}


def told(place: Place) -> str:
    return " ".join(map(str, place))


def decided(edits: Sequence[Edit], ids: np.ndarray) -> Decisions:
    """What the edits say about fragments; edits that contradict each other are named."""
    rows = [(edit, *map(int, pair)) for edit, pair in zip(edits, ids.tolist())]
    links: dict[int, list[tuple[int, Edit]]] = {}
    for edit, one, other in rows:
        if edit.kind == JOIN:
            links.setdefault(one, []).append((other, edit))
            links.setdefault(other, []).append((one, edit))
    for edit, one, other in rows:
        if edit.kind == DROP and one in links:
            raise InputError(f"{edit} says that this is no neuron, but {links[one][0][1]} joins it to one: leave one "
                             "of the two out")
        if edit.kind == SPLIT and one == other:
            raise InputError(f"{edit} cannot be held: both voxels lie in the fragment {one}, and merges are made of "
                             "whole fragments; decode with smaller fragments, or name voxels further apart")
    names, at = np.unique(ids[[edit.kind == JOIN for edit in edits]], return_inverse=True)
    group = dict(zip(names.tolist(), names[united(len(names), at.reshape(-1, 2))].tolist()))
    for edit, one, other in rows:
        if edit.kind == SPLIT and group.get(one, one) == group.get(other, other):
            chain = _chain(links, one, other)
            joins = "; ".join(map(str, chain[:SHOWN])) + ("; ..." if len(chain) > SHOWN else "")
            raise InputError(f"{edit} holds apart what other edits join: {joins}. Leave one of them out")
    by_kind = {kind: np.array([pair for edit, *pair in rows if edit.kind == kind], np.uint64).reshape(-1, 2)
               for kind in (JOIN, SPLIT, DROP)}
    return Decisions(by_kind[JOIN], by_kind[SPLIT], np.unique(by_kind[DROP][:, 0]))


def _chain(links: dict[int, list[tuple[int, Edit]]], start: int, end: int) -> list[Edit]:
    """The fewest joins that lead from one fragment to another."""
    came: dict[int, tuple[int, Edit] | None] = {start: None}
    waiting = [start]
    for at in waiting:
        for other, edit in links[at]:
            if other not in came:
                came[other] = at, edit
                waiting.append(other)
    chain: list[Edit] = []
    step = came[end]
    while step is not None:
        chain.append(step[1])
        step = came[step[0]]
    return chain[::-1]


def objects_of(fragments: np.ndarray, labels: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The label of every fragment by that of its cluster, 0 where a cluster has no voxel; labels must be made of them.

    cut is the cluster of every fragment.
    """
    table = np.zeros(int(cut.max()) + 1, labels.dtype)
    if not all(note_labels(table, cut[ours], theirs) for ours, theirs in map(_runs, fragments, labels)):
        raise InputError(f"{NOT_OF_CLUSTERS}, as those are that this segmentation made at it")
    return table[cut]


def note_labels(table: np.ndarray, clusters: np.ndarray, labels: np.ndarray) -> bool:
    """Whether voxels of these clusters have the labels that the table says, which learns those that it does not know.

    A label of 0 says nothing, so it fits every cluster.
    """
    has = labels != 0
    clusters, labels = clusters[has], labels[has]
    new = table[clusters] == 0
    table[clusters[new]] = labels[new]
    return bool((table[clusters] == labels).all())


def _runs(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays of a section at the voxels where a run along x begins, within which neither changes."""
    begins = np.ones(ours.shape, bool)
    begins[:, 1:] = (ours[:, 1:] != ours[:, :-1]) | (theirs[:, 1:] != theirs[:, :-1])
    return ours[begins], theirs[begins]


def held(fragments: np.ndarray, labels: np.ndarray, table: np.ndarray, threads: int | None = None) -> np.ndarray:
    """The labels that a table says for fragments; voxels that had none before have none now."""
    out = look_up(fragments, table, threads=threads)

    def clear(start: int, stop: int) -> None:
        for section, before in zip(out[start:stop], labels[start:stop]):
            section *= before != 0

    run_parallel(clear, slabs(len(labels), thread_count(threads)), thread_count(threads))
    return out


# ---- what becomes of the objects


def edited(inside: Inside, decisions: Decisions, largest: int) -> np.ndarray:
    """The new label of every fragment inside; `largest` is the largest number of the cut."""
    count = len(inside.ids)
    joined, apart, dropped = (np.searchsorted(inside.ids, ids) for ids in (
        decisions.joined, decisions.apart, decisions.dropped))
    numbers, first, of = np.unique(inside.objects, return_index=True, return_inverse=True)
    groups = united(count, np.stack([np.arange(count), first[of]], axis=1), joined)
    classes = united(count, joined)
    pairs = _conflicts(groups, classes[np.unique(joined)], classes[apart], dropped)
    part = groups.copy()
    for members, merges, edges, conflicts in _by_group(inside, groups, pairs):
        joins = joined[groups[joined[:, 0]] == groups[members[0]]]
        joins, merges, conflicts = (np.searchsorted(members, rows) for rows in (joins, merges, conflicts))
        edges |= {end: np.searchsorted(members, edges[end]) for end in "uv"}
        part[members] = members[divided(of[members], joins, merges, conflicts, edges)]
    return _numbered(part, numbers, first, dropped, largest)


def united(count: int, *pairs: np.ndarray) -> np.ndarray:
    """The smallest index of all that hang together with every one of `count` indices through the pairs."""
    groups = np.empty(count, np.int64)
    kernel.unite(np.concatenate([np.ascontiguousarray(rows, np.int64).reshape(-1, 2) for rows in pairs]), groups)
    return groups


def _conflicts(groups: np.ndarray, neurons: np.ndarray, apart: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Pairs of fragments to hold apart that lie in one group: those that are named, and dropped ones from neurons."""
    neurons = np.unique(neurons)
    neurons = neurons[np.argsort(groups[neurons], kind="stable")]
    starts, stops = (np.searchsorted(groups[neurons], groups[dropped], side=side) for side in ("left", "right"))
    if (count := int((stops - starts).sum())) > MOST_PAIRS:
        raise InputError(f"drops and joins within the same objects hold {count} pairs of places apart, and "
                         f"{MOST_PAIRS} are the most: drop fewer places of one object")
    pairs = [apart, *(np.stack([np.full(stop - start, one), neurons[start:stop]], axis=1)
                      for one, start, stop in zip(dropped, starts, stops))]
    found = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return found[groups[found[:, 0]] == groups[found[:, 1]]]


def _by_group(inside: Inside, groups: np.ndarray, pairs: np.ndarray) -> Iterator[tuple]:
    """(fragments, merges, edges, pairs to hold apart) of every group that has such pairs."""
    orders = []
    for own in (groups, groups[inside.merges[:, 0]], groups[inside.edges["u"]], groups[pairs[:, 0]]):
        order = np.argsort(own, kind="stable")
        orders.append((order, own[order]))
    for group in np.unique(groups[pairs[:, 0]]):
        members, merges, rows, conflicts = (
            order[slice(*np.searchsorted(sorted_, [group, group + 1]))] for order, sorted_ in orders)
        yield (members, inside.merges[merges], {name: inside.edges[name][rows] for name in EDGES}, pairs[conflicts])


def divided(objects: np.ndarray, joins: np.ndarray, merges: np.ndarray, conflicts: np.ndarray,
            edges: dict[str, np.ndarray]) -> np.ndarray:
    """For each fragment of a group the smallest fragment of its part; objects: the old one that each belongs to."""
    count = len(objects)
    low, high = 0, len(merges)  # The first `low` merges bring no conflict, and more than `high` do.
    while low < high:
        middle = (low + high + 1) // 2
        found = united(count, joins, merges[:middle])
        if (found[conflicts[:, 0]] == found[conflicts[:, 1]]).any():
            high = middle - 1
        else:
            low = middle
    pieces = united(count, joins, merges[:low])
    part = united(count, np.stack([np.arange(count), pieces], axis=1), grown(edges, pieces, pieces[conflicts]))
    return _with_stray(part, objects, part[conflicts])


def _with_stray(part: np.ndarray, objects: np.ndarray, conflicts: np.ndarray) -> np.ndarray:
    """The parts, of which those that hold no place go with the first that does and has fragments of their object."""
    holds, none = np.zeros(len(part), bool), len(part)
    holds[conflicts] = True
    while True:
        first = np.full(int(objects.max()) + 1, none)
        np.minimum.at(first, objects, np.where(holds[part], part, none))
        found = np.full(len(part), none)
        np.minimum.at(found, part, first[objects])
        stray = ~holds[part] & (found[part] < none)
        if not stray.any():
            return united(len(part), np.stack([np.arange(len(part)), part], axis=1))
        part[stray] = found[part[stray]]


def grown(edges: dict[str, np.ndarray], pieces: np.ndarray, conflicts: np.ndarray) -> np.ndarray:
    """The merges (n, 2) of pieces by the mean affinity between them, of which conflicting ones are not made."""
    pooled = pool_edges(edges, pieces)
    neighbours: dict[int, dict[int, tuple[int, int, int]]] = {}
    waiting = []
    for u, v, *edge in zip(*(pooled[name].tolist() for name in EDGES)):
        neighbours.setdefault(u, {})[v] = neighbours.setdefault(v, {})[u] = tuple(edge)
        waiting.append((*_rank(*edge), u, v))
    heapify(waiting)
    holds: dict[int, set[int]] = {}  # the places of a cluster, by the pieces that they lie in
    foes: dict[int, set[int]] = {}  # those that it must not meet
    for one, other in conflicts.tolist():
        for piece, foe in ((one, other), (other, one)):
            holds.setdefault(piece, {piece})
            foes.setdefault(piece, set()).add(foe)
    made = []
    while waiting:
        *rank, a, b = heappop(waiting)
        edge = neighbours.get(a, {}).get(b)
        if edge is None or _rank(*edge) != tuple(rank):
            continue  # One of the two has merged since, and their edge waits with what it became.
        if not foes.get(a, set()).isdisjoint(holds.get(b, ())):
            continue
        made.append((a, b))
        if len(neighbours[a]) < len(neighbours[b]):
            a, b = b, a
        del neighbours[a][b]
        for other, edge in neighbours.pop(b).items():
            if other == a:
                continue
            del neighbours[other][b]
            if other in neighbours[a]:
                count, total, key = neighbours[a][other]
                edge = count + edge[0], total + edge[1], max(key, edge[2])
            neighbours[a][other] = neighbours[other][a] = edge
            heappush(waiting, (*_rank(*edge), a, other))
        for sets in (holds, foes):
            if b in sets:
                sets.setdefault(a, set()).update(sets.pop(b))
    return np.array(made, np.int64).reshape(-1, 2)


def _rank(count: int, total: int, key: int) -> tuple[float, int]:
    """The order of edges, best first: by 1 - the mean affinity, then by key."""
    return (count * SCALE - total) / (count * SCALE), key


def _numbered(part: np.ndarray, numbers: np.ndarray, first: np.ndarray, dropped: np.ndarray,
              largest: int) -> np.ndarray:
    """The label of every fragment by its part; numbers of the old objects, and their first fragments."""
    parts, of = np.unique(part, return_inverse=True)  # A part is named by its smallest fragment.
    found = np.full(len(parts), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(found, of[first], numbers.astype(np.uint64))
    gone = np.zeros(len(parts), bool)
    gone[of[dropped]] = True
    new = (found == np.iinfo(np.uint64).max) & ~gone
    found[new] = largest + 1 + np.arange(new.sum(), dtype=np.uint64)
    found[gone] = 0
    return found.astype(numbers.dtype)[of]

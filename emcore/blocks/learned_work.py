"""decode.learned in blocks: the same statistics of contacts, first merges and probabilities as of the whole volume.

    fragments i      the fragments of a block; seams: the names that those at faces have in the volume
    contacts i       what is known of the contacts whose later voxel lies in a block, and of its voxels
    clusters         the first merges: one task, which holds a row for each contact of the volume
    chances i        the probability of a border between every two clusters that touch, of which the one with the
                     smaller name begins in the block
    graph i          clusters that touch in a block, by these probabilities; from here on all is as without a classifier

All numbers of contacts are whole, so those of several blocks add up to those of the volume. A cluster has the name of
its first fragment.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from emcore.blocks import leaves, runs
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Box
from emcore.blocks.leaves import Columns
from emcore.blocks.merges import chosen_rows
from emcore.blocks.pooled import stack
from emcore.blocks.windows import corner, extent, meeting, places_of, sorted_names
from emcore.blocks.work import Stage, digest_of
from emcore.decode.contact_net import read_net
from emcore.decode.learned import Groups, first_clusters, groups_of, joined_of, read_groups, statistics_of, voxels_of
from emcore.errors import InputError
from emcore.segment.contacts import BINS, NODES, Contacts, Pairs, add_nodes, measure_contacts, pool_contacts, reach_of
from emcore.segment.graph import Place, measure
from emcore.segment.pooling import pool_edges
from emcore.volumes import open_volume

FORMAT = 1  # It names how the stages of this file write their columns; files of another format are not taken.
EDGES = ("u", "v", "count", "z_faces", "key", "sums", "squares", "least", "most", "histograms")
PAIRS = ("u", "v", "count", "sum")

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]  # which pairs of clusters are wanted, by their two ends


@dataclass(frozen=True)
class LearnedWork(AffinityWork):
    """The decoding of a prediction by decode.kind = "affinities" with [decode.learned]."""

    classifier: str = ""  # the name of its file in the folder of the blocks; it tells what is in the file
    channels: str = ""  # a digest of the offsets and the resolution, which may change where the voxels do not

    # ---- stages

    @cached_property
    def folders(self) -> dict[str, str]:
        asked, plain = self.settings.learned, super().folders
        contacts = digest_of(plain["fragments"], FORMAT, self.channels)
        clusters = digest_of(contacts, asked.first_threshold, asked.first_size)
        chances = digest_of(clusters, self.classifier)
        return plain | {"contacts": f"contacts-{contacts}", "clusters": f"clusters-{clusters}",
                        "chances": f"chances-{chances}"}

    def graph_digest(self, fragments: str) -> str:
        asked = self.settings.learned
        return digest_of(super().graph_digest(fragments), FORMAT, self.channels, asked.first_threshold,
                         asked.first_size, self.classifier)

    def tree_stages(self) -> list[Stage]:
        fragments, seams, *others = super().tree_stages()
        blocks = self.grid.blocks()
        counts = {"contacts": blocks, "clusters": 1, "chances": blocks}
        return [fragments, seams, *(Stage(name, count, self.folders[name]) for name, count in counts.items()), *others]

    @cached_property
    def groups(self) -> Groups:
        return groups_of(open_volume(self.source.path))

    @property
    def steps(self) -> tuple[tuple[int, int, int], ...]:
        """Steps along z, y and x of every group of channels."""
        return self.groups[1][1]

    # ---- contacts of fragments

    def make_contacts(self, number: int) -> Columns:
        core, reach = self.grid.box(number), reach_of(self.steps)
        before, window = (tuple(slice(max(0, span.start - far), min(length, span.stop + far * behind))
                                for span, far, length in zip(core, reach, self.grid.shape)) for behind in (0, 1))
        names, labels = self.fragments_within(before)
        halo = [span.start - wide.start for span, wide in zip(core, before)]
        affinities = read_groups(open_volume(self.source.path), window)[0]
        found = measure_contacts(labels, affinities, place=Place(corner(before), self.grid.shape, halo), threads=1)
        used = found.sizes > 0
        used[0] = True
        for rows in (found, *found.pairs):
            used[rows.u] = used[rows.v] = True
        rank = (np.cumsum(used) - 1).astype(np.uint32)

        def columns_of(rows: Contacts | Pairs, names: Sequence[str]) -> Columns:
            return {name: rank[getattr(rows, name)] if name in ("u", "v") else getattr(rows, name) for name in names}

        columns = {"names": names[:len(used)][used], **{name: getattr(found, name)[used] for name in NODES},
                   **columns_of(found, EDGES)}
        for step, pairs in enumerate(found.pairs):
            columns |= {pair_column(step, name): values for name, values in columns_of(pairs, PAIRS).items()}
        return columns

    def fragment_names(self, number: int) -> np.ndarray:
        """The names of a block's fragments in the volume, by local label; 0 for 0."""
        return super().names(number)

    def fragments_within(self, window: Box) -> tuple[np.ndarray, np.ndarray]:
        """(the names of the fragments in a box, sorted, 0 first; which of them every voxel belongs to)."""
        names_of = {number: self.fragment_names(number) for number in self.grid.overlapping(window)}
        names = np.concatenate([np.zeros(1, np.uint64), sorted_names(list(names_of.values()))])
        labels = np.empty(extent(window), np.uint32)
        for number, own in names_of.items():
            there, here = meeting(self.grid.box(number), window)
            begins, found = self.read("fragments", number, *runs.NAMES)
            found = places_of(own, names)[found]  # runs are fewer than voxels
            labels[here] = runs.labels_of(begins, found, extent(self.grid.box(number)))[there]
        return names, labels

    # ---- the first merges

    def make_clusters(self, _: int) -> Columns:
        blocks = range(self.grid.blocks())
        own = [self.read("contacts", number, "names")[0] for number in blocks]
        names = np.concatenate([np.zeros(1, np.uint64), sorted_names(own)])
        asked = self.settings.learned
        contacts = self.pooled(blocks, lambda number: places_of(own[number], names))
        nodes = self.nodes(blocks, own, names)
        table = first_clusters(replace(contacts, **nodes), asked.first_threshold, voxels_of(asked, self.groups[2]))
        clusters, first = np.unique(table, return_index=True)
        clusters = names[first]  # rising, as clusters are numbered by their first fragments
        columns = {"clusters": clusters, **add_nodes(nodes, table, len(clusters) - 1)}
        owners: list[set[int]] = [set() for _ in blocks]
        for number in blocks:
            named = clusters[table[places_of(own[number], names)]]
            columns[f"cluster_{number}"] = named
            for prefix in ("", *(pair_column(step, "") for step in range(len(self.steps) - 1))):
                u, v = self.read("contacts", number, f"{prefix}u", f"{prefix}v")
                for owner in np.unique(self.owners(named[u], named[v])).tolist():
                    owners[owner].add(number)
        return columns | {f"blocks_{owner}": np.array(sorted(found), np.int64) for owner, found in enumerate(owners)}

    def owners(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The blocks that hold the smaller names of pairs of different clusters; the others are left out."""
        lower = np.minimum(one, other)[one != other]
        return self.grid.holders((lower - 1).astype(np.int64)) if len(lower) else np.empty(0, np.int64)

    def nodes(self, blocks: Iterable[int], own: Sequence[np.ndarray], names: np.ndarray) -> Columns:
        """The columns of fragments, of all blocks together."""
        found: Columns = {}
        for number in blocks:
            part = dict(zip(NODES, self.read("contacts", number, *NODES)))
            part = add_nodes(part, places_of(own[number], names), len(names) - 1)
            found = {name: (np.minimum if name == "least_height" else np.add)(found[name], part[name])
                     for name in NODES} if found else part
        return found

    def pooled(self, blocks: Iterable[int], numbers: Callable[[int], np.ndarray],
               is_wanted: Choose | None = None) -> Contacts:
        """The contacts of some blocks as those of their clusters; nothing is said of these themselves.

        numbers: what the fragments of a block are called. is_wanted: which pairs of clusters count; without it all do,
        and only what the first merges look at is read.
        """
        longer = range(1 if is_wanted is None else len(self.steps) - 1)
        parts: list[list[Columns]] = []  # A block gives its contacts, and then the pairs of each longer step.
        for number in blocks:
            called = numbers(number)
            tables = [self.edges(number, is_wanted is None)]
            for step in longer:
                columns = self.read("contacts", number, *(pair_column(step, name) for name in PAIRS))
                tables.append(dict(zip(PAIRS, columns)))
            pooled = self.contacts_of([chosen(rows, called, is_wanted) for rows in tables])
            parts.append([{name: getattr(rows, name) for name in names} for rows, names in (
                (pooled, EDGES), *((pairs, PAIRS) for pairs in pooled.pairs))])
        return self.contacts_of([stack(tables) for tables in zip(*parts)])

    def contacts_of(self, tables: Sequence[Columns]) -> Contacts:
        """A row for every pair of clusters; tables: the contacts, then the pairs of each longer step."""
        most = max(int(rows[end].max(initial=0)) for rows in tables for end in "uv")
        nothing = {"sizes": np.zeros(most + 1, np.int64), "least_height": np.zeros(most + 1, np.int32),
                   "voxel_sums": np.zeros((most + 1, 1), np.int64)}
        contacts = Contacts(self.steps, **tables[0], pairs=tuple(Pairs(**rows) for rows in tables[1:]), **nothing)
        return pool_contacts(contacts, np.arange(most + 1, dtype=np.uint32))

    def edges(self, number: int, near: bool) -> Columns:
        """The contacts of a block; near: of the quantities only the affinities across faces, without histograms."""
        if not near:
            return dict(zip(EDGES, self.read("contacts", number, *EDGES)))
        columns = ("u", "v", "count", "key", "sums", "least", "most")
        found = dict(zip(columns, self.read("contacts", number, *columns)))
        found |= {name: found[name][:, :1] for name in ("sums", "least", "most")}
        count = len(found["u"])
        return found | {"z_faces": np.zeros(count, np.int64), "squares": np.zeros((count, 0), np.int64),
                        "histograms": np.zeros((count, 0, BINS), np.uint32)}

    # ---- probabilities

    def make_chances(self, number: int) -> Columns:
        blocks, = self.read("clusters", 0, f"blocks_{number}")
        named = {other: self.read("clusters", 0, f"cluster_{other}")[0] for other in blocks.tolist()}
        if not named:
            return {"u": np.empty(0, np.uint64), "v": np.empty(0, np.uint64), "joined": np.empty(0, np.int64)}
        names = np.concatenate([np.zeros(1, np.uint64), sorted_names(list(named.values()))])

        def is_own(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            found = one != other
            found[found] = self.owners(names[one[found]], names[other[found]]) == number
            return found

        contacts = self.pooled(named, lambda other: places_of(named[other], names), is_own)
        clusters, *nodes = self.read("clusters", 0, "clusters", *NODES)
        there = places_of(names, clusters, np.int64)
        contacts = replace(contacts, **{name: values[there] for name, values in zip(NODES, nodes)})
        net = read_net(self.folder / self.classifier)
        return {"u": names[contacts.u], "v": names[contacts.v], "joined": joined_of(contacts, net)}

    # ---- the graph of clusters

    def names(self, number: int) -> np.ndarray:
        """The names of the clusters that a block's fragments belong to, by local label; 0 for 0."""
        (every,), (named,) = self.read("contacts", number, "names"), self.read("clusters", 0, f"cluster_{number}")
        return named[places_of(self.fragment_names(number), every)]

    def make_graph(self, number: int) -> Columns:
        labels, own = self.fragments(number)
        halos = leaves.halo_planes(self.grid, number, self.plane)
        names, slab = leaves.in_slab(labels, own, halos)
        halo = [int(axis in halos) for axis in range(3)]
        start = tuple(span.start - planes for span, planes in zip(self.grid.box(number), halo))
        sizes, boxes = measure(np.ascontiguousarray(slab[tuple(slice(planes, None) for planes in halo)]),
                               len(names) - 1, 1, with_boxes=True)
        named, = self.read("clusters", 0, f"cluster_{number}")
        columns = ("u", "v", "count", "key")
        edges = pool_edges(dict(zip(columns, self.read("contacts", number, *columns))), places_of(named, names))
        joined = self.joined(names, edges["u"], edges["v"])
        return {"names": names, "sizes": sizes, "boxes": leaves.boxes_of(slab, boxes, halo, start, self.grid.shape),
                **edges, **statistics_of(edges["count"], joined)}

    def joined(self, names: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """1 minus the probability of a border between clusters, by their places among names."""
        wanted, found = packed(u, v), np.zeros(len(u), np.int64)
        for owner in np.unique(self.owners(names[u], names[v])).tolist():
            one, other, joined = self.read("chances", owner, "u", "v", "joined")
            at, to = (np.minimum(np.searchsorted(names, ends), len(names) - 1) for ends in (one, other))
            known = (names[at] == one) & (names[to] == other)
            there = packed(at[known], to[known])
            place = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
            hit = there[place] == wanted if len(there) else np.zeros(len(wanted), bool)
            found[hit] = joined[known][place[hit]]
        if (found == 0).any():  # Every edge has a probability below 1.
            raise InputError(f"the files of {self.folder} do not fit each other, as after a change of the prediction: "
                             "remove that folder and run infer.py again")
        return found


def chosen(rows: Columns, called: np.ndarray, is_wanted: Choose | None) -> Columns:
    """Rows of pairs by what their two ends are called, those that are wanted."""
    rows = rows | {end: called[rows[end]] for end in "uv"}
    return rows if is_wanted is None else chosen_rows(rows, is_wanted(rows["u"], rows["v"]))


def pair_column(step: int, name: str) -> str:
    """The name of a column of all pairs of one of the longer steps."""
    return f"pairs{step}_{name}"


def packed(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u.astype(np.uint64) << np.uint64(32) | v.astype(np.uint64)

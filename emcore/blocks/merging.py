"""Affinities to merges in blocks: the stages, what each reads and what it writes.

    fragments i      the fragments of a block, and what its neighbours must know of those at its faces
    seams            the names that fragments at faces have in the volume
    graph i          which fragments touch, measured in the block of the later voxel
    pairs            fragments that touch in several blocks, where a statistic counts a pair once
    settle k r n     up the octree: merges before the node has seen r sweeps, and the edges that are left
    forest j k r n   a sweep from level k up: how the edges below a node of level j connect its incomplete fragments
    outside j k r n  and down again: how the edges outside of it do
    merges k n       all merges of a node, and the edges that climb
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emcore.blocks import leaves, merges, store, sweeps
from emcore.blocks.joined import LabelWork
from emcore.blocks.leaves import Columns
from emcore.blocks.windows import Source, corner, moved
from emcore.blocks.work import Stage, digest_of
from emcore.segment.graph import Place, region_graph
from emcore.segment.pooling import pool_edges
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.settings.decode import AffinityDecode

FORMAT = 2  # It names how all stages write their columns; files of another format are not taken.
SWEEPS = 1  # So many begin on every level below the top; more of them earn little.


@dataclass(frozen=True)
class TreeWork(LabelWork):
    """Fragments, graph and merges of a prediction by decode.kind = "affinities": what serves every threshold."""

    source: Source
    content: str  # a digest of the prediction, by which its files are known

    # ---- stages

    @property
    def settings(self) -> AffinityDecode:
        return self.source.settings

    @cached_property
    def statistic(self) -> Statistic:
        return parse_statistic(self.settings.statistic)

    @property
    def end(self) -> float:
        """The largest threshold that the merges serve."""
        return self.settings.end or self.settings.threshold

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folders of the stages: each name tells every setting that changes what stands in it, and no other."""
        asked = self.settings
        values = (FORMAT, self.content, self.grid.shape, self.grid.block, asked.channels, asked.bias, asked.temperature)
        watershed = (asked.low, asked.high) if asked.fragments == "watershed" else ()
        fragments = digest_of(values, asked.fragments, watershed)
        graph = digest_of(fragments, self.statistic.every_contact)
        tree = digest_of(graph, self.statistic.name, self.end)
        return {"fragments": f"fragments-{fragments}", "seams": f"seams-{fragments}", "graph": f"graph-{graph}",
                "pairs": f"pairs-{graph}", "merges": f"merges-{tree}"}

    def tree_stages(self) -> list[Stage]:
        """What a cut at any threshold up to the end needs."""
        levels, blocks, folders = self.grid.levels, self.grid.blocks, self.folders
        pairs = [Stage("pairs", 1, folders["pairs"])] if merges.counts_pairs(self.statistic) else []
        return [Stage("fragments", blocks(), folders["fragments"]), Stage("seams", 1, folders["seams"]),
                self.graph_stage, *pairs, *(stage for level in range(levels) for stage in self.climb(level))]

    @property
    def graph_stage(self) -> Stage:
        return Stage("graph", self.grid.blocks(), self.folders["graph"])

    def climb(self, level: int) -> list[Stage]:
        """The stages of a level: its merges, after each of them a sweep through the levels above it."""
        between, stages = range(level + 1, self.grid.levels - 1), [self.merge_stage(level, 0)]
        for turn in range(self.sweeps(level)):
            stages += [self.sweep_stage("forest", above, level, turn) for above in between]
            stages += [self.sweep_stage("outside", above, level, turn) for above in reversed(between)]
            stages.append(self.merge_stage(level, turn + 1))
        return stages

    def sweeps(self, level: int) -> int:
        """How many sweeps begin at a level; the top has nothing outside of it."""
        return 0 if level == self.grid.levels - 1 else SWEEPS

    def merge_stage(self, level: int, turn: int | None = None) -> Stage:
        """Merges of a level after so many sweeps; all its merges after the last one."""
        if turn in (None, self.sweeps(level)):
            return Stage(f"merges {level}", self.grid.blocks(level), f"{self.folders['merges']}/{level}")
        return Stage(f"settle {level} {turn}", self.grid.blocks(level), f"{self.folders['merges']}/{level}-{turn}")

    def sweep_stage(self, kind: str, above: int, level: int, turn: int) -> Stage:
        """A level above another one, in a sweep from that one: forest on the way up, outside on the way down."""
        if above == level:
            return self.merge_stage(level, turn)
        return Stage(f"{kind} {above} {level} {turn}", self.grid.blocks(above),
                     f"{self.folders['merges']}/{level}-{turn}-{kind}-{above}")

    def run(self, stage: Stage, number: int) -> None:
        kind, *places = stage.name.split()
        made = getattr(self, f"make_{kind}")(*map(int, places), number)
        store.write(self.path(stage, number), made)

    def read(self, name: str, number: int, *columns: str) -> list[np.ndarray]:
        """Columns of a task of the stage with this name."""
        return store.read(self.path(self.stage_named[name], number), *columns)

    @cached_property
    def stage_named(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.stages()}

    # ---- fragments and their names

    def make_fragments(self, number: int) -> Columns:
        if self.settings.fragments == "watershed":
            return leaves.watershed_of(self.source, self.grid, number, self.settings.low, self.settings.high)
        return leaves.floods_of(self.source, self.grid, number)

    def make_seams(self, _: int) -> Columns:
        return leaves.seam_columns(self.grid, lambda number, *columns: self.read("fragments", number, *columns))

    def names(self, number: int) -> np.ndarray:
        """The names of a block's fragments in the volume, by local label; 0 for 0."""
        own, = self.read("fragments", number, "names")
        return moved(own, *self.read("seams", 0, f"old_{number}", f"new_{number}"))

    def fragments(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The local labels of a block, and the names of these fragments in the volume."""
        labels, = self.read("fragments", number, "labels")
        return labels, self.names(number)

    def plane(self, number: int, axis: int, side: int) -> np.ndarray:
        """The names in the first or last plane of a block along an axis."""
        plane, = self.read("fragments", number, leaves.plane_name(axis, side))
        return self.names(number)[plane]

    def is_own(self, names: np.ndarray, number: int) -> np.ndarray:
        """Which fragments have their first voxel in a block; 0 has none."""
        return (self.grid.holders(names.astype(np.int64) - (names > 0)) == number) & (names > 0)

    # ---- the graph and its merges

    def make_graph(self, number: int) -> Columns:
        labels, own = self.fragments(number)
        halos = leaves.halo_planes(self.grid, number, self.plane)
        names, slab = leaves.in_slab(labels, own, halos)
        behind = [axis for axis in range(3) if self.grid.neighbour(number, axis, 1) is not None]
        faces = leaves.faces_of(slab, len(names), halos, behind)
        halo = [int(axis in halos) for axis in range(3)]
        window = tuple(slice(span.start - planes, span.stop) for span, planes in zip(self.grid.box(number), halo))
        affinities = self.source.affinities(window)
        graph = region_graph(slab, affinities, statistic=self.settings.statistic, channels=affinities.channels,
                             place=Place(corner(window), self.grid.shape, halo))
        histogram = {name: getattr(graph, name) for name in merges.HISTOGRAM if graph.bins is not None}
        return {"names": names, "sizes": graph.sizes, **faces, **histogram,
                **{name: getattr(graph, name) for name in ("u", "v", "count", "sum", "max", "min", "key")}}

    def make_pairs(self, _: int) -> Columns:
        wanted = ("names", "u", "v", "max", "key", *merges.SIDES)
        return merges.shared_pairs(dict(zip(wanted, self.read("graph", number, *wanted)))
                                   for number in range(self.grid.blocks()))

    def make_merges(self, level: int, number: int) -> Columns:
        return self.make_settle(level, self.sweeps(level), number)

    def make_settle(self, level: int, turn: int, number: int) -> Columns:
        if turn:
            before = store.read_all(self.path(self.merge_stage(level, turn - 1), number))
            return merges.of_itself(before, self.make_outside(level, level, turn - 1, number), self.statistic,
                                    self.end)
        if level:
            names, edges, faces = merges.of_children(*self.children(self.merge_stage(level - 1), level, number))
            edges = pool_edges(edges)  # in steps, each of which lets go of what the one before it held
            return merges.settled(names, edges, faces, self.statistic, self.end)
        shared = {}
        if merges.counts_pairs(self.statistic):
            columns = (f"{name}_{number}" for name in merges.SHARED)
            shared = dict(zip(merges.SHARED, self.read("pairs", 0, *columns)))
        return merges.of_graph(store.read_all(self.path(self.graph_stage, number)), self.statistic, self.end, shared)

    def children(self, stage: Stage, level: int, number: int,
                 *columns: str) -> tuple[list[Columns], list[set[str]]]:
        """What a stage found of a node's children, if no columns are named what climbs; and the outer faces of each."""
        children = self.grid.children(number, level)
        places = [self.grid.place(child, level - 1) for child in children]
        paths = [self.path(stage, child) for child in children]
        taken = [columns or [name for name in store.names_of(path) if merges.climbs(name)] for path in paths]
        return ([dict(zip(names, store.read(path, *names))) for path, names in zip(paths, taken)],
                [merges.outer_sides(place, places) for place in places])

    # ---- sweeps

    def make_forest(self, above: int, level: int, turn: int, number: int) -> Columns:
        below = self.sweep_stage("forest", above - 1, level, turn)
        children, outer = self.children(below, above, number, *merges.SIDES, *sweeps.FOREST)
        faces = merges.faces_of(children, outer)
        return faces | sweeps.spanning(children, merges.incomplete_of(faces))

    def make_outside(self, above: int, level: int, turn: int, number: int) -> Columns:
        """How what lies outside of a node connects its incomplete fragments, by a sweep from `level`."""
        parent, stage = self.grid.parent(number, above), self.sweep_stage("forest", above, level, turn)
        parts = [dict(zip(sweeps.FOREST, store.read(self.path(stage, other), *sweeps.FOREST)))
                 for other in self.grid.children(parent, above + 1) if other != number]
        if above + 2 < self.grid.levels:
            beyond = self.sweep_stage("outside", above + 1, level, turn)
            parts.append(dict(zip(sweeps.FOREST, store.read(self.path(beyond, parent), *sweeps.FOREST))))
        own = dict(zip(merges.SIDES, store.read(self.path(stage, number), *merges.SIDES)))
        return sweeps.spanning(parts, merges.incomplete_of(own))

"""Affinities to merges in blocks: the stages, what each reads and what it writes.

    fragments i      the fragments of a block, and what its neighbours must know of those at its faces
    seams            the names that fragments at faces have in the volume
    graph i          which fragments touch, measured in the block of the later voxel
    pairs            fragments that touch in several blocks, where a statistic counts a pair once
    settle k r n     window n of partition k: its merges before it has seen r sweeps, and the edges that are left
    forest j k r n   a sweep, up the octree over partition k: how the edges in node n of level j connect what goes on
    outside j k r n  and down again: how all edges do that are not the node's own
    merges k n       all merges of a window, and what is left for each window of the next partition
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emcore.blocks import leaves, merges, runs, store, sweeps
from emcore.blocks.grid import Box
from emcore.blocks.joined import LabelWork
from emcore.blocks.leaves import Columns
from emcore.blocks.windows import Source, corner, extent, moved
from emcore.blocks.work import Stage, digest_of
from emcore.segment.graph import Place, region_graph
from emcore.segment.pooling import pool_edges
from emcore.segment.seeds import floods_sections
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.settings.decode import AffinityDecode

FORMAT = 4  # It names how all stages write their columns; files of another format are not taken.
SWEEPS = 2  # So many go over every partition of several windows; more of them earn little.


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
        graph = self.graph_digest(fragments)
        tree = digest_of(graph, self.statistic.name, self.end)
        return {"fragments": f"fragments-{fragments}", "seams": f"seams-{fragments}", "graph": f"graph-{graph}",
                "pairs": f"pairs-{graph}", "merges": f"merges-{tree}"}

    def graph_digest(self, fragments: str) -> str:
        """A digest of all that decides the graph, beside what decides the fragments."""
        return digest_of(fragments, self.statistic.every_contact)

    def tree_stages(self) -> list[Stage]:
        """What a cut at any threshold up to the end needs."""
        blocks, folders = self.grid.blocks, self.folders
        pairs = [Stage("pairs", 1, folders["pairs"])] if merges.counts_pairs(self.statistic) else []
        climbs = [stage for partition in range(len(self.grid.partitions)) for stage in self.climb(partition)]
        return [Stage("fragments", blocks(), folders["fragments"]), Stage("seams", 1, folders["seams"]),
                self.graph_stage, *pairs, *climbs]

    @property
    def graph_stage(self) -> Stage:
        return Stage("graph", self.grid.blocks(), self.folders["graph"])

    def climb(self, partition: int) -> list[Stage]:
        """The stages of a partition: its merges, after each of them a sweep through the octree above it."""
        above, stages = range(1, self.grid.partitions[partition].levels), [self.merge_stage(partition, 0)]
        for turn in range(self.sweeps(partition)):
            stages += [self.sweep_stage("forest", level, partition, turn) for level in above]
            stages += [self.sweep_stage("outside", level, partition, turn) for level in reversed(above[:-1])]
            stages.append(self.merge_stage(partition, turn + 1))
        return stages

    def sweeps(self, partition: int) -> int:
        """How many sweeps go over a partition; the volume has nothing outside of it."""
        return 0 if self.grid.partitions[partition].blocks() == 1 else SWEEPS

    def merge_stage(self, partition: int, turn: int | None = None) -> Stage:
        """Merges of a partition after so many sweeps; all its merges after the last one."""
        name, folder = f"merges {partition}", f"{self.folders['merges']}/{partition}"
        if turn not in (None, self.sweeps(partition)):
            name, folder = f"settle {partition} {turn}", f"{folder}-{turn}"
        return Stage(name, self.grid.partitions[partition].blocks(), folder)

    def sweep_stage(self, kind: str, level: int, partition: int, turn: int) -> Stage:
        """A level of the octree over a partition, in a sweep: forest on the way up, outside on the way down."""
        if level == 0:
            return self.merge_stage(partition, turn)
        return Stage(f"{kind} {level} {partition} {turn}", self.grid.partitions[partition].blocks(level),
                     f"{self.folders['merges']}/{partition}-{turn}-{kind}-{level}")

    def box_of(self, stage: Stage, number: int) -> Box | None:
        kind, *places = stage.name.split()
        if not places:
            return super().box_of(stage, number)
        level, partition = map(int, places[:2] if kind in ("forest", "outside") else ("0", places[0]))
        return self.grid.partitions[partition].box(number, level)

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
        make = leaves.floods_of if floods_sections(self.settings.fragments) else leaves.basins_of
        return make(self.source, self.grid, number)

    def make_seams(self, _: int) -> Columns:
        return leaves.seam_columns(self.grid, lambda number, *columns: self.read("fragments", number, *columns))

    def names(self, number: int) -> np.ndarray:
        """The names of a block's fragments in the volume, by local label; 0 for 0."""
        own, = self.read("fragments", number, "names")
        return moved(own, *self.read("seams", 0, f"old_{number}", f"new_{number}"))

    def fragments(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The local labels of a block, and the names of these fragments in the volume."""
        begins, labels = self.read("fragments", number, *runs.NAMES)
        return runs.labels_of(begins, labels, extent(self.grid.box(number))), self.names(number)

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
        halo = [int(axis in halos) for axis in range(3)]
        window = tuple(slice(span.start - planes, span.stop) for span, planes in zip(self.grid.box(number), halo))
        affinities = self.source.affinities(window)
        graph = region_graph(slab, affinities, statistic=self.settings.statistic, extras=("sizes", "boxes"),
                             channels=affinities.channels, place=Place(corner(window), self.grid.shape, halo))
        boxes = leaves.boxes_of(slab, graph.boxes, halo, corner(window), self.grid.shape)
        histogram = {name: getattr(graph, name) for name in merges.HISTOGRAM if graph.bins is not None}
        return {"names": names, "sizes": graph.sizes, "boxes": boxes, **histogram,
                **{name: getattr(graph, name) for name in ("u", "v", "count", "sum", "max", "min", "key")}}

    def make_pairs(self, _: int) -> Columns:
        wanted = ("names", "u", "v", "max", "key")
        return merges.shared_pairs(dict(zip(wanted, self.read("graph", number, *wanted)))
                                   | {"incomplete": merges.reaches_out(*self.read("graph", number, "boxes"), box)}
                                   for number, box in enumerate(map(self.grid.box, range(self.grid.blocks()))))

    def make_merges(self, partition: int, number: int) -> Columns:
        return self.make_settle(partition, self.sweeps(partition), number)

    def make_settle(self, partition: int, turn: int, number: int) -> Columns:
        windows, outside, height = self.grid.partitions[partition], None, None
        box, before = windows.box(number), {}
        if turn:
            before = store.read_all(self.path(self.merge_stage(partition, turn - 1), number))
            names, boxes = before["names"][before["left"]], before["boxes"]
            edges = merges.edges_of(before)
            height = edges.pop("height")
            outside = self.make_outside(0, partition, turn - 1, number)
        elif partition:
            names, boxes, edges = merges.gathered(self.handed_on(partition, number))
            edges = pool_edges(edges)  # in steps, each of which lets go of what the one before it held
        else:
            names, boxes, edges = self.measured(number)
        found, edges, height = merges.settled(names, boxes, edges, box, self.statistic, self.end, height, outside)
        boxes = found.pop("boxes")
        if before:
            edges = merges.with_open(edges, names, before)
            height = merges.heights_of(edges, self.statistic) if turn < self.sweeps(partition) else height
            found = merges.after(before, found)
        if turn < self.sweeps(partition):
            found |= merges.for_sweep(names, boxes, edges, height, box, self.end)
            return found | {"left": before["left"][found["left"]]} if before else found
        if partition + 1 < len(self.grid.partitions):
            found |= merges.handed_on(names, boxes, edges, box, self.grid.partitions[partition + 1])
        return found

    def measured(self, number: int) -> tuple[np.ndarray, np.ndarray, Columns]:
        """Names, boxes and edges of a block."""
        shared = {}
        if merges.counts_pairs(self.statistic):
            columns = (f"{name}_{number}" for name in merges.SHARED)
            shared = dict(zip(merges.SHARED, self.read("pairs", 0, *columns)))
        return merges.of_graph(store.read_all(self.path(self.graph_stage, number)), self.statistic, shared)

    def handed_on(self, partition: int, number: int) -> list[Columns]:
        """What the windows of the partition before hand on to one of this partition."""
        windows, stage, parts = self.grid.partitions[partition - 1], self.merge_stage(partition - 1), []
        for earlier in windows.overlapping(self.grid.partitions[partition].box(number)):
            path, end = self.path(stage, earlier), f"_{number}"
            columns = [name for name in store.names_of(path) if name.endswith(end)]
            parts.append({name.removesuffix(end): values for name, values in zip(columns, store.read(path, *columns))})
        return parts

    # ---- sweeps

    def make_forest(self, level: int, partition: int, turn: int, number: int) -> Columns:
        windows, below = self.grid.partitions[partition], self.sweep_stage("forest", level - 1, partition, turn)
        children = [self.path(below, child) for child in windows.children(number, level)]
        wanted = [name for name in store.names_of(children[0]) if merges.is_swept(name)]
        return merges.swept([dict(zip(wanted, store.read(path, *wanted))) for path in children],
                            windows.box(number, level), self.statistic, self.end)

    def make_outside(self, level: int, partition: int, turn: int, number: int) -> Columns:
        windows, stage = self.grid.partitions[partition], self.sweep_stage("forest", level, partition, turn)
        parent = windows.parent(number, level)
        forests = [self.read_forest(stage, other) for other in windows.children(parent, level + 1) if other != number]
        forests.append(self.read_forest(self.sweep_stage("forest", level + 1, partition, turn), parent, "closed"))
        if level + 2 < windows.levels:
            forests.append(self.read_forest(self.sweep_stage("outside", level + 1, partition, turn), parent))
        terminals, = store.read(self.path(stage, number), "terminals")
        return sweeps.spanning(forests, terminals)

    def read_forest(self, stage: Stage, number: int, kind: str = "forest") -> Columns:
        columns = store.read(self.path(stage, number), *(name.replace("forest", kind) for name in sweeps.FOREST))
        return dict(zip(sweeps.FOREST, columns))

"""Affinities to merges in blocks: the stages, what each reads and what it writes.

    fragments i      the fragments of a block, and what its neighbours must know of those at its faces
    seams            the names that fragments at faces have in the volume
    graph i          which fragments touch, measured in the block of the later voxel
    merges k n       up the octree: merges, and the edges that climb
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emcore.blocks import leaves, merges, store
from emcore.blocks.joined import LabelWork
from emcore.blocks.leaves import Columns
from emcore.blocks.windows import Source, corner, moved
from emcore.blocks.work import Stage, digest_of
from emcore.segment.graph import Place, region_graph
from emcore.segment.pooling import pool_edges
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.settings.decode import AffinityDecode

FORMAT = 1  # of the columns of all stages; files of another one are not taken


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

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folders of the stages: each name tells every setting that changes what stands in it, and no other."""
        asked = self.settings
        values = (FORMAT, self.content, self.grid.shape, self.grid.block, asked.channels, asked.bias, asked.temperature)
        watershed = (asked.low, asked.high) if asked.fragments == "watershed" else ()
        fragments = digest_of(values, asked.fragments, watershed)
        graph = digest_of(fragments, self.statistic.every_contact)
        tree = digest_of(graph, self.statistic.name)
        return {"fragments": f"fragments-{fragments}", "seams": f"seams-{fragments}", "graph": f"graph-{graph}",
                "merges": f"merges-{tree}"}

    def tree_stages(self) -> list[Stage]:
        """What a cut at any threshold needs."""
        levels, blocks, folders = self.grid.levels, self.grid.blocks, self.folders
        return [Stage("fragments", blocks(), folders["fragments"]), Stage("seams", 1, folders["seams"]),
                self.graph_stage, *(self.merge_stage(level) for level in range(levels))]

    @property
    def graph_stage(self) -> Stage:
        return Stage("graph", self.grid.blocks(), self.folders["graph"])

    def merge_stage(self, level: int) -> Stage:
        return Stage(f"merges {level}", self.grid.blocks(level), f"{self.folders['merges']}/{level}")

    def run(self, stage: Stage, number: int) -> None:
        kind, _, level = stage.name.partition(" ")
        made = getattr(self, f"make_{kind}")(*([int(level)] if level else []), number)
        store.write(self.path(stage, number), made)

    def read(self, name: str, number: int, *columns: str) -> list[np.ndarray]:
        """Columns of a task of the stage with this name."""
        stage = next(stage for stage in self.stages() if stage.name == name)
        return store.read(self.path(stage, number), *columns)

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

    def make_merges(self, level: int, number: int) -> Columns:
        if level == 0:
            return merges.of_graph(store.read_all(self.path(self.graph_stage, number)), self.statistic)
        children = self.grid.children(number, level)
        places = [self.grid.place(child, level - 1) for child in children]
        paths = [self.path(self.merge_stage(level - 1), child) for child in children]
        taken = [[name for name in store.names_of(path) if merges.climbs(name)] for path in paths]
        names, edges, faces = merges.of_children([dict(zip(names, store.read(path, *names)))
                                                  for path, names in zip(paths, taken)],
                                                 [merges.outer_sides(place, places) for place in places])
        edges = pool_edges(edges)  # in steps, each of which lets go of what the one before it held
        return merges.merged(names, edges, faces, self.statistic)

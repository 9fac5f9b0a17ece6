"""decode.kind = "mutex" in blocks: what is certain of every block, and one task that runs through the edges left.

    forest r j n    node n of level j: how its attractive edges connect the voxels that others see of it; in sweep 1
                    without those that the block knows never to join
    outside r j n   and from the top down: how all edges do that are not the node's own
    fragments n     the voxels of a block that are certain to be in one segment; at its faces, with which voxel beyond
    seams           the names that fragments have in the volume
    graph n         the first of the edges between every two fragments, of those that are stored in the block
    segments        the mutex watershed of the graph: the label of every fragment
    labels n        the voxels
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from emcore import config
from emcore.blocks import leaves, runs, store
from emcore.blocks.grid import Box
from emcore.blocks.joined import LabelWork
from emcore.blocks.leaves import Columns
from emcore.blocks.mutex_faces import Faces, reach_of
from emcore.blocks.sweeps import FOREST
from emcore.blocks.windows import corner, extent, meeting, moved, places_of, sorted_names
from emcore.blocks.work import Stage, digest_of
from emcore.decode.labels import mutex_affinities
from emcore.errors import InputError
from emcore.record import LABELS
from emcore.segment.graph import measure
from emcore.segment.merge_tree import look_up
from emcore.segment.mutex import MOST_VOXELS
from emcore.segment.mutex_window import NO_PATHS, Clusters, WindowEdges, watershed_of_graph
from emcore.settings.decode import MutexDecode
from emcore.volumes import open_volume

FORMAT = 1  # It names how all stages write their columns; files of another format are not taken.
SWEEPS = 2  # The first one knows the attractive edges of others; the second leaves out those that they do not join by.
GRAPH = ("weight", "u", "v", "key")


@dataclass(frozen=True)
class MutexWork(LabelWork):
    """The decoding of a prediction by decode.kind = "mutex"."""

    prediction: str  # its path, with the dataset where it has several
    settings: MutexDecode
    content: str  # a digest of the prediction, by which its files are known

    # ---- stages

    @cached_property
    def faces(self) -> Faces:
        return Faces(self.grid, reach_of(open_volume(self.prediction), self.settings))

    @cached_property
    def folders(self) -> dict[str, str]:
        values = (FORMAT, self.content, self.grid.shape, self.grid.block)
        graph, labels = (digest_of(values, config.to_table(settings))
                         for settings in (replace(self.settings, remove_size=0), self.settings))
        return {name: f"{name}-{graph}" for name in ("sweeps", "fragments", "seams", "graph")} | {
            "segments": f"segments-{labels}", LABELS: f"labels-{labels}"}

    def stages(self) -> list[Stage]:
        below, found = range(self.grid.levels - 1), []  # the volume has nothing outside of it
        for turn in range(SWEEPS if below else 0):
            found += [self.sweep_stage("forest", turn, level) for level in below]
            found += [self.sweep_stage("outside", turn, level) for level in reversed(below)]
        return [*found, *(self.stage(name) for name in ("fragments", "seams", "graph", "segments", LABELS))]

    def stage(self, name: str) -> Stage:
        return Stage(name, 1 if name in ("seams", "segments") else self.grid.blocks(), self.folders[name])

    def sweep_stage(self, kind: str, turn: int, level: int) -> Stage:
        folder = f"{self.folders['sweeps']}/{kind}-{turn}-{level}"
        return Stage(f"{kind} {turn} {level}", self.grid.blocks(level), folder)

    def box_of(self, stage: Stage, number: int) -> Box | None:
        kind, *places = stage.name.split()
        if places:
            return self.grid.box(number, int(places[1]))
        return None if kind in ("seams", "segments") else self.grid.box(number)

    def run(self, stage: Stage, number: int) -> None:
        kind, *places = stage.name.split()
        if kind == LABELS:
            self.write_labels(stage, number, self.labels(number))
        else:
            store.write(self.path(stage, number), getattr(self, f"make_{kind}")(*map(int, places), number))

    def read(self, name: str, number: int, *columns: str) -> list[np.ndarray]:
        """Columns of a task of the stage with this name."""
        return store.read(self.path(self.stage(name), number), *columns)

    def edges(self, box: Box) -> WindowEdges:
        affs, attracts = mutex_affinities(open_volume(self.prediction), self.settings, box)
        return WindowEdges(affs, attracts, self.settings.strides, corner(box))

    # ---- sweeps

    def make_forest(self, turn: int, level: int, number: int) -> Columns:
        box = self.grid.box(number, level)
        if level:
            below = self.sweep_stage("forest", turn, level - 1)
            return self.faces.up([self.read_forest(below, child) for child in self.grid.children(number, level)], box)
        if turn == 0:
            around, _ = self.grid.grown(number, 1, 1)
            return self.faces.leaf(self.edges(around), number, None)
        edges, clusters = self.clusters(number, turn - 1)
        dropped = never_joining(edges, clusters, self.faces.window(number)[1])
        return {**self.faces.leaf(edges, number, dropped), "dropped": np.packbits(dropped)}

    def make_outside(self, turn: int, level: int, number: int) -> Columns:
        stage, parent = self.sweep_stage("forest", turn, level), self.grid.parent(number, level)
        parts = [self.read_forest(stage, other) for other in self.grid.children(parent, level + 1) if other != number]
        if level + 2 < self.grid.levels:
            parts.append(self.read_forest(self.sweep_stage("outside", turn, level + 1), parent))
        return self.faces.down(parts, self.grid.box(number, level))

    def read_forest(self, stage: Stage, number: int) -> Columns:
        return dict(zip(FOREST, store.read(self.path(stage, number), *FOREST)))

    def clusters(self, number: int, turn: int) -> tuple[WindowEdges, Clusters]:
        """The edges of a block's window, and what is certain of its clusters after a sweep."""
        window, inside = self.faces.window(number)
        edges = self.edges(window)
        if self.grid.levels == 1:
            return edges, edges.certain(inside, NO_PATHS)
        if turn:
            self.leave_out_dropped(edges, window, turn)
        outside = self.read_forest(self.sweep_stage("outside", turn, 0), number)
        return edges, edges.certain(inside, self.faces.paths(outside, number))

    def leave_out_dropped(self, edges: WindowEdges, window: Box, turn: int) -> None:
        """Takes the edges that never join out of a window, as the blocks around know them."""
        stage, channels = self.sweep_stage("forest", turn, 0), np.flatnonzero(edges.attracts)
        edges.values = edges.values.copy()
        for other in self.grid.overlapping(window):
            box = self.grid.box(other)
            packed, = store.read(self.path(stage, other), "dropped")
            shape = (len(channels), *extent(box))
            dropped = np.unpackbits(packed, count=int(np.prod(shape))).view(bool).reshape(shape)
            there, here = meeting(box, window)
            for channel, mask in zip(channels, dropped):
                edges.values[channel][here][mask[there]] = 0

    # ---- fragments and their names

    def make_fragments(self, number: int) -> Columns:
        edges, (roots, _) = self.clusters(number, SWEEPS - 1)
        window, inside = self.faces.window(number)
        grown = roots.reshape(edges.shape)
        known, first, labels = np.unique(grown[inside], return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty(len(order), np.uint32)
        rank[order] = np.arange(1, len(order) + 1)
        labels = rank[labels].reshape(extent(self.grid.box(number)))
        start = corner(self.grid.box(number))
        firsts = np.ravel_multi_index(tuple(at + low for at, low in zip(np.unravel_index(first[order], labels.shape),
                                                                       start)), self.grid.shape)
        outside = np.ones(edges.shape, bool)
        outside[inside] = False
        beyond = np.flatnonzero(outside.reshape(-1))
        beyond = beyond[np.isin(roots[beyond], known)]
        targets = np.ravel_multi_index(tuple(at + low for at, low in zip(np.unravel_index(beyond, edges.shape),
                                                                        corner(window))), self.grid.shape)
        none = np.empty(0, np.int64)
        return {**runs.runs_of(labels), "names": np.concatenate([[0], firsts + 1]).astype(np.uint64),
                "exit_label": none.astype(np.uint32), "exit_key": none.astype(np.uint64), "exit_target": none,
                "mutual_label": rank[np.searchsorted(known, roots[beyond])], "mutual_target": targets.astype(np.int64),
                **leaves.planes_of(labels)}

    def make_seams(self, _: int) -> Columns:
        return leaves.seam_columns(self.grid, lambda number, *columns: self.read("fragments", number, *columns))

    def names(self, number: int) -> np.ndarray:
        """The names of a block's fragments in the volume, by local label; 0 for 0."""
        own, = self.read("fragments", number, "names")
        return moved(own, *self.read("seams", 0, f"old_{number}", f"new_{number}"))

    def fragments(self, number: int) -> np.ndarray:
        return runs.labels_of(*self.read("fragments", number, *runs.NAMES), extent(self.grid.box(number)))

    # ---- the graph

    def make_graph(self, number: int) -> Columns:
        window, inside = self.faces.window(number)
        names_of = {other: self.names(other) for other in self.grid.overlapping(window)}
        names = np.concatenate([np.zeros(1, np.uint64), sorted_names(list(names_of.values()))])
        clusters = np.empty(extent(window), np.uint32)
        for other, own in names_of.items():
            there, here = meeting(self.grid.box(other), window)
            clusters[here] = look_up(np.ascontiguousarray(self.fragments(other)[there]), places_of(own, names))
        found = self.edges(window).graph(clusters, inside)
        voxels = [at + low for at, low in zip(np.unravel_index(found["place"], clusters.shape), corner(window))]
        key = found["channel"] * np.uint64(np.prod(self.grid.shape)) + np.ravel_multi_index(
            tuple(voxels), self.grid.shape).astype(np.uint64)
        sizes = measure(np.ascontiguousarray(clusters[inside]), len(names) - 1)[0]
        used = np.zeros(len(names), bool)
        used[found["u"]] = used[found["v"]] = used[sizes > 0] = True
        rank = np.cumsum(used) - 1
        return {"names": names[used], "sizes": sizes[used], "weight": found["weight"], "key": key,
                "u": rank[found["u"]].astype(np.uint32), "v": rank[found["v"]].astype(np.uint32)}

    def make_segments(self, _: int) -> Columns:
        blocks = range(self.grid.blocks())
        own = [self.names(number) for number in blocks]
        names = sorted_names(own)
        if len(names) > MOST_VOXELS:
            raise InputError(f"the mutex watershed of a graph takes at most {MOST_VOXELS} fragments; the blocks left "
                             f"{len(names)}: larger blocks, or decode.strides, leave fewer")
        sizes, edges = np.zeros(len(names), np.int64), {name: [] for name in GRAPH}
        for number in blocks:
            part = store.read_all(self.path(self.stage("graph"), number))
            places = places_of(part["names"], names)
            sizes[places] += part["sizes"]
            for name in GRAPH:
                edges[name].append(places[part[name]] if name in ("u", "v") else part[name])
        labels = watershed_of_graph(len(names), **{name: np.concatenate(edges.pop(name)) for name in GRAPH})
        voxels = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
        np.add.at(voxels, labels, sizes)
        kept = np.where(voxels >= self.settings.remove_size, np.arange(len(voxels)), 0).astype(self.label_type)
        none = np.zeros(1, kept.dtype)  # the label of local label 0, which no voxel has
        return {f"table_{number}": np.concatenate([none, kept[labels[places_of(some[1:], names)]]])
                for number, some in zip(blocks, own)}

    def labels(self, number: int) -> np.ndarray:
        table, = self.read("segments", 0, f"table_{number}")
        return look_up(self.fragments(number), table)


def never_joining(edges: WindowEdges, clusters: Clusters, inside: Box) -> np.ndarray:
    """For every attractive channel which edges stored in a block lead between clusters that stay apart."""
    found: Sequence = []
    for stored, here, there, _ in edges.attractive(inside):
        apart = np.zeros(here.size, np.uint8)
        clusters.forest.held(clusters.roots[here.reshape(-1)], clusters.roots[there.reshape(-1)], apart)
        mask = np.zeros([span.stop - span.start for span in inside], bool)
        mask[tuple(slice(span.start - own.start, span.stop - own.start) for span, own in zip(stored, inside))] = (
            apart.reshape(here.shape).view(bool))
        found.append(mask)
    return np.stack(found)

"""From affinities to neurons: in one lean call, or step by step, where every step is kept for the next question."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.agglomeration import Agglomeration, Remaining, agglomerate
from emcore.segment.arrays import within
from emcore.segment.cleanup import boundary_threshold, merge_dust
from emcore.segment.explain import Explanation, explain
from emcore.segment.faces import face_forest
from emcore.segment.fragments import watershed
from emcore.segment.graph import RegionGraph, check_size, label_view, largest_label, measure, region_graph
from emcore.segment.linking import LinkRule, link_sections
from emcore.segment.merge_tree import MergeTree, cut, look_up
from emcore.segment.seeds import check_fragments, face_smoothing
from emcore.segment.slices import seeded_slices
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.segment.storage import FRAGMENTS, Parts, no_tree, stored_parts, write_graph, write_tree
from emcore.volumes import Volume, create_volume


def segment(affs: np.ndarray | Affinities, threshold: float = 0.5, statistic: str | Statistic = "mean", *,
            low: float = 1e-4, high: float = 0.9999, mask: np.ndarray | None = None, ties: str = "canonical",
            threads: int | None = None) -> np.ndarray:
    """Labels (z, y, x), uint32, of affinities (c, z, y, x): watershed, region graph, agglomeration and cut.

    Regions merge while 1 - statistic < threshold. Nothing is kept on the way; Segmentation keeps every step, and
    merges dust, clears boundaries and links sections too.
    """
    statistic, affs = parse_statistic(statistic), as_affinities(affs)
    if not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    check_size(affs.shape)
    fragments = watershed(affs, low, high, mask=mask, ties=ties, threads=threads)
    graph = graph_of(fragments, affs, statistic, ties, (), threads)
    run = Agglomeration(graph, statistic, ties)
    del graph
    run.advance(threshold, threads)
    table = run.tree().table(threshold)
    del run
    return look_up(fragments, table, out=fragments if fragments.dtype == np.uint32 else None, threads=threads)


def graph_of(fragments: np.ndarray, affs: Affinities, statistic: str | Statistic, ties: str, extras: Sequence[str],
             threads: int | None = None) -> RegionGraph:
    """The graph by the nearest neighbours, with what the statistic and the ties need."""
    extras = (*extras, "running_mean") if ties == "waterz" else extras
    return region_graph(fragments, affs, statistic=statistic, extras=extras, channels=affs.channels, threads=threads)


class Segmentation:
    """Fragments, region graph, merge tree and labels of affinities, each made when it is first asked for, once.

        segmentation = Segmentation(affs, low=0.1, high=0.999)
        labels = segmentation.labels(0.5)
        print(segmentation.explain((10, 200, 300), 0.5))
        segmentation.write("segmentation.h5")

    fragments is "watershed", "faces" or "faces-2" (face_forest with so many passes of smoothing), the name of seeds for
    floods of single sections (see seeded_slices), or labels that are there already. low and high belong to the
    watershed. affs may be None for what was read from a file; then only what needs no affinities can be asked for.
    end is the largest threshold that the merges serve; None keeps all of them.
    """

    def __init__(self, affs: np.ndarray | Affinities | None, *, low: float = 1e-4, high: float = 0.9999,
                 fragments: str | np.ndarray = "watershed", statistic: str | Statistic = "mean",
                 ties: str = "canonical", mask: np.ndarray | None = None, end: float | None = None,
                 threads: int | None = None):
        if isinstance(fragments, str):
            check_fragments(fragments)
        if ties not in ("canonical", "waterz"):
            raise InputError(f"ties must be 'canonical' or 'waterz'; got {ties!r}")
        if end is not None and not within(end, 0, 1):
            raise InputError(f"end must be 0 to 1, or None for all merges; got {end}")
        parse_statistic(statistic)
        self._affs = None if affs is None else as_affinities(affs)
        self.low, self.high, self.mask, self.threads = low, high, mask, threads
        self.statistic, self.ties, self.end = statistic, ties, end
        self._how = fragments if isinstance(fragments, str) else "given"
        self._fragments = None if isinstance(fragments, str) else fragments
        self._graph: RegionGraph | None = None
        self._tree: MergeTree | None = None
        self._parts: Parts | None = None

    @property
    def affs(self) -> Affinities:
        if self._affs is None:
            raise InputError("this takes the affinities, and the segmentation was read without them: "
                             "name them with Segmentation.read(path, affs)")
        return self._affs

    @property
    def fragments(self) -> np.ndarray:
        """Labels (z, y, x): what merges are made of."""
        if self._fragments is None and self._parts is not None:
            self._fragments = read_fragments(self._parts.fragments(), self.tree)
        elif self._fragments is None and self._how == "watershed":
            self._fragments = watershed(self.affs, self.low, self.high, mask=self.mask, ties=self.ties,
                                        threads=self.threads)
        elif self._fragments is None and face_smoothing(self._how) is not None:
            self._fragments = face_forest(self.affs, face_smoothing(self._how), mask=self.mask, threads=self.threads)
        elif self._fragments is None:
            if self.mask is not None:
                raise InputError("mask belongs to fragments='watershed' and 'faces'; floods of sections take none")
            self._fragments = seeded_slices(self.affs, self._how, threads=self.threads)
        return self._fragments

    @property
    def graph(self) -> RegionGraph:
        """Which fragments touch, and the statistics of the affinities between them."""
        if self._graph is None and self._parts is not None:
            self._graph = self._parts.graph()
        elif self._graph is None:
            self._graph = graph_of(self.fragments, self.affs, self.statistic, self.ties, ("sizes",), self.threads)
        return self._graph

    @property
    def tree(self) -> MergeTree:
        """Every merge below the end; it serves every threshold up to there."""
        if self._tree is None and self._parts is not None:
            self._tree = self._parts.tree()
        elif self._tree is None:
            self._tree = agglomerate(self.graph, self.statistic, ties=self.ties, threshold=self.end,
                                     threads=self.threads)
        return self._tree

    @property
    def sizes(self) -> np.ndarray:
        """Voxels of every fragment, from 0 on."""
        if self.graph.sizes is None:
            fragments = label_view(self.fragments)
            sizes, _ = measure(fragments, max(self.graph.fragments, largest_label(fragments)), self.threads)
            self._graph = replace(self.graph, sizes=sizes[:self.graph.fragments + 1])
        return self.graph.sizes

    def labels(self, threshold: float = 0.5, *, boundary: float = 0.0, dust_size: int = 0, dust_affinity: float = 0.0,
               remove_size: int = 0, link: LinkRule | None = None) -> np.ndarray:
        """Labels (z, y, x), uint32: the tree cut at the threshold, and what is wanted after it, in this order.

        Voxels whose mean affinity towards smaller y and x is below `boundary` are cleared. Segments below dust_size
        voxels are merged across their best borders above dust_affinity, and those below remove_size voxels become 0
        (see merge_small). Then sections are linked.
        """
        if not within(boundary, -np.inf, 1) or not within(dust_size, 0, np.inf) or not within(remove_size, 0, np.inf):
            raise InputError("boundary must be at most 1, dust_size and remove_size 0 or more; "
                             f"got {boundary}, {dust_size} and {remove_size}")
        borders = self._borders(threshold) if dust_size else None
        labels = cut(self.fragments, self.tree, threshold, threads=self.threads)
        if boundary > 0:
            labels = boundary_threshold(labels, self.affs, boundary, threads=self.threads)
        if dust_size or remove_size:
            labels = merge_dust(labels, self.tree.table(threshold), borders, dust_size, affinity=dust_affinity,
                                remove_size=remove_size, threads=self.threads)
        if link is not None:
            labels = link_sections(labels, self.affs, link, threads=self.threads)
        return labels

    def _borders(self, threshold: float) -> Remaining:
        """What is left between segments at the threshold; where the tree is still to be made, on the way to it."""
        run = Agglomeration(self.graph, self.statistic, self.ties)
        run.advance(threshold, self.threads)
        borders = run.remaining()
        if self._tree is None and self._parts is None:
            run.advance(self.end, self.threads)
            self._tree = run.tree()
        return borders

    def explain(self, voxel: Sequence[int], threshold: float = 0.5,
                other: Sequence[int] | None = None) -> Explanation:
        """Why a voxel (z, y, x) has its label at a threshold; with another voxel, why both are one or are not."""
        sizes, name = self.sizes, parse_statistic(self.statistic).name
        in_file = self._fragments is None and self._parts is not None  # where one or two voxels are read
        fragments = self._parts.fragments() if in_file else self.fragments
        return explain(fragments, replace(self.graph, sizes=sizes), self.tree, name, voxel, threshold, other)

    def write(self, path: str | PathLike, resolution: Sequence[float] | None = None,
              offset: Sequence[float] | None = None, attributes: dict[str, Any] | None = None) -> None:
        """Adds tree, graph and fragments to an HDF5 file, from which `read` takes them."""
        statistic = parse_statistic(self.statistic).name
        # the small ones first: a file is copied whenever it gets another dataset
        write_tree(Path(path), self.tree, {"statistic": statistic, "ties": self.ties})
        write_graph(Path(path), self.graph)
        fragments = self.fragments
        with create_volume(f"{path}:{FRAGMENTS}", fragments.shape, fragments.dtype, resolution, offset,
                           attributes) as out:
            out[...] = fragments

    @classmethod
    def read(cls, path: str | PathLike, affs: np.ndarray | Affinities | None = None,
             threads: int | None = None) -> "Segmentation":
        """What `write` or a decoding stored; each part is read when it is first asked for."""
        parts = stored_parts(Path(path))
        if parts is None:
            raise no_tree(Path(path))
        return cls.of_parts(parts, affs, threads)

    @classmethod
    def of_graph(cls, fragments: np.ndarray, graph: RegionGraph, affs: np.ndarray | Affinities | None = None, *,
                 end: float | None = None, threads: int | None = None) -> "Segmentation":
        """Fragments (z, y, x) and their graph, whatever its affinities are of, which merge by the mean of these."""
        found = cls(affs, fragments=fragments, end=end, threads=threads)
        found._graph = graph
        return found

    @classmethod
    def of_parts(cls, parts: Parts, affs: np.ndarray | Affinities | None = None,
                 threads: int | None = None) -> "Segmentation":
        """What was made before, wherever it stands; each part is read when it is first asked for."""
        found = cls(affs, statistic=parts.statistic, ties=parts.ties, threads=threads)
        found._parts = parts
        return found


def read_fragments(stored: Volume, tree: MergeTree) -> np.ndarray:
    """The fragments of a file, if its tree can be of them: what a damaged file claims takes no memory."""
    if tree.fragments > stored.size:
        raise InputError(f"{stored.name}: its merges are of {tree.fragments} fragments, but it has {stored.size} "
                         "voxels")
    return stored[...]

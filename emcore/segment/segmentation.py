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
    """Segments affinities: watershed, region graph, agglomeration and cut at one threshold.

    Regions merge while 1 - statistic < threshold, so a higher threshold gives fewer and larger segments. Nothing is
    kept on the way. `Segmentation` keeps every step, and it can also merge dust, clear boundaries and link sections.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8 (code / 255), 0 to 1, or `Affinities`. In
            channel 0 is the affinity of a voxel and its neighbour at z - 1, in channel 1 at y - 1, in channel 2 at x -
            1.
        threshold: 0 to 1. The default is 0.5.
        statistic: what ranks the contacts of two regions: "mean" (the default), "max", "min", or a quantile like
            "aff75_his256" (see `parse_statistic`).
        low: an affinity at or below it never joins two voxels (default 1e-4).
        high: an affinity at or above it always does (default 0.9999).
        mask: bool or uint8 (z, y, x); voxels where it is 0 get label 0. By default all voxels count.
        ties: "canonical" (the default), or "waterz", which repeats the order of waterz 0.10.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32, numbered from 1; 0 is background.

    Raises:
        InputError: a shape, dtype or number does not fit, or a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 24 ns of one core and 6.8 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> segment.segment(affs, 0.5)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
        >>> segment.segment(affs, 0.9)[0, 0]
        array([1, 1, 1, 1, 1, 1], dtype=uint32)
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
    """Keeps fragments, region graph, merge tree and labels of affinities; each is made on first use.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`. None is for what was
            read from a file; then only what needs no affinities can be asked for.
        low: an affinity at or below it never joins two voxels in the watershed (default 1e-4).
        high: an affinity at or above it always does (default 0.9999).
        fragments: "watershed" (the default); "faces" or "faces-2" (`face_forest`, here with two passes of smoothing);
            the seeds of a flood of single sections ("minima", see `seeded_slices`); or labels (z, y, x) to start from.
        statistic: what ranks the contacts of two regions; "mean" by default (see `parse_statistic`).
        ties: "canonical" (the default), or "waterz", which repeats the order of waterz 0.10.
        mask: bool or uint8 (z, y, x); voxels where it is 0 get label 0. By default all voxels count.
        end: the largest threshold that the merges serve, 0 to 1. None (the default) keeps all merges.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Raises:
        InputError: an argument does not fit.

    Cost:
        The parts cost as much as `watershed`, `region_graph` and `agglomerate`. Fragments take 4 bytes per voxel, the
        graph about 90 bytes per contact, and each volume of labels 4 bytes per voxel more.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> whole = segment.Segmentation(affs, low=0.1, high=0.95)
        >>> whole.labels(0.5)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
        >>> whole.tree.height.round(3)  # 1 - the mean affinity of the contact
        array([0.8])
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
        """The affinities; an InputError says so where the segmentation was read without them."""
        if self._affs is None:
            raise InputError("this takes the affinities, and the segmentation was read without them: "
                             "name them with Segmentation.read(path, affs)")
        return self._affs

    @property
    def fragments(self) -> np.ndarray:
        """Labels (z, y, x) of the smallest pieces, from which merges start."""
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
        """The `RegionGraph`: which fragments touch, and the statistics of the affinities between them."""
        if self._graph is None and self._parts is not None:
            self._graph = self._parts.graph()
        elif self._graph is None:
            self._graph = graph_of(self.fragments, self.affs, self.statistic, self.ties, ("sizes",), self.threads)
        return self._graph

    @property
    def tree(self) -> MergeTree:
        """The `MergeTree` of every merge below the end; it serves every threshold up to there."""
        if self._tree is None and self._parts is not None:
            self._tree = self._parts.tree()
        elif self._tree is None:
            self._tree = agglomerate(self.graph, self.statistic, ties=self.ties, threshold=self.end,
                                     threads=self.threads)
        return self._tree

    @property
    def sizes(self) -> np.ndarray:
        """The number of voxels of every fragment, int64, beginning with fragment 0."""
        if self.graph.sizes is None:
            fragments = label_view(self.fragments)
            sizes, _ = measure(fragments, max(self.graph.fragments, largest_label(fragments)), self.threads)
            self._graph = replace(self.graph, sizes=sizes[:self.graph.fragments + 1])
        return self.graph.sizes

    def labels(self, threshold: float = 0.5, *, boundary: float = 0.0, dust_size: int = 0, dust_affinity: float = 0.0,
               remove_size: int = 0, link: LinkRule | None = None) -> np.ndarray:
        """Cuts the tree at a threshold and cleans the labels up, in the order of the arguments.

        Args:
            threshold: 0 to 1; regions merge while 1 - statistic is below it. The default is 0.5.
            boundary: voxels whose mean y and x affinity is below it become 0. The default 0 clears none.
            dust_size: segments below so many voxels are merged across their best contact. The default 0 merges none.
            dust_affinity: the contact that dust is merged across has a statistic above it (default 0).
            remove_size: segments that are still below so many voxels become 0. The default 0 removes none.
            link: the rule by which segments are joined through consecutive sections. The default None joins none.

        Returns:
            Labels (z, y, x), uint32; 0 is background.

        Raises:
            InputError: a number lies outside of its range, or the threshold lies beyond the end of the tree.

        Cost:
            It takes 2.0 ns of one core and 4.0 bytes per voxel. This is the cost of a further threshold.

        Examples:
            >>> import numpy as np
            >>> from emcore import segment
            >>> whole = segment.Segmentation(np.full((3, 2, 4, 4), 0.9, np.float32))
            >>> int(whole.labels(0.5, remove_size=100).max())
            0
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
        """Tells why a voxel has its label at a threshold, or why two voxels are or are not one segment.

        Args:
            voxel: its indices z, y, x.
            threshold: 0 to 1. The default is 0.5.
            other: the indices z, y, x of a second voxel. The default None asks about one voxel.

        Returns:
            An `Explanation`; its `str` is a text for people.

        Raises:
            InputError: a voxel lies outside of the volume, or the threshold lies beyond the end of the tree.

        Cost:
            The time grows with the number of merges. No volume of voxels is made.

        Examples:
            >>> import numpy as np
            >>> from emcore import segment
            >>> whole = segment.Segmentation(np.full((3, 2, 4, 4), 0.9, np.float32))
            >>> whole.explain((0, 1, 1), 0.5).voxels
            32
        """
        sizes, name = self.sizes, parse_statistic(self.statistic).name
        in_file = self._fragments is None and self._parts is not None  # where one or two voxels are read
        fragments = self._parts.fragments() if in_file else self.fragments
        return explain(fragments, replace(self.graph, sizes=sizes), self.tree, name, voxel, threshold, other)

    def write(self, path: str | PathLike, resolution: Sequence[float] | None = None,
              offset: Sequence[float] | None = None, attributes: dict[str, Any] | None = None) -> None:
        """Adds the tree, the graph and the fragments to an HDF5 file, from which `read` takes them.

        Args:
            path: an HDF5 file; it is made if it is not there, and its other datasets stay.
            resolution: the size of a voxel in nm, z, y, x; unknown by default.
            offset: the place of the first voxel in nm, z, y, x; unknown by default.
            attributes: plain values to keep with the fragments; none by default.

        Raises:
            InputError: the path does not name an HDF5 file.

        Cost:
            The file is written once: about 0.5 bytes per voxel for compressed fragments and 90 bytes per contact.

        Examples:
            >>> import numpy as np, tempfile
            >>> from emcore import segment
            >>> whole = segment.Segmentation(np.full((3, 2, 4, 4), 0.9, np.float32))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     whole.write(f"{folder}/whole.h5", resolution=(30, 8, 8))
            ...     segment.Segmentation.read(f"{folder}/whole.h5").labels(0.5).max()
            np.uint32(1)
        """
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
        """Opens what `write` or a decoding stored; each part is read when it is first asked for.

        Args:
            path: the HDF5 file.
            affs: the affinities, where boundaries, dust or links are asked for. The default None goes without them.
            threads: how many threads to use; all cores by default. The number changes no bit of the result.

        Returns:
            The `Segmentation`.

        Raises:
            InputError: the file holds no merge tree, or its parts do not belong together.
        """
        parts = stored_parts(Path(path))
        if parts is None:
            raise no_tree(Path(path))
        return cls.of_parts(parts, affs, threads)

    @classmethod
    def of_graph(cls, fragments: np.ndarray, graph: RegionGraph, affs: np.ndarray | Affinities | None = None, *,
                 end: float | None = None, threads: int | None = None) -> "Segmentation":
        """Makes a segmentation from fragments and their graph, whatever its affinities are; merges go by their mean.

        Args:
            fragments: labels (z, y, x), uint32.
            graph: the `RegionGraph` of these fragments.
            affs: the affinities, where boundaries, dust or links are asked for. The default None goes without them.
            end: the largest threshold that the merges serve. None (the default) keeps all merges.
            threads: how many threads to use; all cores by default. The number changes no bit of the result.

        Returns:
            The `Segmentation`.

        Raises:
            InputError: the graph does not fit the fragments.

        Cost:
            The merges cost as much as `agglomerate`.

        Examples:
            >>> import numpy as np
            >>> from emcore import segment
            >>> affs = np.full((3, 2, 4, 4), 0.9, np.float32)
            >>> fragments = segment.watershed(affs)
            >>> graph = segment.region_graph(fragments, affs)
            >>> segment.Segmentation.of_graph(fragments, graph).tree.fragments
            1
        """
        found = cls(affs, fragments=fragments, end=end, threads=threads)
        found._graph = graph
        return found

    @classmethod
    def of_parts(cls, parts: Parts, affs: np.ndarray | Affinities | None = None,
                 threads: int | None = None) -> "Segmentation":
        """Makes a segmentation from stored parts, wherever they stand; each is read when it is first asked for.

        Args:
            parts: how each part is read (see emcore/segment/storage.py).
            affs: the affinities, where boundaries, dust or links are asked for. The default None goes without them.
            threads: how many threads to use; all cores by default. The number changes no bit of the result.

        Returns:
            The `Segmentation`.
        """
        found = cls(affs, statistic=parts.statistic, ties=parts.ties, threads=threads)
        found._parts = parts
        return found


def read_fragments(stored: Volume, tree: MergeTree) -> np.ndarray:
    """The fragments of a file, if its tree can be of them: what a damaged file claims takes no memory."""
    if tree.fragments > stored.size:
        raise InputError(f"{stored.name}: its merges are of {tree.fragments} fragments, but it has {stored.size} "
                         "voxels")
    return stored[...]

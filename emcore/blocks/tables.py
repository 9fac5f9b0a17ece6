"""The tables of a decoding in blocks as those of the whole volume: its fragments by number, its graph, its merges.

    parts = parts_of(labels)             # of a labels file, whether it lies in blocks or not
    tree, graph = parts.tree(), parts.graph()
    fragments = parts.fragments()        # a volume; blocks are read where it is sliced

A fragment's number is the rank of its name among all names, which is the number that it has in the whole volume. So
tree, graph and fragments are equal, to the bit, to those that decoding the whole makes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np

from emcore.blocks import store
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Box
from emcore.blocks.merges import HISTOGRAM
from emcore.blocks.windows import sorted_names
from emcore.blocks.work import Stage
from emcore.errors import InputError
from emcore.memory import check_memory
from emcore.record import LABELS, has_labels
from emcore.segment import Affinities, MergeTree, RegionGraph, Segmentation
from emcore.segment.graph import LARGEST_LABEL
from emcore.segment.pooling import concatenate, pool_edges
from emcore.segment.storage import Parts, no_tree, stored_parts
from emcore.volumes import Volume, open_volume

FRAGMENT_BYTES = 300  # a fragment takes so much, its merge and what is computed along the tree included
EDGE_BYTES = 200  # an edge takes so much while those of all blocks are pooled
BIN_BYTES = 110  # a bin of a histogram takes so much then
EDGES = ("count", "sum", "max", "min", "key")
INSTEAD = ("take a machine with more memory, or a part of the volume; the labels themselves, also those that "
           "infer.py --cut makes at another threshold, need none of this")


def parts_of(labels: Path) -> Parts | None:
    """Fragments, graph and merges of a labels file, in blocks or not; None where it has no merges."""
    from emcore.blocks.run import work_of

    work = work_of(labels) if has_labels(labels) else None
    if work is None:
        return stored_parts(labels)
    stored = open_volume(labels, LABELS)
    return BlockParts(work, stored.resolution, stored.offset) if isinstance(work, AffinityWork) else None


def read_segmentation(labels: Path, affs: np.ndarray | Affinities | None = None) -> Segmentation:
    """The segmentation beside labels, in blocks or not; each part is read when it is first asked for."""
    parts = parts_of(labels)
    if parts is None:
        raise no_tree(labels)
    return Segmentation.of_parts(parts, affs)


@contextmanager
def legible() -> Iterator[None]:
    """Turns a damaged file of a block into a sentence that says how it comes back."""
    try:
        yield
    except store.Damaged as damage:
        raise InputError(f"{damage}; run infer.py again, which makes it again") from None


@dataclass(frozen=True)
class BlockParts:
    """The fragments, the graph and the merges of all blocks."""

    work: AffinityWork
    resolution: Sequence[float] | None = None  # resolution of the fragments, which is that of the labels
    offset: Sequence[float] = (0.0, 0.0, 0.0)

    @property
    def statistic(self) -> str:
        return self.work.statistic.name

    @property
    def ties(self) -> str:
        return "canonical"

    def stage(self, name: str) -> Stage:
        return self.work.stage_named[name]

    def files(self, *names: str) -> list[Path]:
        """The files of all tasks of these stages."""
        return [self.work.path(stage, number) for stage in map(self.stage, names) for number in range(stage.count)]

    def check_memory(self, what: str, more: int = 0) -> None:
        """Refuses before anything is read what would not fit beside the names and merges of all fragments."""
        count = sum(max(0, store.shapes(path)["names"][0] - 1) for path in self.files("fragments"))
        if count > LARGEST_LABEL:
            raise InputError(f"{what} number fragments in 32 bits, and there are up to {count}: {INSTEAD}")
        check_memory(count * FRAGMENT_BYTES + more, f"to hold {what} of up to {count} fragments", INSTEAD)

    @cached_property
    def names(self) -> np.ndarray:
        """The name of every fragment by its number, rising; 0 has the name 0."""
        found = [np.zeros(1, np.uint64)]
        with legible():
            self.check_memory("the names")
            for number in range(self.work.grid.blocks()):
                names = sorted_names([self.work.names(number)])
                found.append(names[self.work.is_own(names, number)])
        names = np.concatenate(found)
        names.sort()
        return names

    def numbers(self, names: np.ndarray) -> np.ndarray:
        """The numbers of fragments by their names, uint32."""
        every = self.names
        numbers = np.searchsorted(every, names)
        if (every[np.minimum(numbers, len(every) - 1)] != names).any():
            raise InputError(f"the files of {self.work.folder} do not fit each other: a block names a fragment that "
                             "none has; remove that folder and run infer.py again")
        return numbers.astype(np.uint32)

    def tree(self) -> MergeTree:
        """The merges of all partitions up to the end, in the order of their heights and keys."""
        names = self.names
        with legible():
            self.check_memory("the merges")
            files = self.files(*(self.work.merge_stage(step).name for step in range(len(self.work.grid.partitions))))
            count = sum(store.shapes(path)["height"][0] for path in files)
            (a, b), height, key = np.empty((2, count), np.uint32), np.empty(count), np.empty(count, np.uint64)
            stop = 0
            for path in files:
                one, other, *rest = store.read(path, "a", "b", "height", "key")
                start, stop = stop, stop + len(one)
                a[start:stop], b[start:stop] = self.numbers(one), self.numbers(other)
                height[start:stop], key[start:stop] = rest
        order = np.lexsort((key, height))
        return MergeTree(len(names) - 1, a[order], b[order], height[order], self.work.end, key[order])

    def graph(self) -> RegionGraph:
        """The graphs of all blocks as one: each contact of the volume was measured in one of them."""
        names, parts = self.names, []
        sizes = np.zeros(len(names), np.int64)
        with legible():
            files = self.files("graph")
            shapes = [store.shapes(path) for path in files]
            self.check_memory("the region graph", sum(shape["u"][0] * EDGE_BYTES + shape.get("bins", (0,))[0] *
                                                      BIN_BYTES for shape in shapes))
            for path, shape in zip(files, shapes):
                histogram = HISTOGRAM if "bins" in shape else ()
                own, voxels, u, v, *rest = store.read(path, "names", "sizes", "u", "v", *EDGES, *histogram)
                own = self.numbers(own)
                sizes[own[:len(voxels)]] += voxels
                u, v = own[u], own[v]
                parts.append({"u": u, "v": v, "top_u": u, "top_v": v, **dict(zip((*EDGES, *histogram), rest))})
        edges = pool_edges(concatenate(parts))
        del edges["top_u"], edges["top_v"]
        return RegionGraph(len(names) - 1, sizes=sizes, **edges)

    def fragments(self) -> Volume:
        """The fragments of the volume by number, uint32; a box is read from the blocks that it lies in."""
        return Volume(name=f"{self.work.folder}:fragments", shape=self.work.grid.shape, dtype=np.dtype(np.uint32),
                      resolution=self.resolution, offset=tuple(self.offset), attrs={}, chunks=self.work.grid.block,
                      connect=partial(NumberedFragments, self))


@dataclass(frozen=True)
class NumberedFragments:
    """What a box of the fragments is read from."""

    parts: BlockParts

    def __getitem__(self, box: Box) -> np.ndarray:
        work, lengths = self.parts.work, [len(range(span.start, span.stop, span.step)) for span in box]
        check_memory(4 * int(np.prod(lengths)), f"to read {lengths} voxels of fragments", INSTEAD)
        out = np.empty(lengths, np.uint32)
        spans = [range(span.start // size, -(-span.stop // size)) for span, size in zip(box, work.grid.block)]
        with legible():
            for number in map(work.grid.number, product(*spans)):
                there, inside = zip(*map(shared, box, work.grid.box(number)))
                if all(span.start < span.stop for span in there):
                    labels, names = work.fragments(number)
                    out[there] = self.parts.numbers(names)[labels[inside]]
        return out


def shared(span: slice, block: slice) -> tuple[slice, slice]:
    """Which voxels of a slice with a step lie in a block: as places in what is sliced, and in the block."""
    first, last = (max(0, -(-(end - span.start) // span.step)) for end in (block.start, min(block.stop, span.stop)))
    start = span.start + first * span.step - block.start
    return slice(first, last), slice(start, start + (last - first) * span.step, span.step)

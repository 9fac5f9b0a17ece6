"""How many fragments a watershed makes of a stored prediction, by a few boxes of it, before they are made in blocks.

Graph and merges have rows for fragments and the edges between them, so the thresholds of the watershed decide what they
cost. Nothing that is found here changes a result: it becomes a sentence for the user.
"""

import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emcore.blocks.choice import size_of
from emcore.blocks.grid import Box, Grid
from emcore.blocks.windows import Source, extent
from emcore.segment import Affinities, region_graph, watershed
from emcore.settings.decode import AffinityDecode, Decode
from emcore.volumes import open_volume

SIDE, AROUND = 48, 8  # voxels of a box, and of what is read around it, so that few fragments of it are cut off
BOXES, LOOKS, SECONDS = 5, 32, 0.5  # boxes with fragments, boxes in all, and seconds after which no other is read
STEP = (0.8191725134, 0.6710436067, 0.5497004779)  # Its multiples, less whole numbers, fill a cube evenly.
DENSE = 1 / 100  # fragments a voxel, above which something is said
LOW, HIGH = 0.1, 0.999  # what docs/decoding.md names
HELPS = 1.5  # Other thresholds are named if they make so many times fewer fragments.
LOST = 0.1  # Where they leave a larger part of the voxels without a fragment, they are not for this net.
# Graph, merges and cuts leave so many bytes of disk for every edge of the region graph. On real labels it was 154
# at 512³ in blocks of 256³, and 185 to 196 at 256³ in blocks of 128³, with these thresholds and with the default ones.
BYTES = 160


class Sample(NamedTuple):
    """What a watershed makes of boxes; fragments and edges that lie in a box in part count in part."""

    fragments: float
    edges: float
    inside: int  # voxels in fragments; the others are background, as outside of the tissue

    @property
    def told(self) -> str:
        return f"for every {self.inside / self.fragments:.0f} voxels"


def advice(prediction: Path, settings: Decode) -> str:
    """What the thresholds of a watershed cost and which cost less, in one sentence; empty where they make no more
    fragments than usual."""
    if not isinstance(settings, AffinityDecode) or settings.fragments != "watershed":
        return ""
    source, shape = Source(str(prediction), settings), open_volume(prediction).shape[-3:]
    boxes = list(boxes_of(source, Grid(shape, (SIDE,) * 3)))
    asked = sample(boxes, settings.low, settings.high)
    if asked.fragments <= DENSE * asked.inside:
        return ""

    def disk(found: Sample) -> str:
        return size_of(BYTES * found.edges / sum(prod(extent(core)) for _, core in boxes) * prod(shape))

    by = f"{len(boxes)} boxes" if len(boxes) > 1 else "one box"
    said = (f"one fragment {asked.told} with {thresholds(settings.low, settings.high)}, by {by} of {SIDE}³: graph and "
            f"merges take about {disk(asked)} of disk")
    other = sample(boxes, LOW, HIGH)
    lost = 1 - other.inside / asked.inside
    if lost > LOST or HELPS * other.fragments > asked.fragments:
        return said
    without = f", but leave {lost:.0%} of these voxels without a fragment" if lost >= 0.005 else ""
    return f"{said}; {thresholds(LOW, HIGH)} would make one {other.told} and take about {disk(other)}{without}"


def thresholds(low: float, high: float) -> str:
    return f"decode.low = {low:g} and decode.high = {high:g}"


def boxes_of(source: Source, grid: Grid) -> Iterator[tuple[Affinities, Box]]:
    """Affinities of boxes that are spread over the volume, and where each box lies in them: so many that BOXES of them
    have fragments, where there is time."""
    begun, found, seen = time.monotonic(), 0, set()
    for look in range(1, LOOKS + 1):
        place = [int(look * step % 1 * count) for step, count in zip(STEP, grid.counts(0))]
        if grid.number(place) in seen:
            continue
        seen.add(grid.number(place))
        window, core = grid.grown(grid.number(place), AROUND, AROUND)
        affs = source.affinities(window)
        yield affs, core
        found += bool(np.any(affs.values))
        if found == BOXES or time.monotonic() - begun > SECONDS:
            return


def sample(boxes: list[tuple[Affinities, Box]], low: float, high: float) -> Sample:
    """The sum over boxes: a fragment counts by its part that lies in the box, an edge by those of its two fragments."""
    found = np.zeros(3)
    for affs, core in boxes:
        labels = watershed(affs, low, high, threads=1)  # so small that threads would take longer
        graph = region_graph(labels, affs, channels=affs.channels, threads=1)
        inside = np.bincount(labels[core].ravel(), minlength=len(graph.sizes))
        inside[0] = 0
        parts = inside / np.maximum(graph.sizes, 1)
        found += parts.sum(), (parts[graph.u] + parts[graph.v]).sum() / 2, inside.sum()
    return Sample(*found)

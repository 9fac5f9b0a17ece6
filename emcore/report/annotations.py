"""Synapses as Neuroglancer's precomputed annotations: lines from the presynaptic to the postsynaptic site, x y z in nm.

A viewer finds a line by its number, by either of its neurons, and by its place. Each of these indices is one shard: one
file with a table of where each entry lies in it, so that a million synapses are a handful of files.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcore.files import replaced, reported
from emcore.segment.votes import runs_of
from emcore.segment.wiring import Partners

KIND = "neuroglancer_annotations_v1"
MOST_IN_CELL = 5000  # lines of one level that a cell holds; a viewer loads the finer levels as it comes closer
MOST_LEVELS = 12
MOST_MET = 64  # A line that would meet more cells of a level stays in the level above, however full that is.
ENTRIES = 512  # about so many entries stand in one table of a shard
SIDES = ("pre", "post")
PROPERTIES = {
    "voxels": "voxels of the synapse",
    "confidence": "how sure the two neurons are, 0 to 1",
    "contact_area_nm2": "area between the two neurons at the synapse",
    "directed": "1: the line begins at the presynaptic neuron; 0: nobody knows which of the two that is",
}
LINE = np.dtype([("ends", "<f4", (2, 3)), *((name, "<f4") for name in list(PROPERTIES)[:3]), ("directed", "u1"),
                 ("padding", "u1", 3)])
WITH_NEURONS = np.dtype([("line", LINE), *((name, kind) for side in SIDES
                                           for name, kind in ((f"{side} count", "<u4"), (side, "<u8")))])


def write_annotations(folder: Path, table: Partners, resolution: Sequence[float], box: np.ndarray) -> int:
    """Writes the synapses of a table that have both neurons, and returns how many there are.

    The number of a line is that of its row in the table, from 1. resolution: nm of a voxel, z y x, as the sites of a
    table lie where their voxels begin and are shown at the middles of them. box: (2, 3), where the volume begins and
    ends, nm, z y x. The folder appears when it is whole, in place of what has its name.
    """
    rows = np.flatnonzero(table.resolved)
    numbers = (rows + 1).astype("<u8")
    lines = np.zeros(len(rows), LINE)
    lines["ends"] = (table.sites + np.array(resolution) / 2)[:, :, ::-1]
    for name, values in zip(PROPERTIES, (table.size, table.confidence, table.contact_area, table.directed)):
        lines[name] = values[rows]
    neurons = {side: getattr(table, side)[rows] for side in SIDES}
    low, high = box[:, ::-1].astype(float)
    with replaced(folder) as temporary, reported(folder):
        temporary.mkdir()
        about = {"@type": KIND, "dimensions": {axis: [1e-9, "m"] for axis in "xyz"}, "lower_bound": low.tolist(),
                 "upper_bound": high.tolist(), "annotation_type": "LINE", "properties": described(),
                 "by_id": write_index(temporary / "by_id", with_neurons(lines, numbers, neurons)),
                 "relationships": [{"id": side, **write_index(temporary / side, of_neurons(lines, numbers, ids))}
                                   for side, ids in neurons.items()],
                 "spatial": write_levels(temporary, lines, numbers, low, high)}
        (temporary / "info").write_text(json.dumps(about, indent=1))
    return len(rows)


def described() -> list[dict[str, str]]:
    """The properties as `info` lists them."""
    return [{"id": name, "type": "uint8" if name == "directed" else "float32", "description": text}
            for name, text in PROPERTIES.items()]


def with_neurons(lines: np.ndarray, numbers: np.ndarray, neurons: dict[str, np.ndarray]
                 ) -> Iterator[tuple[int, bytes]]:
    """Each line by its number, with the neurons that it belongs to."""
    whole = np.zeros(len(lines), WITH_NEURONS)
    whole["line"] = lines
    for side, ids in neurons.items():
        whole[f"{side} count"], whole[side] = 1, ids
    return zip(numbers.tolist(), (row.tobytes() for row in whole))


def of_neurons(lines: np.ndarray, numbers: np.ndarray, ids: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """The lines of each neuron."""
    order = np.argsort(ids, kind="stable")
    starts = runs_of(ids[order])
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)]):
        rows = order[start:stop]
        yield int(ids[rows[0]]), listing(lines[rows], numbers[rows])


def listing(lines: np.ndarray, numbers: np.ndarray) -> bytes:
    """Lines as a list: their count, the lines, their numbers."""
    return np.array([len(lines)], "<u8").tobytes() + lines.tobytes() + numbers.tobytes()


# ---- by place


def write_levels(folder: Path, lines: np.ndarray, numbers: np.ndarray, low: np.ndarray, high: np.ndarray
                 ) -> list[dict[str, Any]]:
    """Writes levels of ever finer cells: each holds the lines that found no room in a coarser one, so all show all."""
    extent = np.maximum(high - low, 1.0)
    shuffled = np.random.default_rng(0).permutation(len(lines))  # so that a coarse level shows some of everywhere
    levels: list[dict[str, Any]] = []
    while len(levels) == 0 or len(shuffled):
        edge = extent.max() / 2 ** len(levels)
        grid = np.ceil(extent / edge - 1e-9).astype(np.int64)
        size = extent / grid
        middle = cells_of(lines["ends"][shuffled].mean(1), low, size, grid)
        order = np.argsort(middle, kind="stable")
        starts = runs_of(middle[order])
        place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
        there = np.zeros(len(order), bool)
        there[order] = place < MOST_IN_CELL
        finer = np.ceil(2 * extent / edge - 1e-9).astype(np.int64)
        there |= met(lines["ends"][shuffled], low, extent / finer, finer) > MOST_MET
        there |= len(levels) + 1 == MOST_LEVELS
        kept, shuffled = np.sort(shuffled[there]), shuffled[~there]
        rows, cells = touched(lines["ends"][kept], low, size, grid)
        found = [(cell, listing(lines[kept[own]], numbers[kept[own]])) for cell, own in grouped(cells, rows)]
        name = f"spatial{len(levels)}"
        levels.append({**write_index(folder / name, found), "grid_shape": grid.tolist(), "chunk_size": size.tolist(),
                       "limit": max(1, *np.bincount(np.unique(cells, return_inverse=True)[1]).tolist(), 1)})
    return levels


def met(ends: np.ndarray, low: np.ndarray, size: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """How many cells the box of each line meets."""
    return (np.ptp(boxes_of(ends, low, size, grid), axis=1) + 1).prod(1)


def boxes_of(ends: np.ndarray, low: np.ndarray, size: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The cells in which both ends of each line lie."""
    return np.clip(((ends - low) // size).astype(np.int64), 0, grid - 1)


def touched(ends: np.ndarray, low: np.ndarray, size: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, number of a cell) of each cell that the box of a line meets."""
    boxes = boxes_of(ends, low, size, grid)
    first, last = boxes.min(1), boxes.max(1)
    alone = np.flatnonzero((first == last).all(1))
    rows, cells = [alone], [morton(first[alone], grid)]
    for row in np.flatnonzero((first != last).any(1)).tolist():
        cells_met = np.array(list(itertools.product(*(range(a, b + 1) for a, b in zip(first[row], last[row])))))
        rows.append(np.full(len(cells_met), row))
        cells.append(morton(cells_met, grid))
    return np.concatenate(rows), np.concatenate(cells)


def grouped(cells: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    order = np.lexsort((rows, cells))
    starts = runs_of(cells[order])
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)]):
        yield int(cells[order[start]]), rows[order[start:stop]]


def cells_of(places: np.ndarray, low: np.ndarray, size: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The number of the cell in which each place lies."""
    return morton(np.clip(((places - low) // size).astype(np.int64), 0, grid - 1), grid)


def morton(cells: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The number of a cell: the bits of x, y and z in turn, x first, as long as an axis has bits left."""
    bits = [(int(count) - 1).bit_length() for count in grid]
    numbers, place = np.zeros(len(cells), np.int64), 0
    for bit in range(max(bits)):
        for axis in range(3):
            if bit < bits[axis]:
                numbers |= (cells[:, axis] >> bit & 1) << place
                place += 1
    return numbers


# ---- shards


def write_index(folder: Path, entries: Iterable[tuple[int, bytes]]) -> dict[str, Any]:
    """Writes entries by their numbers as one shard in a new folder; what `info` says of them.

    The shard begins with where each of its tables lies; entries follow, and behind them the tables. The table of a
    number is that of its lowest bits. In a table stand the differences of the numbers, the gaps between the entries,
    and the sizes of them.
    """
    entries = list(entries)
    bits = max(0, (len(entries) // ENTRIES).bit_length())
    keys = np.array([key for key, _ in entries], np.uint64)
    home = keys & np.uint64((1 << bits) - 1)
    order = np.lexsort((keys, home))
    sizes = np.array([len(entries[row][1]) for row in order.tolist()], np.int64)
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(home[order], np.arange((1 << bits) + 1).astype(np.uint64))
    tables, spans, at = [], [], int(ends[-1]) if len(ends) else 0
    for first, last in itertools.pairwise(cuts.tolist()):
        if first == last:
            spans += [0, 0]
            continue
        own = order[first:last]
        gaps = np.zeros(last - first, np.uint64)
        gaps[0] = ends[first] - sizes[first]
        table = np.stack([np.diff(keys[own], prepend=np.uint64(0)), gaps, sizes[first:last].astype(np.uint64)])
        tables.append(table.astype("<u8").tobytes())
        spans += [at, at + len(tables[-1])]
        at += len(tables[-1])
    folder.mkdir()
    with open(folder / "0.shard", "wb") as file:
        file.write(np.array(spans, "<u8").tobytes())
        for row in order.tolist():
            file.write(entries[row][1])
        for part in tables:
            file.write(part)
    return {"key": folder.name, "sharding": {
        "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 0, "minishard_bits": bits,
        "shard_bits": 0, "minishard_index_encoding": "raw", "data_encoding": "raw"}}

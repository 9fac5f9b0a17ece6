"""The region graph: which fragments touch, and statistics of the affinities between them that pool exactly.

Sums are integers in units of 2**-24, so that neither threads nor blocks nor the order of additions can be told from
the result. Edges are sorted by (u, v) with u < v.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import region_graph as kernel
from emcore.kernels import waterz_replay
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.arrays import as_array, as_triple
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.threads import run_parallel, slabs, thread_count

SUM_SCALE = 2.0**24
KEY_STEPS = 3  # A key is this times the number of the later voxel of a contact, and the axis is added.
BINS = 256
EXTRAS = ("sizes", "boxes", "histogram", "running_mean")
_TILE_ROWS = 16
LARGEST_LABEL = 2**32 - 2  # the kernels number fragments and edges in 32 bits
MOST_VOXELS = 2**35  # beyond them 32 bits may not number the fragments or edges of a graph


@dataclass(frozen=True)
class RegionGraph:
    """Holds the contacts of fragments and the statistics of the affinities across them; what was not asked for is None.

    Attributes:
        fragments: their number; ids are 1 to fragments.
        u: (n,) uint32, the smaller id of each contact.
        v: (n,) uint32, the larger id.
        count: (n,) int64, the affinities across the contact.
        sum: (n,) int64, their sum in units of 2**-24.
        max: (n,) float32, the largest of them.
        min: (n,) float32, the smallest of them.
        key: (n,) uint64, the largest key of an affinity; it breaks ties.
        sizes: (fragments + 1,) int64, the voxels of every id, beginning with 0.
        boxes: (fragments + 1, 6) int64, the first and the last z, y, x of every id.
        bin_starts: (n + 1,) int64; contact e has the bins bin_starts[e] to bin_starts[e + 1].
        bins: uint32, the bins of 256 that hold an affinity, rising.
        bin_counts: int64, the affinities in each of them.
        running_mean: (n,) float32, added up in the way of waterz.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> graph = segment.region_graph(np.array([[[1, 1, 2, 2]]]), np.full((3, 1, 1, 4), 0.5, np.float32))
        >>> graph.u, graph.v, graph.mean
        (array([1], dtype=uint32), array([2], dtype=uint32), array([0.5]))
    """

    fragments: int
    u: np.ndarray
    v: np.ndarray
    count: np.ndarray
    sum: np.ndarray
    max: np.ndarray
    min: np.ndarray
    key: np.ndarray
    sizes: np.ndarray | None = None
    boxes: np.ndarray | None = None
    bin_starts: np.ndarray | None = None
    bins: np.ndarray | None = None
    bin_counts: np.ndarray | None = None
    running_mean: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """The mean affinity of every edge, float64."""
        return self.sum / (self.count * SUM_SCALE)


COLUMNS = {"u": np.uint32, "v": np.uint32, "count": np.int64, "sum": np.int64, "max": np.float32, "min": np.float32,
           "key": np.uint64, "sizes": np.int64, "boxes": np.int64, "bin_starts": np.int64, "bins": np.uint32,
           "bin_counts": np.int64, "running_mean": np.float32}
HISTOGRAM = ("bin_starts", "bins", "bin_counts")
OPTIONAL = ("sizes", "boxes", *HISTOGRAM, "running_mean")


class Place(NamedTuple):
    """Says where a block lies in its volume, so that the keys of contacts are those of the volume.

    Attributes:
        origin: the index z, y, x of the first voxel of the block. The default is 0, 0, 0.
        volume_shape: the shape of the volume; that of the block by default.
        halo: how many first planes along z, y and x belong to other blocks and serve as neighbours alone (default 0).

    Examples:
        >>> from emcore import segment
        >>> segment.Place(origin=(0, 0, 64), volume_shape=(64, 64, 128), halo=(0, 0, 1)).origin
        (0, 0, 64)
    """

    origin: Sequence[int] = (0, 0, 0)
    volume_shape: Sequence[int] | None = None
    halo: Sequence[int] = (0, 0, 0)


def region_graph(fragments: np.ndarray, affs: np.ndarray | Affinities, *, statistic: str | Statistic | None = None,
                 extras: Sequence[str] = ("sizes",), channels: Sequence[int] | None = None,
                 place: Place | None = None, threads: int | None = None) -> RegionGraph:
    """Finds the contacts of fragments and the exact statistics of the affinities across them.

    Args:
        fragments: labels (z, y, x), 1, 2, ... without gaps, for instance of `watershed`; label 0 takes no part.
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        statistic: the merge statistic that the graph shall serve; what it needs is added. None by default.
        extras: what is added to counts, sums, extrema and keys: any of "sizes" (the default), "boxes", "histogram" (256
            bins) and "running_mean" (for ties="waterz").
        channels: the channels that count, also long-range ones; by default all that have an offset.
        place: where a block lies in its volume; by default the block is the volume.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        The `RegionGraph`.

    Raises:
        InputError: the shapes differ, an extra is unknown, or a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 6.5 ns of one core and less than 1 byte per voxel. A contact keeps about 90 bytes.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> graph = segment.region_graph(segment.watershed(affs), affs)
        >>> graph.count, graph.mean.round(3), graph.sizes
        (array([8]), array([0.2]), array([ 0, 24, 24]))
    """
    fragments, largest = check_fragments(fragments, threads)
    given = as_affinities(affs)
    affs = given.values
    if given.shape != fragments.shape:
        raise InputError(f"affs must be (channels, z, y, x) over the fragments' shape {fragments.shape}; "
                         f"got {affs.shape}")
    wanted = set(extras)
    if not wanted <= set(EXTRAS):
        raise InputError(f"extras may name {', '.join(EXTRAS)}; got {', '.join(sorted(wanted - set(EXTRAS)))}")
    if statistic is not None and parse_statistic(statistic).every_contact:
        wanted.add("histogram")
    rows = _channel_rows(given, channels)
    origin, volume_shape, halo = Place() if place is None else place
    volume_shape = fragments.shape if volume_shape is None else volume_shape
    place = [as_triple(*named) for named in (("halo", halo), ("origin", origin), ("volume_shape", volume_shape))]
    if (place[1] + fragments.shape > place[2]).any():
        raise InputError(f"halo {halo}, origin {origin} and volume_shape {volume_shape} "
                         f"must place fragments {fragments.shape} inside")
    if prod(place[2].tolist()) * max(3, len(rows)) >= 2**64:
        raise InputError(f"keys of contacts are numbers of 64 bits, too few for volume_shape {volume_shape} "
                         f"with {len(rows)} channels")
    threads = thread_count(threads)
    values, decode = decoded(given)
    first = int(place[0][0])
    cuts = [(first + start, first + stop) for start, stop in slabs(max(0, fragments.shape[0] - first), threads)]
    tables = [kernel.EdgeTable("histogram" in wanted) for _ in cuts or [None]]  # an empty volume has a graph too

    def add_faces(edges: kernel.EdgeTable, start: int, stop: int) -> None:
        kernel.add_faces(edges, fragments, values, decode, rows, start, stop, _TILE_ROWS, *place)

    try:
        run_parallel(add_faces, [(edges, *cut) for edges, cut in zip(tables, cuts)], threads)
    except OverflowError:
        raise too_many_edges() from None
    if any(edges.outside for edges in tables):
        given.check_values([int(row[0]) for row in rows], threads)
    sizes = boxes = None
    if wanted & {"sizes", "boxes"}:
        own = fragments[tuple(slice(planes, None) for planes in place[0])]
        sizes, boxes = measure(own, largest, threads, "boxes" in wanted)
    edges = _collect(tables, largest, threads)
    if "running_mean" in wanted:
        edges["running_mean"] = np.zeros(len(edges["u"]), np.float32)
        waterz_replay.running_means(fragments, values, decode, rows, place[0], edges["u"], edges["v"],
                                    edges["running_mean"])
    return RegionGraph(largest, sizes=sizes, boxes=boxes, **edges)


def check_fragments(fragments: np.ndarray, threads: int | None = None) -> tuple[np.ndarray, int]:
    """(fragments as label_view gives them, the largest label, which must not exceed the number of voxels)."""
    fragments = as_array("fragments", fragments)
    check_size(fragments.shape)
    fragments = label_view(fragments)
    largest = largest_label(fragments, threads)
    if largest > max(fragments.size, 2**16) or largest > LARGEST_LABEL:
        raise InputError(f"fragments must be numbered densely from 1 on; found label {largest} "
                         f"in {fragments.size} voxels; segment.relabel numbers them")
    return fragments, largest


def check_size(shape: Sequence[int]) -> None:
    """Refuses a volume for one graph by its shape alone, before the work of hours runs out of numbers."""
    if prod(shape) > MOST_VOXELS:
        raise InputError(f"a region graph takes at most 2**35 voxels at once, as it numbers edges in 32 bits; got "
                         f"{tuple(shape)}; cut the volume into blocks and pool their graphs")


def too_many_edges() -> InputError:
    return InputError("the volume has more edges between fragments than 32 bits number; cut it into blocks, or raise "
                      "high or lower low of the watershed for larger fragments")


def check_graph(graph: RegionGraph, name: str, in_order: bool = True, any_bins: bool = False) -> RegionGraph:
    """The graph with plain arrays, if `name` can work with it: every kernel trusts what this has looked at.

    in_order=False: edges may come in any order, and more than once. any_bins=True: there may be more bins than BINS.
    """
    if not isinstance(graph, RegionGraph):
        raise InputError(f"{name} takes the region graph that region_graph(fragments, affs) returns; "
                         f"got {type(graph).__name__}")

    def refuse(what: str) -> None:
        raise InputError(f"the region graph is damaged: {what}; make it anew with region_graph")

    if not isinstance(graph.fragments, int | np.integer) or not 0 <= graph.fragments <= LARGEST_LABEL:
        refuse(f"it numbers fragments up to {graph.fragments}, not up to a number below 2**32 - 1")
    plain = {}
    for field, dtype in COLUMNS.items():
        values = getattr(graph, field)
        if values is None and field in OPTIONAL:
            continue
        column = as_array(field, values)
        if column.dtype != dtype or column.ndim != (2 if field == "boxes" else 1):
            refuse(f"{field} must be one-dimensional {np.dtype(dtype)}, but is {column.shape} {column.dtype}")
        plain[field] = column
    given = [field for field in HISTOGRAM if field in plain]
    if len(given) not in (0, 3):
        refuse(f"of its histograms only {', '.join(given)} are there")
    edges = len(plain["u"])
    lengths = dict.fromkeys(COLUMNS, edges) | {"sizes": graph.fragments + 1, "boxes": graph.fragments + 1,
                                               "bin_starts": edges + 1}
    lengths["bins"] = lengths["bin_counts"] = len(plain.get("bins", ()))
    for field, column in plain.items():
        if len(column) != lengths[field]:
            refuse(f"{field} has {len(column)} entries where {lengths[field]} are needed")
    if edges > LARGEST_LABEL:
        refuse(f"it has {edges} edges, more than 32 bits number")
    u, v, count, total = (plain[field] for field in ("u", "v", "count", "sum"))
    if edges and not (u.min() >= 1 and v.max() <= graph.fragments and (u < v).all()):
        refuse(f"edges must join ids u < v of 1 to {graph.fragments}")
    if in_order and not ((u[1:] > u[:-1]) | ((u[1:] == u[:-1]) & (v[1:] > v[:-1]))).all():
        refuse("its edges must rise by (u, v), each pair once")
    if edges and not (count.min() >= 1 and total.min() >= 0 and float(count.sum(dtype=np.float64)) < 2**38
                      and (total <= count * int(SUM_SCALE)).all()):
        refuse("every edge needs a contact, and a sum of affinities of at most 1 each, fewer than 2**38 in all")
    for field in ("max", "min", "running_mean"):
        if field in plain and not ((plain[field] >= 0) & (plain[field] <= 1.001)).all():
            refuse(f"{field} must lie in 0..1")
    if "sizes" in plain and not (plain["sizes"].min() >= 0 and plain["sizes"].sum(dtype=np.float64) < 2**62):
        refuse("sizes must be numbers of voxels")
    if given:
        _check_histograms(*(plain[field] for field in HISTOGRAM), 2**32 if any_bins else BINS, refuse)
    return replace(graph, fragments=int(graph.fragments), **plain)


def _check_histograms(starts: np.ndarray, bins: np.ndarray, counts: np.ndarray, limit: int,
                      refuse: Callable[[str], None]) -> None:
    """Refuses histograms that do not give every edge bins that rise, below a limit."""
    if starts[0] != 0 or starts[-1] != len(bins) or not (starts[1:] > starts[:-1]).all():
        refuse("bin_starts must rise from 0 to the number of bins")
    rises = bins[1:] > bins[:-1]
    rises[starts[1:-1] - 1] = True  # where the bins of another edge begin
    if len(bins) and not (rises.all() and int(bins.max()) < limit and counts.min() >= 1
                          and counts.sum(dtype=np.float64) < 2**38):
        refuse(f"the bins of an edge must rise below {limit} and hold a contact each")


def largest_label(labels: np.ndarray, threads: int | None = None) -> int:
    """The largest label, 0 for an empty volume."""
    if labels.size == 0:
        return 0
    parts = slabs(labels.shape[0], thread_count(threads))
    return max(run_parallel(lambda start, stop: int(labels[start:stop].max()), parts, len(parts)))


def label_view(labels: np.ndarray, name: str = "fragments") -> np.ndarray:
    """labels (z, y, x) as uint32 or uint64, a view where it has that width; labels below 0 turn into huge ones."""
    labels = as_array(name, labels)
    if labels.ndim != 3 or labels.dtype.kind not in "ui":
        raise InputError(f"{name} must be whole-number labels (z, y, x); got {labels.shape} {labels.dtype}")
    if labels.itemsize < 4 or not labels.dtype.isnative:
        labels = labels.astype(np.uint32 if labels.itemsize <= 4 else np.uint64)
    return labels.view(f"u{labels.itemsize}")


def _channel_rows(affs: Affinities, channels: Sequence[int] | None) -> np.ndarray:
    """One row per channel for the kernel: channel, step to the later voxel, 1 if stored at the earlier one, digit."""
    count, triples = len(affs.values), affs.offsets
    picked = list(range(len(triples))) if channels is None else list(channels)
    if not picked or any(not 0 <= c < min(count, len(triples)) for c in picked) or len(set(picked)) < len(picked):
        raise InputError(f"channels must be different numbers of channels with an offset, "
                         f"0 to {min(count, len(triples)) - 1}; got {picked}")
    steps = {}
    for c in picked:
        triple = tuple(triples[c])
        step = max(triple, tuple(-s for s in triple))
        if step == (0, 0, 0) or step in [other for other, _ in steps.values()]:
            raise InputError(f"the offset {triple} of channel {c} is no step, "
                             "or the pairs of another channel over again")
        steps[c] = (step, int(triple == step))
    nearest = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    order = sorted((step for step, _ in steps.values()), reverse=True)
    if set(order) <= set(nearest):
        order = nearest
    return np.array([(c, *step, at, order.index(step)) for c, (step, at) in steps.items()], np.int64)


def decoded(affs: Affinities) -> tuple[np.ndarray, np.ndarray]:
    """The affinities or their codes as the kernel takes them, and the value of every code."""
    values = affs.values
    if affs.table is not None:
        return values, affs.table
    if values.dtype == np.float16:
        return values.view(np.uint16), np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return values, np.zeros(1, np.float32)


def measure(labels: np.ndarray, largest: int, threads: int | None = None,
            with_boxes: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(voxels of every label from 0 on, first and last z, y, x of every label if wanted)."""
    def measure_slab(start: int, stop: int):
        sizes = np.zeros(largest + 1, np.int64)
        boxes = np.full((largest + 1 if with_boxes else 0, 6), -1, np.int64)
        boxes[:, :3] = np.iinfo(np.int64).max
        kernel.measure(labels, start, stop, sizes, boxes)
        return sizes, boxes

    threads = thread_count(threads)
    parts = run_parallel(measure_slab, slabs(labels.shape[0], threads) or [(0, 0)], threads)
    sizes = np.sum([part[0] for part in parts], axis=0)
    if not with_boxes:
        return sizes, None
    boxes = np.concatenate([np.min([part[1][:, :3] for part in parts], axis=0),
                            np.max([part[1][:, 3:] for part in parts], axis=0)], axis=1)
    boxes[sizes == 0] = (0, 0, 0, -1, -1, -1)
    return sizes, boxes


def _collect(tables: list, largest: int, threads: int) -> dict[str, np.ndarray]:
    """The edges of all tables, sorted and pooled."""
    if sum(kernel.capacity(edges) for edges in tables) > 2**32:
        raise too_many_edges()
    starts = np.zeros(largest + 2, np.int64)
    entries = np.empty(sum(edges.size for edges in tables), np.uint64)
    kernel.collect_starts(tables, starts, entries)
    ranges = slabs(largest + 1, 4 * threads)
    counts = run_parallel(lambda first, last: kernel.collect_sort(starts, entries, first, last), ranges, threads)
    places = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
    types = {"u": np.uint32, "v": np.uint32, "count": np.int64, "sum": np.int64, "max": np.float32, "min": np.float32,
             "key": np.uint64}
    edges = {name: np.empty(places[-1], dtype) for name, dtype in types.items()}
    histogram = bool(tables) and tables[0].histograms
    edge_of = np.empty(sum(kernel.capacity(part) for part in tables) if histogram else 0, np.int64)
    run_parallel(lambda first, last, place: kernel.collect_pool(tables, starts, entries, first, last, place,
                                                                *edges.values(), edge_of),
                 [(*ends, place) for ends, place in zip(ranges, places)], threads)
    if histogram:
        edges.update(_collect_bins(tables, edge_of, places[-1]))
    return edges


def _collect_bins(tables: list, edge_of: np.ndarray, edges: int) -> dict[str, np.ndarray]:
    """The histograms of all tables as rows of rising bins."""
    filled, counts, first = [], [], 0
    for part in tables:
        numbers, bins, count = (np.empty(part.filled_bins, np.int64) for _ in range(3))
        kernel.collect_bins(part, numbers, bins, count)
        filled.append(edge_of[first + numbers] * BINS + bins)
        counts.append(count)
        first += kernel.capacity(part)
    places, where = np.unique(np.concatenate(filled), return_inverse=True)
    totals = np.zeros(len(places), np.int64)
    np.add.at(totals, where, np.concatenate(counts))
    starts = np.searchsorted(places, np.arange(edges + 1) * BINS)
    return {"bin_starts": starts.astype(np.int64), "bins": (places % BINS).astype(np.uint32), "bin_counts": totals}

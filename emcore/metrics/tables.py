"""The table that every partition score is read from: how many voxels each pair (truth id, label id) shares.

One pass, any integer type, memory in the number of distinct pairs; tables of blocks add up to the table of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from itertools import product
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.kernels.contingency import Pairs
from emcore.metrics.pairs import boxes
from emcore.segment.arrays import as_array
from emcore.threads import run_parallel, slabs, thread_count

CHUNK = 1 << 16  # voxels counted at a time: where they are converted, both buffers stay in the second-level cache
TILE = (4, 64, 256)  # the same number of voxels of an array that is not contiguous: whole cache lines along each axis
LARGEST_ID = (1 << 64) - 1
Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Contingency:
    """Holds the number of voxels that each pair of a true id and a label shares; every partition score is read from it.

    Pairs that are ignored stay in it, so `ignoring` changes the rule without another pass. Scores use the kept ones, by
    `rows` and `columns` into the sorted `truth_ids` and `label_ids`.

    Attributes:
        truth: (n,) uint64, the true id of each pair; pairs are sorted by truth, then label.
        labels: (n,) uint64, the label of each pair.
        counts: (n,) int64, the voxels of each pair.
        total: all voxels, ignored and masked ones included.
        masked: the voxels that the mask left out; they are in no pair.
        ignore_truth: the true ids that do not count.
        ignore_labels: the labels that do not count.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> table = metrics.contingency(np.array([0, 1, 1, 2]), np.array([3, 3, 3, 4]))
        >>> table.counts, table.n, table.ignoring(()).voxels
        (array([1, 2, 1]), array([2, 1]), 4)
    """

    truth: NDArray[np.uint64]
    labels: NDArray[np.uint64]
    counts: NDArray[np.int64]
    total: int
    masked: int
    ignore_truth: tuple[int, ...]
    ignore_labels: tuple[int, ...]

    def ignoring(self, truth: Sequence[int] = (0,), labels: Sequence[int] = ()) -> "Contingency":
        """Gives the same counts under another rule: a voxel is ignored if its truth or its label is listed.

        Args:
            truth: the true ids to ignore; (0,) by default.
            labels: the labels to ignore; none by default.

        Returns:
            A `Contingency`.
        """
        return replace(self, ignore_truth=_checked_ids(truth), ignore_labels=_checked_ids(labels))

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """True for the pairs that count."""
        kept = np.ones(len(self.counts), bool)
        for ids, ignored in ((self.truth, self.ignore_truth), (self.labels, self.ignore_labels)):
            for value in ignored:
                kept &= ids != np.uint64(value)
        return kept

    @cached_property
    def n(self) -> NDArray[np.int64]:
        """Voxels of each kept pair."""
        return self.counts[self.kept]

    @cached_property
    def voxels(self) -> int:
        """Voxels that count: neither masked nor ignored."""
        return int(self.n.sum())

    @cached_property
    def _truth(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        ids = self.truth[self.kept]
        first = np.ones(len(ids), bool)
        first[1:] = ids[1:] != ids[:-1]  # the pairs are sorted by truth id
        return ids[first], np.cumsum(first) - 1

    @cached_property
    def by_label(self) -> NDArray[np.int64]:
        """The order of the kept pairs by label id."""
        return np.argsort(self.labels[self.kept])

    @cached_property
    def _labels(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        ids = self.labels[self.kept][self.by_label]
        first = np.ones(len(ids), bool)
        first[1:] = ids[1:] != ids[:-1]
        columns = np.empty(len(ids), np.int64)
        columns[self.by_label] = np.cumsum(first) - 1
        return ids[first], columns

    @property
    def truth_ids(self) -> NDArray[np.uint64]:
        """The distinct truth ids of the kept pairs, ascending."""
        return self._truth[0]

    @property
    def label_ids(self) -> NDArray[np.uint64]:
        """The distinct label ids of the kept pairs, ascending."""
        return self._labels[0]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The index into truth_ids of each kept pair."""
        return self._truth[1]

    @property
    def columns(self) -> NDArray[np.int64]:
        """The index into label_ids of each kept pair."""
        return self._labels[1]

    @cached_property
    def truth_sizes(self) -> NDArray[np.int64]:
        """Kept voxels of each truth id."""
        return _summed(self.rows, self.n, len(self.truth_ids))

    @cached_property
    def label_sizes(self) -> NDArray[np.int64]:
        """Kept voxels of each label id."""
        return _summed(self.columns, self.n, len(self.label_ids))


def require_table(table: object, name: str) -> None:
    if not isinstance(table, Contingency):
        raise InputError(f"{name} takes the table of a truth and its labels, contingency(truth, labels); got "
                         f"{type(table).__name__}")


def of_table(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """A score of a table that answers volumes in its place with the call that works."""
    @wraps(function)
    def checked(*arguments: Given.args, **options: Given.kwargs) -> Found:
        if arguments or "table" in options:  # if neither is given, Python names what is missing
            require_table(arguments[0] if arguments else options["table"], function.__name__)
        return function(*arguments, **options)
    return checked


def contingency(truth: ArrayLike, labels: ArrayLike, ignore_truth: Sequence[int] = (0,),
                ignore_labels: Sequence[int] = (), mask: ArrayLike | None = None,
                threads: int | None = None) -> Contingency:
    """Counts how many voxels each pair of a true id and a label shares, in one pass.

    Voxels are paired by their position, whatever the memory layouts are. No id is special: 2**64 - 1 is an ordinary one
    unless it is listed.

    Args:
        truth: integers of any shape: an array, or a volume, which is read in blocks.
        labels: integers of the same shape.
        ignore_truth: voxels with these true ids do not count; (0,) by default.
        ignore_labels: voxels with these labels do not count; none by default.
        mask: bool of the same shape, True where a voxel is left out, for instance of `neuron_border_mask`. By default
            every voxel counts.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        The `Contingency`; voi, rand and other scores take it.

    Raises:
        InputError: the shapes differ, a dtype does not fit, or an id is negative.

    Cost:
        It takes 3.4 ns of one core and less than 1 byte per voxel. A pair takes about 100 bytes more.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 3, 4])).counts
        array([2, 1, 1])
    """
    threads = thread_count(threads)
    volumes = [as_volume("truth", truth), as_volume("labels", labels)]
    if mask is not None:
        mask = as_volume("mask", mask)
        if mask.dtype != bool:
            raise InputError(f"mask must be boolean, True where a voxel is left out; it is {mask.dtype}")
    _check(volumes[0], volumes[1], mask)
    ignore_truth, ignore_labels = _checked_ids(ignore_truth), _checked_ids(ignore_labels)

    tables: list[tuple[Pairs | None, int]] = [(None, 0)] * threads  # one for each thread, kept from block to block
    for block in boxes(*volumes):
        parts, left_out = _in_memory_order([volume[block] for volume in volumes], None if mask is None else mask[block])
        jobs = slabs(len(parts[0]), threads) if parts[0].size > CHUNK else [(0, len(parts[0]))]
        tables[:len(jobs)] = run_parallel(
            _count, [(table, [part[a:b] for part in parts], None if left_out is None else left_out[a:b])
                     for table, (a, b) in zip(tables, jobs)], threads)
    masked = sum(left_out for _, left_out in tables)
    entries = merged([pairs.rows() for pairs, _ in tables if pairs is not None])
    for name, volume, column in (("truth", volumes[0], 0), ("labels", volumes[1], 1)):
        if volume.dtype.kind == "i" and len(entries) and entries[:, column].max() >> np.uint64(63):
            found = int(entries[:, column].max()) - (1 << 64)
            raise InputError(f"{name} must not be negative; it holds {found} as {volume.dtype}; write unlabelled "
                             "voxels as 0, or as 2^64 - 1 in uint64 and list that id as ignored")
    return table_of(entries, int(np.prod(volumes[0].shape, dtype=object)), masked, ignore_truth, ignore_labels)


def _count(table: tuple[Pairs | None, int], parts: list[NDArray], left_out: NDArray | None) -> tuple[Pairs, int]:
    """The thread's table (pairs, masked voxels) with these voxels added."""
    pairs, masked = table
    pairs = pairs or Pairs()
    arrays = parts if left_out is None else [*parts, left_out]
    if all(array.flags.c_contiguous for array in arrays):
        arrays = [array.reshape(-1) for array in arrays]
    buffers = [np.empty(CHUNK, np.uint64) for _ in parts]
    for chunk in _chunks(arrays[0].shape):
        ids = [_as_ids(array[chunk], buffer) for array, buffer in zip(arrays, buffers)]
        if left_out is not None:
            out = arrays[2][chunk].reshape(-1)
            count = int(np.count_nonzero(out))
            masked += count
            if count:
                ids = [values[~out] for values in ids]
        pairs.add(*ids)
    return pairs, masked


def _in_memory_order(parts: list[NDArray], left_out: NDArray | None) -> tuple[list[NDArray], NDArray | None]:
    """The arrays with their axes turned alike so that the first lies as in memory: a table knows no order of voxels."""
    parts = [np.atleast_1d(part) for part in parts]
    axes = sorted(range(parts[0].ndim), key=lambda axis: -abs(parts[0].strides[axis]))
    left_out = None if left_out is None else np.atleast_1d(left_out).transpose(axes)
    return [part.transpose(axes) for part in parts], left_out


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Slices of at most CHUNK voxels that cover the shape."""
    steps = (CHUNK,) if len(shape) == 1 else ((1,) * len(shape) + TILE)[-len(shape):]
    return product(*([slice(start, start + step) for start in range(0, size, step)]
                     for size, step in zip(shape, steps)))


def _as_ids(part: NDArray, buffer: NDArray[np.uint64]) -> NDArray:
    """The voxels in C order as uint32 or uint64: a view where that is possible, else the buffer."""
    if part.dtype.isnative and part.flags.c_contiguous and (part.dtype == np.uint32 or (part.dtype.kind in "ui"
                                                            and part.dtype.itemsize == 8)):
        return part.view(f"u{part.dtype.itemsize}").reshape(-1)
    buffer = buffer[:part.size]
    np.copyto(buffer.reshape(part.shape), part, casting="unsafe")
    return buffer


def merged(parts: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The rows (truth, label, count) of all parts added up and sorted: the same for any cutting into parts."""
    rows = [part[part[:, 2] != 0] for part in parts]
    rows = np.concatenate(rows) if rows else np.zeros((0, 3), np.uint64)
    if len(rows) == 0:
        return rows
    truth, labels = rows[:, 0], rows[:, 1]
    label_bits = int(labels.max()).bit_length()
    if int(truth.max()).bit_length() + label_bits <= 64:
        order = np.argsort((truth << np.uint64(label_bits % 64)) | labels)
    else:
        order = np.lexsort((labels, truth))
    rows = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:, 0] != rows[:-1, 0]) | (rows[1:, 1] != rows[:-1, 1])
    if first.all():
        return rows
    sums = rows[first]
    sums[:, 2] = np.add.reduceat(rows[:, 2], np.flatnonzero(first))
    return sums


def table_of(rows: NDArray[np.uint64], total: int, masked: int, ignore_truth: tuple[int, ...],
             ignore_labels: tuple[int, ...]) -> Contingency:
    truth, labels, counts = np.ascontiguousarray(rows.T)
    return Contingency(truth, labels, counts.view(np.int64), total, masked, ignore_truth, ignore_labels)


def _summed(index: NDArray[np.int64], values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    sums = np.zeros(size, np.int64)
    np.add.at(sums, index, values)  # bincount would add in float64
    return sums


def as_volume(name: str, volume: ArrayLike):
    """What has a NumPy dtype, a shape and slicing as it is, to be read in blocks; anything else as an array."""
    if (isinstance(getattr(volume, "dtype", None), np.dtype) and not isinstance(volume, np.ndarray | np.generic)
            and hasattr(volume, "shape") and hasattr(volume, "__getitem__")):
        return volume
    return as_array(name, volume)


def _check(truth, labels, mask) -> None:
    if tuple(truth.shape) != tuple(labels.shape):
        raise InputError(f"truth and labels must have the same shape; truth is {tuple(truth.shape)}, "
                         f"labels are {tuple(labels.shape)}")
    if mask is not None and tuple(mask.shape) != tuple(truth.shape):
        raise InputError(f"the mask must have the shape of truth and labels, {tuple(truth.shape)}; "
                         f"it is {tuple(mask.shape)}")
    for name, volume in (("truth", truth), ("labels", labels)):
        if volume.dtype.kind not in "uib" and not (volume.dtype.kind == "f" and 0 in volume.shape):
            raise InputError(f"{name} must be integer labels; got {volume.dtype}; "
                             "turn probabilities into labels first, or convert with astype('uint64')")


def _checked_ids(ids: Sequence[int]) -> tuple[int, ...]:
    ids = (ids,) if isinstance(ids, (int, np.integer)) else tuple(ids)
    for value in ids:
        if not isinstance(value, (int, np.integer)) or not 0 <= value <= LARGEST_ID:
            raise InputError(f"ignored ids must be integers from 0 to 2^64 - 1; got {value!r}; write -1 as 2**64 - 1")
    return tuple(sorted({int(value) for value in ids}))

"""Connected components of label volumes, masks and affinities; 2D too."""

from typing import Literal, overload

import numpy as np

from emcore.errors import InputError
from emcore.kernels import affinity_components as graph_kernel
from emcore.kernels import components as kernel
from emcore.kernels.relabeling import renumber
from emcore.segment.affinities import Affinities, as_affinities, kernel_view
from emcore.segment.arrays import within
from emcore.segment.relabeling import label_dtype, unsigned
from emcore.threads import run_parallel, slabs, thread_count

_AXES = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}  # rank, connectivity -> how many coordinates of neighbours differ
_SLAB_VOXELS = 2**31  # the nodes of a slab are 32-bit


@overload
def connected_components(labels: np.ndarray, connectivity: int | None = None, *, count: Literal[False] = False,
                         threads: int | None = None) -> np.ndarray: ...
@overload
def connected_components(labels: np.ndarray, connectivity: int | None = None, *, count: Literal[True],
                         threads: int | None = None) -> tuple[np.ndarray, int]: ...
def connected_components(labels: np.ndarray, connectivity: int | None = None, *, count: bool = False,
                         threads: int | None = None) -> np.ndarray | tuple[np.ndarray, int]:
    """Labels the connected pieces of equal labels.

    Args:
        labels: integers or bool, (z, y, x) or (y, x); 0 is background and stays 0.
        connectivity: 6 (the default), 18 or 26 neighbours for (z, y, x), 4 (the default) or 8 for (y, x). For (z, y, x)
            4 and 8 label each section by itself.
        count: True also gives the number of pieces. The default is False.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape, numbered from 1 in the raster order of first voxels; uint32, or uint64 beyond
        2**32 - 1 pieces. With count=True a pair of them and the number.

    Raises:
        InputError: the labels are neither integers nor bool, or the connectivity does not fit their shape.

    Cost:
        It takes 3.2 ns of one core and 4.2 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.connected_components(np.array([[5, 5, 0, 5], [0, 0, 7, 7]]), count=True)
        (array([[1, 1, 0, 2],
               [0, 0, 3, 3]], dtype=uint32), 3)
    """
    labels, threads = unsigned(labels, threads=threads), thread_count(threads)
    if labels.ndim not in _AXES:
        raise InputError(f"labels must be (z, y, x) or (y, x); got shape {labels.shape}")
    if labels.ndim == 3 and connectivity in _AXES[2]:
        return _label_sections(labels, _AXES[2][connectivity], count, threads)
    choices = _AXES[labels.ndim]
    if connectivity is not None and connectivity not in choices:
        known = [str(choice) for rank in range(2, labels.ndim + 1) for choice in _AXES[rank]]
        raise InputError(f"connectivity must be {', '.join(known)} for {labels.ndim}D labels; "
                         f"got {connectivity}")
    axes = choices[connectivity or min(choices)]
    volume = labels if labels.ndim == 3 else labels[:, None]  # rows of an image as planes, so that slabs cut it too
    return _label(volume, axes, count, threads, labels.shape)


def _label(volume: np.ndarray, axes: int, count: bool, threads: int, shape: tuple[int, ...]):
    """connected_components of a checked 3D volume, in the given shape."""
    if volume.size == 0:
        return (np.zeros(shape, np.uint32), 0) if count else np.zeros(shape, np.uint32)
    cuts = _slabs(volume, threads)
    scans = run_parallel(kernel.scan, [(volume[start:stop], axes) for start, stop in cuts], threads)
    offsets = np.cumsum([0] + [scan.count for scan in scans])
    numbers = np.arange(offsets[-1])
    for k in range(1, len(cuts)):
        kernel.join(scans[k - 1], scans[k], axes, numbers, offsets[k - 1], offsets[k])
    found = kernel.number_components(numbers)
    out = np.empty(volume.shape, label_dtype(found))
    run_parallel(kernel.write, [(scan, numbers, offset, out[start:stop])
                                for scan, offset, (start, stop) in zip(scans, offsets, cuts)], threads)
    out = out.reshape(shape)
    return (out, found) if count else out


def _label_sections(volume: np.ndarray, axes: int, count: bool, threads: int):
    """connected_components of every section on its own, numbered through."""
    out = np.empty(volume.shape, np.uint32)

    def one(z: int) -> int:
        out[z], found = _label(volume[z][:, None], axes, True, 1, volume.shape[1:])
        return found

    starts = np.cumsum([0, *run_parallel(one, [(z,) for z in range(len(volume))], threads)])
    out = out.astype(label_dtype(int(starts[-1])), copy=False)
    for section, start in zip(out, starts):
        np.add(section, out.dtype.type(start), out=section, where=section > 0)
    return (out, int(starts[-1])) if count else out


def affinity_components(affs: np.ndarray | Affinities, threshold: float = 0.5, *, method: str = "graph",
                        threads: int | None = None) -> np.ndarray:
    """Labels what affinities above a threshold connect.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        threshold: 0 to 1. The default is 0.5.
        method: "graph" (the default) joins the two voxels of an edge above the threshold; a voxel is 0 where none of
            its edges is above. "voxels" labels the 26-connected pieces of the voxels that hold a value above, which is
            what cc3d on a thresholded maximum does.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32, numbered from 1 in raster order; 0 is background.

    Raises:
        InputError: the affinities or the threshold do not fit, or there is no such method.

    Cost:
        It takes 6.7 ns of one core and 4.0 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> segment.affinity_components(affs, 0.5)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
    """
    if method not in ("graph", "voxels"):
        raise InputError(f"method must be 'graph' or 'voxels'; got {method!r}")
    checked = as_affinities(affs)
    checked.check_values(threads=threads)
    threads, values = thread_count(threads), kernel_view(checked.values)
    cut = _cut(threshold, checked.values.dtype, checked.table)
    along = [values[channel] for channel in checked.channels]
    if cut is None or along[0].size == 0:
        return np.zeros(along[0].shape, np.uint32)
    if method == "voxels":
        mask = np.empty(along[0].shape, bool)

        def find(start: int, stop: int) -> None:
            np.greater(along[0][start:stop], cut, out=mask[start:stop])
            for channel in along[1:]:
                mask[start:stop] |= channel[start:stop] > cut

        run_parallel(find, slabs(len(mask), threads * 8), threads)
        return connected_components(mask, 26, threads=threads)
    out = np.empty(along[0].shape, np.uint32)
    cuts = _slabs(out, threads)
    shifts = np.array(checked.shifts, np.int64)
    counts = run_parallel(lambda start, stop: graph_kernel.scan(*along, shifts, cut, start, stop, out), cuts, threads)
    offsets_of = np.cumsum([0, *counts])
    numbers = np.arange(offsets_of[-1])
    for k in range(1, len(cuts)):
        start = cuts[k][0]
        graph_kernel.join(along[0][start - checked.shifts[0]], cut, out[start - 1], out[start], numbers,
                          offsets_of[k - 1], offsets_of[k])
    found = kernel.number_components(numbers)
    out = out.astype(label_dtype(found), copy=False)
    run_parallel(renumber, [(out[start:stop], np.append(0, numbers[offsets_of[k]:offsets_of[k + 1]]))
                            for k, (start, stop) in enumerate(cuts)], threads)
    return out


def _cut(threshold: float, dtype: np.dtype, table: np.ndarray | None) -> int | float | None:
    """What a kernel's value must exceed for its affinity to exceed threshold; None if none can."""
    if not within(threshold, 0, 1):
        raise InputError(f"threshold must lie in 0..1; got {threshold}")
    if dtype == np.uint8:
        below = int(np.searchsorted(table, threshold, side="right")) - 1  # the last code at or below threshold
        return None if below == 255 else below
    cut = dtype.type(threshold)
    if float(cut) > threshold:
        cut = np.nextafter(cut, dtype.type(0))
    return int(cut.view(np.int16)) if dtype == np.float16 else float(cut)


def _slabs(volume: np.ndarray, threads: int) -> list[tuple[int, int]]:
    """Slabs of planes for threads, each with nodes that fit 32 bits."""
    plane = volume.shape[1] * volume.shape[2]
    if plane >= _SLAB_VOXELS:
        raise InputError(f"one section must have fewer than {_SLAB_VOXELS} voxels here; got {plane}; "
                         "cut the volume in y or x")
    return slabs(len(volume), max(threads, -(-volume.size // _SLAB_VOXELS) * 2))

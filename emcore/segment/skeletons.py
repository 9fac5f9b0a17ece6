"""Skeletons of labelled objects in nm: trees through their middle, for run lengths and the skeleton-aware distance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emcore.errors import InputError
from emcore.kernels import skeleton as kernel
from emcore.segment.arrays import as_array, as_count, as_numbers, within
from emcore.segment.components import connected_components
from emcore.segment.distance import depths
from emcore.segment.relabeling import relabel
from emcore.threads import run_parallel, thread_count

RULES = 3  # counts the ways in which skeletons were ever traced: a file of another way is not that of these labels
VOXEL_BYTES = 112  # A volume that is traced at once takes so many; 44 were measured where one object nearly fills it.
_MOST_ANISOTROPIC = 1000  # the kernel sorts distances into buckets as wide as the shortest voxel side


@dataclass(frozen=True)
class Skeleton:
    """Holds the trees of one object, one for each 26-connected piece.

    Attributes:
        vertices: (n, 3) float32: z, y, x in nm, index * resolution of voxels of the object, in raster order.
        edges: (m, 2) int64: a vertex and the next one towards the root of its tree.
        radius: (n,) float32: nm from the vertex to the surface.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> one = segment.skeletonize(np.ones((3, 3, 40), np.uint8), (8, 8, 8))[1]
        >>> len(one.edges) == len(one.vertices) - 1, one.length > 200
        (True, True)
    """

    vertices: np.ndarray
    edges: np.ndarray
    radius: np.ndarray

    @property
    def length(self) -> float:
        """The summed length of the edges in nm."""
        ends = self.vertices[self.edges].astype(np.float64)
        return float(np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).sum(1)).sum())


def skeletonize(labels: np.ndarray, resolution: Sequence[float], *, scale: float = 1.5, const_nm: float | None = None,
                dust_voxels: int = 0, threads: int | None = None) -> dict[int, Skeleton]:
    """Finds the skeleton of every label, by rising label, after TEASAR.

    For every 26-connected piece of a label, the root is the voxel that lies the most steps from the first voxel of the
    piece. Paths to the root prefer the middle: a step of d nm into a voxel r nm from the surface costs d / r**2. Again
    and again the voxel with the longest path to the root that is not covered yet sends its path. The path covers what
    lies within scale * r + const_nm of its voxels, measured within the object. Of equal voxels the first in raster
    order counts.

    The voxel with the longest path lies on the rim of a blunt end. Therefore a path leaves out what lies within 1.6 r
    of its voxels at its tip, where it covers that, and goes straight on from there to the surface. The root gets the
    same end when all paths are there, where only one path leads to it. Where two paths meet as near to it, they are
    one line, because the rest is no branch: a ring has two ends.

    Args:
        labels: integers (z, y, x); 0 is background.
        resolution: the size of a voxel in nm, z, y, x.
        scale: the factor of the radius that a path covers (default 1.5).
        const_nm: what it covers besides, in nm; by default ten voxel sides, at least 100.
        dust_voxels: pieces of fewer voxels have no tree, and an object of such pieces no skeleton (default 0).
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A dict from label to `Skeleton`.

    Raises:
        InputError: the labels, the resolution or a number does not fit.

    Cost:
        The time grows with the length of the objects and with the voxels of the largest one. To find how deep a voxel
        lies takes longer the deeper it lies: 21 ns of one core in a cube of 64 voxels a side, 38 ns in one of 256, and
        110 ns where one label fills a volume of 256 voxels a side.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> sorted(segment.skeletonize(np.array([[[5, 5, 0, 7, 7]]]), (40, 8, 8)))
        [5, 7]
    """
    labels = as_array("labels", labels)
    way = way_of(labels.shape, resolution, scale, const_nm, dust_voxels)
    return dict(traced(labels, way, (0, 0, 0), thread_count(threads)))


def skeleton_volume(labels: np.ndarray, resolution: Sequence[float], *, scale: float = 1.5,
                    const_nm: float | None = None, dust_voxels: int = 0, threads: int | None = None) -> np.ndarray:
    """Marks the voxels of the objects' skeletons by their labels.

    Args:
        labels: integers (z, y, x); 0 is background.
        resolution: the size of a voxel in nm, z, y, x.
        scale: see `skeletonize` (default 1.5).
        const_nm: see `skeletonize`; by default ten voxel sides, at least 100.
        dust_voxels: pieces of fewer voxels have no tree (default 0).
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape and dtype; 0 off the skeletons.

    Raises:
        InputError: the labels, the resolution or a number does not fit.

    Cost:
        It costs as much as `skeletonize`.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> out = segment.skeleton_volume(np.full((3, 3, 40), 7, np.uint8), (8, 8, 8))
        >>> np.unique(out), int(np.count_nonzero(out))
        (array([0, 7], dtype=uint8), 40)
    """
    labels = as_array("labels", labels)
    way = way_of(labels.shape, resolution, scale, const_nm, dust_voxels)
    _, found = _trace(labels, way, thread_count(threads))
    out = np.zeros_like(labels)
    voxels = tuple(np.concatenate([np.zeros((0, 3), np.int64), *(voxels for voxels, _, _ in found.values())]).T)
    out[voxels] = labels[voxels]
    return out


@dataclass(frozen=True)
class Way:
    """How objects are traced; checked."""

    unit: np.ndarray
    scale: float
    constant: float
    dust_voxels: int
    deepest: np.float32  # squared nm: the depth of an object that fills the volume


def way_of(shape: Sequence[int], resolution: Sequence[float], scale: float, const_nm: float | None,
           dust_voxels: int) -> Way:
    """The way to trace the objects of a volume of a shape."""
    if len(shape) != 3:
        raise InputError(f"labels must be (z, y, x); got shape {tuple(shape)}")
    unit = as_numbers("resolution", resolution)
    if unit.shape != (3,) or not (np.isfinite(unit).all() and unit.min() > 0
                                  and unit.max() <= _MOST_ANISOTROPIC * unit.min()):
        raise InputError(f"resolution must be three lengths in nm (z, y, x) above 0, none more than "
                         f"{_MOST_ANISOTROPIC} times another; got {resolution}")
    constant = max(10 * unit.max(), 100.0) if const_nm is None else const_nm
    if not (within(scale, 0, 1e300) and within(constant, 0, 1e300)):
        raise InputError(f"scale and const_nm must be finite and not below 0; got {scale} and {constant}")
    deepest = np.float32(((np.array(shape) * unit) ** 2).sum())
    return Way(unit, scale, constant, as_count("dust_voxels", dust_voxels), deepest)


def traced(labels: np.ndarray, way: Way, first: Sequence[int], threads: int) -> Iterator[tuple[int, Skeleton]]:
    """(label, skeleton) by rising label, of labels whose first voxel lies at an index of the volume.

    Each object lies inside with a voxel around it, where the volume has one.
    """
    ids, found = _trace(labels, way, threads)
    for label in sorted(found, key=lambda label: int(ids[label])):
        voxels, edges, radius = found[label]
        voxels = voxels + np.array(first, np.int64)
        vertices = (voxels * way.unit).astype(np.float32)
        # rounding to float32 must not carry a vertex into the voxel before its own
        np.nextafter(vertices, np.float32(np.inf), out=vertices, where=np.floor(vertices / way.unit) < voxels)
        yield int(ids[label]), Skeleton(vertices, edges, radius)


def _trace(labels: np.ndarray, way: Way, threads: int) -> tuple[np.ndarray, dict[int, tuple]]:
    """(labels by their dense number, for each number its voxels (n, 3), edges (m, 2) and radius (n,))."""
    dense, ids = relabel(labels, threads=threads)
    pieces, count = connected_components(dense, 26, count=True, threads=threads)
    if count > 2**32 - 2:
        raise InputError(f"skeletons are traced for fewer than 2**32 - 1 pieces at once; got {count}")
    if count == 0:
        return ids, {}
    squared = depths(dense, way.unit, threads)
    # an object without any other label in the volume has no surface: every voxel is as deep as the volume is wide
    np.minimum(squared, way.deepest, out=squared)
    runs, sizes = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    kernel.count_runs(pieces, runs, sizes)
    runs[0] = 0
    slots = sizes + 2 * runs + 8
    slots[0] = 0
    if slots.max() >= 2**31:
        most = slots.argmax()
        raise InputError(f"the voxels of a piece and twice its runs along x must be fewer than 2**31 - 8 together; one "
                         f"has {sizes[most]} voxels in {runs[most]} runs: cut the labels into parts")
    ends = np.cumsum(runs)
    table = np.empty((ends[-1], 4), np.int32)
    kernel.list_runs(pieces, ends - runs, table)
    del pieces

    def trace(piece: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        own = table[ends[piece] - runs[piece] : ends[piece]]
        # arrays of numpy lie on large pages where the system has them
        numbers = np.empty((4, slots[piece]), np.float32)
        places, towards = np.empty(slots[piece], np.int32), np.empty(slots[piece], np.uint8)
        rows = np.frombuffer(kernel.trace(own, squared, way.unit, way.scale, way.constant, numbers, places,
                                          towards), np.int32)
        rows = rows.reshape(-1, 5).astype(np.int64)
        rows = rows[np.argsort(rows[:, 0])]
        inner = np.flatnonzero(rows[:, 1] >= 0)
        edges = np.stack([inner, np.searchsorted(rows[:, 0], rows[inner, 1])], 1)
        voxels = rows[:, 2:]
        return int(dense[tuple(voxels[0])]), voxels, edges, np.sqrt(squared[tuple(voxels.T)])

    largest_first = np.argsort(-sizes[1:], kind="stable") + 1  # so that no thread is left with a giant at the end
    jobs = [(int(piece),) for piece in largest_first if sizes[piece] >= way.dust_voxels]
    return ids, _joined(run_parallel(trace, jobs, threads), labels.shape)


def _joined(traced: list[tuple], shape: tuple[int, ...]) -> dict[int, tuple]:
    """The pieces of each label as one: its vertices in raster order, its edges by the vertices that they leave."""
    found: dict[int, list[tuple]] = {}
    for label, *parts in traced:
        found.setdefault(label, []).append(parts)
    joined = {}
    for label, parts in found.items():
        before = np.cumsum([0, *(len(voxels) for voxels, _, _ in parts)])
        voxels, edges, radius = (np.concatenate(each) for each in zip(*(
            (voxels, edges + start, radius) for (voxels, edges, radius), start in zip(parts, before))))
        order = np.argsort(np.ravel_multi_index(tuple(voxels.T), shape))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        edges = place[edges]
        joined[label] = voxels[order], edges[np.argsort(edges[:, 0])], radius[order]
    return joined

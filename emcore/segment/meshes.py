"""Closed surfaces of labelled objects in nm, also block by block: one mesh for each label."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import meshing as kernel
from emcore.kernels import simplify as simplify_kernel
from emcore.segment.arrays import as_array, as_numbers, within
from emcore.segment.marching import marching_table
from emcore.segment.relabeling import _whole_numbers, mask_out, relabel, unsigned
from emcore.threads import run_parallel, slabs, thread_count

SMOOTHINGS, SHARE = 2, 0.5  # Measured on balls and tori: more flattens thin objects, fewer leave steps.
SPREADS = 2, 2  # How far what a vertex lacks in volume is shared out: along so many edges, in each of two rounds.
CONTEXT = SMOOTHINGS + sum(1 + spread for spread in SPREADS)  # voxels around a block that its vertices depend on
SIDE = 256  # voxels of a window along each axis, of which the work takes about 50 bytes each
MOST_LABELS = 2**24 - 1  # the kernel numbers so many in one window
MOST_VOXELS = 2**27  # A larger window could have more than 2^30 vertices, which could not be numbered.
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Mesh:
    """Holds the surface of one object: triangles that turn to the left when seen from outside, in right-handed x, y, z.

    Attributes:
        vertices: (n, 3) float32: z, y, x in nm; voxel i fills i * resolution to (i + 1) * resolution.
        faces: (m, 3) uint32, the vertices of each triangle.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> cube = segment.mesh(np.ones((20, 20, 20), np.uint8), (8, 8, 8))[1]
        >>> round(cube.volume / 160**3, 2)
        1.0
    """

    vertices: np.ndarray
    faces: np.ndarray

    @property
    def volume(self) -> float:
        """What the surface encloses, in nm³."""
        corners, normals = self._triangles()
        return float((normals * (corners[:, 0] - corners[:1, 0])).sum() / 6)

    @property
    def area(self) -> float:
        """The area of all triangles, in nm²."""
        return float(np.linalg.norm(self._triangles()[1], axis=1).sum() / 2)

    def _triangles(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of the triangles in x, y, z, and their normals, twice as long as they are large."""
        corners = self.vertices.astype(np.float64)[:, ::-1][self.faces]
        return corners, np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


class Piece(NamedTuple):
    """The part of a mesh in one block; the vertices on its border have the same keys, and places, in the next block."""

    label: int
    vertices: np.ndarray  # (n, 3) float32: z, y, x in nm
    faces: np.ndarray  # (m, 3) uint32
    seam: np.ndarray  # (k,) uint32: vertices on the border of the block
    keys: np.ndarray  # (k,) uint64: what tells each of them from all others of the object


@dataclass(frozen=True)
class Frame:
    """Where voxels lie: the shape of the whole volume, nm of a voxel, nm where voxel 0 begins; z, y, x."""

    shape: tuple[int, int, int]
    resolution: tuple[float, float, float]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def window(self, core: Box) -> Box:
        """The voxels that the pieces of a block depend on."""
        return tuple(slice(max(0, span.start - 1 - CONTEXT), min(length, span.stop + CONTEXT))
                     for span, length in zip(core, self.shape))


def mesh(labels: np.ndarray, resolution: Sequence[float], *, ids: Sequence[int] | np.ndarray | None = None,
         offset: Sequence[float] = (0.0, 0.0, 0.0), error: float = 0.0,
         threads: int | None = None) -> dict[int, Mesh]:
    """Makes the closed surface of every object, by rising label.

    Each label has a surface of its own, also where two touch, and is closed by a cap where the volume ends. Voxels hang
    together through faces alone: where two of them meet at an edge or a corner, the surface runs between them. So each
    edge belongs to two triangles, and around every vertex the triangles make one ring. Vertices lie between the middles
    of two voxels and are smoothed so that the volume is kept.

    Args:
        labels: (z, y, x) of any integer type; 0 is background.
        resolution: the size of a voxel in nm, z, y, x.
        ids: the labels to mesh; all by default.
        offset: the place in nm, z, y, x, where the first voxel begins (default 0, 0, 0).
        error: a simpler mesh may leave the surface by so many nm (see `simplify_mesh`). The default 0 keeps all
            triangles.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A dict from label to `Mesh`.

    Raises:
        InputError: the labels or numbers do not fit, or one of the ids is not there.

    Cost:
        It takes 20 ns of one core and 22 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> found = segment.mesh(np.array([[[1, 1, 2, 2]]]), resolution=(40, 8, 8))
        >>> sorted(found), found[1].vertices.dtype
        ([1, 2], dtype('float32'))
    """
    labels = unsigned(labels, threads=threads)
    if labels.ndim != 3:
        raise InputError(f"labels must be (z, y, x); got shape {labels.shape}")
    frame = Frame(labels.shape, *checked_grid(resolution, offset))
    error = checked_error(error)
    wanted = None if ids is None else checked_ids(ids)
    if labels.size == 0:
        return {}
    threads = thread_count(threads)
    cuts = [slabs(length, max(-(-length // SIDE), threads if axis == 0 and length >= 64 * threads else 1))
            for axis, length in enumerate(labels.shape)]
    cores = [(tuple(slice(*span) for span in spans),) for spans in product(*cuts)]
    parts: dict[int, list[Piece]] = {}

    def pieces_of(core: Box) -> list[Piece]:
        return list(pieces(labels[frame.window(core)], core, frame, wanted))

    for found in run_parallel(pieces_of, cores, threads):
        for piece in found:
            parts.setdefault(piece.label, []).append(piece)
    if wanted is not None and (missing := sorted(set(wanted.tolist()) - parts.keys())):
        raise InputError(f"ids must be labels of the volume; it has no voxel of {', '.join(map(str, missing[:5]))}")
    order = sorted(parts)
    made = run_parallel(lambda label: finished(parts.pop(label), error), [(label,) for label in order], threads)
    return dict(zip(order, made))


def finished(parts: Sequence[Piece], error: float) -> Mesh:
    """The mesh of the pieces of one object."""
    whole = join_pieces(parts)
    return simplify_mesh(whole, error) if error else whole


def checked_grid(resolution: Sequence[float], offset: Sequence[float]) -> tuple[tuple, tuple]:
    """(resolution, offset) as floats."""
    unit, begin = as_numbers("resolution", resolution), as_numbers("offset", offset)
    if unit.shape != (3,) or not (np.isfinite(unit).all() and unit.min() > 0):
        raise InputError(f"resolution must be three lengths in nm (z, y, x) above 0; got {resolution}")
    if begin.shape != (3,) or not np.isfinite(begin).all():
        raise InputError(f"offset must be three places in nm (z, y, x); got {offset}")
    return tuple(unit.tolist()), tuple(begin.tolist())


def checked_error(error: float) -> float:
    if not within(error, 0, 1e30):
        raise InputError(f"error must be a length in nm, 0 or more; got {error!r}")
    return float(error)


def checked_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Labels as uint64, each once, rising."""
    found = np.unique(_whole_numbers(ids, "ids").reshape(-1).astype(np.uint64))
    if len(found) == 0 or found[0] == 0:
        raise InputError("ids must name labels above 0, at least one: 0 is background, which has no surface")
    return found


def pieces(window: np.ndarray, core: Box, frame: Frame, ids: np.ndarray | None = None) -> Iterator[Piece]:
    """The part of every mesh in a block, by rising label; window: the voxels of frame.window(core).

    Together the blocks of a volume give each triangle once.
    """
    window = unsigned(window)
    if ids is not None:
        window = mask_out(window, ids, keep=True)
    if not window.any():
        return
    dense, names = relabel(window, threads=1) if window.size <= MOST_VOXELS else (window, ())
    if window.size > MOST_VOXELS or len(names) > MOST_LABELS:
        for half in halves(core):
            box = tuple(slice(a.start - b.start, a.stop - b.start)
                        for a, b in zip(frame.window(half), frame.window(core)))
            yield from pieces(window[box], half, frame)
        return
    padded = np.pad(dense, 1)
    del dense
    surfaces = kernel.Surfaces(padded)
    for _ in range(SMOOTHINGS):
        surfaces.smooth(SHARE)
    for spread in SPREADS:
        surfaces.restore_volume(spread)
    first = np.array([span.start - 1 for span in frame.window(core)], np.int64)
    cells = np.array([[span.start for span in core],  # the last cell of an axis lies behind the last voxel
                      [span.stop + (span.stop == length) for span, length in zip(core, frame.shape)]], np.int64) - first
    made = surfaces.objects(marching_table(), len(names) - 1, cells, first, np.array(frame.shape, np.int64),
                            np.array([frame.resolution, frame.offset]))
    yield from sorted((Piece(int(names[number]), *arrays) for number, *arrays in made), key=lambda piece: piece.label)


def halves(core: Box) -> list[Box]:
    """A block cut in two along its longest axis."""
    axis = max(range(3), key=lambda axis: core[axis].stop - core[axis].start)
    middle = (core[axis].start + core[axis].stop) // 2
    return [(*core[:axis], slice(*ends), *core[axis + 1 :])
            for ends in ((core[axis].start, middle), (middle, core[axis].stop))]


def join_pieces(parts: Sequence[Piece]) -> Mesh:
    """The mesh of an object from its pieces in all blocks: the vertices on their borders become one, by their keys."""
    if len(parts) == 1:
        return Mesh(parts[0].vertices, parts[0].faces)
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    if starts[-1] >= 2**32:
        raise InputError(f"label {parts[0].label} has {starts[-1]} vertices, more than 32 bits number; "
                         "mesh it in boxes")
    seam = np.concatenate([part.seam + start for part, start in zip(parts, starts)])
    _, first, group = np.unique(np.concatenate([part.keys for part in parts]), return_index=True, return_inverse=True)
    kept = np.ones(starts[-1], bool)
    kept[seam] = False
    kept[seam[first]] = True
    numbers = np.cumsum(kept, dtype=np.uint32)
    numbers -= 1
    numbers[seam] = numbers[seam[first]][group]
    spans = list(zip(starts[:-1].tolist(), starts[1:].tolist()))
    vertices = np.concatenate([part.vertices[kept[a:b]] for part, (a, b) in zip(parts, spans)])
    return Mesh(vertices, np.concatenate([numbers[a:b][part.faces] for part, (a, b) in zip(parts, spans)]))


def simplify_mesh(whole: Mesh, error: float) -> Mesh:
    """Makes a mesh of fewer triangles that stays within a distance of the given one.

    Args:
        whole: a `Mesh` that `mesh` made; it stays closed, with the same pieces and holes.
        error: no vertex of the given mesh lies farther than so many nm from the new one; above 0.

    Returns:
        The `Mesh`.

    Raises:
        InputError: the error is not above 0, or the mesh is not closed.

    Cost:
        It takes 4,000 ns of one core and 260 bytes per triangle.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> cube = segment.mesh(np.ones((20, 20, 20), np.uint8), (8, 8, 8))[1]
        >>> len(segment.simplify_mesh(cube, 8).faces) < len(cube.faces) / 4
        True
    """
    if checked_error(error) == 0:
        raise InputError("error must be a length in nm above 0: a mesh that must not change needs no simplification")
    vertices, faces = as_array("vertices", whole.vertices), as_array("faces", whole.faces)
    if vertices.ndim != 2 or vertices.shape[1:] != (3,) or faces.ndim != 2 or faces.shape[1:] != (3,) or not (
            faces.dtype.kind in "ui" and np.isfinite(vertices).all()):
        raise InputError(f"a mesh has vertices (n, 3) and faces (m, 3) of whole numbers; got {vertices.shape} and "
                         f"{faces.shape} {faces.dtype}")
    if len(faces) == 0:
        return whole
    check_closed(vertices, faces)
    origin = vertices.astype(np.float64).min(0)
    points, kept = simplify_kernel.Surface(np.ascontiguousarray(vertices - origin, np.float64),
                                           np.ascontiguousarray(faces, np.uint32), error).run()
    return Mesh((points + origin).astype(np.float32), kept)


def check_closed(vertices: np.ndarray, faces: np.ndarray) -> None:
    """Refuses a mesh in which an edge does not lead from one triangle to exactly one other that turns the same way."""
    if faces.min() < 0 or faces.max() >= len(vertices) or len(vertices) >= 2**31 or len(faces) >= 2**31 // 3:
        raise InputError(f"faces must name the {len(vertices)} vertices, fewer than 2^31; found {faces.max()}")
    faces = faces.astype(np.uint64)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = np.sort(edges[:, 0] << 32 | edges[:, 1]), np.sort(edges[:, 1] << 32 | edges[:, 0])
    if (there[1:] == there[:-1]).any() or (there != back).any():
        raise InputError("the mesh is not closed: each edge must lead from one triangle to exactly one other")

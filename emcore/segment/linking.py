"""Segments joined across sections and across block faces, by how much of them lies on one another."""

from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import overlaps as kernel
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.arrays import as_array, within
from emcore.segment.relabeling import remap, unsigned
from emcore.threads import run_parallel, thread_count


class Joined(NamedTuple):
    """Pairs of labels that belong together, and the new name of each of their labels."""

    pairs: np.ndarray  # (n, 2) uint64, sorted
    old: np.ndarray  # every label of the pairs, uint64, sorted
    new: np.ndarray  # the smallest label of each one's group


# two labels of consecutive sections: alike by their overlap, buddies if each overlaps the other most
CANDIDATE = np.dtype([("first", "u8"), ("second", "u8"), ("z", "i8"), ("alike", "?"), ("buddies", "?")])


class LinkRule(NamedTuple):
    """Says which segments of two consecutive sections are one; 0 switches a rule off.

    Label a of section z and another label b of section z + 1 are joined where a ends at z or b begins at z + 1 and one
    of these holds: their overlap over their union is at least `iou`; or their overlap over the smaller of their areas
    is at least `one_sided`; or, with best_buddy, a ends and b begins and each overlaps the other most.

    Attributes:
        iou: 0 to 1. The default is 0.5.
        best_buddy: True by default; of equal overlaps the smaller label counts.
        one_sided: 0 to 1. The default is 0.8.
        one_sided_size: the smaller area has at least so many pixels for one_sided (default 100).
        affinity: with affinities every join also needs a mean z affinity of at least this over the overlap (default 0).
        min_size: areas below so many pixels in their section join nothing (default 0).

    Examples:
        >>> from emcore import segment
        >>> segment.LinkRule(iou=0.3).best_buddy
        True
    """

    iou: float = 0.5
    best_buddy: bool = True
    one_sided: float = 0.8
    one_sided_size: int = 100
    affinity: float = 0.0
    min_size: int = 0


def link_sections(labels: np.ndarray, affs: np.ndarray | Affinities | None = None, rule: LinkRule | None = None, *,
                  threads: int | None = None) -> np.ndarray:
    """Joins segments through consecutive sections by their overlap.

    Args:
        labels: integers (z, y, x); 0 is background.
        affs: affinities, where the rule asks for them. The default None goes without them.
        rule: which segments are one; the defaults of `LinkRule` by default.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape and dtype; a group takes its smallest label.

    Raises:
        InputError: the shapes differ, or the rule does not fit.

    Cost:
        It takes 33 ns of one core and 8.1 bytes per voxel. The labels of connected sections were made in this time too.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[1, 1, 1, 2]], [[3, 3, 3, 4]]])
        >>> segment.link_sections(labels, rule=segment.LinkRule(iou=0.5))[1]
        array([[1, 1, 1, 2]])
    """
    rule = check_rule(LinkRule() if rule is None else rule)
    given = as_array("labels", labels)
    labels = _labels(given, 3, "labels")
    if rule.affinity and affs is None:
        raise InputError(f"affinity={rule.affinity} needs affs; pass them, or leave affinity at 0")
    if affs is not None:
        checked = as_affinities(affs)
        checked.check_values(threads=threads)
        if checked.shape != labels.shape:
            raise InputError(f"affs must lie on the labels {labels.shape}; got {checked.values.shape}")
    depth, pixels = len(labels), labels[:1].size
    if labels.size == 0 or depth < 2:
        return given.copy()

    def overlaps(z: int) -> np.ndarray:
        plane = z_plane(checked, z) if rule.affinity else None
        return kernel.overlaps(labels[z], labels[z + 1], plane, pixels)

    tables = run_parallel(overlaps, [(z,) for z in range(depth - 1)], thread_count(threads))
    present = [np.unique(table["first"]) for table in tables] + [np.unique(tables[-1]["second"])]
    ids = np.unique(np.concatenate(present))
    begins, ends = np.full(len(ids), depth), np.full(len(ids), -1)
    for z, names in enumerate(present):
        where = np.searchsorted(ids, names)
        begins[where] = np.minimum(begins[where], z)
        ends[where] = z
    found = np.concatenate([candidates(table, z, pixels, rule) for z, table in enumerate(tables)])
    joined = join_candidates(found, ids, begins, ends)
    named = remap(labels, (joined.old, joined.new.astype(labels.dtype)), missing="keep", threads=threads)
    return named.astype(given.dtype, copy=False)


def check_rule(rule: LinkRule) -> LinkRule:
    """The rule, if all its numbers are what they must be."""
    if not isinstance(rule, LinkRule):
        raise InputError(f"rule must be a LinkRule, such as segment.LinkRule(iou=0.5); got {type(rule).__name__}")
    _fractions(iou=rule.iou, one_sided=rule.one_sided, affinity=rule.affinity)
    _sizes(min_size=rule.min_size, one_sided_size=rule.one_sided_size)
    return rule


def z_plane(affs: Affinities, z: int) -> np.ndarray:
    """The float32 affinities between the sections z and z + 1."""
    return affs.plane(0, z + 1 - affs.shifts[0])


def candidates(table: np.ndarray, z: int, pixels: int, rule: LinkRule) -> np.ndarray:
    """The pairs of labels of sections z and z + 1 that the rule joins if they end and begin there, as CANDIDATE.

    table holds the overlaps of the two whole sections, which have so many pixels.
    """
    pair = _measure(table, pixels)
    pair = pair[(pair["smaller"] >= rule.min_size) & (pair["first"] != pair["second"])]
    alike = np.zeros(len(pair), bool)
    if rule.iou:
        alike |= pair["iou"] >= rule.iou
    if rule.one_sided:
        alike |= (pair["one_sided"] >= rule.one_sided) & (pair["smaller"] >= rule.one_sided_size)
    buddies = np.zeros(len(pair), bool)
    if rule.best_buddy:
        buddies = _largest(pair, "first", "second") & _largest(pair, "second", "first")
    if rule.affinity:
        alike &= pair["affinity"] >= rule.affinity
        buddies &= pair["affinity"] >= rule.affinity
    found = np.empty(len(pair), CANDIDATE)
    for name, values in (("first", pair["first"]), ("second", pair["second"]), ("z", z), ("alike", alike),
                         ("buddies", buddies)):
        found[name] = values
    return found[alike | buddies]


def join_candidates(found: np.ndarray, ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Joined:
    """The groups that candidates form; ids (sorted) begin and end in these sections."""
    a_ends = ends[np.searchsorted(ids, found["first"])] == found["z"]
    b_begins = begins[np.searchsorted(ids, found["second"])] == found["z"] + 1
    keep = found["alike"] & (a_ends | b_begins) | found["buddies"] & a_ends & b_begins
    return join_pairs(_ids(found[keep]))


def merge_faces(first: np.ndarray, second: np.ndarray, affinities: np.ndarray | None = None, *, min_overlap: int = 1,
                iou: float = 0.0, one_sided: float = 0.9, one_sided_size: int = 0, affinity: float = 0.0) -> Joined:
    """Finds the labels of two faces of neighbouring blocks that belong together.

    0 switches a condition off.

    Args:
        first: integers (rows, columns), the last plane of one block; ids are those of the whole volume.
        second: the first plane of the next block, of the same shape.
        affinities: those of the edges between the faces, of the same shape. The default None goes without them.
        min_overlap: the overlap of a pair has at least so many pixels (default 1).
        iou: the overlap is at least this share of the union (default 0).
        one_sided: the overlap is at least this share of the smaller area (default 0.9).
        one_sided_size: that area has at least so many pixels (default 0).
        affinity: the mean of the affinities over the overlap is at least this, 0 to 1 (default 0).

    Returns:
        A tuple like that of `join_pairs`.

    Raises:
        InputError: the shapes differ, or a number does not fit.

    Cost:
        It takes 58 ns of one core and less than 1 byte per pixel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.merge_faces(np.array([[1, 1, 2]]), np.array([[5, 5, 6]])).pairs
        array([[1, 5],
               [2, 6]], dtype=uint64)
    """
    first, second = _labels(first, 2, "first"), _labels(second, 2, "second")
    if first.shape != second.shape:
        raise InputError(f"the two faces must have one shape; got {first.shape} and {second.shape}")
    _fractions(iou=iou, one_sided=one_sided, affinity=affinity)
    _sizes(min_overlap=min_overlap, one_sided_size=one_sided_size)
    if affinity and affinities is None:
        raise InputError(f"affinity={affinity} needs the affinities between the faces; pass them, or leave it at 0")
    if affinities is not None:
        affinities = as_array("affinities", affinities)
        if affinities.shape != first.shape or affinities.dtype.kind != "f":
            raise InputError(f"affinities must be floating point of shape {first.shape}; "
                             f"got {affinities.shape} {affinities.dtype}")
        if not ((affinities >= 0) & (affinities <= 1)).all():
            raise InputError("affinities must lie in 0..1; pass the output of a sigmoid, or clip it")
        affinities = affinities.astype(np.float32, copy=False)
    kind = np.uint64 if 8 in (first.dtype.itemsize, second.dtype.itemsize) else np.uint32
    table = kernel.overlaps(first.astype(kind, copy=False), second.astype(kind, copy=False), affinities, first.size)
    pair = _measure(table, first.size)
    keep = (pair["pixels"] >= min_overlap) & (pair["iou"] >= iou)
    if one_sided:
        keep &= (pair["one_sided"] >= one_sided) & (pair["smaller"] >= one_sided_size)
    if affinity:
        keep &= pair["affinity"] >= affinity
    return join_pairs(_ids(pair[keep]))


def join_pairs(pairs: np.ndarray) -> Joined:
    """Finds the groups that pairs of labels form, for the pairs of many faces at once.

    Args:
        pairs: (n, 2) unsigned integers; the two labels of a row are one.

    Returns:
        A tuple of `pairs` (n, 2) uint64, sorted; `old`, every label of the pairs, sorted; and `new`, the
        smallest label of its group.

    Raises:
        InputError: the pairs are not of this shape or dtype.

    Cost:
        It takes 890 ns of one core and 110 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> joined = segment.join_pairs(np.array([[4, 9], [9, 12]], np.uint64))
        >>> dict(zip(joined.old.tolist(), joined.new.tolist()))
        {4: 4, 9: 4, 12: 4}
    """
    pairs = as_array("pairs", pairs)
    if pairs.size and pairs.shape[-1:] != (2,):
        raise InputError(f"pairs must be two labels each, (n, 2); got shape {pairs.shape}")
    if pairs.size:
        pairs = unsigned(pairs, "pairs")
    pairs = np.unique(pairs.astype(np.uint64).reshape(-1, 2), axis=0)
    ids, where = np.unique(pairs, return_inverse=True)
    parent = np.empty(len(ids), np.int64)
    kernel.unite(np.ascontiguousarray(where.reshape(pairs.shape), np.int64), parent)
    return Joined(pairs, ids, ids[parent])


def _measure(table: np.ndarray, pixels: int) -> np.ndarray:
    """The pairs of two labels in the overlap table of images with so many pixels, and what a rule asks of them."""
    _, a, areas_a = _areas(table, "first")
    _, b, areas_b = _areas(table, "second")
    fields = [*table.dtype.descr[:3], ("smaller", "i8"), ("iou", "f8"), ("one_sided", "f8"), ("affinity", "f8")]
    pair = np.empty(len(table), fields)
    for name in ("first", "second", "pixels"):
        pair[name] = table[name]
    pair["smaller"] = np.minimum(areas_a[a], areas_b[b])
    pair["iou"] = table["pixels"] / (areas_a[a] + areas_b[b] - table["pixels"])
    pair["one_sided"] = table["pixels"] / pair["smaller"]
    pair["affinity"] = table["total"] / kernel.scale_of(pixels) / table["pixels"]
    return pair[(pair["first"] > 0) & (pair["second"] > 0)]


def _areas(table: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, where = np.unique(table[side], return_inverse=True)
    areas = np.zeros(len(ids), np.int64)
    np.add.at(areas, where, table["pixels"])
    return ids, where, areas


def _largest(pair: np.ndarray, side: str, other: str) -> np.ndarray:
    """Which pairs are the largest overlap of their label on one side; of equals the one with the smaller partner."""
    order = np.lexsort((pair[other], -pair["pixels"], pair[side]))
    best = np.zeros(len(pair), bool)
    best[order[np.unique(pair[side][order], return_index=True)[1]]] = True
    return best


def _ids(pair: np.ndarray) -> np.ndarray:
    return np.stack([pair["first"], pair["second"]], axis=1)


def _labels(labels: np.ndarray, dimensions: int, name: str) -> np.ndarray:
    """labels as uint32 or uint64, widened if they are narrower."""
    labels = unsigned(labels, name)
    if labels.ndim != dimensions:
        raise InputError(f"{name} must have {dimensions} axes; got shape {labels.shape}")
    return labels.astype(np.uint64 if labels.dtype.itemsize == 8 else np.uint32, copy=False)


def _sizes(**given: int) -> None:
    for name, value in given.items():
        if not within(value, -np.inf, np.inf):
            raise InputError(f"{name} must be a number of pixels; got {value!r}")


def _fractions(**given: float) -> None:
    for name, value in given.items():
        if not within(value, 0, 1):
            raise InputError(f"{name} must be between 0 (off) and 1; got {value}")

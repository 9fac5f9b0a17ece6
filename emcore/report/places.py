"""The places of doubts: the contact of the two sides and a voxel well inside either, by a small box of fragments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emcore.errors import InputError
from emcore.segment import distance_transform
from emcore.segment.doubts import Doubts, Parted
from emcore.segment.graph import KEY_STEPS
from emcore.segment.shapes import GAP_NM
from emcore.volumes import Volume

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Place:
    """A doubt in the volume."""

    middle: tuple[int, int, int]  # the voxel at the contact, z y x
    one: tuple[int, int, int]  # a voxel of side one
    two: tuple[int, int, int]
    box: Box  # around the middle
    sides: np.ndarray  # uint8, 1 and 2 on the sides within the box, else 0


def places_of(doubts: Doubts, parted: Parted, fragments: Volume, field: Sequence[int]) -> Iterator[Place]:
    """The place of every doubt, in turn; field: voxels of the box along z, y, x, of which the volume may have fewer."""
    for merge, contact, middle, box, inside in contacts_of(doubts, parted, fragments, field):
        near = parted.near(merge, contact, inside)
        start = np.array([span.start for span in box])
        voxels = named_voxels(near, middle, box, fragments.resolution)
        one, two = (tuple((start + np.array(voxel)).tolist()) for voxel in voxels)
        yield Place(middle, one, two, box, parted.sides_in(merge, contact, inside))


def named_voxels(near: np.ndarray, middle: Sequence[int], box: Box,
                 resolution: Sequence[float]) -> list[tuple[int, ...]]:
    """A voxel of either side in a box that lies well inside it and close to the middle of the contact."""
    depth = distance_transform(near, resolution)
    middle = np.array(middle) - [span.start for span in box]
    away = np.abs(np.indices(near.shape) - middle.reshape(3, 1, 1, 1)).max(0)
    return [tuple(well_inside(near == side, depth, away).tolist()) for side in (1, 2)]


def contacts_of(doubts: Doubts, parted: Parted, fragments: Volume,
                field: Sequence[int]) -> Iterator[tuple[int, int, tuple[int, int, int], Box, np.ndarray]]:
    """(merge, contact, the voxel in the middle of the contact, a box around it, the fragments there) of every doubt."""
    for merge, contact in zip(doubts.merge.tolist(), doubts.contact.tolist()):
        u, v, number = (int(column[contact]) for column in (parted.graph.u, parted.graph.v, parted.graph.key))
        middle = None
        wide = field
        if number // KEY_STEPS < fragments.size:
            last = [int(at) for at in np.unravel_index(number // KEY_STEPS, fragments.shape)]
            if parted.graph.count[contact] == 0:  # Ends that face each other do not touch: this is halfway between.
                middle, wide = tuple(last), [max(least, round(1.5 * GAP_NM / size))
                                             for least, size in zip(field, fragments.resolution)]
        if middle is None and number // KEY_STEPS < fragments.size:
            box = box_around(last, field, fragments.shape)
            middle = middle_of(fragments[box], u, v, box)
        if middle is None:
            raise InputError(f"{fragments.name}: the contact of fragments {u} and {v} is not where the graph says; the "
                             "file is damaged, decode the prediction again")
        box = box_around(middle, wide, fragments.shape)
        inside = fragments[box]
        if inside.max() > parted.graph.fragments:
            raise InputError(f"{fragments.name} has the fragment {inside.max()}, but its graph has "
                             f"{parted.graph.fragments}; the file is damaged, decode the prediction again")
        yield merge, contact, middle, box, inside


def box_around(middle: Sequence[int], field: Sequence[int], shape: Sequence[int]) -> Box:
    """A box of the field's size within the volume, as close to the middle as the volume lets it be."""
    spans = []
    for at, wide, length in zip(middle, field, shape):
        wide = min(wide, length)
        start = min(max(0, at - wide // 2), length - wide)
        spans.append(slice(start, start + wide))
    return tuple(spans)


def middle_of(fragments: np.ndarray, u: int, v: int, box: Box) -> tuple[int, int, int] | None:
    """The voxel of a contact between u and v that is nearest to the middle of those in a box, if it has any there."""
    found = []
    for axis in range(3):
        before, after = np.moveaxis(fragments, axis, 0)[:-1], np.moveaxis(fragments, axis, 0)[1:]
        faces = np.argwhere(((before == u) & (after == v)) | ((before == v) & (after == u)))
        faces[:, 0] += 1
        faces[:, :axis + 1] = np.roll(faces[:, :axis + 1], -1, axis=1)
        found.append(faces)
    faces = np.concatenate(found)
    if not len(faces):
        return None
    nearest = faces[((faces - faces.mean(0)) ** 2).sum(1).argmin()]
    return tuple(int(at + span.start) for at, span in zip(nearest, box))


def well_inside(side: np.ndarray, depth: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The deepest voxel of a side among those near the middle; the nearest where all are far."""
    voxels = np.argwhere(side)
    near = away[side]
    reach = max(near.min(), away.max() // 2)
    value = np.where(near <= reach, depth[side], -1.0)
    return voxels[value.argmax()]


def outer_fragments(fragments: Volume, count: int) -> np.ndarray:
    """Whether every fragment, from 0 on, reaches a face of the volume; the six faces are all that is read."""
    found = np.zeros(count + 1, bool)
    for axis, length in enumerate(fragments.shape):
        for at in {0, length - 1}:
            face = [slice(None)] * 3
            face[axis] = slice(at, at + 1)
            there = np.unique(fragments[tuple(face)])
            found[there[there <= count]] = True
    return found

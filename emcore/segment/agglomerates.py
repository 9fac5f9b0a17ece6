"""Mappings of webknossos: an HDF5 file that says which supervoxels are one object, with the contacts between them.

    segment_to_agglomerate            the object of every supervoxel; 0 for 0
    agglomerate_to_segments           the supervoxels of one object after the other, rising within each
    agglomerate_to_segments_offsets   object i has those from number offsets[i] to offsets[i + 1]
    agglomerate_to_positions          x, y, z of a voxel in each of them, in the same order
    agglomerate_to_edges              contacts within objects, by the places of supervoxels in the list of their object
    agglomerate_to_edges_offsets      where the contacts of each object begin
    agglomerate_to_affinities         the affinity of each contact, larger where two are rather one

Newer ones are a group of Zarr v3 with arrays of the same names (version 4 of webknossos' AgglomerateAttachment), which
is read, too.
"""

from os import PathLike
from pathlib import Path

import h5py
import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.volumes.hdf5 import check_storage, opened
from emcore.volumes.hdf5_names import find

SEGMENTS, OBJECTS = "agglomerate_to_segments", "segment_to_agglomerate"


def numbered_objects(objects: np.ndarray) -> np.ndarray:
    """The object of every supervoxel, uint64: one that has none becomes an object of its own, behind all others."""
    found = objects.astype(np.uint64)
    alone = np.flatnonzero(found[1:] == 0) + 1
    found[alone] = found.max() + 1 + np.arange(len(alone), dtype=np.uint64)
    found[0] = 0
    return found


def write_mapping(path: str | PathLike, objects: np.ndarray, u: np.ndarray, v: np.ndarray, affinity: np.ndarray,
                  places: np.ndarray) -> None:
    """Writes a mapping: the object of every supervoxel from 0 on, contacts u < v within objects, places z, y, x."""
    of = numbered_objects(objects)
    order = np.argsort(of[1:], kind="stable") + 1
    starts = _starts(of[1:], of)
    within = np.zeros(len(of), np.uint64)
    within[order] = np.arange(len(order), dtype=np.uint64) - starts[of[order].astype(np.int64)]
    rows = np.lexsort((v, u, of[u]))
    u, v = u[rows], v[rows]
    columns = {OBJECTS: of, SEGMENTS: order.astype(np.uint64), f"{SEGMENTS}_offsets": starts,
               "agglomerate_to_positions": places[order][:, ::-1].astype(np.uint64),
               "agglomerate_to_edges": np.stack([within[u], within[v]], axis=1),
               "agglomerate_to_edges_offsets": _starts(of[u], of),
               "agglomerate_to_affinities": affinity[rows].astype(np.float32)}
    with replaced(path) as temporary, reported(path), h5py.File(temporary, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)


def _starts(rows: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Where the rows of every object begin, and at last where they end; objects have numbers up to the largest one."""
    counts = np.bincount(rows.astype(np.int64), minlength=int(objects.max()) + 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def read_mapping(path: str | PathLike, count: int) -> np.ndarray:
    """The object of every supervoxel from 0 to `count`, uint64, from a mapping that may have been changed since."""
    if Path(path).is_dir():
        return _objects_of(path, _read_group(Path(path), count), count)
    if not Path(path).is_file():
        raise InputError(f"there is no mapping {path}")
    with opened(Path(path)) as file:
        way = find(file, OBJECTS)
        found = None if way is None else way[-1]
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.dtype.kind not in "ui":
            raise InputError(f"{path} is no mapping of webknossos: it has no whole numbers {OBJECTS}")
        _check_shape(path, found.shape, count)
        check_storage(f"{path}:{OBJECTS}", found)
        return _objects_of(path, found[...], count)


def _read_group(path: Path, count: int) -> np.ndarray:
    """The objects of supervoxels in a folder of Zarr v3, whole numbers as they stand there."""
    from emcore.volumes.zarr_format import kind_of, read_row, reading

    with reading(path):
        is_mapping = kind_of(path) == "group" and kind_of(path / OBJECTS) == "array"
    if not is_mapping:
        raise InputError(f"{path} is no mapping of webknossos: it has no array {OBJECTS}")
    return read_row(path / OBJECTS, count + 1)


def _check_shape(path: str | PathLike, shape: tuple[int, ...], count: int) -> None:
    if shape != (count + 1,):
        raise InputError(f"{path} maps supervoxels by an array of shape {shape}, and these labels have {count}: it "
                         "belongs to other labels")


def _objects_of(path: str | PathLike, values: np.ndarray, count: int) -> np.ndarray:
    """What a mapping says, if it is of so many supervoxels and names objects from 0 on."""
    _check_shape(path, values.shape, count)
    if values.min() < 0:
        raise InputError(f"{path} maps the supervoxel {values.argmin()} to the object {values.min()}, and objects "
                         "have numbers from 0 on")
    return values.astype(np.uint64)

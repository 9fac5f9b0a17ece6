"""MRC volumes by the extra mrc (mrcfile), mapped; their axes in whatever order the header says.

Where the volume lies is not read: programs disagree about the sign of the origin. What the header says about it stands
among the attributes. Signed bytes that IMOD marks as unsigned are unsigned.
"""

import math
import struct
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError, lacking
from emcore.reading import open_regular
from emcore.volumes.volume import BROKEN, Volume, check_volume, first_line, native

try:
    import mrcfile
except ImportError:
    raise lacking("reading MRC", "mrc") from None

HEADER_BYTES = 1024
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
IMOD_STAMP, IMOD_SIGNED = 1146047817, 1  # what IMOD writes into the header, and its flag for signed bytes
ANGSTROM = 0.1  # nm
Triple = tuple[float, float, float]


def open_file(path: Path, dataset: None = None, kind: str | None = None) -> Volume:
    """The array of an MRC file as (z, y, x), or (c, z, y, x) where it is a stack of volumes; not read but mapped."""
    check_header(path)
    try:
        data, header = mapped(path)
        order = axis_order(path, header)
        data = arranged(data, header, order)
        resolution = voxel_size(header)
        attributes = {f"mrc_{name}": [float(getattr(place, axis)) for axis in "zyx"] for name, place in (
            ("origin_angstrom", header.origin),)}
        attributes["mrc_start"] = [int(header.nzstart), int(header.nystart), int(header.nxstart)]
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as MRC: {first_line(error)}") from error
    check_volume(str(path), data.shape, data.dtype)
    attributes = {name: value for name, value in attributes.items() if any(value) and all(map(math.isfinite, value))}
    return Volume(str(path), data.shape, native(data.dtype), resolution, (0.0, 0.0, 0.0), attributes, None,
                  partial(connect_mrc, path))


def check_header(path: Path) -> None:
    """Refuses a header that claims what the file cannot hold, before mrcfile takes memory for it."""
    try:
        with open_regular(path) as file:
            begins, size = file.read(HEADER_BYTES), file.seek(0, 2)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(begins) < HEADER_BYTES:
        raise InputError(f"{path} has {len(begins)} bytes, too few for the header of MRC")
    if begins[208:211] != b"MAP":
        raise InputError(f"{path} is no MRC file of 2000 or later: MAP does not stand at byte 208 of its header")
    order = ">" if begins[212] == 0x11 else "<"
    columns, rows, sections, mode = struct.unpack(f"{order}4i", begins[:16])
    extended, = struct.unpack(f"{order}i", begins[92:96])
    if mode not in MODES:
        raise InputError(f"{path} is of mode {mode}; MRC is read in the modes "
                         f"{', '.join(f'{number} ({name})' for number, name in MODES.items())}")
    if min(columns, rows, sections) < 1 or extended < 0:
        raise InputError(f"{path} says that it has {columns} x {rows} x {sections} voxels; its header is wrong")
    needed = HEADER_BYTES + extended + columns * rows * sections * np.dtype(MODES[mode]).itemsize
    if needed > size:
        raise InputError(f"{path} needs {needed} bytes for {columns} x {rows} x {sections} voxels of {MODES[mode]}, "
                         f"but has {size}; it is cut off, or its header is wrong")


def mapped(path: Path) -> tuple[np.ndarray, Any]:
    """The voxels as they lie in the file, and the header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of files that are longer than they need to be.
        file = mrcfile.mmap(path, mode="r")
    data, header = file.data, file.header
    if data is None:
        raise InputError(f"{path} holds no voxels")
    return (data[None] if data.ndim == 2 else data), header


def arranged(data: np.ndarray, header: Any, order: list[int]) -> np.ndarray:
    """The voxels with the axes (c,) z, y, x, in their true type."""
    leading = data.ndim - 3
    data = np.asarray(data).transpose([*range(leading), *(leading + axis for axis in order)])
    return data.view("uint8") if data.dtype == np.int8 and is_unsigned(header) else data


def connect_mrc(path: Path) -> np.ndarray:
    check_header(path)
    data, header = mapped(path)
    return arranged(data, header, axis_order(path, header))


def axis_order(path: Path, header: Any) -> list[int]:
    """Which axis of the file (sections, rows, columns) is z, which y and which x."""
    axes = [int(header.maps), int(header.mapr), int(header.mapc)]  # 1 is x, 2 is y, 3 is z
    if axes == [0, 0, 0]:
        axes = [3, 2, 1]
    if sorted(axes) != [1, 2, 3]:
        raise InputError(f"{path} says that its axes are {axes[::-1]}, which are not 1, 2 and 3 in some order")
    return [axes.index(3), axes.index(2), axes.index(1)]


def is_unsigned(header: Any) -> bool:
    stamp, flags = header.extra2.tobytes()[40:44], header.extra2.tobytes()[44:48]
    order = "big" if header.mode.dtype.byteorder == ">" else "little"
    return int.from_bytes(stamp, order) == IMOD_STAMP and not int.from_bytes(flags, order) & IMOD_SIGNED


def voxel_size(header: Any) -> Triple | None:
    """nm z, y, x from the size of the cell and the number of its intervals; None where they say nothing."""
    counts = [int(header.mz), int(header.my), int(header.mx)]
    lengths = [float(getattr(header.cella, axis)) for axis in "zyx"]
    if min(counts) < 1 or not all(math.isfinite(length) and length > 0 for length in lengths):
        return None
    z, y, x = (length / count * ANGSTROM for length, count in zip(lengths, counts))
    return z, y, x

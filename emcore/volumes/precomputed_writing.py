"""Neuroglancer's precomputed format in the forms that viewers like: compressed, and sharded where it has very many
chunks, with the sizes of segments; by tensorstore. What precomputed.py writes needs no package, and no viewer dislikes
it until it is large."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import write_text
from emcore.volumes import metadata
from emcore.volumes.formats import need_tensorstore, split_reference
from emcore.volumes.multiscale import PRECOMPUTED, SHARD_BYTES, Layout, Pyramid, grown, part_bytes
from emcore.volumes.precomputed import DTYPES, MOST_CHUNK_BYTES
from emcore.volumes.pyramid import Level, by_mode, plan_levels
from emcore.volumes.volume import Volume
from emcore.volumes.writing import choose_chunks

ENCODINGS = ("raw", "compressed_segmentation", "jpeg")
MOST_CHUNK_FILES = 100_000  # Where a level has more, they are joined in shards.
MOST_LISTED_SEGMENTS = 1_000_000  # viewers load the table of sizes as a whole
JPEG_QUALITY = 80
SIZES = "segment_properties"


def write_precomputed(source: Volume, target: str | os.PathLike, layout: Layout | None = None,
                      encoding: str | None = None) -> None:
    """Writes a volume in Neuroglancer's precomputed format with coarser levels, in parallel processes.

    All is written into TARGET.unfinished and gets its name at the end; after an error or a kill the same call goes on
    where it ended. Labels get a table of the sizes of segments in voxels.

    Args:
        source: the `Volume`, (z, y, x) or (c, z, y, x).
        target: a path such as labels.precomputed; a volume of that name is replaced.
        layout: chunks, levels, layer and number of processes; the defaults of `Layout` by default. A level of more than
            10^5 chunks is sharded.
        encoding: "raw", "compressed_segmentation" (the default of labels; uint8 and uint16 become uint32) or "jpeg"
            (uint8 images of one channel, lossy, quality 80).

    Raises:
        InputError: tensorstore (the extra remote) is missing, the source cannot be stored so, or the disk fails.

    Cost:
        3 GB of HDF5 take 131 MB of memory (docs/performance.md); the time is mostly that of packing.

    Examples:
        >>> from emcore import volumes
        >>> raw = volumes.open_volume("raw.h5")  # doctest: +SKIP
        >>> volumes.write_precomputed(raw, "raw.precomputed", volumes.Layout(workers=4))  # doctest: +SKIP
    """
    path, dataset = split_reference(target)
    if dataset:
        raise InputError(f"{path} holds one volume at several scales, no dataset {dataset!r}")
    layout = (layout or Layout()).checked(source)
    if layout.shards:
        raise InputError(f"{path} is sharded by itself where it has more than {MOST_CHUNK_FILES} chunks; leave the "
                         "shards out")
    is_labels = layout.layer == "segmentation"
    encoding = encoding or ("compressed_segmentation" if is_labels else "raw")
    dtype = stored_type(path, source, layout, encoding)
    if path.is_dir() and any(path.iterdir()) and not (path / "info").is_file():
        raise InputError(f"{path} is a folder without info, so no precomputed volume; choose a name that is free")
    need_tensorstore(f"writing {path}")
    pyramid = planned(source, path, layout, dtype, encoding)
    pyramid.write(lambda store: complete(pyramid, store, is_labels))


def stored_type(path: Path, source: Volume, layout: Layout, encoding: str) -> np.dtype:
    """The type of the voxels, refused where the format or the encoding cannot hold it."""
    dtype = layout.dtype
    if encoding not in ENCODINGS:
        raise InputError(f"a precomputed volume is encoded as {', '.join(ENCODINGS)}; got {encoding!r}")
    if encoding == "compressed_segmentation":
        if layout.layer != "segmentation":
            raise InputError(f"{path} would be an image of {dtype}; compressed_segmentation is for labels, so say "
                             "--layer segmentation if it holds labels")
        dtype = np.dtype("uint32") if dtype.itemsize < 4 else dtype
    if encoding == "jpeg" and (layout.layer, dtype.name, source.ndim) != ("image", "uint8", 3):
        raise InputError(f"{path} would be {layout.layer} of {dtype} and shape {source.shape}; jpeg is for images "
                         "(z, y, x) of uint8, and loses what labels need")
    if dtype.name not in DTYPES:
        raise InputError(f"{path} cannot hold {dtype}; Neuroglancer's precomputed format has {', '.join(DTYPES)}")
    return dtype


def planned(source: Volume, path: Path, layout: Layout, dtype: np.dtype, encoding: str) -> Pyramid:
    """All levels and how each is stored; all channels of a voxel stand in one chunk."""
    shape, channels = source.shape[-3:], source.shape[0] if source.ndim == 4 else 1
    voxel = np.dtype((np.void, dtype.itemsize * channels))
    chunk = tuple(layout.chunks or choose_chunks(shape, voxel))
    if math.prod(chunk) * voxel.itemsize > MOST_CHUNK_BYTES:
        raise InputError(f"chunks of {chunk} {dtype} exceed {MOST_CHUNK_BYTES >> 20} MB; 64 64 64 suits viewers")
    resolution = source.resolution or (1.0, 1.0, 1.0)
    start = tuple(round(value / size) for value, size in zip(source.offset, resolution))
    levels = plan_levels(shape, start, source.resolution, chunk, layout.levels)
    leading = (channels,) * (source.ndim - 3)
    specs, chunks, units = [], [], []
    for level in levels:
        inner = tuple(min(size, length) for size, length in zip(chunk, level.shape))
        shard = shard_of(level, inner, voxel.itemsize)
        specs.append(spec_of(level, inner, shard, channels, dtype, layout.layer, encoding))
        chunks.append(leading + inner)
        units.append(leading + (shard or grown(inner, level.shape, voxel.itemsize, part_bytes(source))))
    return Pyramid(source, dtype, path, levels, tuple(specs), tuple(chunks), tuple(units),
                   by_mode(dtype, layout.layer), counts=layout.layer == "segmentation", workers=layout.workers)


def shard_of(level: Level, chunk: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """Voxels of a shard; None where the level has few enough chunks for a file each.

    The numbers of chunks interleave the bits of their places (x first), as long as an axis has bits left; a shard is
    all chunks that differ in the lowest bits, so it is a box of 2^a x 2^b x 2^c chunks.
    """
    grid = [-(-length // size) for length, size in zip(level.shape, chunk)]
    if math.prod(grid) <= MOST_CHUNK_FILES:
        return None
    left, size = [(count - 1).bit_length() for count in grid], list(chunk)
    while any(left):
        for axis in (2, 1, 0):
            if 2 * math.prod(size) * itemsize > SHARD_BYTES:
                return tuple(size)
            if left[axis]:
                left[axis] -= 1
                size[axis] *= 2
    return tuple(size)


def spec_of(level: Level, chunk: Sequence[int], shard: Sequence[int] | None, channels: int, dtype: np.dtype,
            layer: str, encoding: str) -> dict[str, Any]:
    """What tensorstore adds to `info` for a level."""
    about = {"key": "_".join(f"{size:.9g}" for size in reversed(level.resolution)), "size": level.shape[::-1],
             "resolution": level.resolution[::-1], "voxel_offset": level.start[::-1], "chunk_size": chunk[::-1],
             "encoding": encoding}
    if encoding == "compressed_segmentation":
        about["compressed_segmentation_block_size"] = [8, 8, 8]
    if encoding == "jpeg":
        about["jpeg_quality"] = JPEG_QUALITY
    if shard:
        bits = sum((-(-length // size) - 1).bit_length() for length, size in zip(level.shape, chunk))
        inside = sum((size // part - 1).bit_length() for size, part in zip(shard, chunk))
        packing = "raw" if encoding == "jpeg" else "gzip"
        about["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": inside,
                             "minishard_bits": 0, "shard_bits": bits - inside, "minishard_index_encoding": "gzip",
                             "data_encoding": packing}
    return {"driver": PRECOMPUTED, "scale_metadata": about,
            "multiscale_metadata": {"type": layer, "data_type": dtype.name, "num_channels": channels}}


def complete(pyramid: Pyramid, store: Path, is_labels: bool) -> None:
    """Adds the sizes of segments, and to `info` what viewers pass over: attributes, and the exact grid."""
    info = json.loads((store / "info").read_text())
    source = pyramid.source
    info["emcore"] = {"attributes": source.attrs, "offset": list(source.offset),
                      "resolution_known": source.resolution is not None, "channel_axis": source.ndim == 4}
    if is_labels:
        labels, sizes = pyramid.sizes()
        if len(labels) <= MOST_LISTED_SEGMENTS:
            (store / SIZES).mkdir(exist_ok=True)
            write_text(store / SIZES / "info", json.dumps(properties(labels, sizes)))
            info["segment_properties"] = SIZES
    write_text(store / "info", json.dumps(metadata.plain(info), indent=1))


def properties(labels: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """The table of sizes; beyond 32 bits a viewer has no whole numbers."""
    exact = not len(sizes) or int(sizes.max()) < 1 << 32
    size = {"id": "voxels", "type": "number", "data_type": "uint32" if exact else "float32",
            "description": "voxels of the segment", "values": (sizes if exact else sizes.astype(float)).tolist()}
    return {"@type": "neuroglancer_segment_properties",
            "inline": {"ids": [str(label) for label in labels.tolist()], "properties": [size]}}

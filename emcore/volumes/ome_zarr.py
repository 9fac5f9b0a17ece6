"""OME-Zarr 0.5 (zarr version 3 with shards) and 0.4 (version 2): a volume at several levels, by tensorstore."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import reported, write_text
from emcore.reading import read_text
from emcore.volumes import metadata
from emcore.volumes.formats import need_tensorstore, split_reference
from emcore.volumes.multiscale import SHARD_BYTES, Layout, Pyramid, grown, part_bytes
from emcore.volumes.pyramid import Level, by_mode, plan_levels
from emcore.volumes.volume import Volume
from emcore.volumes.writing import choose_chunks

VERSIONS = ("0.5", "0.4")
LABELS = "labels"
WHOLE = {"emcore": {"whole": True}}  # an attribute of arrays of which every chunk is written
MOST_METADATA = 16 << 20
MOST_CHUNK_BYTES = 1 << 30
COMPRESSION = {"image": 1, "segmentation": 3}  # levels of Zstandard: micrographs hardly shrink whatever is tried
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def write_ome_zarr(source: Volume, target: str | os.PathLike, layout: Layout | None = None,
                   version: str | None = None) -> None:
    """Writes a volume as OME-Zarr with coarser levels, in parallel processes.

    All is written into TARGET.unfinished and gets its name at the end; after an error or a kill the same call goes on
    where it ended.

    Args:
        source: the `Volume`, (z, y, x) or (c, z, y, x), of integers, floats or booleans (stored as uint8).
        target: a path such as raw.ome.zarr, which is replaced, or raw.ome.zarr:labels/NAME for labels of an image.
        layout: chunks, shards, levels and number of processes; the defaults of `Layout` by default.
        version: "0.5" (the default, zarr version 3 with shards) or "0.4" (zarr version 2, a file for each chunk);
            labels take that of their image.

    Raises:
        InputError: tensorstore (the extra remote) is missing, the source cannot be stored so, or the disk fails.

    Cost:
        Memory holds one part of the volume for each process; the time is mostly that of packing.

    Examples:
        >>> from emcore import volumes
        >>> raw = volumes.open_volume("raw.h5")  # doctest: +SKIP
        >>> volumes.write_ome_zarr(raw, "raw.ome.zarr")  # doctest: +SKIP
    """
    path, name = split_reference(target)
    layout = (layout or Layout()).checked(source)
    if layout.dtype.name not in DTYPES:
        raise InputError(f"{path} cannot hold {layout.dtype}; OME-Zarr is written of {', '.join(DTYPES)}")
    if version not in (*VERSIONS, None):
        raise InputError(f"OME-Zarr is written in the versions {' and '.join(VERSIONS)}; got {version}")
    name, count = (name or "").strip("/"), layout.levels
    if name:
        version, count = beside_image(path, name, layout, version)
    elif holds_others(path):
        raise InputError(f"{path} is a folder that holds other things than one volume; choose a name that is free")
    version = version or VERSIONS[0]
    if version == "0.4" and layout.shards:
        raise InputError("OME-Zarr 0.4 has no shards; write version 0.5, or leave the shards out")
    need_tensorstore(f"writing {path}")
    pyramid = planned(source, path / name if name else path, layout, version, count)
    is_labels = layout.layer == "segmentation"
    pyramid.write(lambda store: write_metadata(pyramid, store, version, is_labels))
    if name:
        add_to_labels(path, name.removeprefix(f"{LABELS}/"), version)


def planned(source: Volume, target: Path, layout: Layout, version: str, count: int | None) -> Pyramid:
    """All levels and how each is stored; a level smaller than a chunk is one chunk."""
    shape, dtype = source.shape[-3:], layout.dtype
    chunk = tuple(layout.chunks or choose_chunks(shape, dtype))
    if math.prod(chunk) * dtype.itemsize > MOST_CHUNK_BYTES:
        raise InputError(f"chunks of {chunk} {dtype} exceed {MOST_CHUNK_BYTES >> 20} MB; 64 64 64 suits viewers")
    # From the first voxel, not from the origin of the coordinates: every level says by a number of nm where it lies.
    levels = plan_levels(shape, (0, 0, 0), source.resolution, chunk, count)
    channels = (1,) * (source.ndim - 3)
    specs, chunks, units = [], [], []
    for level in levels:
        inner = tuple(min(size, length) for size, length in zip(chunk, level.shape))
        outer = shard_of(level.shape, inner, layout.shards, dtype) if version == "0.5" else None
        specs.append(spec_of(source.shape[:-3] + level.shape, dtype, channels + inner,
                             channels + outer if outer else None, COMPRESSION[layout.layer]))
        if outer:
            specs[-1]["metadata"]["attributes"] = attributes_of(source, level)
        chunks.append(channels + inner)
        units.append(channels + (outer or grown(inner, level.shape, dtype.itemsize, part_bytes(source))))
    return Pyramid(source, dtype, target, levels, tuple(specs), tuple(chunks), tuple(units),
                   by_mode(dtype, layout.layer), workers=layout.workers)


def shard_of(shape: Sequence[int], chunk: Sequence[int], shards: Sequence[int] | None,
             dtype: np.dtype) -> tuple[int, ...]:
    """Voxels of a shard: whole chunks, as asked for but none of them wholly beyond the level."""
    if shards is None:
        return grown(chunk, shape, dtype.itemsize, SHARD_BYTES)
    if any(size % part and size < length for size, part, length in zip(shards, chunk, shape)):
        raise InputError(f"shards must be whole multiples of the chunks {tuple(chunk)}; got {tuple(shards)}")
    return tuple(max(1, min(size // part, -(-length // part))) * part
                 for size, part, length in zip(shards, chunk, shape))


def attributes_of(source: Volume, level: Level) -> dict[str, Any]:
    """Our own attributes of a level: its resolution, the corner of its first voxel, which all levels share, and that
    a chunk that is missing is lost, not 0."""
    grid = metadata.written(level.resolution if source.resolution else None, source.offset, None)
    return {**source.attrs, **grid, **WHOLE}


def spec_of(shape: tuple[int, ...], dtype: np.dtype, chunk: tuple[int, ...], shard: tuple[int, ...] | None,
            compression: int) -> dict[str, Any]:
    """What tensorstore makes an array of, of version 3 where there is a shard."""
    if shard is None:
        about = {"zarr_format": 2, "shape": shape, "chunks": chunk, "dtype": np.dtype(dtype).newbyteorder("<").str,
                 "dimension_separator": "/", "order": "C", "filters": None, "fill_value": 0,
                 "compressor": {"id": "blosc", "cname": "zstd", "clevel": compression, "shuffle": 1}}
        return {"driver": "zarr", "metadata": about}
    numbers = {"name": "bytes", **({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})}
    packing = {"name": "zstd", "configuration": {"level": compression, "checksum": True}}
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": chunk, "codecs": [numbers, packing], "index_codecs": index, "index_location": "end"}
    about = {"zarr_format": 3, "node_type": "array", "shape": shape, "data_type": dtype.name, "fill_value": 0,
             "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
             "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
             "dimension_names": list("czyx"[-len(shape):]),
             "codecs": [{"name": "sharding_indexed", "configuration": sharding}]}
    return {"driver": "zarr3", "metadata": about}


def described(pyramid: Pyramid, version: str, is_labels: bool) -> dict[str, Any]:
    """The attributes of the group: axes, and the scale and translation of each level.

    The translation is that of a voxel's centre, as viewers have it, but for half a voxel of the finest level, so that
    the translation of that one is the offset and 0 stays 0.
    """
    source, finest = pyramid.source, pyramid.levels[0]
    unit = {"unit": "nanometer"} if source.resolution else {}
    leading = [1.0] * (source.ndim - 3)
    datasets = []
    for number, level in enumerate(pyramid.levels):
        shift = [place + (size - own) / 2
                 for place, size, own in zip(source.offset, level.resolution, finest.resolution)]
        steps = [{"type": "scale", "scale": [*leading, *level.resolution]},
                 {"type": "translation", "translation": [*(0.0 for _ in leading), *shift]}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    axes = [{"name": "c", "type": "channel"}] * len(leading) + [{"name": name, "type": "space", **unit}
                                                                for name in "zyx"]
    image = {"name": pyramid.target.name.partition(".")[0], "axes": axes, "datasets": datasets,
             "type": "mode" if pyramid.mode else "mean"}
    label = {"image-label": {"source": {"image": "../../"}} if pyramid.target.parent.name == LABELS else {}}
    if version == "0.4":
        image["version"] = version
        label["image-label"]["version"] = version
        return {"multiscales": [image], **(label if is_labels else {})}
    return {"ome": {"version": version, "multiscales": [image], **(label if is_labels else {})}}


def write_metadata(pyramid: Pyramid, store: Path, version: str, is_labels: bool) -> None:
    if version == "0.4":
        for number, level in enumerate(pyramid.levels):
            write_text(store / str(number) / ".zattrs", json.dumps(attributes_of(pyramid.source, level), indent=1))
    write_group(store, version, described(pyramid, version, is_labels))


def write_group(folder: Path, version: str, attributes: dict[str, Any]) -> None:
    """A group's metadata; until then no viewer takes the folder for an image."""
    if version == "0.5":
        about = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        write_text(folder / "zarr.json", json.dumps(about, indent=1))
        return
    write_text(folder / ".zgroup", json.dumps({"zarr_format": 2}))
    write_text(folder / ".zattrs", json.dumps(attributes, indent=1))


# ---- labels of an image


def holds_others(path: Path) -> bool:
    """Whether something stands there that is neither an OME-Zarr image nor a single array."""
    if not path.is_dir() or not any(path.iterdir()) or (path / ".zarray").is_file():
        return False
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        if json.loads(read_text(path / "zarr.json", MOST_METADATA)).get("node_type") == "array":
            return False
    return not (group_of(path) or ("", {}))[1].get("multiscales")


def group_of(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """The version of OME-Zarr and the attributes of a group; None where there is no such group."""
    for name, version in (("zarr.json", "0.5"), (".zattrs", "0.4")):
        if (folder / name).is_file():
            try:
                about = json.loads(read_text(folder / name, MOST_METADATA))
                found = about.get("attributes", {}).get("ome", {}) if version == "0.5" else about
                return (version, found) if isinstance(found, dict) else None
            except (ValueError, AttributeError, OSError, RecursionError) as error:
                raise InputError(f"{folder / name} cannot be read as the metadata of a group") from error
    return None


def beside_image(path: Path, name: str, layout: Layout, version: str | None) -> tuple[str, int]:
    """The version and the number of levels of the image to which labels are added."""
    if not name.startswith(f"{LABELS}/") or name.count("/") != 1 or name.endswith((".", "..")):
        raise InputError(f"{path} takes labels as {path}:{LABELS}/NAME; got {name!r}")
    if layout.layer != "segmentation":
        raise InputError(f"{path}:{name} would hold labels, but what is written is an image of {layout.dtype}; say "
                         "--layer segmentation if it holds labels")
    group = group_of(path)
    scales = (group[1].get("multiscales") or [None])[0] if group else None
    if not isinstance(scales, dict) or not isinstance(scales.get("datasets"), list):
        raise InputError(f"{path} is no OME-Zarr image to which labels could be added; write the image first")
    if version not in (None, group[0]):
        raise InputError(f"{path} is OME-Zarr {group[0]}, so its labels cannot be {version}")
    count = len(scales["datasets"])
    if layout.levels not in (None, count):
        raise InputError(f"{path} has {count} levels, and its labels need as many; got {layout.levels}")
    return group[0], count


def add_to_labels(path: Path, name: str, version: str) -> None:
    """Names the labels in the group that lists them."""
    group = group_of(path / LABELS)
    attributes = group[1] if group else {}
    listed = attributes.get(LABELS)
    names = sorted({*(listed if isinstance(listed, list) else []), name})
    attributes = {**attributes, LABELS: names}
    with reported(path):
        write_group(path / LABELS, version, {"ome": {"version": version, **attributes}} if version == "0.5"
                    else attributes)

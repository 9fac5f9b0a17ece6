"""Neuroglancer's precomputed format: a folder with `info` and uncompressed `raw` chunks at several scales.

Other chunks, and shards, are read by remote.py.

On disk the axes are x, y, z, c in Fortran order, which is c, z, y, x in C order: a chunk is read and written as it is.
"""

import gzip
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported, write_text
from emcore.progress import Progress
from emcore.reading import open_regular
from emcore.volumes import metadata
from emcore.volumes.volume import Listed, Listing, Volume, first_line
from emcore.volumes.writing import choose_chunks

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")
ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")
LAYERS = ("image", "segmentation")
MOST_INFO_BYTES = 4 << 20
MOST_CHUNK_BYTES = 1 << 30
OTHERS = {"mesh": "meshes", "multilod_draco": "meshes", "skeleton": "skeletons", "annotation": "annotations",
          "segment_properties": "properties of segments"}  # what else an info may describe
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Scale:
    """One level of the pyramid; voxels z y x, `start` counted from the origin of the coordinates."""

    key: str
    shape: Triple
    start: Triple
    chunk: Triple
    resolution: tuple[float, float, float]
    plain: bool = True  # uncompressed chunks, each a file of its own, as they are read and written here

    def chunks_of(self, box: Sequence[slice]) -> Iterator[tuple[Triple, Triple]]:
        """[low, high) of every chunk that meets the box, z y x within the scale."""
        ranges = [range(span.start // size * size, span.stop, size) for span, size in zip(box, self.chunk)]
        for low in itertools.product(*ranges):
            yield low, tuple(min(a + size, length) for a, size, length in zip(low, self.chunk, self.shape))

    def whole(self) -> tuple[slice, slice, slice]:
        return tuple(slice(0, length) for length in self.shape)


@dataclass(frozen=True, eq=False)
class ChunkFolder:
    """The chunk files of one scale, read and written by boxes (c,) z, y, x."""

    folder: Path
    scale: Scale
    channels: int
    dtype: np.dtype

    def path(self, low: Triple, high: Triple) -> Path:
        ends = [f"{a + start}-{b + start}" for a, b, start in zip(low, high, self.scale.start)]
        return self.folder / self.scale.key / "_".join(reversed(ends))

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        channels, spans = box[0] if len(box) == 4 else slice(0, 1, 1), box[-3:]
        counts = [len(range(span.start, span.stop, span.step or 1)) for span in (channels, *spans)]
        result = np.empty(counts[-len(box):], self.dtype)
        view = result.reshape(counts)
        for low, high in self.scale.chunks_of(spans):
            inner, outer = zip(*(meet(span, a, b) for span, a, b in zip(spans, low, high)))
            if all(part.start < part.stop for part in outer):  # steps may jump over a chunk
                view[:, *outer] = self.read(low, high)[channels, *inner]
        return result

    def __setitem__(self, box: tuple[slice, ...], block: np.ndarray) -> None:
        channels, spans = box[0] if len(box) == 4 else slice(0, 1), box[-3:]
        block = block if len(box) == 4 else block[None]
        for low, high in self.scale.chunks_of(spans):
            inner, outer = zip(*(meet(span, a, b) for span, a, b in zip(spans, low, high)))
            path, shape = self.path(low, high), self.chunk_shape(low, high)
            part = np.ascontiguousarray(block[:, *outer], self.dtype.newbyteorder("<"))
            if part.shape == shape:
                path.write_bytes(part.data)
                continue
            if not path.exists():
                path.write_bytes(bytes(math.prod(shape) * self.dtype.itemsize))
            if (part.shape[0], *part.shape[2:]) == (1, *shape[2:]) and self.channels == 1:  # sections: one run of bytes
                with open(path, "r+b") as file:
                    file.seek(inner[0].start * part[0, 0].nbytes)
                    file.write(part.data)
            else:
                whole = self.read(low, high).copy()
                whole[channels, *inner] = part
                path.write_bytes(whole.data)

    def chunk_shape(self, low: Triple, high: Triple) -> tuple[int, int, int, int]:
        return self.channels, *(b - a for a, b in zip(low, high))

    def read(self, low: Triple, high: Triple) -> np.ndarray:
        """One chunk (c, z, y, x); its file must have exactly the size that `info` promises."""
        path, shape = self.path(low, high), self.chunk_shape(low, high)
        expected = math.prod(shape) * self.dtype.itemsize
        packed = path.with_name(path.name + ".gz")
        if path.exists():
            with open_regular(path) as file:
                found = os.fstat(file.fileno()).st_size
                data = file.read(expected) if found == expected else b""
        elif packed.exists():  # cloud-volume's habit for local folders; no more is unpacked than a chunk may hold
            try:
                with open_regular(packed) as stored, gzip.open(stored) as file:
                    data = file.read(expected + 1)
            except (zlib.error, EOFError, OSError) as error:
                raise InputError(f"the chunk {packed} cannot be unpacked: {first_line(error)}") from error
            found = len(data)
        else:
            raise InputError(f"the chunk {path} is missing; copy the folder again or write it again")
        if found != expected:
            more = "more" if found > expected else "fewer"
            raise InputError(f"the chunk {path} holds {more} than the {expected} bytes that info promises for "
                             f"{self.dtype} {shape} (c, z, y, x); copy the folder again or write it again")
        return np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(shape)


def meet(span: slice, low: int, high: int) -> tuple[slice, slice]:
    """Where [low, high) meets a span: the slice within [low, high), and the slice within the result."""
    step = span.step or 1
    first = span.start if span.start >= low else low + (span.start - low) % step
    stop = min(span.stop, high)
    outer = (first - span.start) // step
    return slice(first - low, max(first, stop) - low, step), slice(outer, outer + len(range(first, stop, step)))


def read_info(path: Path) -> tuple[dict[str, Any], list[Scale]]:
    """The checked `info` of a folder, and its scales; nothing in it is believed before it is looked at."""
    try:
        with open_regular(path / "info") as file:
            text = file.read(MOST_INFO_BYTES + 1)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}/info cannot be read: {first_line(error)}") from error
    return checked_info(text, str(path))


def checked_info(text: bytes, path: str) -> tuple[dict[str, Any], list[Scale]]:
    """What an `info` says, and its scales; path: of its folder, for sentences."""
    try:
        info = json.loads(text) if len(text) <= MOST_INFO_BYTES else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}/info cannot be read as JSON: {first_line(error)}") from error

    def need(condition: bool, what: str, found: Any) -> None:
        if not condition:
            raise InputError(f"{path}/info {what}; got {str(found)[:80]}")

    need(isinstance(info, dict), f"must be a JSON object below {MOST_INFO_BYTES >> 20} MB", type(info).__name__)
    about = str(info.get("@type", ""))
    other = next((name for word, name in OTHERS.items() if word in about), None)
    need(other is None or "scales" in info, f"is of a folder of {other}, not of a volume; the volume that they belong "
         "to is most often the folder above", about)
    dtype, channels, scales = info.get("data_type"), info.get("num_channels", 1), info.get("scales")
    need(dtype in DTYPES, f"must have a data_type out of {', '.join(DTYPES)}", dtype)
    need(is_whole(channels) and 1 <= channels <= 1 << 16, "must have a positive number as num_channels", channels)
    need(isinstance(scales, list) and scales and all(isinstance(scale, dict) for scale in scales),
         "must have a list of scales", scales)
    result = []
    for scale in scales:
        key, encoding, sizes = scale.get("key"), scale.get("encoding"), scale.get("chunk_sizes")
        need(isinstance(key, str) and all(part not in ("", ".", "..") for part in key.split("/"))
             and not set(key) & set("\0\\:"), "must name each scale by a folder inside its own", repr(key))
        need(encoding in ENCODINGS, f"must have chunks encoded as {', '.join(ENCODINGS)} (scale {key})", encoding)
        need(isinstance(sizes, list) and sizes, f"must have chunk_sizes (scale {key})", sizes)
        fields = {"size": scale.get("size"), "voxel_offset": scale.get("voxel_offset", [0, 0, 0]),
                  "chunk_sizes": sizes[0]}
        for name, value in fields.items():
            need(isinstance(value, list) and len(value) == 3 and all(
                is_whole(item) and abs(item) < 1 << 40 and (item > 0 or name == "voxel_offset") for item in value),
                f"must have three whole numbers x, y, z as {name} (scale {key})", value)
        resolution = metadata.triple(scale.get("resolution"), f"the resolution in {path}/info", positive=True)
        found = Scale(key, *(tuple(reversed(value)) for value in fields.values()), tuple(reversed(resolution)),
                      encoding == "raw" and scale.get("sharding") is None)
        chunk = math.prod(min(a, b) for a, b in zip(found.chunk, found.shape)) * channels * np.dtype(dtype).itemsize
        need(chunk <= MOST_CHUNK_BYTES, f"must have chunks of at most {MOST_CHUNK_BYTES >> 20} MB (scale {key})", chunk)
        result.append(found)
    return info, result


def name_part(path: Path, key: str, folder: str) -> None:
    """Says in the info of a volume which folder in it holds its meshes, skeletons or segment properties."""
    info = json.loads((path / "info").read_text())
    if info.get(key) != folder:
        write_text(path / "info", json.dumps({**info, key: folder}, indent=1))


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def list_file(path: Path) -> Listing:
    """Every scale of the folder."""
    info, scales = read_info(path)
    return Listing(Listed(scale.key, shape_of(info, scale), np.dtype(info["data_type"]), chunks_of(info, scale),
                          "" if scale.plain else f"encoding {stored['encoding']}")
                   for stored, scale in zip(info["scales"], scales))


def has_channel_axis(info: dict[str, Any]) -> bool:
    return info.get("num_channels", 1) > 1 or ours(info).get("channel_axis") is True


def shape_of(info: dict[str, Any], scale: Scale) -> tuple[int, ...]:
    return (info.get("num_channels", 1), *scale.shape) if has_channel_axis(info) else scale.shape


def chunks_of(info: dict[str, Any], scale: Scale) -> tuple[int, ...]:
    chunk = tuple(min(size, length) for size, length in zip(scale.chunk, scale.shape))
    return (info.get("num_channels", 1), *chunk) if has_channel_axis(info) else chunk


def ours(info: dict[str, Any]) -> dict[str, Any]:
    """What we wrote beside the standard fields (viewers ignore it): attributes, and the grid where it was not exact."""
    return info["emcore"] if isinstance(info.get("emcore"), dict) else {}


def grid_of(info: dict[str, Any], scale: Scale, finest: Scale, path: str
            ) -> tuple[tuple[float, float, float] | None, tuple[float, float, float], dict[str, Any]]:
    """Resolution (None where it is not known), offset and attributes of a scale."""
    resolution, kept = scale.resolution, ours(info)
    offset = metadata.scaled(scale.start, resolution, f"voxel_offset times resolution in {path}/info")
    if "offset" in kept and scale is finest:
        exact = metadata.triple(kept["offset"], f"the offset in {path}/info")
        places = [value / size for value, size in zip(exact, resolution)]
        if all(math.isfinite(place) and round(place) == start for place, start in zip(places, scale.start)):
            offset = exact  # unless the standard fields were edited since
    if kept.get("resolution_known") is False and finest.resolution == (1.0, 1.0, 1.0):
        resolution = None
    attributes = metadata.plain(kept["attributes"]) if isinstance(kept.get("attributes"), dict) else {}
    return resolution, offset, attributes


def open_file(path: Path, dataset: str | None = None, kind: str | None = None) -> Volume:
    """A scale of the folder (named by its key; else the first, which is the finest) as a volume."""
    info, scales = read_info(path)
    scale = next((scale for scale in scales if scale.key == dataset), None) if dataset else scales[0]
    if scale is None:
        raise InputError(f"{path} has no scale {dataset!r}; it has: {', '.join(scale.key for scale in scales)}")
    if not scale.plain:  # remote.py imports this file, so it is not imported here
        return import_module("emcore.volumes.remote").open_file(path, scale.key, kind)
    resolution, offset, attributes = grid_of(info, scale, scales[0], str(path))
    connect = partial(ChunkFolder, path, scale, info.get("num_channels", 1), np.dtype(info["data_type"]))
    return Volume(str(path) + (f":{dataset}" if dataset else ""), shape_of(info, scale), np.dtype(info["data_type"]),
                  resolution, offset, attributes, chunks_of(info, scale), connect)


def pyramid(shape: Triple, start: Triple, chunk: Triple, resolution: tuple[float, float, float]) -> list[Scale]:
    """The scales of a volume, each half as fine in y and x, until a section fits one chunk.

    Voxel i of a scale covers 2i and 2i + 1 of the finer one, counted from the origin of the coordinates and not from
    the first voxel, so that the scales lie exactly on each other.
    """
    scales = []
    while True:
        key = "_".join(f"{size:.9g}" for size in reversed(resolution))
        scales.append(Scale(key, shape, start, tuple(min(a, b) for a, b in zip(chunk, shape)), resolution))
        if shape[1] <= chunk[1] and shape[2] <= chunk[2]:
            return scales
        stop = [start[0] + shape[0], *(-(-(a + b) // 2) for a, b in zip(start[1:], shape[1:]))]
        start = (start[0], start[1] // 2, start[2] // 2)
        shape = tuple(b - a for a, b in zip(start, stop))
        resolution = (resolution[0], resolution[1] * 2, resolution[2] * 2)


@contextmanager
def create_precomputed(path: Path, shape: tuple[int, ...], dtype: np.dtype, attributes: dict[str, Any],
                       chunks: tuple[int, ...] | None = None, layer: str | None = None,
                       progress: Progress | None = None) -> Iterator[tuple[ChunkFolder, tuple[int, ...]]]:
    """The finest scale to write into, and its chunks; the coarser ones and `info` follow when the block ends.

    layer "image" averages four voxels into one, "segmentation" takes the most frequent of the four labels (the first in
    the order of reading among equals); by default uint32 and uint64 are a segmentation. The voxels of the coarser
    scales are added to the total of the progress, and then counted.
    """
    layer = layer or ("segmentation" if dtype in (np.uint32, np.uint64) else "image")
    if layer not in LAYERS:
        raise InputError(f"a precomputed layer is image or segmentation; got {layer!r}")
    if layer == "segmentation" and dtype.kind != "u":
        raise InputError(f"{path} cannot be a segmentation of {dtype}: labels are unsigned integers")
    if dtype.name not in DTYPES:
        raise InputError(f"{path} cannot hold {dtype}; Neuroglancer's precomputed format has {', '.join(DTYPES)}")
    if path.is_dir() and any(path.iterdir()) and not (path / "info").is_file():
        raise InputError(f"{path} is a folder without info, so no precomputed volume; choose a name that is free")
    channels = shape[0] if len(shape) == 4 else 1
    voxel = np.dtype((np.void, dtype.itemsize * channels))  # a chunk file holds all channels
    chunk = chunks[-3:] if chunks else choose_chunks(shape[-3:], voxel)
    if math.prod(chunk) * voxel.itemsize > MOST_CHUNK_BYTES:
        raise InputError(f"chunks of {chunk} {dtype} exceed {MOST_CHUNK_BYTES >> 20} MB; 64 64 64 suits viewers")
    resolution, offset = metadata.read_grid([attributes], str(path))
    known, resolution = resolution is not None, resolution or (1.0, 1.0, 1.0)
    start = tuple(round(value / size) for value, size in zip(offset, resolution))
    scales = pyramid(shape[-3:], start, chunk, resolution)
    info = {
        "@type": "neuroglancer_multiscale_volume", "type": layer, "data_type": dtype.name, "num_channels": channels,
        "scales": [info_of(scale) for scale in scales],
        "emcore": {"attributes": metadata.without_grid(attributes), "offset": list(offset), "resolution_known": known,
                   "channel_axis": len(shape) == 4},
    }
    if progress and progress.total is not None:
        progress.total += sum(channels * math.prod(scale.shape) for scale in scales[1:])
    with replaced(path) as temporary:
        folders = [ChunkFolder(temporary, scale, channels, dtype) for scale in scales]
        with reported(path):
            temporary.mkdir()
            for scale in scales:
                (temporary / scale.key).mkdir()
        yield folders[0], (channels,) * (len(shape) - 3) + scales[0].chunk
        with reported(path):
            for low, high in scales[0].chunks_of(scales[0].whole()):
                path_of_chunk = folders[0].path(low, high)
                if not path_of_chunk.exists():
                    path_of_chunk.write_bytes(bytes(math.prod(folders[0].chunk_shape(low, high)) * dtype.itemsize))
            for finer, coarser in itertools.pairwise(folders):
                shrink(finer, coarser, layer == "segmentation" or dtype.itemsize == 8, progress)
            (temporary / "info").write_text(json.dumps(info, indent=1))


def create_file(path: Path, dataset: str | None, shape: tuple[int, ...], dtype: np.dtype, attributes: dict[str, Any],
                chunks: tuple[int, ...] | None, compression: str | None):
    """create_precomputed as create_volume calls it."""
    if dataset:
        raise InputError(f"{path} holds one volume at several scales, no dataset {dataset!r}")
    return create_precomputed(path, shape, dtype, attributes, chunks)


def info_of(scale: Scale) -> dict[str, Any]:
    """The entry of a scale in `info`, x y z."""
    fields = {name: list(reversed(value)) for name, value in asdict(scale).items() if name not in ("key", "plain")}
    return {"key": scale.key, "encoding": "raw", "size": fields["shape"], "resolution": fields["resolution"],
            "voxel_offset": fields["start"], "chunk_sizes": [fields["chunk"]]}


def shrink(finer: ChunkFolder, coarser: ChunkFolder, by_mode: bool, progress: Progress | None) -> None:
    """Writes a scale from the next finer one, chunk by chunk."""
    for low, high in coarser.scale.chunks_of(coarser.scale.whole()):
        spans, margins = [slice(low[0], high[0])], [(0, 0), (0, 0)]
        for axis in (1, 2):
            first = 2 * (low[axis] + coarser.scale.start[axis]) - finer.scale.start[axis]
            last = first + 2 * (high[axis] - low[axis])
            spans.append(slice(max(0, first), min(finer.scale.shape[axis], last)))
            margins.append((max(0, -first), max(0, last - finer.scale.shape[axis])))
        block = finer[slice(0, finer.channels), *spans]
        # Repeating the edge makes the mean and the mode of an incomplete window those of the voxels that it has.
        block = np.pad(block, margins, mode="edge") if any(map(any, margins)) else block
        small = mode_of_four(block) if by_mode else mean_of_four(block)
        coarser[slice(0, coarser.channels), *(slice(a, b) for a, b in zip(low, high))] = small
        if progress:
            progress.add(small.size)


def mean_of_four(block: np.ndarray) -> np.ndarray:
    """The mean of every 2 x 2 window of the last two axes, halves rounded up."""
    wide = block.dtype if block.dtype.kind == "f" else np.int64 if block.itemsize == 4 else np.int32
    rows = np.add(block[..., 0::2, :], block[..., 1::2, :], dtype=wide)
    four = rows[..., 0::2] + rows[..., 1::2]
    return (four / 4 if block.dtype.kind == "f" else (four + 2) >> 2).astype(block.dtype)


def mode_of_four(block: np.ndarray) -> np.ndarray:
    """The most frequent value of every 2 x 2 window of the last two axes; of equals, the first in reading order."""
    a, b = block[..., 0::2, 0::2], block[..., 0::2, 1::2]
    c, d = block[..., 1::2, 0::2], block[..., 1::2, 1::2]
    # a occurs twice, or else b does (then a pair of others is not more frequent), or else c and d are the only pair
    return np.where((a == b) | (a == c) | (a == d), a, np.where((b == c) | (b == d), b, np.where(c == d, c, a)))

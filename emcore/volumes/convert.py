"""python -m emcore convert A B: copies a volume between formats block by block, its grid and attributes kept."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from emcore.errors import InputError
from emcore.progress import Progress
from emcore.volumes import Volume, Writer, create_volume, list_datasets, metadata, open_volume, split_reference
from emcore.volumes.address import is_address, without_secrets
from emcore.volumes.fetched import box_of, fetching, part_of
from emcore.volumes.multiscale import Layout
from emcore.volumes.ome_zarr import write_ome_zarr
from emcore.volumes.precomputed import LAYERS, create_precomputed
from emcore.volumes.precomputed_writing import ENCODINGS, write_precomputed
from emcore.volumes.volume import IMAGE_KEYS, LABEL_KEYS
from emcore.volumes.writing import recast

BLOCK_BYTES = 64 << 20
VIEWER_FORMATS = ("ome-zarr", "ome-zarr-0.4", "precomputed")
SECTION_VOXELS = 1 << 21  # If a chunk has more in y and x, reading a part of it is waste.
LABEL_NAMES = {key.rpartition("/")[2] for key in LABEL_KEYS if key not in IMAGE_KEYS}


def convert(source: Volume, target: str, dtype: np.dtype | None = None, resolution: Sequence[float] | None = None,
            chunks: Sequence[int] | None = None, layer: str | None = None, reference: str | None = None) -> None:
    """Writes the source volume to `target` (path or path:dataset), replacing what has that name.

    reference: from which the source was opened; what is fetched from an address is kept until all is there.

    A precomputed target is a segmentation where `layer` says so, the type is uint32 or uint64, or the dataset is named
    like labels: small types hold labels, too, and their mean would be nonsense.
    """
    dtype = np.dtype(dtype or source.dtype)
    if dtype.kind == "b" and is_precomputed(target):
        dtype = np.dtype("uint8")
    layer = layer or layer_of(source, dtype)
    chunks = (1,) * (source.ndim - 3) + tuple(chunks) if chunks else None
    with (Progress(source.size, f"{source.name} -> {target}", "voxels") as progress,
          created(target, source, dtype, resolution or source.resolution, chunks, layer, progress) as writer):
        voxel_bytes = max(source.dtype.itemsize, dtype.itemsize)
        wanted = blocks(source.shape, source.chunks, writer.chunks, BLOCK_BYTES // voxel_bytes)
        found = nullcontext((box, None) for box in wanted)
        if reference is not None and is_address(reference):
            found = fetching(source, reference, split_reference(target)[0], wanted)
        with found as parts:
            for box, block in parts:
                block = source[box] if block is None else block
                writer[box] = block if dtype == source.dtype else recast(block, dtype, source.name)
                progress.add(block.size)
                del block  # or the next one is read while this one still takes its memory


def layer_of(source: Volume, dtype: np.dtype) -> str | None:
    """segmentation where unsigned integers are named like labels; else nothing is known."""
    is_named = source.name.replace(":", "/").rpartition("/")[2] in LABEL_NAMES
    return "segmentation" if is_named and dtype.kind == "u" else None


@contextmanager
def created(target: str, source: Volume, dtype: np.dtype, resolution: Sequence[float] | None,
            chunks: tuple[int, ...] | None, layer: str | None, progress: Progress) -> Iterator[Writer]:
    """The writer of the target; a precomputed one also takes the layer and reports its coarser scales."""
    if not is_precomputed(target):
        with create_volume(target, source.shape, dtype, resolution, source.offset, source.attrs, chunks) as writer:
            yield writer
        return
    path, dataset = split_reference(target)
    if dataset:
        raise InputError(f"{path} holds one volume, no dataset {dataset!r}")
    stored = metadata.written(resolution, source.offset, source.attrs)
    with create_precomputed(path, source.shape, dtype, stored, chunks, layer, progress) as (chunk_folder, used):
        yield Writer(path, source.shape, dtype, used, chunk_folder)


def is_precomputed(target: str) -> bool:
    return split_reference(target)[0].suffix.lower() == ".precomputed"


def blocks(shape: Sequence[int], source_chunks: Sequence[int] | None, target_chunks: Sequence[int] | None,
           voxels: int) -> Iterator[tuple[slice, ...]]:
    """Boxes that cover the shape in order, of at most `voxels` each unless a single chunk is larger.

    Where no block can be a multiple of the chunks of both sides, the side is respected whose neglect costs more.
    """
    ones = (1,) * len(shape)
    source_chunks, target_chunks = source_chunks or ones, target_chunks or ones
    plans = [grown(shape, first, second, voxels)
             for first, second in ((source_chunks, target_chunks), (target_chunks, source_chunks))]
    size = min(plans, key=lambda plan: touches(shape, plan, source_chunks) + touches(shape, plan, target_chunks))
    yield from boxes(shape, size)


def boxes(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of that size that cover the shape, the last axis fastest (itertools.product would list every axis)."""
    if not shape:
        yield ()
        return
    for start in range(0, shape[0], size[0]):
        for rest in boxes(shape[1:], size[1:]):
            yield slice(start, min(start + size[0], shape[0])), *rest


def grown(shape: Sequence[int], first: Sequence[int], second: Sequence[int], voxels: int) -> list[int]:
    """The size of a block: whole chunks of `first`, grown to those of `second` and then to the volume, x before z."""
    size = [min(chunk, length) for chunk, length in zip(first, shape)]
    for wanted in ([math.lcm(a, b) for a, b in zip(first, second)], shape):
        for axis in reversed(range(len(shape))):
            room = voxels // (math.prod(size) // size[axis])
            if room >= shape[axis] and wanted[axis] >= shape[axis]:
                size[axis] = shape[axis]
            else:
                size[axis] = max(1, min(wanted[axis], room) // size[axis]) * size[axis]
    return size


def touches(shape: Sequence[int], size: Sequence[int], chunks: Sequence[int]) -> float:
    """How often a chunk is read or written on the average, when blocks of this size are."""
    times = 1.0
    for length, step, chunk in zip(shape, size, chunks):
        if step < length:  # a block meets (step - gcd) / chunk + 1 chunks, the mean over its places on their grid
            times *= 1 + (chunk - math.gcd(step, chunk)) / step
    return times


def refuse_existing(target: str) -> None:
    """Refuses a target that exists; a new dataset in an existing HDF5 or zarr file is welcome."""
    path, dataset = split_reference(target)
    if not path.exists():
        return
    names = list_datasets(path).names if dataset else []
    if dataset and not any(f"{name}/".startswith(f"{dataset.strip('/')}/") for name in names):
        return
    raise InputError(f"{target} exists already; choose another name, or add --force to replace it")


def main(arguments: Sequence[str]) -> None:
    settings = parsed(arguments)
    try:
        dtype = np.dtype(settings.dtype) if settings.dtype else None
    except (TypeError, ValueError):
        raise InputError(f"--dtype must be a numpy type like uint8 or float32; got {settings.dtype}") from None
    if is_address(settings.target):
        raise InputError("the target is an address; volumes are written to paths of this machine")
    kind = wanted_format(settings)
    source = open_volume(settings.source, scale=settings.scale)
    if settings.resolution:  # before the box, whose place in nm follows from it
        source = replace(source, resolution=metadata.triple(settings.resolution, "--resolution", positive=True))
    if settings.box:
        source = part_of(source, box_of(settings.box, source.shape))
    if not settings.force:
        refuse_existing(settings.target)
    if kind is None:
        convert(source, settings.target, dtype, settings.resolution, settings.chunks, settings.layer,
                settings.source)
    else:
        convert_for_viewers(source, settings, kind, dtype)
    resolution = settings.resolution or source.resolution
    if resolution is None:
        print(f"note: {source.name} has no resolution; --resolution Z Y X (in nm) writes one", file=sys.stderr)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m emcore convert", description=(
            "Copy a volume between formats: from HDF5, npy, TIFF, images, MRC, zarr, precomputed, N5 and addresses to "
            "HDF5, npy, TIFF, zarr, OME-Zarr and precomputed."),
        epilog="Example: python -m emcore convert sample.hdf:volumes/raw raw.precomputed")
    parser.add_argument("source", help="path, path:dataset, or address (https://, gs://, s3://)")
    parser.add_argument("target", help="the same; its ending names the format: .h5 .npy .tif .zarr .ome.zarr "
                                       ".precomputed; labels of an OME-Zarr image are IMAGE.ome.zarr:labels/NAME")
    parser.add_argument("--resolution", nargs=3, type=float, metavar=("Z", "Y", "X"),
                        help="nm per voxel, where the source says none or a wrong one")
    parser.add_argument("--chunks", nargs=3, type=int, metavar=("Z", "Y", "X"), help="blocks in which to store")
    parser.add_argument("--box", metavar="Z0:Z1,Y0:Y1,X0:X1",
                        help="voxels of the source that are copied, counted from its first one")
    parser.add_argument("--scale", help="of the source: name, number from 0, or nm as in 32nm (default: the finest)")
    parser.add_argument("--dtype", help="another type of the voxels; refused where a value would change")
    parser.add_argument("--layer", choices=LAYERS,
                        help="what a volume for viewers is (default: uint32 and uint64 are a segmentation)")
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    viewers = parser.add_argument_group("for viewers", (
        "These write with the extra remote, in parts that a later run of the same command goes on with."))
    viewers.add_argument("--format", choices=VIEWER_FORMATS, help=(
        "ome-zarr (version 0.5, the default of .ome.zarr), ome-zarr-0.4 (zarr version 2), or precomputed with "
        "compressed labels and shards (a .precomputed target without it needs no extra, and is raw and unsharded)"))
    viewers.add_argument("--encoding", choices=ENCODINGS, help=(
        "chunks of precomputed (default: compressed_segmentation of a segmentation, raw of an image)"))
    viewers.add_argument("--shards", nargs=3, type=int, metavar=("Z", "Y", "X"), help="voxels of a file of OME-Zarr")
    viewers.add_argument("--levels", type=int, help="how many, the finest included (default: until one is a chunk)")
    viewers.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    return parser.parse_args(arguments)


def wanted_format(settings: argparse.Namespace) -> str | None:
    """Which of VIEWER_FORMATS to write; None for the plain copy."""
    path, kind = split_reference(settings.target)[0], settings.format
    if kind is None and path.name.lower().endswith(".ome.zarr"):
        kind = "ome-zarr"
    if kind is None and is_precomputed(settings.target) and settings.encoding:
        kind = "precomputed"
    if kind is None:
        for name in ("encoding", "shards", "levels"):
            if getattr(settings, name):
                raise InputError(f"--{name} is for viewers: name the target .ome.zarr, or choose a --format")
        if settings.workers != 1:
            raise InputError("--workers is for viewers: name the target .ome.zarr, or choose a --format")
        if settings.layer and not is_precomputed(settings.target):
            raise InputError(f"--layer is for a .precomputed or .ome.zarr target; got {settings.target}")
        return None
    suffix = ".precomputed" if kind == "precomputed" else ".zarr"
    if path.suffix.lower() != suffix:
        raise InputError(f"--format {kind} writes a target that ends in {suffix}; got {settings.target}")
    if settings.encoding and kind != "precomputed":
        raise InputError(f"--encoding is for --format precomputed; got {kind}")
    return kind


def convert_for_viewers(source: Volume, settings: argparse.Namespace, kind: str, dtype: np.dtype | None) -> None:
    """Writes one of VIEWER_FORMATS."""
    layer = settings.layer or layer_of(source, np.dtype(dtype or source.dtype))
    layout = Layout(settings.chunks, settings.shards, settings.levels, layer, dtype, settings.workers)
    if source.chunks and math.prod(source.chunks[-2:]) > SECTION_VOXELS:
        print(f"note: {source.name} is stored in whole sections, which every part reads again; a copy in blocks "
              f"(python -m emcore convert {without_secrets(settings.source)} COPY.h5) is quicker to convert",
              file=sys.stderr)
    if kind == "precomputed":
        write_precomputed(source, settings.target, layout, settings.encoding)
    else:
        write_ome_zarr(source, settings.target, layout, "0.4" if kind == "ome-zarr-0.4" else None)

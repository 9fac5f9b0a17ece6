"""python -m emcore convert A B: copies a volume between formats block by block, its grid and attributes kept."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np

from emcore.errors import InputError
from emcore.progress import Progress
from emcore.volumes import Volume, Writer, create_volume, list_datasets, metadata, open_volume, split_reference
from emcore.volumes.address import is_address
from emcore.volumes.fetched import box_of, fetching, part_of
from emcore.volumes.precomputed import LAYERS, create_precomputed
from emcore.volumes.volume import IMAGE_KEYS, LABEL_KEYS

BLOCK_BYTES = 64 << 20
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
    if layer is None and dtype.kind == "u" and source.name.replace(":", "/").rpartition("/")[2] in LABEL_NAMES:
        layer = "segmentation"
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


def recast(block: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The block in another type; refused unless every value survives."""
    if block.dtype.kind == dtype.kind and block.dtype.itemsize <= dtype.itemsize:
        return block.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        converted = block.astype(dtype)
        back = converted.astype(block.dtype)
    kept = (back == block) & ((converted < 0) == (block < 0))
    if dtype.kind == "f":
        if block.dtype.kind == "f":
            kept |= np.isnan(block)
        else:  # beyond this not every integer has a float of its own
            kept &= (block <= 2 ** (np.finfo(dtype).nmant + 1)) & (block >= -(2 ** (np.finfo(dtype).nmant + 1)))
    if not kept.all():
        value = block[~kept][0]
        raise InputError(f"{name} holds {value!s}, which {dtype} cannot hold; scale or relabel it first, "
                         f"or keep its type {block.dtype}")
    return converted


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
    if dataset and dataset.strip("/") not in list_datasets(path).names:
        return
    raise InputError(f"{target} exists already; choose another name, or add --force to replace it")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m emcore convert",
        description="Copy a volume between HDF5, npy, TIFF, zarr and precomputed; also from N5 and addresses.",
        epilog="Example: python -m emcore convert sample.hdf:volumes/raw raw.precomputed")
    parser.add_argument("source", help="path, path:dataset, or address (https://, gs://, s3://)")
    parser.add_argument("target", help="the same; its ending names the format: .h5 .npy .tif .zarr .precomputed")
    parser.add_argument("--resolution", nargs=3, type=float, metavar=("Z", "Y", "X"),
                        help="nm per voxel, where the source says none or a wrong one")
    parser.add_argument("--chunks", nargs=3, type=int, metavar=("Z", "Y", "X"), help="blocks in which to store")
    parser.add_argument("--box", metavar="Z0:Z1,Y0:Y1,X0:X1",
                        help="voxels of the source that are copied, counted from its first one")
    parser.add_argument("--scale", help="of the source: name, number from 0, or nm as in 32nm (default: the finest)")
    parser.add_argument("--dtype", help="another type of the voxels; refused where a value would change")
    parser.add_argument("--layer", choices=LAYERS,
                        help="what a precomputed volume is (default: uint32 and uint64 are a segmentation)")
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    settings = parser.parse_args(arguments)
    if settings.layer and not is_precomputed(settings.target):
        raise InputError(f"--layer is for a .precomputed target; got {settings.target}")
    try:
        dtype = np.dtype(settings.dtype) if settings.dtype else None
    except (TypeError, ValueError):
        raise InputError(f"--dtype must be a numpy type like uint8 or float32; got {settings.dtype}") from None
    if is_address(settings.target):
        raise InputError("the target is an address; volumes are written to paths of this machine")
    source = open_volume(settings.source, scale=settings.scale)
    if settings.box:
        source = part_of(source, box_of(settings.box, source.shape))
    if not settings.force:
        refuse_existing(settings.target)
    convert(source, settings.target, dtype, settings.resolution, settings.chunks, settings.layer,
            settings.source)
    resolution = settings.resolution or source.resolution
    if resolution is None:
        print(f"note: {source.name} has no resolution; --resolution Z Y X (in nm) writes one", file=sys.stderr)

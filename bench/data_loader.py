"""Samples a second of the loader, and what all its processes hold, against bare reads of the same crops.

The volume is made here: compressed chunks of smooth noise are written as they are, in no particular order, so that
2 Gvoxel take seconds and no memory.
"""

import multiprocessing
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from bench.data_rows import Result
from emcore.data.sampler import Sampler, load
from emcore.data.sources import open_sources
from emcore.settings.data import Data, VolumeFiles

PATCH = (18, 256, 256)
CHUNK = (16, 128, 128)
BATCH = 2


def _chunks(number: int) -> list[np.ndarray]:
    """Different chunks of grey values that compress to about half, as micrographs do."""
    random = np.random.default_rng(0)
    out = []
    for _ in range(number):
        grey = random.integers(40, 200, [n // 4 for n in CHUNK])
        for axis in range(3):
            grey = grey.repeat(4, axis)
        out.append((grey + random.integers(0, 12, CHUNK)).astype(np.uint8))
    return out


def make_hdf5(path: Path, shape: tuple[int, int, int]) -> None:
    """A gzip HDF5 volume of any size in bounded memory."""
    packed = [zlib.compress(chunk.tobytes(), 4) for chunk in _chunks(64)]
    random = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", shape, np.uint8, chunks=CHUNK, compression="gzip", compression_opts=4)
        raw.attrs["resolution"] = (40, 4, 4)
        for corner in np.ndindex(*(-(-n // c) for n, c in zip(shape, CHUNK))):
            place = tuple(int(i) * c for i, c in zip(corner, CHUNK))
            raw.id.write_direct_chunk(place, packed[int(random.integers(len(packed)))])


def make_zarr(path: Path, shape: tuple[int, int, int]) -> None:
    import zarr
    raw = zarr.create_array(path, shape=shape, dtype="uint8", chunks=CHUNK, attributes={"resolution": [40, 4, 4]})
    chunks, random = _chunks(8), np.random.default_rng(1)
    for corner in np.ndindex(*(-(-n // c) for n, c in zip(shape, CHUNK))):
        box = tuple(slice(int(i) * c, min(n, (int(i) + 1) * c)) for i, c, n in zip(corner, CHUNK, shape))
        raw[box] = chunks[int(random.integers(8))][tuple(slice(0, s.stop - s.start) for s in box)]


def held(pids: list[int]) -> int:
    """Bytes that processes hold, what they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended in the meantime
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def family() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def ours(sampler: Sampler, workers: int, samples: int) -> tuple[float, int]:
    """Seconds a sample, and the most that all processes held."""
    numbers = [list(range(n, n + BATCH)) for n in range(0, samples, BATCH)]
    most, start = 0, time.perf_counter()
    looked = 0.0
    for count, batch in enumerate(load(sampler, numbers, workers)):
        assert batch["image"].shape[2:] == PATCH
        if count in (len(numbers) // 2, len(numbers) - 1):
            now = time.perf_counter()
            most = max(most, held(family()))
            looked += time.perf_counter() - now
    return (time.perf_counter() - start - looked) / samples, most


def bare(job: Callable[[list], None], crops: list, processes: int) -> float:
    """Seconds a crop, read by as many processes, each its share."""
    start = time.perf_counter()
    if processes == 0:
        job(crops)
    else:
        context = multiprocessing.get_context("fork")
        running = [context.Process(target=job, args=(crops[n::processes],)) for n in range(processes)]
        for process in running:
            process.start()
        for process in running:
            process.join()
    return (time.perf_counter() - start) / len(crops)


def _hdf5_crops(path: Path, crops: list) -> None:
    with h5py.File(path, "r", locking=False) as file:
        for box in crops:
            file["raw"][box]


def _zarr_crops(path: Path, crops: list) -> None:
    import zarr
    array = zarr.open_array(path, mode="r")
    for box in crops:
        array[box]


def rows(path: Path, storage: str, job: Callable[[list], None], samples: int, repeats: int, workers: tuple[int, ...],
         peer: str, goal: str) -> Iterator[Result]:
    """One line for each number of workers; ours and bare reads in turns, the best of each."""
    data = Data(train=(VolumeFiles(str(path)),), patch=PATCH, storage=storage)
    sampler = Sampler(open_sources(data, "train"), data, 0)
    crops = []
    for number in range(samples):
        corner = sampler.place(number)[1]
        crops.append(tuple(slice(c, c + p) for c, p in zip(corner, PATCH)))
    for count in workers:
        found = [(ours(sampler, count, samples), bare(job, crops, count)) for _ in range(repeats)]
        most = max(memory for (_, memory), _ in found) / 2**20
        yield Result(f"{path.name}, {storage}, {count} workers", min(seconds for (seconds, _), _ in found), peer,
                     min(seconds for _, seconds in found), goal if count == 2 else "", f"{most:.0f} MiB held")


def loader(folder: Path, gigavoxels: float, samples: int, repeats: int) -> Iterator[Result]:
    """The HDF5 volume of that size, smaller ones in memory and as zarr."""
    wide = 2048
    large, small = (max(32, round(g * 1e9 / wide**2 / 16) * 16) for g in (gigavoxels, min(gigavoxels, 0.25)))
    path = folder / "volume.h5"
    make_hdf5(path, (large, wide, wide))
    yield from rows(path, "lazy", lambda crops: _hdf5_crops(path, crops), samples, repeats, (0, 1, 2, 4), "h5py",
                    ">= 0.85, < 1000 MiB")
    path.unlink()
    memory = folder / "memory.h5"
    make_hdf5(memory, (small, wide, wide))
    data = Data(train=(VolumeFiles(str(memory)),), patch=PATCH)
    source = open_sources(data, "train")[0]

    def sliced(crops: list) -> None:
        for box in crops:
            np.ascontiguousarray(source.arrays["image"][box])

    yield from rows(memory, "memory", sliced, 8 * samples, repeats, (0, 1, 2, 4), "numpy", ">= 0.5")
    try:
        import zarr  # noqa: F401 (only whether it is there)
    except ImportError:
        print("zarr is not installed: no rows of it")
        return
    path = folder / "volume.zarr"
    make_zarr(path, (32, wide, wide))
    yield from rows(path, "lazy", lambda crops: _zarr_crops(path, crops), samples, repeats, (0, 1, 2, 4), "zarr", "")
    shutil.rmtree(path)

"""A prediction as a work of the engines: tiles of the volume, each a task that computes every window that touches it.

A tile is a block file, and the prediction reads them all as one dataset. A volume that is one tile is one plain file.
Any number of processes may work on one prediction: nothing but files is shared.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore.blocks import share, store
from emcore.blocks.grid import Grid
from emcore.blocks.windows import extent
from emcore.blocks.work import Stage, Work, digest_of
from emcore.errors import InputError
from emcore.files import assembled, remove, reported, write_text
from emcore.prediction import begun
from emcore.prediction.windows import starts, step_of, touching
from emcore.progress import Progress, quantity
from emcore.record import ATTRIBUTE, changed, digest, listed, same_volume
from emcore.settings.predict import Infer
from emcore.volumes import create_volume, split_reference
from emcore.volumes.blocks import is_whole, join_blocks, write_block
from emcore.volumes.stamp import stamp

Triple = tuple[int, int, int]
DTYPES = {"float32": "float32", "float16": "float16", "uint8": "uint8", "affinity8": "uint8"}
PIECE = 2**25  # bytes of sums that are finished at a time, but whole sections
SMALL = 2**27  # voxels of the largest volume that is one tile, and of the largest tile
MOST = 1_500_000_000  # bytes that a process takes for a tile, besides the net


# ---- which tiles


class Task(NamedTuple):
    """A prediction, by what its memory and its time depend on."""

    shape: Triple
    infer: Infer  # with its window
    read: int  # bytes a voxel of the image
    channels: int  # of the net

    @property
    def lattice(self) -> list[list[int]]:
        """First voxels of the windows along each axis of the padded volume."""
        return [starts(n + 2 * pad, window, self.infer.overlap)
                for n, pad, window in zip(self.shape, self.infer.pad, self.infer.window)]

    def memory(self, tile: Triple) -> int:
        """Bytes that a process takes for a tile besides the net, about: sums, image, sections and what is written."""
        window, plane = self.infer.window, tile[1] * tile[2]
        wide = [min(n + 2 * w, length + 2 * pad + w) for n, w, length, pad
                in zip(tile[1:], window[1:], self.shape[1:], self.infer.pad[1:])]
        kept = len(self.infer.select) or self.channels
        written = kept * np.dtype(DTYPES[self.infer.dtype]).itemsize * tile[0] * plane if tile != self.shape else 2**28
        return (4 * (self.channels + 1) * window[0] * plane + 3 * self.read * window[0] * prod(wide)
                + 5 * max(PIECE, 4 * self.channels * plane) + written)


def tile_of(task: Task) -> Triple:
    """The tile that infer.tile asks for, or the one with which the fewest windows are computed in the memory there is.

    A window that touches several tiles is computed for each of them.
    """
    asked = task.infer.tile or (0, 0, 0)
    if not any(asked) and prod(task.shape) <= SMALL and task.memory(task.shape) <= MOST:
        return task.shape
    sides = [[min(wanted, length)] if wanted else sides_of(length, window, task.infer.overlap)
             for wanted, length, window in zip(asked, task.shape, task.infer.window)]
    windows = [{side: windows_in_all(places, window, length, pad, side) for side in choice}
               for places, window, length, pad, choice
               in zip(task.lattice, task.infer.window, task.shape, task.infer.pad, sides)]
    tiles = list(product(*sides))
    fitting = [tile for tile in tiles if prod(tile) <= SMALL and task.memory(tile) <= MOST]
    if not fitting:
        return min(tiles, key=lambda tile: (task.memory(tile), tile))
    return min(fitting, key=lambda tile: (prod(count[side] for count, side in zip(windows, tile)), tile))


def sides_of(length: int, window: int, overlap: float) -> list[int]:
    """Sides that a tile may have along an axis: whole steps of the windows, or all of it."""
    step = step_of(window, overlap)
    counts = {round(1.3**power) for power in range(30)}
    return sorted({min(length, step * count) for count in counts if step * count < 2 * length})


def windows_in_all(places: Sequence[int], window: int, length: int, pad: int, side: int) -> int:
    """How many windows all tiles of an axis compute."""
    return sum(len(touching(places, window, low + pad, min(low + side, length) + pad))
               for low in range(0, length, side))


# ---- the work


@dataclass(frozen=True)
class PredictionWork(Work):
    """The statistics of the image, then the tiles; a volume that is one tile is written as it will stay."""

    grid: Grid
    content: str  # what tells this prediction from others
    job: Any  # a Job of streaming.py
    out: Path
    said: dict[str, Any]  # attributes of the result
    replaces: bool  # a file that is there is of earlier work

    def stages(self) -> list[Stage]:
        if self.grid.blocks() == 1:
            return [Stage("prediction", 1, f"whole-{self.content}")]
        return [Stage("statistics", 1, f"statistics-{self.content}"),
                Stage("prediction", self.grid.blocks(), f"tiles-{self.content}")]

    @property
    def is_over(self) -> bool:
        """Whether another process has finished all of it."""
        return not self.replaces and file_of(self.out).exists()

    def is_tile(self, stage: Stage) -> bool:
        return stage.folder.startswith("tiles")

    def path(self, stage: Stage, number: int) -> Path:
        return super().path(stage, number).with_suffix(".h5") if self.is_tile(stage) else super().path(stage, number)

    def is_done(self, stage: Stage, number: int) -> bool:
        if self.is_over:
            return True
        if not self.is_tile(stage):
            return super().is_done(stage, number)
        return is_whole(self.path(stage, number), self.extent(number), self.job.dtype)

    def extent(self, number: int) -> tuple[int, int, int, int]:
        return (len(self.job.channels), *extent(self.grid.box(number)))

    def where(self, stage: Stage, number: int) -> str:
        spans = self.grid.box(number)
        return ", ".join(f"{axis} {span.start} to {span.stop}" for axis, span in zip("zyx", spans))

    def run(self, stage: Stage, number: int) -> None:
        path, began = self.path(stage, number), time.perf_counter()
        if stage.name == "statistics":
            store.write(path, {"statistics": np.array(self.job.measured(), np.float64)})
        elif self.is_tile(stage):
            self.job.take(store.read(self.path(self.stages()[0], 0), "statistics")[0].tolist())
            values, first = np.empty(self.extent(number), self.job.dtype), self.grid.box(number)[0].start

            def keep(low: int, high: int, get: Callable[[], np.ndarray]) -> None:
                values[:, low - first:high - first] = get()

            self.in_pieces(number, keep)
            with reported(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_text(seconds_file(path), f"{time.perf_counter() - began}")
            write_block(path, values)
        else:
            self.job.take(self.job.measured())
            self.write_whole(began)
            store.write(path, {})

    def write_whole(self, began: float) -> None:
        section = prod(self.grid.shape[1:])
        with (Progress(prod(self.grid.shape), f"predict {self.out.name}", "voxels") as progress,
              create_volume(self.out, (len(self.job.channels), *self.grid.shape), self.job.dtype,
                            self.job.source.resolution, self.job.source.offset, self.said) as out):
            def write(low: int, high: int, get: Callable[[], np.ndarray]) -> None:
                out[:, low:high] = get()
                progress.add((high - low) * section)

            self.in_pieces(0, write)
            self.check_image()
            begun.keep_seconds(self.out, time.perf_counter() - began, self.said)

    def in_pieces(self, number: int, put: Callable[[int, int, Callable[[], np.ndarray]], None]) -> None:
        """Computes a tile; one piece of it is put where it belongs while the next is computed."""
        with ThreadPoolExecutor(1) as writer:
            under_way = None
            for piece in self.job.pieces(self.grid.box(number)):
                if under_way is not None:
                    under_way.result()
                under_way = writer.submit(put, *piece)
            under_way.result()

    def check_image(self) -> None:
        """Refuses a result of an image that was replaced while it was read."""
        volume = self.said.get(ATTRIBUTE, {}).get("volume")
        if volume and not same_volume(volume, volume | {"stamp": stamp(volume["image"])}):
            raise InputError(f"{volume['image']} changed while it was predicted: remove {self.folder}, and run the "
                             "same command again")

    def join(self) -> None:
        """Writes the file that reads the tiles; any process may do it, and several at once."""
        self.check_image()
        stage = self.stages()[-1]
        paths = [self.path(stage, number) for number in range(stage.count)]
        channels = slice(0, len(self.job.channels))
        parts = [((channels, *self.grid.box(number)), path.relative_to(self.out.parent).as_posix())
                 for number, path in enumerate(paths)]
        about = {"folder": paths[0].parent.relative_to(self.out.parent).as_posix(), "size": list(self.grid.block)}
        with suppress(OSError):  # another process was quicker
            begun.keep_seconds(self.out, sum(float(seconds_file(path).read_text()) for path in paths), self.said)
        with assembled(self.out) as path:
            join_blocks(path, "main", (channels.stop, *self.grid.shape), self.job.dtype, parts,
                        self.job.source.resolution, self.job.source.offset, {**self.said, begun.TILES: about})


def seconds_file(tile: Path) -> Path:
    """The file beside a tile that says how long it took, until the prediction is finished."""
    return tile.with_suffix(".seconds")


def file_of(path: Path) -> Path:
    return split_reference(path)[0]


def write_in_tiles(job: Any, out: Any) -> Path:
    """The path, once the job of streaming.py is done, by this process and all others that work on it.

    out: an Output; a record among its attributes is the plan that all processes agree on.
    """
    path, replaces = Path(out.path), out.replaces and file_of(Path(out.path)).exists()
    infer = {name: value for name, value in asdict(job.infer).items() if name not in ("tile", "batch")}
    plan = out.attributes.get(ATTRIBUTE) or {"infer": infer, "shape": job.shape, "source": job.source.name,
                                             **out.attributes}
    plan = json.loads(json.dumps(plan, default=str))
    if not replaces and file_of(path).exists():
        return path
    if replaces and begun.tiles_of(path) and begun.begun(path) is None:
        remove(file_of(path))  # it reads tiles that give way to new ones
        begun.put_away(begun.folder_of(path))
    tile = tile_of(job.task) if path.suffix == ".h5" else job.shape  # other formats have no parts
    agreed = begun.begin(path, tile, job.shape, plan)
    if differing := changed(agreed["plan"], plan):
        raise InputError(f"{begun.folder_of(path)} holds tiles of another prediction ({listed(differing)}): remove "
                         "that folder, or write to another path")
    job.work_in(tuple(agreed["tile"]))
    job.keep_sums_on(begun.device_of_sums(path, job.sums_device.type))
    grid = Grid(job.shape, tuple(agreed["tile"]))
    content = digest_of(digest(plan) if ATTRIBUTE in out.attributes else plan, agreed["tile"])
    work = PredictionWork(begun.folder_of(path), grid, content, job, path, {**job.attributes(), **out.attributes},
                          replaces)
    print(f"{path.name}: {' x '.join(map(str, job.shape))} voxels, {job.windows * len(job.views)} windows, "
          f"{told(grid)}; takes about {quantity(job.task.memory(grid.block))}B of memory besides the net", flush=True)
    carry_out(work, *(share.place() if out.shared else (0, 1)))
    return path


def told(grid: Grid) -> str:
    return "one tile" if grid.blocks() == 1 else f"{grid.blocks()} tiles of {' x '.join(map(str, grid.block))}"


def carry_out(work: PredictionWork, rank: int, world: int) -> None:
    """Returns when the prediction is there, by whomever."""
    tiles = work.stages()[-1]
    for number in range(rank, tiles.count, world):  # that an earlier start has left: names alone count below
        path = work.path(tiles, number)
        if path.exists() and not work.is_done(tiles, number):
            print(f"note: {path} is damaged; it is made again", flush=True)
            remove(path)
    while not work.is_over:
        share.run(work, rank, world)
        if work.is_over or not work.is_tile(tiles):
            break
        if all(work.path(tiles, number).exists() for number in range(tiles.count)):
            work.join()
            break
    begun.close(work.out)

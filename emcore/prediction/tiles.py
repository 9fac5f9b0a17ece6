"""A prediction as a work of the engines: tiles of the volume, each a task that computes every window that touches it.

A tile is a run of parts along z. The windows go through it once, and each part is a file that gets its name as soon as
it is whole, while the next one is computed: a process that takes over after a kill goes on at the first part that is
missing. The prediction of a large volume reads the parts as one dataset; the parts of a small one are put together in
one plain file. Any number of processes may work on one prediction: nothing but files is shared.
"""

import io
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore.blocks import share, store
from emcore.blocks.windows import extent
from emcore.blocks.work import Stage, Work, digest_of, run_inline
from emcore.errors import InputError
from emcore.files import assembled, remove, reported, write_text
from emcore.prediction import begun
from emcore.prediction.windows import starts, step_of, touching
from emcore.progress import Progress, quantity
from emcore.record import ATTRIBUTE, changed, digest, listed, same_volume
from emcore.settings.predict import Infer
from emcore.volumes import create_volume, split_reference
from emcore.volumes.blocks import Damaged, is_whole, join_blocks, read_block, write_block
from emcore.volumes.stamp import stamp
from emcore.volumes.writing import choose_chunks

Triple = tuple[int, int, int]
DTYPES = {"float32": "float32", "float16": "float16", "uint8": "uint8", "affinity8": "uint8"}
PIECE = 2**25  # bytes of sums that are finished at a time, but whole sections
PART_VOXELS, PART_BYTES = 2**24, 2**27  # A part is no larger, but holds whole sections; a kill loses no more.
MOST_PARTS = 50_000  # above which parts are larger
AHEAD = 4  # pieces that may wait for the disk while the net goes on
PLAIN = 2**27  # voxels of the largest volume of which the prediction is one plain file
MOST = 1_700_000_000  # bytes that a process takes for a tile, besides the net
EXTRA = 1.25  # so many times the windows of one process may be computed by all, where several share them


# ---- which tiles


class Task(NamedTuple):
    """A prediction, by what its memory and its time depend on."""

    shape: Triple
    infer: Infer  # It holds the window, too.
    read: int  # bytes a voxel of the image
    channels: int  # channels that the net predicts

    @property
    def lattice(self) -> list[list[int]]:
        """First voxels of the windows along each axis of the padded volume."""
        return [starts(n + 2 * pad, window, overlap)
                for n, pad, window, overlap in zip(self.shape, self.infer.pad, self.infer.window, self.infer.overlaps)]

    @property
    def written(self) -> int:
        """Bytes of a voxel as it is stored."""
        return (len(self.infer.select) or self.channels) * np.dtype(DTYPES[self.infer.dtype]).itemsize

    def sections(self, tile: Triple) -> int:
        """Sections of the parts of a tile, all of one depth but the last."""
        voxels = max(min(PART_VOXELS, PART_BYTES // self.written), prod(self.shape) // MOST_PARTS)
        return -(-tile[0] // -(-tile[0] // max(1, voxels // prod(tile[1:]))))

    def memory(self, tile: Triple) -> int:
        """Bytes that a process takes for a tile besides the net, about."""
        window, plane = self.infer.window, tile[1] * tile[2]
        wide = [min(n + 2 * w, length + 2 * pad + w) for n, w, length, pad
                in zip(tile[1:], window[1:], self.shape[1:], self.infer.pad[1:])]
        piece = max(PIECE, 4 * self.channels * plane)
        sums, image = 4 * (self.channels + 1) * window[0] * plane, 3 * self.read * window[0] * prod(wide)
        windows, finished = 8 * (self.channels + 3) * prod(window), 8 * piece
        waiting, part = AHEAD * piece * self.written // (4 * self.channels), self.written * self.sections(tile) * plane
        return sums + image + windows + finished + waiting + part


def tile_of(task: Task, processes: int = 1) -> Triple:
    """The tile that infer.tile asks for, or the one with which the work takes least time in the memory there is.

    A window that touches several tiles is computed for each of them. Of `processes` each takes one tile after another.
    """
    asked = task.infer.tile or (0, 0, 0)
    sides = [[min(wanted, length)] if wanted else sides_of(length, window, overlap)
             for wanted, length, window, overlap in zip(asked, task.shape, task.infer.window, task.infer.overlaps)]
    tiles = {in_parts(task, tile) for tile in product(*sides)}
    fitting = [tile for tile in tiles if task.memory(tile) <= MOST]
    if not fitting:
        return min(tiles, key=lambda tile: (task.memory(tile), tile))
    axes = [{side: windows_along(places, window, length, pad, side) for side in {tile[axis] for tile in fitting}}
            for axis, (places, window, length, pad) in enumerate(zip(task.lattice, task.infer.window, task.shape,
                                                                     task.infer.pad))]
    windows = {tile: prod(sum(axis[side]) for axis, side in zip(axes, tile)) for tile in fitting}
    most = EXTRA * min(windows.values())

    def cost(tile: Triple) -> tuple:
        """Windows that the last process to end computes at most; of equal tiles the largest come first."""
        count, largest = (prod(each(axis[side]) for axis, side in zip(axes, tile)) for each in (len, max))
        return windows[tile] + (processes - 1) * largest, windows[tile], count, tile

    return min((tile for tile in fitting if windows[tile] <= most), key=cost)


def in_parts(task: Task, tile: Triple) -> Triple:
    """A tile, made as much deeper as it takes to end with a whole part."""
    sections = task.sections(tile)
    return min(task.shape[0], -(-tile[0] // sections) * sections), tile[1], tile[2]


def sides_of(length: int, window: int, overlap: float) -> list[int]:
    """Sides that a tile may have along an axis: whole steps of the windows, or all of it."""
    step = step_of(window, overlap)
    counts = {round(1.3**power) for power in range(30)}
    return sorted({min(length, step * count) for count in counts if count == 1 or step * count < 2 * length})


def windows_along(places: Sequence[int], window: int, length: int, pad: int, side: int) -> list[int]:
    """How many windows each tile of an axis computes."""
    return [len(touching(places, window, low + pad, min(low + side, length) + pad)) for low in range(0, length, side)]


def way_of(task: Task, out: Path, processes: int) -> begun.Way:
    """The way in which a prediction is made, which all its processes agree on."""
    tile = tile_of(task, processes)
    joined = out.suffix == ".h5" and (task.infer.tile is not None or prod(task.shape) > PLAIN)
    return begun.Way(task.shape, tile, (task.sections(tile), *tile[1:]), joined)


# ---- the work


@dataclass(frozen=True)
class PredictionWork(Work):
    """The statistics of the image, the tiles, and the file that holds or reads their parts."""

    way: begun.Way
    content: str  # what tells this prediction from others
    job: Any  # a Job of streaming.py
    out: Path
    said: dict[str, Any]  # attributes of the result
    replaces: bool  # a file that is there is of earlier work

    needs_less = "a smaller infer.batch or infer.window needs less"

    def stages(self) -> list[Stage]:
        return [Stage("statistics", 1, f"statistics-{self.content}"),
                Stage("prediction", self.way.tiles.blocks(), f"tiles-{self.content}"),
                Stage("prediction file", 1, f"file-{self.content}")]

    @property
    def is_over(self) -> bool:
        """Whether another process has finished all of it."""
        return not self.replaces and file_of(self.out).exists()

    def is_done(self, stage: Stage, number: int) -> bool:
        return self.is_over or (super().is_done(stage, number) and (
            stage.name != "prediction" or all(map(self.is_there, self.way.parts_of(number)))))

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"tiles-{self.content}" / self.way.name_of(number)

    def extent(self, number: int) -> tuple[int, int, int, int]:
        return (len(self.job.channels), *extent(self.way.parts.box(number)))

    def is_there(self, number: int) -> bool:
        """Whether a part is there and whole; all of it is read."""
        return is_whole(self.part(number), self.extent(number), self.job.dtype)

    def where(self, stage: Stage, number: int) -> str:
        if stage.name != "prediction":
            return self.out.name
        return ", ".join(f"{axis} {span.start} to {span.stop}" for axis, span in zip("zyx", self.way.tiles.box(number)))

    def run(self, stage: Stage, number: int) -> None:
        found = {}
        if stage.name == "statistics":
            found = {"statistics": np.array(self.job.measured(), np.float64)}
        elif stage.name == "prediction":
            self.predict(number)
        else:
            self.finish()
        store.write(self.path(stage, number), found)

    def predict(self, tile: int) -> None:
        """Makes the parts of a tile that are not there; those that follow each other are computed in one go."""
        self.job.take(store.read(self.path(self.stages()[0], 0), "statistics")[0].tolist())
        missing = [number for number in self.way.parts_of(tile) if not self.is_there(number)]
        for number in missing:
            if self.part(number).exists():
                print(f"note: {self.part(number)} is damaged; it is made again", flush=True)
        voxels = sum(prod(self.extent(number)[1:]) for number in missing)
        what = f"predict {self.out.name}, tile {tile + 1} of {self.way.tiles.blocks()}"
        stream = io.StringIO() if share.is_quiet() else None
        with Progress(voxels, what, "voxels", stream) as progress:
            for _, run in groupby(enumerate(missing), lambda one: one[1] - one[0] * self.way.step):
                self.predict_run([number for _, number in run], progress)

    def predict_run(self, numbers: Sequence[int], progress: Progress) -> None:
        """Computes parts that follow each other along z; they are written while what comes after is computed."""
        first, last = self.way.parts.box(numbers[0]), self.way.parts.box(numbers[-1])
        filling, waiting = Filling(self, numbers, progress), deque()
        with ThreadPoolExecutor(1) as writer:
            for piece in self.job.pieces((slice(first[0].start, last[0].stop), *first[1:])):
                waiting.append(writer.submit(filling.put, *piece))
                if len(waiting) > AHEAD:
                    waiting.popleft().result()
            for put in waiting:
                put.result()

    def check_image(self) -> None:
        """Refuses a result of an image that was replaced while it was read."""
        volume = self.said.get(ATTRIBUTE, {}).get("volume")
        if volume and not same_volume(volume, volume | {"stamp": stamp(volume["image"])}):
            raise InputError(f"{volume['image']} changed while it was predicted: remove {self.folder}, and run the "
                             "same command again")

    def finish(self) -> None:
        """Writes the file that reads the parts, or the one that holds them."""
        self.check_image()
        numbers = range(self.way.parts.blocks())
        seconds = None
        with suppress(OSError, ValueError):  # parts of a prediction that was finished once have none any more
            seconds = sum(float(seconds_file(self.part(number)).read_text()) for number in numbers)
        if seconds is not None:
            begun.keep_seconds(self.out, seconds, self.said)
        channels, said = slice(0, len(self.job.channels)), {**self.job.attributes(), **self.said}
        about = ((channels.stop, *self.way.shape), self.job.dtype)
        place = (self.job.source.resolution, self.job.source.offset)
        if not self.way.joined:
            chunks = choose_chunks(self.extent(0), np.dtype(self.job.dtype))  # a part is written in whole ones
            with create_volume(self.out, *about, *place, said, chunks) as out:
                for number in numbers:
                    out[(channels, *self.way.parts.box(number))] = self.values(number)
            return
        for number in numbers:
            if not self.part(number).exists():
                raise self.lost(number, "is missing")
        parts = [((channels, *self.way.parts.box(number)), self.part(number).relative_to(self.out.parent).as_posix())
                 for number in numbers]
        folder = self.part(0).parent.parent.relative_to(self.out.parent).as_posix()
        with assembled(self.out) as path:
            join_blocks(path, begun.DATASET, *about, parts, *place, {**said, begun.TILES: self.way.told(folder)})

    def values(self, number: int) -> np.ndarray:
        try:
            return read_block(self.part(number), self.extent(number), self.job.dtype)
        except Damaged:
            raise self.lost(number, "is missing or damaged") from None

    def lost(self, number: int, what: str) -> store.Damaged:
        """What says that a part has to be made again, which is the work of its tile."""
        tile = self.path(self.stages()[1], self.way.tile_of(number))
        return store.Damaged(tile, f"stands for {self.part(number)}, which {what}")


class Filling:
    """Parts that follow each other along z, filled by pieces in their order; each is written when it is full."""

    def __init__(self, work: PredictionWork, numbers: Sequence[int], progress: Progress):
        self.work, self.left, self.progress = work, deque(numbers), progress
        self.began, self.values, self.failed = time.perf_counter(), np.empty(0), False

    def put(self, low: int, high: int, get: Callable[[], np.ndarray]) -> None:
        """Takes the sections [low, high), which get() returns; nothing after a failure."""
        if self.failed:
            return
        self.failed, piece = True, get()
        while low < high:
            number = self.left[0]
            span = self.work.way.parts.box(number)[0]
            if self.values.shape != self.work.extent(number):
                self.values = np.empty(self.work.extent(number), self.work.job.dtype)
            upto = min(high, span.stop)
            self.values[:, low - span.start:upto - span.start] = piece[:, :upto - low]
            self.progress.add((upto - low) * prod(piece.shape[2:]))
            if upto == span.stop:
                self.write(number)
            low, piece = upto, piece[:, upto - low:]
        self.failed = False

    def write(self, number: int) -> None:
        path, now = self.work.part(number), time.perf_counter()
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(seconds_file(path), f"{now - self.began}")
        write_block(path, self.values)
        self.began = now
        self.left.popleft()


def seconds_file(part: Path) -> Path:
    """The file beside a part that says how long it took, until the prediction is finished."""
    return part.with_suffix(".seconds")


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
        remove(file_of(path))  # it reads parts that give way to new ones
        begun.put_away(begun.folder_of(path))
    rank, world = share.place() if out.shared else (0, 1)
    way, agreed = begun.begin(path, way_of(job.task, path, world), plan)
    if differing := changed(agreed, plan):
        raise InputError(f"{begun.folder_of(path)} holds parts of another prediction ({listed(differing)}): remove "
                         "that folder, or write to another path")
    job.work_in(way.tile)
    job.keep_sums_on(begun.device_of_sums(path, job.sums_device.type))
    content = digest_of(digest(plan) if ATTRIBUTE in out.attributes else plan, way)
    work = PredictionWork(begun.folder_of(path), way, content, job, path, {**job.attributes(), **out.attributes},
                          replaces)
    print(f"{path.name}: {' x '.join(map(str, job.shape))} voxels, {job.windows * len(job.views)} windows, "
          f"{told(way)}; takes about {quantity(job.task.memory(way.tile))}B of memory besides the net", flush=True)
    if out.shared:
        carry_out(work, rank, world)
    else:
        run_inline(work)
    begun.close(path)
    return path


def told(way: begun.Way) -> str:
    """How many tiles, and of which size."""
    count = way.tiles.blocks()
    return "one tile" if count == 1 else f"{count} tiles of {' x '.join(map(str, way.tile))}"


def carry_out(work: PredictionWork, rank: int, world: int) -> None:
    """Returns when the prediction is there, by whomever."""
    for stage in work.stages():
        for number in range(rank, stage.count, world):  # an earlier start may have left these: names alone count below
            path = work.path(stage, number)
            if path.exists() and not work.is_done(stage, number):
                remove(path)
    share.run(work, rank, world)

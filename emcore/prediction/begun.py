"""What all processes that work on one prediction agree on, in a folder beside it, and what it took in the end.

    A_prediction.h5
    A_prediction.blocks/     plan.json and parts while it is not finished; parts stay where A_prediction.h5 reads them
    A_prediction.speed.json
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from emcore import results
from emcore.blocks.alive import FOLDER, is_dead, signs
from emcore.blocks.grid import Grid
from emcore.blocks.joined import FOLDER as BLOCKS
from emcore.blocks.run import PLAN, at_work
from emcore.blocks.windows import extent
from emcore.errors import InputError
from emcore.files import create_once, remove, reported, sweep, sweep_folder, temporary_name, write_text
from emcore.locks import NoLocks, take
from emcore.record import ATTRIBUTE, differences, read
from emcore.settings import Settings
from emcore.volumes import list_datasets
from emcore.volumes.blocks import attributes_joined, is_whole

SUMS = "sums.txt"  # the device that adds up windows: each rounds in its own way, so the first process decides
DATASET = "main"  # It holds the values of a prediction.
TILES = "tiles"  # the attribute of one that reads parts
Triple = tuple[int, int, int]


class Way(NamedTuple):
    """How a volume is cut: a tile is a run of parts along z."""

    shape: Triple
    tile: Triple
    part: Triple
    joined: bool  # the prediction reads its parts; else it is one plain file

    @property
    def tiles(self) -> Grid:
        return Grid(self.shape, self.tile)

    @property
    def parts(self) -> Grid:
        return Grid(self.shape, self.part)

    @property
    def step(self) -> int:
        """From the number of a part to that of the next one along z."""
        return prod(self.parts.counts(0)[1:])

    def parts_of(self, tile: int) -> list[int]:
        """The numbers of the parts of a tile, along z."""
        z, y, x = self.tiles.place(tile)
        count, run = self.parts.counts(0)[0], -(-self.tile[0] // self.part[0])
        return [self.parts.number((place, y, x)) for place in range(z * run, min((z + 1) * run, count))]

    def tile_of(self, part: int) -> int:
        """The number of the tile of a part."""
        z, y, x = self.parts.place(part)
        return self.tiles.number((z * self.part[0] // self.tile[0], y, x))

    def name_of(self, part: int) -> str:
        """The file of a part within a folder: each tile has a folder of its own, so that none holds very many files."""
        return f"{self.tile_of(part):06d}/{self.parts.place(part)[0]:06d}.h5"

    def told(self, folder: str) -> dict[str, Any]:
        """What a finished prediction says of its parts."""
        return {"folder": folder, "tile": list(self.tile), "part": list(self.part)}


def way_in(found: Mapping[str, Any], shape: Sequence[int], joined: Any) -> Way:
    """The way that a table from a file tells; ValueError, TypeError or KeyError where it tells none."""
    shape, tile, part = (tuple(sides) for sides in (shape, found["tile"], found["part"]))
    for sides in (shape, tile, part):
        if len(sides) != 3 or any(type(side) is not int or side < 1 for side in sides):
            raise ValueError
    if type(joined) is not bool or tile[1:] != part[1:] or (tile[0] % part[0] and tile[0] < shape[0]):
        raise ValueError
    return Way(shape, tile, part, joined)


def folder_of(path: Path) -> Path:
    return path.with_name(path.name.partition(":")[0]).with_suffix(BLOCKS)


def begun(path: Path) -> tuple[Way, dict[str, Any]] | None:
    """The way and the plan of a prediction that was begun and is not finished; None where there is none."""
    stored = folder_of(path) / PLAN
    try:
        found = json.loads(stored.read_text())
        if isinstance(found["plan"], dict):
            return way_in(found, found["shape"], found["joined"]), found["plan"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{stored} cannot be read, so nobody knows what the parts beside it are of: remove "
                     f"{stored.parent} and run the same command again")


def begin(path: Path, way: Way, plan: dict[str, Any]) -> tuple[Way, dict[str, Any]]:
    """What holds for this prediction: the way and the plan given here, or those of the process that began it."""
    folder = folder_of(path)
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    if (found := begun(path)) is None:
        with reported(folder):
            create_once(folder / PLAN, json.dumps({**way._asdict(), "plan": plan}, indent=1) + "\n")
        found = begun(path)
    return found or (way, plan)  # the work was finished by another process just now


def device_of_sums(path: Path, mine: str) -> str:
    """The kind of device that adds up windows, as the first process of this prediction decided it."""
    stored = folder_of(path) / SUMS
    with reported(stored), suppress(FileNotFoundError):  # the work was finished by another process just now
        create_once(stored, mine)
        return stored.read_text()
    return mine


def abandon(path: Path) -> None:
    """Removes what was begun of a prediction, unless a process is working on it."""
    folder = folder_of(path)
    if other := at_work(folder):
        raise InputError(f"{path} is being predicted with other settings by {other}: wait for its end, or end it")
    put_away(folder)


def check_or_clear(settings: Settings, path: Path, wanted: dict[str, Any], again: bool) -> None:
    """Refuses a prediction, finished or begun, that is not the wanted one; with `again` it makes room for that one."""
    if not again:
        results.check_there(settings, path, read(path) if path.exists() else None, wanted, "made")
        results.check_there(settings, path, (begun(path) or (None, None))[1], wanted, "begun")
        return
    if not path.parent.exists():
        return
    with one_at_a_time(path.parent):  # another process of the same command may have done it, and begun anew
        if path.exists() and ((stored := read(path)) is None or differences(stored, wanted, settings)):
            path.unlink()
        found = begun(path)
        if differences(found[1], wanted, settings) if found else not path.exists():
            abandon(path)


@contextmanager
def one_at_a_time(folder: Path):
    """Processes pass through the block one after the other, where the file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(NoLocks):
            take(handle)
        yield
    finally:
        os.close(handle)


def put_away(folder: Path) -> None:
    """Removes a folder; its name is free at once, so that nobody finds half of it."""
    done = temporary_name(folder, "partial")
    with suppress(FileNotFoundError):  # another process does the same
        os.rename(folder, done)
        remove(done)  # what a network file system holds on to is left to the next sweep


def tiles_of(path: Path) -> dict[str, Any] | None:
    """What a finished prediction says of its parts, of which `folder` is a path; None where it is one plain file."""
    if path.suffix != ".h5" or not path.exists() or all(one.name != DATASET for one in list_datasets(path)):
        return None
    about = attributes_joined(path, DATASET).get(TILES)
    if about is None:
        return None
    try:
        return {**about, "folder": path.parent / folder_of(path).name / Path(about["folder"]).name}
    except (KeyError, TypeError, ValueError):
        raise damaged(path) from None


def damaged(path: Path) -> InputError:
    return InputError(f"{path} does not say where its parts are: it is damaged; remove it and run the same command "
                      "again")


def close(path: Path) -> None:
    """Removes what is needed no more once a prediction is there: all but the parts that it reads."""
    folder, tiles = folder_of(path), tiles_of(path)
    if not folder.exists():
        return
    kept = tiles["folder"] if tiles else None
    for entry in folder.iterdir():
        if entry not in (kept, folder / FOLDER):
            remove(entry)
    for entry in (*kept.glob("*.columns"), *kept.glob("*/*.seconds")) if kept else ():
        remove(entry)
    for sign, words, _ in signs(folder):
        if is_dead(words):
            remove(sign)
    sweep_folder(folder / FOLDER)
    for empty in (folder / FOLDER, folder):  # the last of several processes finds them empty
        with suppress(OSError):
            empty.rmdir()
    remove(path.with_name(f"{path.name}.parts"))  # left by older versions


def close_if_left(path: Path) -> None:
    """The same, where a process that was killed has left something."""
    folder = folder_of(path)
    if (folder / PLAN).exists() and at_work(folder) is None:
        close(path)


def mend(path: Path) -> None:
    """Takes back a finished prediction of which parts are missing or damaged, so that they are made again."""
    if (about := tiles_of(path)) is None:
        return
    with one_at_a_time(path.parent):
        if not path.exists():
            return  # another process of the same command has seen it
        found = next(one for one in list_datasets(path) if one.name == DATASET)
        try:
            way = way_in(about, found.shape[1:], True)
        except (KeyError, TypeError, ValueError):
            raise damaged(path) from None
        parts = {about["folder"] / way.name_of(number): (found.shape[0], *extent(way.parts.box(number)))
                 for number in range(way.parts.blocks())}
        lost = [part for part, shape in parts.items() if not is_whole(part, shape, found.dtype)]
        if not lost:
            return
        record = attributes_joined(path, DATASET).get(ATTRIBUTE)
        more = f", with {len(lost) - 1} more" if lost[1:] else ""
        if not isinstance(record, dict):
            raise InputError(f"{lost[0]} is missing or damaged{more}: remove {path} and predict it again")
        print(f"{path}: {lost[0].relative_to(path.parent)} is missing or damaged{more}; it is made again", flush=True)
        begin(path, way, record)
        for part in lost:
            remove(part)
        path.unlink()


def speed_file(prediction: Path) -> Path:
    """The file beside a prediction that says how long it took: not in it, as the same work makes the same file."""
    return Path(str(prediction).split(":")[0]).with_suffix(".speed.json")


def keep_seconds(path: Path, seconds: float, provenance: dict[str, Any]) -> None:
    """Writes the seconds that all parts took, those of every process and every start together."""
    made_by = {name: provenance[name] for name in ("checkpoint", "step") if name in provenance}
    write_text(speed_file(path), json.dumps({"seconds": round(seconds, 3), **made_by}) + "\n")

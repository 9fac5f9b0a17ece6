"""What all processes that work on one prediction agree on, in a folder beside it, and what it took in the end.

    A_prediction.h5
    A_prediction.blocks/     plan.json while it is not finished; the tiles, where it has several
    A_prediction.speed.json
"""

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emcore import results
from emcore.blocks.alive import FOLDER, is_dead, signs
from emcore.blocks.grid import Grid
from emcore.blocks.run import at_work
from emcore.blocks.windows import extent
from emcore.errors import InputError
from emcore.files import create_once, remove, reported, sweep, temporary_name, write_text
from emcore.locks import NoLocks, take
from emcore.record import ATTRIBUTE, differences, read
from emcore.settings import Settings
from emcore.volumes import list_datasets
from emcore.volumes.blocks import attributes_joined, is_whole

PLAN = "plan.json"
SUMS = "sums.txt"  # the device that adds up windows: each rounds in its own way, so the first process decides
BLOCKS = ".blocks"
DATASET = "main"  # of a prediction
TILES = "tiles"  # the attribute of one that is joined from tiles


def folder_of(path: Path) -> Path:
    return path.with_name(path.name.partition(":")[0]).with_suffix(BLOCKS)


def begun(path: Path) -> dict[str, Any] | None:
    """The tile and the plan of a prediction that was begun and is not finished; None where there is none."""
    stored = folder_of(path) / PLAN
    try:
        found = json.loads(stored.read_text())
        if isinstance(found["plan"], dict) and len(found["tile"]) == 3 and all(type(n) is int for n in found["tile"]):
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{stored} cannot be read, so nobody knows what the tiles beside it are of: remove "
                     f"{stored.parent} and run the same command again")


def begin(path: Path, tile: tuple[int, int, int], shape: tuple[int, int, int], plan: dict[str, Any]) -> dict[str, Any]:
    """What holds for this prediction: the tile and the plan given here, or those of the process that began it."""
    folder = folder_of(path)
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    mine = {"tile": list(tile), "shape": list(shape), "plan": plan}
    if (found := begun(path)) is None:
        with reported(folder):
            create_once(folder / PLAN, json.dumps(mine, indent=1) + "\n")
        found = begun(path)
    return found or mine  # the work was finished by another process just now


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
        results.check_there(settings, path, (begun(path) or {}).get("plan"), wanted, "begun")
        return
    if not path.parent.exists():
        return
    with one_at_a_time(path.parent):  # another process of the same command may have done it, and begun anew
        if path.exists() and ((stored := read(path)) is None or differences(stored, wanted, settings)):
            path.unlink()
        found = begun(path)
        if differences(found["plan"], wanted, settings) if found else not path.exists():
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
    """What a finished prediction says of its tiles: their folder and their size; None where it is one plain file."""
    if path.suffix != ".h5" or not path.exists() or all(one.name != DATASET for one in list_datasets(path)):
        return None
    about = attributes_joined(path, DATASET).get(TILES)
    if about is None:
        return None
    try:
        return {"folder": path.parent / folder_of(path).name / Path(about["folder"]).name,
                "size": tuple(int(side) for side in about["size"])}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} does not say where its tiles are: it is damaged; remove it and run the same command "
                         "again") from None


def close(path: Path) -> None:
    """Removes what is needed no more once a prediction is there: all but its tiles."""
    folder, tiles = folder_of(path), tiles_of(path)
    if not folder.exists():
        return
    kept = tiles["folder"] if tiles else None
    for entry in folder.iterdir():
        if entry not in (kept, folder / FOLDER):
            remove(entry)
    for seconds in kept.glob("*.seconds") if kept else ():
        remove(seconds)
    for sign, words, _ in signs(folder):
        if is_dead(words):
            remove(sign)
    for empty in (folder / FOLDER, folder):  # of several processes the last one finds them empty
        with suppress(OSError):
            empty.rmdir()
    remove(path.with_name(f"{path.name}.parts"))  # left by older versions


def close_if_left(path: Path) -> None:
    """The same, where a process that was killed has left something."""
    folder = folder_of(path)
    if (folder / PLAN).exists() and at_work(folder) is None:
        close(path)


def mend(path: Path) -> None:
    """Takes back a finished prediction of which tiles are missing or damaged, so that they are made again."""
    if (about := tiles_of(path)) is None:
        return
    with one_at_a_time(path.parent):
        if not path.exists():
            return  # another process of the same command has seen it
        found = next(one for one in list_datasets(path) if one.name == DATASET)
        grid = Grid(found.shape[1:], about["size"])
        tiles = {about["folder"] / f"{number:06d}.h5": (found.shape[0], *extent(grid.box(number)))
                 for number in range(grid.blocks())}
        damaged = [tile for tile, shape in tiles.items() if not is_whole(tile, shape, found.dtype)]
        if not damaged:
            return
        record = attributes_joined(path, DATASET).get(ATTRIBUTE)
        more = f", with {len(damaged) - 1} more" if damaged[1:] else ""
        if not isinstance(record, dict):
            raise InputError(f"{damaged[0]} is missing or damaged{more}: remove {path} and predict it again")
        print(f"{path}: {damaged[0].name} is missing or damaged{more}; it is made again", flush=True)
        begin(path, about["size"], grid.shape, record)
        for tile in damaged:
            remove(tile)
        path.unlink()


def speed_file(prediction: Path) -> Path:
    """The file beside a prediction that says how long it took: not in it, as the same work makes the same file."""
    return Path(str(prediction).split(":")[0]).with_suffix(".speed.json")


def keep_seconds(path: Path, seconds: float, provenance: dict[str, Any]) -> None:
    """Writes the seconds that all tiles took, those of every process and every start together."""
    made_by = {name: provenance[name] for name in ("checkpoint", "step") if name in provenance}
    write_text(speed_file(path), json.dumps({"seconds": round(seconds, 3), **made_by}) + "\n")

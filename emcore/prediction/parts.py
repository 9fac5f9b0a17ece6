"""A prediction on its way to one file: slabs of sections, each a file of its own until all are there.

Each is written under another name and renamed. Any number of processes may work on one prediction: each takes the next
slab that nobody holds; a lock says who does, and ends with its process.
"""

import glob
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emcore import results
from emcore.errors import InputError
from emcore.files import allocate, create_once, publish, remove, reported, sweep, temporary_name, write_text
from emcore.locks import NoLocks, take
from emcore.progress import Progress, quantity
from emcore.record import ATTRIBUTE, changed, differences, listed, read, same_volume
from emcore.settings import Settings
from emcore.volumes import create_volume
from emcore.volumes.stamp import stamp

PLAN = "plan.json"  # in the folder of parts: what all processes of this work agree on
WHOLE = "whole.lock"  # held by the process that puts the parts together
SUMS = "sums.txt"  # the device that adds up windows: each rounds in its own way, so the first process decides


@contextmanager
def claimed(path: Path):
    """Whether this process may do some work; the claim ends with the block, or with the process.

    Nobody may where the folder is gone: its work is done.
    """
    with ExitStack() as opened:
        try:
            mine = take(opened.enter_context(open(path, "a")), wait=False)
        except FileNotFoundError:
            mine = False
        except NoLocks as error:  # some cluster file systems have none
            if int(os.environ.get("WORLD_SIZE", 1)) > 1 or "SLURM_ARRAY_TASK_ID" in os.environ:
                raise InputError(f"cannot lock {path} ({error.strerror}), so processes cannot share this work: set "
                                 "outputs to a file system with locks, or run one process") from None
            mine = True
        yield mine


def begun(path: Path) -> dict[str, Any] | None:
    """The slab and the plan of a prediction that was begun and is not finished; None where there is none."""
    stored = folder_of(path) / PLAN
    try:
        found = json.loads(stored.read_text())
        if isinstance(found["plan"], dict) and isinstance(found["slab"], int):
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{stored} cannot be read, so nobody knows what the parts beside it are of: remove "
                     f"{stored.parent} and run the same command again")


def begin(path: Path, slab: int, plan: dict[str, Any]) -> dict[str, Any]:
    """What holds for this prediction: the slab and the plan given here, or those of the process that began it."""
    parts = folder_of(path)
    with reported(parts):
        parts.mkdir(parents=True, exist_ok=True)
        sweep(parts)
    if (found := begun(path)) is None:
        with reported(parts):
            create_once(parts / PLAN, json.dumps({"slab": slab, "plan": plan}, indent=1) + "\n")
        found = begun(path)
    if found is None:  # the work was finished by another process just now
        return {"slab": slab, "plan": plan}
    return found


def abandon(path: Path) -> None:
    """Removes the parts of a prediction that was begun, unless a process is working on them."""
    parts = folder_of(path)
    if not parts.exists():
        return
    with ExitStack() as claims:
        locks = [*parts.glob("*.lock"), parts / WHOLE]
        if not all(claims.enter_context(claimed(lock)) for lock in locks):
            raise InputError(f"{path} is being predicted with other settings by another process: wait for its end, or "
                             "end it")
        put_away(parts)


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
        if (found := begun(path)) is not None and differences(found["plan"], wanted, settings):
            abandon(path)


def has_free(path: Path) -> bool:
    """Whether a prediction has parts that no process is at, as the one that held them has died; or, where all parts are
    there, whether nobody puts them together."""
    parts = folder_of(path)
    locks = [lock for lock in parts.glob("*.lock") if lock.name != WHOLE and not lock.with_suffix(".npy").exists()]
    for lock in locks or [parts / WHOLE]:
        with claimed(lock) as mine:
            if mine:
                return True
    return False


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


def folder_of(path: Path) -> Path:
    return path.with_name(f"{path.name.split(':')[0]}.parts")


def put_away(parts: Path) -> None:
    """Removes a folder of parts; its name is free at once, so that nobody finds half of it."""
    done = temporary_name(parts, "partial")
    os.rename(parts, done)
    remove(done)  # a network file system may hold on to locks that others have open: the next sweep takes the rest


def write_in_parts(job: Any, path: Path, provenance: dict[str, Any], replaced: bool) -> Path:
    """The path, once the job of streaming.py is done or others are finishing it.

    provenance: attributes of the file; a record among them is the plan that all processes of this work agree on.
    replaced: a file stood there when the job began; else one that appears is the work of another process.
    """
    infer = {name: value for name, value in asdict(job.infer).items() if name not in ("slab", "batch")}
    plan = provenance.get(ATTRIBUTE) or {"infer": infer, "shape": job.shape, "source": job.source.name, **provenance}
    plan = json.loads(json.dumps(plan, default=str))
    agreed = begin(path, job.infer.slab, plan)
    if differing := changed(agreed["plan"], plan):
        raise InputError(f"{folder_of(path)} holds parts of another prediction ({listed(differing)}): remove that "
                         "folder, or write to another path")
    job.split(agreed["slab"])
    parts = folder_of(path)
    with suppress(FileNotFoundError):  # the work was finished by another process just now
        create_once(parts / SUMS, job.sums_device.type)
        job.keep_sums_on((parts / SUMS).read_text())
    names = {span: parts / f"{span[0]:06d}_{span[1]:06d}.npy" for span in job.spans}
    print(f"{path.name}: {' x '.join(map(str, job.shape))} voxels, {job.windows * len(job.views)} windows, "
          f"{len(job.spans)} parts; takes about {quantity(job.memory())}B of memory besides the net", flush=True)
    with Progress(int(np.prod(job.shape, dtype=object)), f"predict {path.name}", "voxels") as progress:
        while replaced or not path.exists():
            missing = [span for span in job.spans if not names[span].exists()]
            if not missing or not _take(job, missing, names, progress):
                break
    with claimed(parts / WHOLE) as mine:
        if not mine:
            return path  # another process is still at work or has put the whole together
        if any(not name.exists() for name in names.values()):
            if path.exists() and not replaced and not any(parts.glob("*.npy")):
                put_away(parts)  # the work was done before this process began
            return path
        if isinstance(plan.get("volume"), dict) and not same_volume(plan["volume"], plan["volume"] | {
                "stamp": stamp(plan["volume"]["image"])}):
            raise InputError(f"{plan['volume']['image']} changed while it was predicted: remove {parts}, and run the "
                             "same command again")
        section = int(np.prod(job.shape[1:], dtype=object))
        keep_seconds(path, names.values(), provenance)
        with create_volume(path, (len(job.channels), *job.shape), job.dtype, job.source.resolution,
                           job.source.offset, {**job.attributes(), **provenance}) as out:
            for (low, high), name in names.items():
                step = max(1, 2**26 // section)
                for z in range(low, high, step):
                    values = load_part(name)  # anew: pages that were read are given back
                    out[:, z:min(z + step, high)] = values[:, z - low:min(z + step, high) - low]
        put_away(parts)
        for older in path.parent.glob(f"{glob.escape(path.name)}.*.parts"):  # left by older versions
            remove(older)
    return path


def speed_file(prediction: Path) -> Path:
    """The file beside a prediction that says how long it took: not in it, as the same work makes the same file."""
    return Path(str(prediction).split(":")[0]).with_suffix(".speed.json")


def keep_seconds(path: Path, parts: Iterable[Path], provenance: dict[str, Any]) -> None:
    """Writes the seconds of all parts, those of every process and every start together."""
    try:
        seconds = sum(float(name.with_suffix(".seconds").read_text()) for name in parts)
    except (OSError, ValueError):  # some part was made before times were kept
        speed_file(path).unlink(missing_ok=True)
        return
    made_by = {name: provenance[name] for name in ("checkpoint", "step") if name in provenance}
    write_text(speed_file(path), json.dumps({"seconds": round(seconds, 3), **made_by}) + "\n")


def load_part(name: Path) -> np.ndarray:
    """The sections of a finished part."""
    try:
        return np.load(name, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the part {name} cannot be read ({error}): delete it and run the same command again"
                         ) from None


def _take(job: Any, missing: list[tuple[int, int]], names: dict, progress: Progress) -> bool:
    """Works on slabs from the first that nobody holds up to one that somebody holds; False where all are held."""
    for start, span in enumerate(missing):
        with ExitStack() as claims, ThreadPoolExecutor(1) as writer:
            if not _claim(claims, names[span]):
                continue
            spans = _consecutive(missing[start:])
            written, temporary = None, temporary_name(names[span], "partial")
            began = time.perf_counter()
            for first, last, values in job.pieces(spans):
                if first == spans[0][1]:  # the next slab begins; its windows at this end are computed already
                    spans = spans[1:]
                    began = time.perf_counter()
                    if not _claim(claims, names[spans[0]]):
                        break
                    temporary = temporary_name(names[spans[0]], "partial")
                if written is not None:
                    written.result()  # one piece is written while the next is computed
                written = writer.submit(_put, job, names[spans[0]], temporary, spans[0], first, last, values, began)
                progress.add((last - first) * job.shape[1] * job.shape[2])
            written.result()
            return True
    return False


def _claim(claims: ExitStack, name: Path) -> bool:
    """Whether a part is this process's to do, until the claims end."""
    lock = name.with_suffix(".lock")
    if not claims.enter_context(claimed(lock)) or name.exists() or not lock.exists():
        return False  # without its lock the folder is done with
    sweep(name)
    return True


def _put(job: Any, target: Path, temporary: Path, span: tuple[int, int], first: int, last: int,
         get: Callable[[], np.ndarray], began: float) -> None:
    """Writes sections of a part; with its last section the part gets its name, and beside it what it took."""
    array = get()
    try:
        with reported(target):
            if first == span[0]:
                shape = (len(job.channels), span[1] - span[0], *job.shape[1:])
                with open(temporary, "xb") as file:
                    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(array.dtype),
                                                                "fortran_order": False, "shape": shape})
                    allocate(file, file.tell() + array.dtype.itemsize * int(np.prod(shape, dtype=object)))
            depth, section = span[1] - span[0], array[0, :1].nbytes
            with open(temporary, "r+b") as file:
                begin = os.path.getsize(temporary) - section * depth * len(array)
                for channel, values in enumerate(array):
                    file.seek(begin + section * (channel * depth + first - span[0]))
                    file.write(np.ascontiguousarray(values))
            if last == span[1]:
                write_text(target.with_suffix(".seconds"), f"{time.perf_counter() - began}")
                publish(temporary, target)
    except InputError:
        remove(temporary)
        raise


def _consecutive(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = [spans[0]]
    for span in spans[1:]:
        if span[0] != found[-1][1]:
            break
        found.append(span)
    return found

"""A prediction on its way to one file: slabs of sections, each a file of its own until all are there.

Each is written under another name and renamed. Any number of processes may work on one prediction: each takes the next
slab that nobody holds; a lock says who does, and ends with its process.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import write_text
from emcore.progress import Progress, quantity
from emcore.volumes import create_volume


@contextmanager
def claimed(path: Path):
    """Whether this process may do some work; the claim ends with the block, or with the process.

    Nobody may where the folder is gone: its work is done.
    """
    with ExitStack() as opened:
        try:
            fcntl.flock(opened.enter_context(open(path, "a")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            yield False
            return
        except OSError as error:  # some cluster file systems have no locks
            if int(os.environ.get("WORLD_SIZE", 1)) > 1 or "SLURM_ARRAY_TASK_ID" in os.environ:
                raise InputError(f"cannot lock {path} ({error.strerror}), so processes cannot share this work: set "
                                 "outputs to a file system with locks, or run one process") from None
        yield True


def write_in_parts(job: Any, path: Path, provenance: dict[str, Any], replaced: bool) -> Path:
    """The path, once the job of streaming.py is done or others are finishing it.

    replaced: a file stood there when the job began; else one that appears is the work of another process.
    """
    digest = hashlib.sha256(json.dumps([asdict(job.infer), job.shape, job.source.name, provenance], sort_keys=True,
                                       default=str).encode()).hexdigest()[:12]
    parts = path.with_name(f"{path.name.split(':')[0]}.{digest}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write beside {path}: {error.strerror}") from None
    names = {span: parts / f"{span[0]:06d}_{span[1]:06d}.npy" for span in job.spans}
    print(f"{path.name}: {' x '.join(map(str, job.shape))} voxels, {job.windows * len(job.views)} windows, "
          f"{len(job.spans)} parts; takes about {quantity(job.memory())}B of memory besides the net", flush=True)
    with Progress(int(np.prod(job.shape, dtype=object)), f"predict {path.name}", "voxels") as progress:
        while replaced or not path.exists():
            missing = [span for span in job.spans if not names[span].exists()]
            if not missing or not _take(job, missing, names, progress):
                break
    done = parts.with_suffix(".done")
    with claimed(parts / "whole.lock") as mine:
        if not mine or any(not name.exists() for name in names.values()):
            return path  # another process is still at work or has put the whole together
        section = int(np.prod(job.shape[1:], dtype=object))
        keep_seconds(path, names.values(), provenance)
        with create_volume(path, (len(job.channels), *job.shape), job.dtype, job.source.resolution,
                           job.source.offset, {**job.attributes(), **provenance}) as out:
            for (low, high), name in names.items():
                step = max(1, 2**26 // section)
                for z in range(low, high, step):
                    values = load_part(name)  # anew: pages that were read are given back
                    out[:, z:min(z + step, high)] = values[:, z - low:min(z + step, high) - low]
        os.rename(parts, done)  # at once: nobody finds half of a folder
    shutil.rmtree(done, ignore_errors=True)  # a network file system may hold on to locks that others have open
    return path


def speed_file(prediction: Path) -> Path:
    """Where it stands how long a prediction took; beside its file, which is to be the same each time."""
    return Path(str(prediction).split(":")[0]).with_suffix(".speed.json")


def keep_seconds(path: Path, parts: Iterable[Path], provenance: dict[str, Any]) -> None:
    """Writes the seconds of all parts, those of every process and every start together."""
    try:
        seconds = sum(float(name.with_suffix(".seconds").read_text()) for name in parts)
    except (OSError, ValueError):  # some part was made before times were kept
        speed_file(path).unlink(missing_ok=True)
        return
    write_text(speed_file(path), json.dumps({"seconds": round(seconds, 3), **provenance}) + "\n")


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
            written, began = None, time.perf_counter()
            for first, last, values in job.pieces(spans):
                if first == spans[0][1]:  # the next slab begins; its windows at this end are computed already
                    spans = spans[1:]
                    began = time.perf_counter()
                    if not _claim(claims, names[spans[0]]):
                        break
                if written is not None:
                    written.result()  # one piece is written while the next is computed
                written = writer.submit(_put, job, names[spans[0]], spans[0], first, last, values, began)
                progress.add((last - first) * job.shape[1] * job.shape[2])
            written.result()
            return True
    return False


def _claim(claims: ExitStack, name: Path) -> bool:
    """Whether a part is this process's to do, until the claims end."""
    lock = name.with_suffix(".lock")
    return claims.enter_context(claimed(lock)) and not name.exists() and lock.exists()  # else the folder is done with


def _put(job: Any, target: Path, span: tuple[int, int], first: int, last: int,
         get: Callable[[], np.ndarray], began: float) -> None:
    """Writes sections of a part; with its last section the part gets its name, and beside it what it took."""
    temporary, array = target.with_suffix(f".{os.getpid()}.tmp"), get()
    try:
        if first == span[0]:
            shape = (len(job.channels), span[1] - span[0], *job.shape[1:])
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(array.dtype),
                                                            "fortran_order": False, "shape": shape})
                file.truncate(file.tell() + array.dtype.itemsize * int(np.prod(shape, dtype=object)))
        depth, section = span[1] - span[0], array[0, :1].nbytes
        with open(temporary, "r+b") as file:
            begin = os.path.getsize(temporary) - section * depth * len(array)
            for channel, values in enumerate(array):
                file.seek(begin + section * (channel * depth + first - span[0]))
                file.write(np.ascontiguousarray(values))
            if last == span[1]:
                file.flush()
                os.fsync(file.fileno())
        if last == span[1]:
            target.with_suffix(".seconds").write_text(f"{time.perf_counter() - began}")
            os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {target} ({error.strerror}): make room, and the same command continues"
                         ) from None


def _consecutive(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = [spans[0]]
    for span in spans[1:]:
        if span[0] != found[-1][1]:
            break
        found.append(span)
    return found

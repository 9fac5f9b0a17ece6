"""The one writer of emcore: a file or folder gets its name when it is whole and on the disk, or it does not get it.

    with replaced(path) as temporary:        # write the file or folder `temporary`; the name `path` appears at the end
        ...
    with writing(path) as file:              # the same with an open binary file
        file.write(data)
    write_text(path, text)
    append(file, line)                       # a row at the end of a file that grows, such as log.csv

After an error nothing new is left and what stood at `path` stands there still. A writer that is killed leaves its
temporary behind; the next writer of the same path removes it. The name of a temporary tells which process of which
machine wrote it, so that those of living writers are not touched.
"""

import csv
import errno
import hashlib
import io
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from emcore.errors import InputError, death_of_worker
from emcore.system import born, exchange, write_all
from emcore.system import flush as flush_to_disk

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would grow beyond the file size limit (ulimit -f, or the file system's)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder is a file",
    errno.EISDIR: "a folder has that name",
}
REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "raise the limit and run the same command again",
}
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<born>\d+)-[0-9a-f]{6}"
                       r"\.(?P<kind>partial|old)", re.DOTALL)
LONGEST_NAME = 180  # bytes of a name that are kept in the name of its temporary; file systems allow 255 in all
FOREIGN_DAYS = 7  # a temporary of another machine that nobody changed for so long counts as left behind


def check_name(name: str, what: str) -> None:
    """Refuses a name from outside that would lead out of its folder, or that no file can have."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{what} must be a plain file name, without / and \\; got {name!r}")
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > LONGEST_NAME:
        raise InputError(f"{what} must be at most {LONGEST_NAME} bytes long, as it becomes part of file names; "
                         f"{name[:20]!r}... has {length}")


@contextmanager
def reported(path: str | os.PathLike) -> Iterator[None]:
    """Turns a failing disk into one sentence that names the file, the cause and, where there is one, the remedy."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 and torch report some failures of the disk as RuntimeError
        if died := death_of_worker(error):
            raise died from error
        failure = error
        while getattr(failure, "errno", None) is None and (failure.__cause__ or failure.__context__):
            failure = failure.__cause__ or failure.__context__  # torch complains of what its file object raised
        number = getattr(failure, "errno", None)
        if number is None and (named := re.search(r"errno = (\d+)", str(error))):
            number = int(named[1])
        cause = REASONS.get(number) or getattr(failure, "strerror", None) or (str(error).strip() or "?").splitlines()[0]
        remedy = f"; {REMEDIES[number]}" if number in REMEDIES else ""
        raise InputError(f"cannot write {os.fspath(path)}: {cause}{remedy}") from error


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside path; the file or folder made there gets the name at the end of the block."""
    with beside(Path(path)) as temporary:
        yield temporary
        with reported(path):
            publish(temporary, Path(path))


@contextmanager
def assembled(path: str | os.PathLike) -> Iterator[Path]:
    """A path of the same name in a temporary folder, for a file that is made in several steps; it moves at the end."""
    path = Path(path)
    with beside(path) as folder:
        with reported(path):
            folder.mkdir()
        yield folder / path.name
        with reported(path):
            publish(folder / path.name, path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary name beside path, where nothing is left at the end; what dead writers left there goes first."""
    with reported(path):
        sweep(path)
    temporary = temporary_name(path, "partial")
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file for `path`, open for writing; its failures are reported in one sentence."""
    with replaced(path) as temporary, reported(path), open(temporary, "xb") as file:
        yield file


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    with writing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, its line ends as they are."""
    write_bytes(path, text.encode())


def create_once(path: Path, text: str) -> None:
    """Writes a text file whole unless there is one: of several processes the first one decides what it says."""
    temporary = temporary_name(path, "partial")
    try:
        with open(temporary, "xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # this file system has no second names for a file
            if not path.exists():
                os.replace(temporary, path)
    finally:
        remove(temporary)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def append(file: BinaryIO, data: bytes) -> None:
    """Adds data at the end of a file opened by open(path, "ab", buffering=0), whole or not at all."""
    size, written = os.fstat(file.fileno()).st_size, 0
    with reported(file.name):
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def allocate(file: IO, size: int) -> None:
    """Gives a file its size and, where the platform can, the room on the disk, so that no later write finds it full.

    Without it a write to a mapped file on a full disk ends the process by a signal.
    """
    file.truncate(size)
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished file or folder its name, in place of what had it, once its bytes are on the disk."""
    if not temporary.is_dir():
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
        return
    write_all()  # a folder has thousands of files: one call instead of one each
    if not path.is_dir() or path.is_symlink():
        os.replace(temporary, path)
    elif exchange(temporary, path):
        remove(temporary)
    else:  # this file system cannot exchange two names, so for a moment the name is free
        old = temporary_name(path, "old")
        os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(old, path)
            raise
        remove(old)
    flush_to_disk(path.parent)


def remove(path: Path) -> None:
    """Removes a file or folder if it is there; a failure leaves it to the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


# ---- what killed writers left behind


def temporary_name(path: Path, kind: str) -> Path:
    """A new name beside path that tells its writer: .NAME.MACHINE-PROCESS-BORN-RANDOM.kind"""
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
    process = os.getpid()
    return path.with_name(f".{name}.{machine()}-{process}-{born(process) or 0}-{secrets.token_hex(3)}.{kind}")


def sweep_folder(folder: Path) -> None:
    """Removes what dead writers left of any file of a folder, which may be missing."""
    with suppress(OSError):
        for name in {match["name"] for entry in os.listdir(folder) if (match := TEMPORARY.fullmatch(entry))}:
            if len(os.fsencode(name)) < LONGEST_NAME:  # a longer one may be cut
                sweep(folder / name)


def sweep(path: Path) -> None:
    """Removes what dead writers of `path` left beside it, and puts a folder back that one of them had moved aside."""
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
    with os.scandir(path.parent) as entries:
        found = [(entry, match) for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
    for entry, match in found:
        if match["name"] != name or not is_left_behind(Path(entry.path), match):
            continue
        if match["kind"] == "old" and not path.exists():
            with suppress(OSError):
                os.replace(entry.path, path)
        else:
            remove(Path(entry.path))


def is_left_behind(temporary: Path, match: re.Match) -> bool:
    """Whether the writer that a temporary's name tells is dead."""
    if match["machine"] == machine():
        now = born(int(match["process"]))
        return now is None or (int(match["born"]) != 0 and now != 0 and now != int(match["born"]))
    try:
        return time.time() - temporary.lstat().st_mtime > FOREIGN_DAYS * 86400
    except OSError:
        return False


@cache
def machine() -> str:
    """Eight digits that tell this machine since its last start, or this container, from every other."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]

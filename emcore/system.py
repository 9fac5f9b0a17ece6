"""What differs between Linux, macOS and Windows: all that one of them lacks is asked for here, and nowhere else.

Nothing of one system alone is imported before it is needed; what a system lacks is said by the value that comes back.
"""

import ctypes
import errno
import os
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PROCESSES = Path("/proc")  # Only Linux has it.
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
CURRENT_FOLDER, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


class NoLocks(OSError):
    """The file system (or the system) has no locks."""


def lock(file: IO | int, shared: bool = False, wait: bool = True, process: bool = False) -> bool:
    """Whether the lock of an open file is taken now; closing the file ends it.

    process: it belongs to this process alone and not to those that it forks; False: to the open file, also in them.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        raise NoLocks("this system has no locks") from None
    way = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        (fcntl.lockf if process else fcntl.flock)(file, way)
    except BlockingIOError:
        return False
    except OSError as error:
        if process and error.errno == errno.EACCES:  # how some systems say that another process has it
            return False
        raise NoLocks(error.errno, error.strerror) from error
    return True


def allotted_cores() -> int:
    """The number of cores this process may use (a SLURM or container allotment, not the machine)."""
    return len(cores()) or os.cpu_count() or 1


def cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may use; none where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def wait_asleep() -> None:
    """Threads of torch that wait for each other sleep, unless the user says otherwise; said before torch is loaded.

    They would keep their cores busy, and whoever shares these would wait for them, as they would for him.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_to(chosen: tuple[int, ...]) -> None:
    """Keeps this thread, and those that it starts, to these cores, where the system can."""
    if chosen and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)


def user() -> int | str:
    """What tells this user from the others of this machine."""
    return os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def is_of_others(status: os.stat_result) -> bool:
    """Whether others than this user own a file or may write it; Windows keeps profiles apart by itself."""
    return hasattr(os, "getuid") and (status.st_uid != os.getuid() or bool(status.st_mode & 0o022))


def lets_others_rename(status: os.stat_result) -> bool:
    """Whether others than this user and the system's own may rename what is in a folder."""
    if not hasattr(os, "getuid"):
        return False
    is_shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    return bool(status.st_uid not in (0, os.getuid()) or is_shared)


def end_waiting(pipe: str) -> None:
    """Lets a thread of this process that waits for somebody to write into a pipe go on, with nothing read."""
    with suppress(OSError, AttributeError):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def write_all() -> None:
    """Has everything that was written go to the disk, where the system can do that at once."""
    if hasattr(os, "sync"):
        os.sync()


def flush(path: Path) -> None:
    """Returns when the file or folder is on the disk (folders: where the system can)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Whether two names changed places in one step; Linux can do it on most of its local file systems."""
    rename = of_the_c_library("renameat2")
    return rename is not None and rename(CURRENT_FOLDER, os.fsencode(one), CURRENT_FOLDER, os.fsencode(other),
                                         EXCHANGE) == 0


def of_the_c_library(name: str) -> Any:
    """A function of Linux's C library; None where there is none of that name."""
    return getattr(ctypes.CDLL(None, use_errno=True), name, None) if sys.platform.startswith("linux") else None


def born(process: int) -> int | None:
    """When a process of this machine started, in ticks since the machine did; 0 where it lives but the system does not
    tell, None where there is no such process."""
    try:
        fields = (PROCESSES / str(process) / "stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    if (PROCESSES / "self" / "stat").exists():
        return None
    if os.name == "nt":  # there the signal 0 would interrupt it
        return 0
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def end_with_parent() -> None:
    """Has Linux kill this process with the one that started it."""
    if control := of_the_c_library("prctl"):
        control(DEATH_SIGNAL, signal.SIGKILL)


def end_quietly_without_readers() -> None:
    """Lets this process end where the reader of its output goes away (`| head`), as programs do on POSIX systems."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def memory_of_machine() -> int:
    """Bytes of memory that the machine has; the largest number where it does not say so."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return sys.maxsize


def limit_of_addresses() -> int | None:
    """Bytes of address space that this process may have (ulimit -v); None for no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def pages_of_process(resident: bool) -> int:
    """Bytes of memory, or of address space, that this process has now; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        words = (PROCESSES / "self" / "statm").read_text(encoding="ascii").split()
        return int(words[1 if resident else 0]) * os.sysconf("SC_PAGE_SIZE")
    return 0

"""How much memory this process may still take by all the limits it is under, and a sentence where that is too little.

Linux gives out more than there is and kills whoever uses it, so a process that asks nobody ends without a word.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from emcore import system
from emcore.errors import InputError

CONTROL_GROUPS = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")
# files of a control group: its limit, what it uses, and in memory.stat what the kernel gives up before it kills
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


class TooLittleMemory(InputError):
    """What would not fit: something else may still be done."""


def memory_there() -> int:
    """Bytes that this process may still take: what the machine has available, and no more than its control groups
    (containers, SLURM) and its limit of address space (ulimit -v) leave."""
    return max(0, min((_of_machine(), *_of_control_groups(), *_of_address_space())))


def check_memory(needed: int, what: str, instead: str) -> None:
    """Refuses what needs more bytes than there are, before it is begun; instead: what would work, as an order."""
    there = memory_there()
    if needed > there:
        raise TooLittleMemory(f"{what} needs about {_gib(needed)} of memory, and {_gib(there)} are left to this "
                              f"process: {instead}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _of_machine() -> int:
    """What the machine can give without swapping; where it does not say so, all that it has."""
    available = _table(PROCESSES / "meminfo").get("MemAvailable:")
    if available is not None:
        return available * 1024
    return system.memory_of_machine()


def _of_control_groups() -> Iterator[int]:
    """What each control group leaves that this process is in, and those that hold it."""
    for line in _text(PROCESSES / "self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted, (limit_file, used_file, freed) = ((CONTROL_GROUPS / "memory", VERSION_1) if controllers else
                                                   (CONTROL_GROUPS, VERSION_2))
        inside = PurePosixPath(place.lstrip("/"))
        for group in (inside, *inside.parents):  # a container sees its own group at the top, whatever the place says
            limit, used = (_text(mounted / group / name).strip() for name in (limit_file, used_file))
            if limit.isdigit() and used.isdigit():
                stored = _table(mounted / group / "memory.stat")
                yield int(limit) - int(used) + sum(stored.get(name, 0) for name in freed)


def _of_address_space() -> Iterator[int]:
    limit = system.limit_of_addresses()
    if limit is not None:
        yield limit - system.pages_of_process(resident=False)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _table(path: Path) -> dict[str, int]:
    """The lines `name number` of a file of the kernel; nothing where there is none."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}

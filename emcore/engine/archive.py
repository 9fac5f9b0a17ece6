"""The records of a file that torch.save wrote, each verified, and what its pickle asks to be built.

torch.load looks at no checksum, and its version decides what else it looks at. So checksums, sizes and calls are
checked here first. Every byte of the file has its place, so that no reader can understand it differently.
"""

import io
import math
import pickletools
import struct
import zlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

ZIP = b"PK\x03\x04"
LOCAL = struct.Struct("<4s5H3L2H")  # before a record
ENTRY = struct.Struct("<4s6H3L5H2L")  # a line of the table of records at the end
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")  # It says where END_64 stands.
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # these stand for a number that stands in a wider field
DESCRIBED, UTF_8 = 0x0008, 0x0800  # flags: checksum and sizes follow the record; the name is UTF-8

# bytes of one number in the storages that a pickle may name
WIDTHS = {f"torch {name}Storage": width for name, width in {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8}.items()}
TENSOR = "torch._utils _rebuild_tensor_v2"
ORDERED = "collections OrderedDict"
HARMLESS = {ORDERED, "torch Size", "torch device", "torch._utils _rebuild_parameter"}
PLAIN = {"__builtin__ set", "builtins set", "__builtin__ complex", "builtins complex", "collections Counter"}
BYTES = "_codecs encode"
DEEPEST = 100
# what torch.load calls itself, besides all that begins with torch, and takes memory for
GROWING = {BYTES, "__builtin__ bytearray", "builtins bytearray", "collections Counter"}


class Damaged(ValueError):
    """What does not fit in a file; the caller names the file."""


class Foreign(ValueError):
    """What a pickle asks to be called that makes neither a tensor nor a plain value."""


class Entry(NamedTuple):
    name: str
    flags: int
    checksum: int
    size: int
    start: int  # Its local header begins here.


def records(data: memoryview) -> dict[str, memoryview]:
    """The records by name, without the folder that they share."""
    try:
        entries, table = _entries(data)
        found, end = {}, 0
        for entry in entries:
            if entry.start != end:
                raise Damaged("its records do not stand one after another")
            found[entry.name.partition("/")[2]], end = _record(data[:table], entry)
    except (struct.error, UnicodeDecodeError):
        raise Damaged("its table of records is cut short or damaged") from None
    if end != table:
        raise Damaged("something stands between its records and their table")
    if len({entry.name.partition("/")[0] for entry in entries}) > 1:
        raise Damaged("its records are not in one folder")
    if len({name.casefold() for name in found}) < len(entries):  # torch finds records without regard to case
        raise Damaged("two of its records have one name")
    if "data.pkl" not in found:
        raise Damaged("it has no record data.pkl")
    return found


def _entries(data: memoryview) -> tuple[list[Entry], int]:
    """The table of records, and where it begins; what ends the file is checked on the way."""
    end = len(data) - END.size
    if end < 0:
        raise Damaged("it is cut short")
    mark, disk, first_disk, here, count, size, start, comment = END.unpack_from(data, end)
    if mark != b"PK\x05\x06" or disk or first_disk or here != count or comment:
        raise Damaged("it is cut short, or goes on behind its end")
    stop = end - LOCATOR.size
    if stop >= 0 and bytes(data[stop:stop + 4]) == b"PK\x06\x07":
        _, disk, place, disks = LOCATOR.unpack_from(data, stop)
        stop -= END_64.size
        if stop < 0 or place != stop or disk or disks != 1:
            raise Damaged("its table of records is damaged")
        mark, length, _, _, disk, first_disk, here, *wide = END_64.unpack_from(data, stop)
        narrow = zip((count, size, start), wide, (FULL_16, FULL_32, FULL_32))
        if mark != b"PK\x06\x06" or length != END_64.size - 12 or disk or first_disk or here != wide[0] or any(
                short not in (long, full) for short, long, full in narrow):
            raise Damaged("its table of records is damaged")
        count, size, start = wide
    else:
        stop = end
    if start + size != stop:
        raise Damaged("its table of records is damaged")
    entries, at = [], start
    while at < stop:
        entry, at = _entry(data[:stop], at)
        entries.append(entry)
    if len(entries) != count:
        raise Damaged("its table of records is damaged")
    return entries, start


def _entry(data: memoryview, at: int) -> tuple[Entry, int]:
    """A line of the table, and where the next begins."""
    mark, _, _, flags, method, _, _, checksum, packed, size, name, extra, comment, disk, _, _, start = (
        ENTRY.unpack_from(data, at))
    if mark != b"PK\x01\x02" or disk or comment:
        raise Damaged("its table of records is damaged")
    if flags & ~(DESCRIBED | UTF_8) or method:
        raise Damaged("a record is packed or encrypted, which torch.save does not do")
    at += ENTRY.size
    more = at + name + extra
    if more > len(data):
        raise Damaged("its table of records is cut short or damaged")
    sizes = {"size": size, "packed": packed, "start": start}
    wide = [field for field, value in sizes.items() if value == FULL_32]
    if wide:
        kind, length = struct.unpack_from("<2H", data, at + name)
        if kind != 1 or length != 8 * len(wide) or extra < 4 + length:
            raise Damaged("its table of records is damaged")
        sizes |= zip(wide, struct.unpack_from(f"<{len(wide)}Q", data, at + name + 4))
    if sizes["packed"] != sizes["size"]:
        raise Damaged("a record is packed, which torch.save does not do")
    return Entry(str(data[at:at + name], "utf-8"), flags, checksum, sizes["size"], sizes["start"]), more


def _record(data: memoryview, entry: Entry) -> tuple[memoryview, int]:
    """The bytes of a record whose header and checksum are those of the table, and where the next begins."""
    mark, _, flags, method, _, _, checksum, packed, size, name, extra = LOCAL.unpack_from(data, entry.start)
    start = entry.start + LOCAL.size
    if mark != ZIP or flags != entry.flags or method or str(data[start:start + name], "utf-8") != entry.name:
        raise Damaged(f"the header of its record {entry.name} is damaged")
    if checksum not in (0, entry.checksum) or not {packed, size} <= {0, entry.size, FULL_32}:
        raise Damaged(f"the header of its record {entry.name} is damaged")
    start += name + extra
    stop = start + entry.size
    if stop > len(data):
        raise Damaged(f"its record {entry.name} is cut short")
    record = data[start:stop]
    if zlib.crc32(record) != entry.checksum:
        raise Damaged(f"the checksum of its record {entry.name} is wrong")
    if not flags & DESCRIBED:
        return record, stop
    for layout in ("<4s3L", "<4sL2Q"):
        length = struct.calcsize(layout)
        if stop + length <= len(data) and struct.unpack_from(layout, data, stop) == (
                b"PK\x07\x08", entry.checksum, entry.size, entry.size):
            return record, stop + length
    if entry.size == 0:  # nothing to describe
        return record, stop
    raise Damaged(f"what follows its record {entry.name} is damaged")


# ---- what a pickle asks for


class Storage(NamedTuple):
    numbers: int


class Made(NamedTuple):
    """Stands for something of that name, or for what a call of it returned."""

    name: str


def check_pickle(pickle: io.BytesIO, check_storage: Callable[[str, int], None], inert: Collection[str] | None) -> None:
    """Goes through a pickle up to its end without building anything; raises where torch.load must not be let at it.

    check_storage: is told the key and the bytes of each storage. inert: names for which torch.load is given stand-ins
    that do nothing; with None nothing may be called but what makes tensors and plain values.
    """
    stack, marks, memo = [], [], {}
    for step, argument, _ in pickletools.genops(pickle):
        match step.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                items, stack = stack, marks.pop()
                if step.name == "TUPLE":
                    stack.append(_tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(step.name[-1])
                stack[-length:] = [_tuple(stack[-length:])]
            case "APPEND":
                stack.pop()
            case "SETITEM":
                del stack[-2:]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(Made(argument))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), check_storage))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments, inert))
            case "BUILD":
                stack.pop()
                if stack[-1] != Made(ORDERED) and not _is_inert(stack[-1], inert):
                    raise Foreign(_told(stack[-1]))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET" | "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(None)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case other:
                raise Foreign(f"the instruction {other} of its pickle")


class Nested(tuple):
    depth: int


def _tuple(items: list) -> Nested:
    """A tuple that is not deep: Python's hash of a deep one ends the process."""
    made = Nested(items)
    made.depth = 1 + max((getattr(item, "depth", 0) for item in items), default=0)
    if made.depth > DEEPEST:
        raise Damaged(f"tuples are nested more than {DEEPEST} deep")
    return made


def _storage(named: Any, check_storage: Callable[[str, int], None]) -> Storage:
    kind, sort, key, _, numbers, *_ = named
    if kind != "storage" or sort.name not in WIDTHS:
        raise Foreign(_told(sort))
    check_storage(key, numbers * WIDTHS[sort.name])
    return Storage(numbers)


def _made(function: Any, arguments: tuple, inert: Collection[str] | None) -> Any:
    """What stands for the result of a call, if the call makes a tensor, a plain value or nothing."""
    name = getattr(function, "name", "")
    if name == TENSOR:
        _check_tensor(*arguments[:4])
    elif name == BYTES and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
        return None
    elif name in PLAIN and any(isinstance(argument, Made | Storage | tuple) for argument in arguments):
        raise Foreign(_told(function))  # a tensor would become an object for each number
    elif name not in HARMLESS | PLAIN and not _is_inert(function, inert):
        raise Foreign(_told(function))
    return Made(name)


def _check_tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    numbers = math.prod(shape)
    if min((offset, *shape, *strides)) < 0 or numbers > storage.numbers or (numbers > 0 and last >= storage.numbers):
        raise Damaged(f"a tensor of shape {list(shape)} does not fit its storage of {storage.numbers} numbers")


def _is_inert(made: Any, inert: Collection[str] | None) -> bool:
    """Whether a stand-in is called; what torch.load knows itself it calls itself."""
    if inert is None or not isinstance(made, Made):
        return False
    return _told(made) in inert or not (made.name.startswith("torch") or made.name in GROWING)


def _told(made: Any) -> str:
    return made.name.replace(" ", ".") if isinstance(made, Made) else f"a call of {type(made).__name__}"

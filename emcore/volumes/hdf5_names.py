"""The names in an HDF5 file, looked up link by link: none leads out of the file, none in circles, and all are bounded.

Names are bytes in the file; those that are not UTF-8 keep their bytes as Python's surrogate escapes.
"""

from collections.abc import Iterator
from typing import Any

import h5py
from h5py import h5g, h5l, h5o

from emcore.errors import InputError

MOST_OBJECTS = 200_000
MOST_SOFT_LINKS = 32  # on the way to one object


def as_text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def dataset_names(file: h5py.File) -> list[str]:
    """The name of every dataset, in the order of names, each group before what is in it; links are not followed."""
    found, seen = [], {h5o.get_info(file.id).addr}
    root = h5g.open(file.id, b"/")
    groups: list[tuple[h5g.GroupID, bytes, Iterator[bytes]]] = [(root, b"", iter(sorted(root)))]
    while groups:
        group, before, names = groups[-1]
        name = next(names, None)
        if name is None:
            groups.pop()
            continue
        if group.links.get_info(name).type != h5l.TYPE_HARD:
            continue
        about = h5o.get_info(group, name)
        if about.addr in seen:  # an object may have several names
            continue
        seen.add(about.addr)
        if len(seen) > MOST_OBJECTS:
            raise InputError(f"{as_text(h5py.h5f.get_name(file.id))} holds more than {MOST_OBJECTS} objects, too many "
                             "to list; name the dataset as PATH:DATASET")
        if about.type == h5o.TYPE_DATASET:
            found.append(as_text(before + name))
        elif about.type == h5o.TYPE_GROUP:
            inner = h5o.open(group, name)
            groups.append((inner, before + name + b"/", iter(sorted(inner))))
    return found


def find(file: h5py.File, name: str) -> list[Any] | None:
    """The objects on the way to a name, the root first and what it names last; None where there is no such name."""
    way = [h5g.open(file.id, b"/")]
    for part in as_bytes(name).split(b"/"):
        if part in (b"", b"."):
            continue
        step = follow(way[0], way[-1], part, [0])
        if step is None:
            return None
        way.append(step)
    return [wrapped(item) for item in way]


def follow(root: h5g.GroupID, group: Any, part: bytes, jumps: list[int]) -> Any:
    """The identifier of what a link leads to, None if nothing; a link into another file is refused."""
    if not isinstance(group, h5g.GroupID) or not group.links.exists(part):
        return None
    kind = group.links.get_info(part).type
    if kind == h5l.TYPE_HARD:
        return h5o.open(group, part)
    if kind != h5l.TYPE_SOFT:
        raise InputError(f"{as_text(part)!r} is a link into another file, which is not followed; open that file itself")
    jumps[0] += 1
    if jumps[0] > MOST_SOFT_LINKS:
        raise InputError(f"{as_text(part)!r} is a link that leads through more than {MOST_SOFT_LINKS} others, or in a "
                         "circle")
    target = group.links.get_val(part)
    place = root if target.startswith(b"/") else group
    for piece in target.split(b"/"):
        if piece not in (b"", b"."):
            place = follow(root, place, piece, jumps)
    return place


def wrapped(item: Any) -> Any:
    if isinstance(item, h5g.GroupID):
        return h5py.Group(item)
    return h5py.Dataset(item) if isinstance(item, h5py.h5d.DatasetID) else h5py.Datatype(item)

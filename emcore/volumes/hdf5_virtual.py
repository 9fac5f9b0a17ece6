"""Virtual HDF5 datasets, joined from datasets of other files: where a part is missing HDF5 would read fill values
without a word, where it names itself the process would die, and a name may lead anywhere. So every part is looked at
before it is read, and it must lie in the folder of the file that names it, or below.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s

from emcore.errors import InputError
from emcore.reading import is_inside, open_regular
from emcore.volumes.hdf5_names import find
from emcore.volumes.volume import first_line

DEEPEST = 8  # virtual datasets whose parts are virtual
MOST_PARTS = 100_000

Check = Callable[[str, h5py.Dataset], None]


@dataclass(frozen=True, eq=False)
class Part:
    """Where a part lies in the virtual dataset, and where it comes from."""

    low: tuple[int, ...] | None  # None where its size is open
    high: tuple[int, ...]
    file: Path
    dataset: str
    source: h5s.SpaceID
    count: int | None  # voxels

    def meets(self, box: tuple[slice, ...]) -> bool:
        return self.low is None or all(span.start <= high and low < span.stop
                                       for span, low, high in zip(box, self.low, self.high))


def parts_of(title: str, path: Path, dataset: h5py.Dataset) -> list[Part]:
    """The parts of a virtual dataset of the file `path`, whose name holds no link."""
    sources = dataset.virtual_sources()
    if len(sources) > MOST_PARTS:
        raise InputError(f"{title} is joined from {len(sources)} parts; more than {MOST_PARTS} are not read")
    parts, inside = [], {}
    for source in sources:
        name = source.file_name
        if "%" in name + source.dset_name:
            raise InputError(f"{title} names its parts by a pattern, {name}:{source.dset_name}, which is not read; "
                             "rewrite it by h5repack, or by h5py, as one dataset")
        if name not in inside:
            inside[name] = path if name == "." else path.parent / name
            if not is_inside(inside[name], path.parent):
                raise InputError(f"{title} is joined from {name}, which lies outside of its folder; only parts inside "
                                 f"{path.parent} are read")
        try:
            (low, high), count = source.vspace.get_select_bounds(), source.vspace.get_select_npoints()
        except (RuntimeError, ValueError):
            low, high, count = None, (), None
        parts.append(Part(low, high, inside[name], source.dset_name, source.src_space, count))
    missing = sorted({part.file.name for part in parts if not part.file.exists()})
    if missing:
        raise InputError(f"{title} is joined from {len(inside)} files; missing: {', '.join(missing[:3])}")
    return parts


def check_parts(title: str, path: Path, parts: list[Part], check: Check, above: tuple) -> None:
    """Refuses parts that are missing, too small, damaged, or made of what is joined from them (`above`)."""
    if len(above) > DEEPEST:
        raise InputError(f"{title} is joined from parts that are joined from parts, more than {DEEPEST} deep")
    for place in dict.fromkeys(part.file for part in parts):
        open_regular(place).close()
        try:
            with h5py.File(place, "r", locking=False) as file:
                for part in parts:
                    if part.file == place:
                        check_part(title, part, file, check, above)
        except OSError as error:
            raise InputError(f"{title} is joined from {place}, which cannot be read: {first_line(error)}") from error


def check_part(title: str, part: Part, file: h5py.File, check: Check, above: tuple) -> None:
    name, own = f"{part.file.name}:{part.dataset}", (identity(part.file), part.dataset.strip("/"))
    if own in above:
        raise InputError(f"{title} is joined from itself, through {name}")
    way = find(file, part.dataset)
    found = way[-1] if way else None
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{title} is joined from {name}, which is missing")
    check_size(title, name, part, found)
    check(name, found)
    if found.is_virtual:
        home = Path(os.path.realpath(part.file))
        check_parts(title, home, parts_of(name, home, found), check, (*above, own))


def check_size(title: str, name: str, part: Part, found: h5py.Dataset) -> None:
    """Refuses a part that is smaller than what is taken of it: HDF5 would read beyond its end."""
    shape = found.shape or ()
    if part.source.get_select_type() == h5s.SEL_ALL:
        fits = part.count in (None, math.prod(shape))
    else:
        try:
            high = part.source.get_select_bounds()[1]
        except (RuntimeError, ValueError):  # its size is open
            high = (0,) * len(shape)
        fits = len(high) == len(shape) and all(last < length for last, length in zip(high, shape))
    if not fits:
        raise InputError(f"{title} is joined from {name}, whose shape {shape} does not hold what is taken of it")


def identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class Joined:
    """A virtual dataset, whose parts are looked at again whenever one of their files has changed."""

    title: str
    path: Path
    dataset: h5py.Dataset
    check: Check
    parts: list[Part]
    looked_at: dict[Part, tuple[int, ...]] = field(default_factory=dict)

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        for part in self.parts:
            if not part.meets(box):
                continue
            try:
                now = identity(part.file)
            except OSError:
                raise InputError(f"{self.title} is joined from {part.file.name}, which is missing now") from None
            if self.looked_at.get(part) != now:
                if not is_inside(part.file, self.path.parent):
                    raise InputError(f"{self.title} is joined from {part.file.name}, which leads out of its folder now")
                check_parts(self.title, self.path, [part], self.check, ((identity(self.path), self.own_name()),))
                self.looked_at[part] = now
        return self.dataset[box]

    def own_name(self) -> str:
        return self.dataset.name.strip("/")


def joined(title: str, path: Path, dataset: h5py.Dataset, check: Check) -> Joined:
    """The virtual dataset with all its parts looked at once."""
    result = Joined(title, path, dataset, check, parts_of(title, path, dataset))
    check_parts(title, path, result.parts, check, ((identity(path), result.own_name()),))
    result.looked_at.update((part, identity(part.file)) for part in result.parts)
    return result

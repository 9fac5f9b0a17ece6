"""python -m emcore prepare fullem: the files of cyd0806/EM_pretrain_data where dbMiM's fullEM recipes look for them.

The published archives are unpacked, files that are unpacked already are linked; each is opened once, and a manifest
lists them. The same command goes on where it stopped, and takes what has come since.
"""

import json
import os
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported, write_text
from emcore.progress import Progress
from emcore.volumes import open_volume

SOURCE = "huggingface.co/datasets/cyd0806/EM_pretrain_data"
SUFFIXES = (".h5", ".hdf", ".hdf5")
PIECE = 16 << 20  # bytes that are unpacked at a time


class Group(NamedTuple):
    """One of the five data sets: how the names of its archives begin, and how many files it was published with."""

    prefix: str
    files: int


GROUPS = {
    "fafb": Group("FAFB_crop_hdf_", 1421),
    "fib25": Group("FIB-25_hdf_", 1857),
    "kasthuri": Group("Kasthuri2015_hdf_", 1732),
    "mitoem": Group("MitoEM_", 81),
    "mb_moc": Group("mb_moc_hdf_", 2944),
}


class Found(NamedTuple):
    """An HDF5 file as it was given, in an archive or on its own, and where the recipes are to find it."""

    source: Path  # the archive or the file
    member: zipfile.ZipInfo | None  # its entry, where it lies in an archive
    group: str
    path: Path


def prepare_full(folder: Path, target: Path) -> list[dict[str, Any]]:
    """The manifest's entries of all files below target/all: those there already, and those of the folder."""
    place = target / "all"
    found = {item.path: item for item in (*given(place, place), *given(folder, place))}
    if not found:
        there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else None
        held = "there is no such folder" if there is None else f"it holds {', '.join(there) or 'nothing'}"
        prefixes = ", ".join(f"{group.prefix}*.zip" for group in GROUPS.values())
        raise InputError(f"{folder} has none of the archives {prefixes}, nor folders of HDF5 files named like them; "
                         f"{held}: fetch them from {SOURCE}, which asks for an account")
    missing = [item for item in found.values() if not is_there(item)]
    check_room(missing, target)
    with Progress(len(missing), f"{folder} -> {place}", "files") as progress:
        for item in missing:
            put(item)
            progress.add()
    entries = [entry(item, target) for _, item in sorted(found.items())]
    write_text(target / "all_manifest.json", json.dumps(
        {"source": SOURCE, "groups": dict(Counter(item["group"] for item in entries)), "files": entries}, indent=1)
        + "\n")
    return entries


def given(folder: Path, place: Path) -> Iterator[Found]:
    """What there is to prepare below a folder, in the order of names."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        within = path.relative_to(folder)
        group = group_of(within, folder.name)
        if group is None or path.is_dir() or any(part.startswith(".") for part in within.parts):
            continue
        if path.suffix == ".zip":
            for member in members(path):
                yield Found(path, member, group, place / group / path.stem / within_archive(path, member))
        elif path.suffix in SUFFIXES:
            inside = path.is_relative_to(place) and path.suffix == ".h5"
            yield Found(path, None, group, path if inside else place / group / within.with_suffix(".h5"))


def group_of(within: Path, folder: str) -> str | None:
    """The data set that a path belongs to: the first of its parts that is named like one, or like its archives."""
    for part in (*within.parts, folder):
        for name, group in GROUPS.items():
            if part == name or part.startswith(group.prefix):
                return name
    return None


def members(path: Path) -> list[zipfile.ZipInfo]:
    """The HDF5 files of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [item for item in archive.infolist()
                    if not item.is_dir() and PurePosixPath(item.filename).suffix in SUFFIXES]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path} is no whole zip archive ({error}): fetch it again") from None


def within_archive(path: Path, member: zipfile.ZipInfo) -> Path:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\0" in member.filename or "\\" in member.filename:
        raise InputError(f"{path} holds {member.filename!r}, which leads out of its folder")
    return Path(name).with_suffix(".h5")


def is_there(item: Found) -> bool:
    size = item.source.stat().st_size if item.member is None else item.member.file_size
    return item.path.is_file() and item.path.stat().st_size == size


def check_room(missing: list[Found], target: Path) -> None:
    needed = sum(item.member.file_size for item in missing if item.member is not None)
    with reported(target):
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
    if needed > free:
        raise InputError(f"the archives unpack to {needed / 2**30:.1f} GiB, but {target} has {free / 2**30:.1f} GiB "
                         "free: make room, or prepare fewer of them")


def put(item: Found) -> None:
    """Unpacks a file, or links it; what no link can reach is copied."""
    with reported(item.path):
        item.path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(item.path) as temporary:
        if item.member is not None:
            unpack(item.source, item.member, temporary, item.path)
            return
        with reported(item.path):
            try:
                os.link(item.source.resolve(), temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(item.source, temporary)


def unpack(path: Path, member: zipfile.ZipInfo, temporary: Path, final: Path) -> None:
    """Writes a member of an archive; its checksum holds at the end."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inside, open(temporary, "xb") as out:
            while piece := inside.read(PIECE):
                with reported(final):
                    out.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError, OSError) as error:
        raise InputError(f"{member.filename} of {path} cannot be unpacked ({error}): fetch the archive again"
                         ) from None


def entry(item: Found, target: Path) -> dict[str, Any]:
    """What the manifest says of a file, which has to be an image volume that the recipes can read."""
    volume = open_volume(item.path, kind="image")
    if volume.ndim != 3 or volume.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{volume.name} must be one volume (z, y, x) of 8 or 16 bits or float32; it has the shape "
                         f"{volume.shape} and the type {volume.dtype}")
    return {"name": str(item.path.relative_to(target)), "group": item.group, "key": volume.name.rpartition(":")[2],
            "shape": list(volume.shape), "dtype": str(volume.dtype), "bytes": item.path.stat().st_size}


def told(entries: list[dict[str, Any]]) -> str:
    """How many files of each data set there are, and how many were published."""
    counts = Counter(item["group"] for item in entries)
    return "\n".join(f"{name}: {counts[name]} files of the {group.files} published" for name, group in GROUPS.items())

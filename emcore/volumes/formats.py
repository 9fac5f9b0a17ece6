"""The formats of volumes: one row each, and what the module of a format offers.

A new format is a module of this folder with the functions of Format, and a row of FORMATS.
"""

import os
from contextlib import AbstractContextManager
from importlib import import_module
from os import PathLike, fspath
from os.path import exists, isdir, isfile  # which say no to what is no path, where pathlib's fail
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from emcore.errors import InputError, lacking
from emcore.reading import open_regular
from emcore.volumes.volume import Listing, Volume

Attributes = dict[str, Any]  # resolution and offset (nm, z y x) among them
Shape = tuple[int, ...]
UNFINISHED, PLAN = ".unfinished", "plan.json"  # the folder of a store that is being written, and what tells it


class Target(Protocol):
    """What takes blocks while a volume is written; a box has a slice of step 1 for each axis."""

    def __setitem__(self, box: tuple[slice, ...], block: np.ndarray) -> None: ...


class Format(Protocol):
    """The functions of a format's module; what they cannot do is an InputError that names the path."""

    def open_file(self, path: Path, dataset: str | None, kind: str | None) -> Volume:
        """The volume of a file or folder, without a voxel read; kind says which keys are looked for first."""

    def list_file(self, path: Path) -> Listing:
        """The arrays in a file or folder; only formats that hold several have this."""

    def create_file(
        self, path: Path, dataset: str | None, shape: Shape, dtype: np.dtype, attributes: Attributes,
        chunks: Shape | None, compression: str | None
    ) -> AbstractContextManager[tuple[Target, Shape | None]]:
        """What takes the blocks, and the blocks in which it stores them (None: any are as good); unless it only reads.

        All is written under a temporary name; the path gets it when the context ends without an error.
        """


class Row(NamedTuple):
    """How a format is known, and what it can do."""

    module: str
    name: str
    title: str  # names the format in messages
    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...] = ()  # how its files begin
    markers: tuple[str, ...] = ()  # files of which one stands in each of its folders
    several: bool = False  # it holds several arrays, which have names
    compresses: bool = False
    writes: bool = True

    @property
    def code(self) -> Format:
        """The module, imported only now: tifffile and zarr are not needed for the others."""
        return import_module(f"emcore.volumes.{self.module}")


FORMATS = (
    Row("hdf5", "HDF5", "HDF5 (.h5)", (".h5", ".hdf5", ".hdf"), (b"\x89HDF\r\n\x1a\n",), several=True,
        compresses=True),
    Row("npy", "npy", "npy", (".npy",), (b"\x93NUMPY",)),
    Row("tiff", "TIFF", "TIFF (a stack, or a folder of slices)", (".tif", ".tiff"),
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    Row("images", "images", "PNG and JPEG (a folder of slices)", (".png", ".jpg", ".jpeg"),
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"), writes=False),
    Row("mrc", "MRC", "MRC (.mrc)", (".mrc", ".rec", ".st", ".map"), writes=False),
    Row("zarr_format", "zarr", "zarr", (".zarr",), markers=("zarr.json", ".zarray", ".zgroup"), several=True,
        compresses=True),
    Row("precomputed", "precomputed", "Neuroglancer precomputed", (".precomputed",), markers=("info",), several=True),
    Row("remote", "N5", "N5", (".n5",), markers=("attributes.json",), several=True),
)
SLICES, IMAGES = (next(row for row in FORMATS if row.module == name) for name in ("tiff", "images"))
TITLES = ", ".join(row.title for row in FORMATS[:-1]) + f" and {FORMATS[-1].title}"


def named(path: Path) -> Row | None:
    """The format that a name promises."""
    return next((row for row in FORMATS if path.suffix.lower() in row.suffixes), None)


def split_reference(reference: str | PathLike) -> tuple[Path, str | None]:
    """Splits `path:dataset` into the path and the dataset.

    Args:
        reference: the text or path. A path that exists as it stands has no dataset in it.

    Returns:
        A pair: the path, and the dataset or None.

    Cost:
        The path is looked up on the disk.

    Examples:
        >>> from emcore import volumes
        >>> volumes.split_reference("sample.h5:volumes/raw")[1]
        'volumes/raw'
    """
    text = fspath(reference)
    head, colon, dataset = text.rpartition(":")
    # A colon within the path (C:\\data, a:b/raw.tif) is not ours: before ours stands a file, or what is named like one.
    is_container = named(Path(head)) is not None or isfile(head)
    if not colon or exists(text) or not (is_container or isdir(head)):
        return Path(text), None
    return Path(head), dataset or None


def format_of(path: Path) -> Row:
    """The format of an existing file or folder, by its first bytes, else by its name."""
    refuse_unfinished(path)
    if isdir(path):
        return next((row for row in FORMATS if row.markers and (
            path.suffix.lower() in row.suffixes or any(isfile(path / name) for name in row.markers))), None
        ) or slices_in(path)
    try:
        with open_regular(path) as file:
            begins = file.read(8)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    found = next((row for row in FORMATS if begins.startswith(row.signatures)), None) or named(path)
    if found is None:
        raise InputError(f"{path} is in no format known here, which are {TITLES}; it begins with {begins!r}")
    return found


def slices_in(folder: Path) -> Row:
    """The format of a folder without a marker: TIFF where there is one file of it, else images."""
    try:
        suffixes = {name.rpartition(".")[2].lower() for name in os.listdir(folder)}
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    found = [row for row in (SLICES, IMAGES) if any(suffix[1:] in suffixes for suffix in row.suffixes)]
    return found[0] if found else SLICES


def need_tensorstore(what: str) -> Any:
    """The library, or a sentence that says what to install."""
    try:
        import tensorstore
    except ImportError:
        raise lacking(what, "remote") from None
    return tensorstore


def refuse_unfinished(path: Path) -> None:
    """Refuses a store that is still being written, and says so of one that has no name yet."""
    waiting = path.with_name(path.name + UNFINISHED) if path.name else path
    inside = [folder for folder in (path, *list(path.parents)[:3]) if folder.name.endswith(UNFINISHED)]
    for work in inside if exists(path) else [waiting]:
        if isfile(work / PLAN):
            raise InputError(f"{work} is the unfinished part of a volume: run the command again that writes it, which "
                             "goes on where it ended")


def refuse_dataset(path: Path, dataset: str | None, row: Row) -> None:
    if dataset and not row.several:
        raise InputError(f"{path} is a single volume, it has no dataset {dataset!r}; only HDF5 and zarr hold several")

"""TIFF by the extra tifffile: stacks, ImageJ stacks beyond 4 GB, folders of numbered slices; read page by page."""

import io
import json
import logging
import lzma
import math
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError, lacking
from emcore.files import replaced, reported
from emcore.reading import open_regular
from emcore.volumes import metadata
from emcore.volumes.image_headers import jpeg_header
from emcore.volumes.sections import sections_of
from emcore.volumes.volume import Volume, check_volume, first_line, native, unpacks_beyond
from emcore.volumes.writing import FlatFile, flat_file

try:
    import tifffile
except ImportError:
    raise lacking("reading and writing TIFF", "tiff") from None

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is refused here, with the file's name
BROKEN = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    ArithmeticError,
)
COMPRESSION_LIMIT = 40_000  # more than any codec reaches: a page that claims more is a lie, not an image
DEFLATE, OLD_DEFLATE, LZMA, JPEG = 8, 32946, 34925, 7
# those that take no more memory than a page has, or whose strips are looked at before
READ = {1: "none", 5: "LZW", JPEG: "JPEG", DEFLATE: "Deflate", OLD_DEFLATE: "Deflate", 32773: "PackBits", LZMA: "LZMA",
        50000: "Zstandard"}
UNPACKERS = {DEFLATE: zlib.decompressobj, OLD_DEFLATE: zlib.decompressobj, LZMA: lzma.LZMADecompressor}
# bytes of a strip that are unpacked without looking; deflate cannot make more than 1032 of each, LZMA can
SMALL_STRIP = {DEFLATE: 1 << 20, OLD_DEFLATE: 1 << 20, LZMA: 1 << 12}
SLICE_LIMIT = 1_000_000
IMAGEJ_TYPES = ("uint8", "uint16", "float32")
CLASSIC_LIMIT = 2**32 - 2**26  # bytes of voxels below which all pages of a stack have 32-bit addresses


@dataclass(frozen=True)
class Page:
    """One section: a page of a file, or raw voxels at a place in it."""

    path: Path
    number: int
    start: int | None  # None where the page has to be decoded


@dataclass(frozen=True, eq=False)
class PageStack:
    """Pages as an array: planes holds the number of the page at each (z) or (c, z)."""

    pages: tuple[Page, ...]
    planes: np.ndarray
    height: int
    width: int
    dtype: np.dtype
    lock: Any  # a TIFF file has one position
    opened: dict[tuple[Path, bool], Any]  # at most one file: the stack, or the slice read last

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        planes, (rows, columns) = self.planes[box[:-2]], box[-2:]
        block = np.empty(
            (*planes.shape, len(range(*rows.indices(self.height))), len(range(*columns.indices(self.width)))),
            native(self.dtype),
        )
        with self.lock:
            for place, number in np.ndenumerate(planes):
                block[place] = self.rows_of(self.pages[number], rows)[:, columns]
        return block

    def rows_of(self, page: Page, rows: slice) -> np.ndarray:
        if page.start is None:
            try:
                found = self.file_of(page).pages[page.number]
                refuse_bomb(page, found)
                decoded = found.asarray(maxworkers=1)
            except InputError:
                raise
            except (*BROKEN, zlib.error) as error:
                raise OSError(f"page {page.number} of {page.path} is damaged ({first_line(error)})") from error
            return decoded.reshape(self.height, self.width)[rows]
        file = self.file_of(page)
        file.seek(page.start + rows.start * self.width * self.dtype.itemsize)
        stored = np.fromfile(file, self.dtype, (rows.stop - rows.start) * self.width)
        return stored.reshape(rows.stop - rows.start, self.width)[:: rows.step]

    def file_of(self, page: Page) -> Any:
        wanted = page.path, page.start is None
        if wanted not in self.opened:
            for file in self.opened.values():
                file.close()
            self.opened.clear()
            self.opened[wanted] = tifffile.TiffFile(page.path) if page.start is None else page.path.open("rb")
        return self.opened[wanted]


def refuse_bomb(page: Page, found: Any) -> None:
    """Refuses a page whose strips unpack to more than the page has, before tifffile unpacks them without a limit."""
    size = found.imagelength * found.imagewidth * np.dtype(found.dtype).itemsize
    most = 2 * max(size, found.tilelength * found.tilewidth * np.dtype(found.dtype).itemsize) + 1024
    for start, count in zip(found.dataoffsets, found.databytecounts):
        if found.compression != JPEG and count <= SMALL_STRIP.get(found.compression, count):
            continue
        with open_regular(page.path) as file:
            file.seek(start)
            stored = file.read(count)
        if found.compression == JPEG:
            height, width, _ = jpeg_header(page.path, io.BytesIO(stored)) if count else (0, 0, None)
            beyond = height * width > most
        else:
            beyond = unpacks_beyond(stored, most, UNPACKERS[found.compression]().decompress)
        if beyond:
            raise InputError(f"page {page.number} of {page.path} unpacks to more than the {size} bytes that it should "
                             "hold; it is damaged or made to fill the memory")


def connect_pages(pages: tuple[Page, ...], planes: np.ndarray, height: int, width: int, dtype: np.dtype) -> PageStack:
    return PageStack(pages, planes, height, width, dtype, threading.Lock(), {})


def open_file(path: Path, dataset: None = None, kind: str | None = None) -> Volume:
    """A TIFF file, or a folder with one file a section, as a volume."""
    files = sections_of(path, (".tif", ".tiff")) if path.is_dir() else [path]
    stack, pages = None, []
    for file in files:
        found = pages_of(file)
        stack = stack or found
        if (found.height, found.width, found.dtype) != (stack.height, stack.width, stack.dtype):
            raise InputError(f"the slices of {path} differ: {describe(files[0], stack)}, {describe(file, found)}")
        if len(files) > 1 and len(found.pages) != 1:
            raise InputError(f"{file} holds {len(found.pages)} pages; in a folder every file is one slice")
        pages += found.pages
    planes = stack.planes if len(files) == 1 else np.arange(len(files))
    shape = (*planes.shape, stack.height, stack.width)
    check_volume(str(path), shape, stack.dtype)
    resolution, offset = metadata.read_grid([stack.attributes, stack.tags], str(path))
    connect = partial(connect_pages, tuple(pages), planes, stack.height, stack.width, stack.dtype)
    chunks = (1,) * planes.ndim + shape[-2:] if any(page.start is None for page in pages) else None
    attributes = metadata.without_grid(stack.attributes)
    return Volume(str(path), shape, native(stack.dtype), resolution, offset, attributes, chunks, connect)


@dataclass(frozen=True)
class Stack:
    """What the headers of one file say."""

    pages: tuple[Page, ...]
    planes: np.ndarray
    height: int
    width: int
    dtype: np.dtype
    attributes: dict[str, Any]
    tags: dict[str, Any]  # the resolution that ImageJ or OME tags give


def describe(file: Path, stack: Stack) -> str:
    return f"{file.name} is ({stack.height}, {stack.width}) {stack.dtype}"


def pages_of(path: Path) -> Stack:
    """The pages of a file, from their headers alone; whatever is broken in them becomes one sentence."""
    try:
        open_regular(path).close()
        with tifffile.TiffFile(path) as file:
            return read_headers(path, file)
    except InputError:
        raise
    except (*BROKEN, MemoryError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as TIFF: {first_line(error)}") from error


def read_headers(path: Path, file: Any) -> Stack:
    if not len(file.pages):
        raise InputError(f"{path} holds no page")
    first, size = file.pages[0], path.stat().st_size
    if first.samplesperpixel != 1 or first.imagedepth != 1:
        raise InputError(f"{path} has {first.samplesperpixel} samples per pixel (colour); save it as grey values")
    if first.dtype is None:
        raise InputError(f"{path} has {first.bitspersample} bits per pixel, which is no type of numpy's")
    height, width = first.imagelength, first.imagewidth
    dtype = np.dtype(first.dtype).newbyteorder(file.byteorder)
    check_volume(str(path), (len(file.pages), height, width), dtype)
    tags, attributes, axes = descriptions(file)
    count = math.prod(length for _, length in axes)
    page_bytes = height * width * dtype.itemsize
    if max(count, len(file.pages)) > SLICE_LIMIT:
        raise InputError(f"{path} says that it holds {max(count, len(file.pages))} slices; its header is wrong")
    if len(file.pages) == 1 and count > 1:
        start = raw_start(path, first, size)
        if start is None:
            raise InputError(f"{path} says that it holds {count} slices, but it holds one")
        if count > (size - start) // page_bytes:
            raise InputError(
                f"{path} says that it holds {count} slices of ({height}, {width}) {dtype}, but has room for "
                f"{(size - start) // page_bytes}; it is cut off, or its header is wrong"
            )
        return Stack(
            tuple(Page(path, 0, start + place * page_bytes) for place in range(count)),
            plane_order(path, axes), height, width, dtype, attributes, tags,
        )  # fmt: skip
    if len(file.pages) != count:
        if sum(length > 1 for _, length in axes) > 1:
            raise InputError(f"{path} says that it holds {count} planes, {dict(axes)}, but has {len(file.pages)} pages")
        axes = [("Z", len(file.pages))]
    pages = []
    for number in range(len(file.pages)):
        page = file.pages[number]  # iterating would end silently at a page that is broken
        if (page.imagelength, page.imagewidth, page.dtype) != (height, width, first.dtype):
            raise InputError(
                f"the pages of {path} differ: page 0 is ({height}, {width}) {first.dtype}, "
                f"page {number} is ({page.imagelength}, {page.imagewidth}) {page.dtype}"
            )
        pages.append(Page(path, number, raw_start(path, page, size)))
    return Stack(tuple(pages), plane_order(path, axes), height, width, dtype, attributes, tags)


def raw_start(path: Path, page: Any, size: int) -> int | None:
    """Where the page's voxels lie as they are, None if it must be decoded; refuses what cannot be in the file."""
    name = f"page {page.index} of {path}"
    stored = sum(page.databytecounts)
    page_bytes = page.imagelength * page.imagewidth * np.dtype(page.dtype).itemsize
    if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts)):
        raise InputError(
            f"{name} lies beyond the end of the file ({size} bytes); it is cut off, or its header is wrong"
        )
    if page.is_memmappable:
        if page.dataoffsets[0] + page_bytes > size:
            raise InputError(f"{name} needs {page_bytes} bytes, beyond the end of the file; it is cut off")
        return page.dataoffsets[0]
    if page_bytes // 8 > stored * COMPRESSION_LIMIT:  # bits are unpacked to bytes
        raise InputError(f"{name} claims ({page.imagelength}, {page.imagewidth}) pixels in {stored} bytes")
    name = getattr(page.compression, "name", page.compression)
    if page.compression not in READ:
        raise InputError(f"{path} is compressed by {name}; TIFF is read uncompressed or compressed by "
                         f"{', '.join(dict.fromkeys(list(READ.values())[1:]))}: rewrite it by: tiffcp -c none "
                         f"{path.name} plain.tif")
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError:
        raise lacking(f"{path} can be rewritten by: tiffcp -c none {path.name} plain.tif; as it is, its compression by "
                      f"{name}", "tiff") from None
    return None


def descriptions(file: Any) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, int]]]:
    """The resolution given by tags, all other attributes, and the axes of the pages, slowest first."""
    first = file.pages[0]
    if file.is_imagej:
        given = file.imagej_metadata or {}
        tags = {}
        if metadata.nanometres(given.get("unit")):
            sizes = [pixel_size(first.tags.get(name)) for name in ("YResolution", "XResolution")]
            if all(sizes):
                # ImageJ leaves spacing out where it is 1
                tags = {"resolution": [float(given.get("spacing", 1.0)), *sizes], "unit": given["unit"]}
        info = metadata.plain(given.get("Info", ""))
        axes = [(axis, int(given.get(name, 1))) for axis, name in zip("TZC", ("frames", "slices", "channels"))]
        if math.prod(length for _, length in axes) == 1:
            axes = [("Z", int(given.get("images", 1)))]
        return tags, info if isinstance(info, dict) else {}, axes
    if file.is_ome:
        return ome(first.description)
    if file.is_shaped and isinstance(given := metadata.plain(first.description), dict):
        lengths = given.pop("shape")[:-2]
        letters = str(given.pop("axes", "CZYX"[-len(lengths) - 2 :]))[:-2]
        given.pop("truncated", None)
        if len(letters) != len(lengths):
            letters = "?" * len(lengths)
        return {}, given, [(letter, int(length)) for letter, length in zip(letters, lengths)]
    return {}, {}, [("Z", len(file.pages))]


def pixel_size(pixels_per_unit: Any) -> float:
    """The size of a pixel from the rational number of a resolution tag; 0 where there is none."""
    pixels, units = pixels_per_unit.value if pixels_per_unit else (0, 0)
    return units / pixels if pixels and units else 0.0


def ome(description: str) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, int]]]:
    """The same from the first Pixels element of an OME description."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", description)
    given = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', pixels[1])) if pixels else {}
    sizes = [given.get(f"PhysicalSize{axis}") for axis in "ZYX"]
    factors = [metadata.nanometres(given.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"]
    tags = {}
    if all(sizes) and all(factors):
        tags = {"resolution": [float(size) * factor for size, factor in zip(sizes, factors)]}
    order = given.get("DimensionOrder", "XYZCT")
    axes = [(axis, int(given.get(f"Size{axis}", 1))) for axis in reversed(order) if axis in "TZC"]
    return tags, {}, axes


def plane_order(path: Path, axes: list[tuple[str, int]]) -> np.ndarray:
    """The number of the page at each (z), or (c, z) where there are channels and another axis.

    A single axis is z, whatever the program that wrote it called it (Fiji makes T or C of a sequence of images).
    """
    if any(length < 1 for _, length in axes):
        raise InputError(f"{path} says that it has the axes {dict(axes)}, of which one is empty")
    numbers = np.arange(math.prod(length for _, length in axes)).reshape([length for _, length in axes])
    letters = [letter for letter, _ in axes]
    if sorted(letters) != ["C", "Z"]:
        kept = [place for place, (_, length) in enumerate(axes) if length > 1]
        letters = [letters[place] for place in kept]
        numbers = numbers.reshape([axes[place][1] for place in kept] or [1])
    if numbers.ndim == 1:
        return numbers
    if numbers.ndim > 2 or "C" not in letters:
        raise InputError(f"{path} has the axes {dict(axes)} besides y and x; a volume is (z, y, x) or (c, z, y, x)")
    return numbers if letters[0] == "C" else numbers.T


@contextmanager
def create_file(
    path: Path, dataset: None, shape: tuple[int, ...], dtype: np.dtype, attributes: dict[str, Any], *_: None
) -> Iterator[tuple[FlatFile, None]]:
    """An uncompressed stack to write into: for ImageJ where its format can hold it, else TIFF, from 4 GB BigTIFF."""
    if dtype.kind == "b":
        raise InputError(f"{path} cannot hold booleans; TIFF stacks are made of numbers, write uint8")
    with replaced(path) as temporary:
        with reported(path):
            start = write_headers(temporary, shape, dtype, attributes)
        with flat_file(temporary, path, start, shape, dtype) as target:
            yield target, None


def write_headers(temporary: Path, shape: tuple[int, ...], dtype: np.dtype, attributes: dict[str, Any]) -> int:
    """Where the voxels begin in the new file, which has the headers of all its pages and no voxels yet."""
    is_small = math.prod(shape) * dtype.itemsize + 512 * math.prod(shape[:-2]) < CLASSIC_LIMIT
    options: dict[str, Any] = {"shape": shape, "dtype": dtype, "photometric": "minisblack", "returnoffset": True}
    imagej = is_small and len(shape) == 3 and dtype.name in IMAGEJ_TYPES
    if imagej:
        options["metadata"] = {"axes": "ZYX", "Info": json.dumps(attributes)}
        if "resolution" in attributes:
            z, y, x = attributes["resolution"]
            options["resolution"] = (1 / x, 1 / y)
            options["metadata"] |= {"spacing": z, "unit": "nm"}
    else:
        options["metadata"] = {"axes": "CZYX"[-len(shape) :], **attributes}
    with tifffile.TiffWriter(temporary, bigtiff=not is_small, imagej=imagej) as writer:
        return writer.write(**options)[0]

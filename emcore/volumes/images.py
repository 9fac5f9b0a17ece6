"""Folders of PNG or of JPEG images, one a section, by imagecodecs (the extra tiff); read image by image."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from emcore.errors import InputError, lacking
from emcore.reading import open_regular
from emcore.volumes.image_headers import Header, jpeg_header, png_header
from emcore.volumes.sections import sections_of
from emcore.volumes.volume import Volume, check_volume, first_line

try:
    import imagecodecs
except ImportError:
    raise lacking("reading PNG and JPEG", "tiff") from None

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COMPRESSION_LIMIT = 40_000  # pixels in a byte: an image that claims more is a lie
MOST_BESIDE = 64 << 20  # bytes of a file that say something other than its pixels


def open_file(path: Path, dataset: None = None, kind: str | None = None) -> Volume:
    """An image, or a folder with one image a section, as a volume (z, y, x); of each only the header is read."""
    files = sections_of(path, tuple(KINDS)) if path.is_dir() else [path]
    kinds = sorted({KINDS[file.suffix.lower()] for file in files if file.suffix.lower() in KINDS})
    if len(kinds) > 1:
        raise InputError(f"the folder {path} holds both {' and '.join(kinds)}; keep the images of one kind in it")
    first = header_of(files[0])
    for file in files[1:]:
        found = header_of(file)
        if found != first:
            raise InputError(f"the slices of {path} differ: {described(files[0], first)}, {described(file, found)}")
    height, width, dtype = first
    shape = (len(files), height, width)
    check_volume(str(path), shape, dtype)
    connect = partial(Images, tuple(files), height, width, dtype)
    return Volume(str(path), shape, dtype, None, (0.0, 0.0, 0.0), {}, (1, height, width), connect)


def described(file: Path, header: Header) -> str:
    return f"{file.name} is ({header[0]}, {header[1]}) {header[2]}"


@dataclass(frozen=True, eq=False)
class Images:
    """Images as an array (z, y, x)."""

    files: tuple[Path, ...]
    height: int
    width: int
    dtype: np.dtype

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        counts = [len(range(*span.indices(length))) for span, length in zip(box, (len(self.files), *self.shape))]
        block, whole = np.empty(counts, self.dtype), np.empty(self.shape, self.dtype)
        for place, file in enumerate(self.files[box[0]]):
            self.decode(file, whole)
            block[place] = whole[box[1:]]
        return block

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def decode(self, path: Path, whole: np.ndarray) -> None:
        """Fills the array with an image, whose header must still say that it has this size."""
        if header_of(path) != (self.height, self.width, self.dtype):
            raise InputError(f"{path} has changed since the volume was opened")
        with open_regular(path) as file:
            stored = file.read()
        decode = imagecodecs.png_decode if stored.startswith(b"\x89PNG") else imagecodecs.jpeg8_decode
        try:
            decode(stored, out=whole)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise InputError(f"{path} is damaged: {first_line(error)}") from error


def header_of(path: Path) -> Header:
    """Height, width and type of an image, checked against the size of its file before anything is unpacked."""
    try:
        with open_regular(path) as file:
            begins = file.read(2)
            file.seek(0)
            header = jpeg_header(path, file) if begins == b"\xff\xd8" else png_header(path, file)
            stored = file.seek(0, 2)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    height, width, dtype = header
    size = height * width * dtype.itemsize
    if height < 1 or width < 1 or size > stored * COMPRESSION_LIMIT:
        raise InputError(f"{path} claims ({height}, {width}) pixels in {stored} bytes; it is cut off, or its header is "
                         "wrong")
    if stored > 2 * size + MOST_BESIDE:
        raise InputError(f"{path} has {stored} bytes, far more than its ({height}, {width}) pixels need")
    return header

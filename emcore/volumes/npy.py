"""npy files, memory-mapped; what they cannot hold stands beside them in `file.npy.json`."""

import json
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import flush_to_disk, replaced, reported, write_text
from emcore.reading import read_text
from emcore.volumes import metadata
from emcore.volumes.volume import Volume, check_volume, first_line, native
from emcore.volumes.writing import FlatFile, flat_file

# numpy parses the header as Python source, and lets through what its parser says
BROKEN = (OSError, ValueError, EOFError, SyntaxError, OverflowError, TypeError, KeyError, AttributeError, MemoryError,
          RecursionError, tokenize.TokenError)
MOST_ATTRIBUTES = 16 << 20  # bytes


def beside(path: Path) -> Path:
    """Where the attributes of an npy file lie."""
    return path.with_name(path.name + ".json")


def open_file(path: Path, dataset: None = None, kind: str | None = None) -> Volume:
    """The array of an npy file, not read but mapped."""
    try:
        mapped = connect_npy(path)
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as npy: {first_line(error)}") from error
    check_volume(str(path), mapped.shape, mapped.dtype)
    attributes = {}
    if beside(path).exists():
        try:
            attributes = json.loads(read_text(beside(path), MOST_ATTRIBUTES))
        except OSError as error:
            raise InputError(f"{beside(path)} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{beside(path)} is not JSON: {first_line(error)}") from error
        if not isinstance(attributes, dict):
            raise InputError(f"{beside(path)} must hold a JSON object of attributes; got {type(attributes).__name__}")
        attributes = metadata.plain(attributes)
    resolution, offset = metadata.read_grid([attributes], str(path))
    attributes = metadata.without_grid(attributes)
    connect = partial(connect_npy, path)
    return Volume(str(path), mapped.shape, native(mapped.dtype), resolution, offset, attributes, None, connect)


def connect_npy(path: Path) -> np.memmap:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about headers that Python 2 wrote
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def create_file(
    path: Path, dataset: None, shape: tuple[int, ...], dtype: np.dtype, attributes: dict[str, Any], *_: None
) -> Iterator[tuple[FlatFile, None]]:
    """An npy file to write into, and the attributes beside it."""
    with replaced(path) as temporary:
        with reported(path), open(temporary, "xb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
        with flat_file(temporary, path, start, shape, dtype) as target:
            yield target, None
        with reported(path):
            flush_to_disk(temporary)  # now, so that only a moment lies between the two names
        if attributes:  # before the voxels: a complete npy file always has its attributes
            write_text(beside(path), json.dumps(attributes))
        else:
            with reported(beside(path)):
                beside(path).unlink(missing_ok=True)

"""Opening files that others wrote: regular files, so that nothing waits for a pipe or reads a device without end."""

import glob
import os
import shlex
import stat
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from emcore.errors import InputError, this_python

MOST_TEXT = 1 << 20  # bytes of a file of settings
DEEPEST = 40  # levels of tables and lists in one
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """The file, open for reading; OSError where it is not there or may not be read."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
    try:
        handle = os.open(path, flags)
    except ValueError:  # a zero byte, or letters that no name of a file has
        raise InputError(f"{os.fspath(path)!r} is no name of a file") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise InputError(f"{os.fspath(path)} is {KINDS.get(stat.S_IFMT(mode), 'no file')}; a regular file is needed")
    return os.fdopen(handle, "rb")


def read_text(path: str | os.PathLike, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a file of at most that many bytes, its line ends as \\n; OSError where it cannot be read."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{os.fspath(path)} is larger than {most >> 20} MiB, too large for what it should be")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(path)} is not UTF-8 text: its byte {error.start} is {data[error.start]}; "
                         "save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies below a folder when all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def read_config(path: str | Path) -> str:
    """The text of a file of settings, or one sentence about why it cannot be read."""
    try:
        return read_text(path)
    except FileNotFoundError:
        below = ", ".join(map(str, one_level_below(Path(path))))
        raise InputError(f"no config file {path}" + (f"; of that name there is {below}" if below else "")) from None
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"cannot read the config: {error}") from None


def one_level_below(path: Path) -> list[Path]:
    """Files of that name in the folders beside it: recipes have moved into one folder for each system."""
    with suppress(OSError, ValueError):
        return sorted(found for found in path.parent.glob(f"*/{glob.escape(path.name)}") if found.is_file())
    return []


def read_toml(path: str | Path) -> dict[str, Any]:
    """The plain table of a TOML file."""
    text = read_config(path)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested too deep to be a config") from None
    except ValueError as error:
        hint = ""
        if Path(path).suffix.lower() in (".yaml", ".yml"):
            out = shlex.quote(f"{Path(path).stem}.toml")
            hint = (f"; a YAML config of PyTorch Connectomics becomes TOML by: {this_python()} -m emcore import-config "
                    f"{shlex.quote(str(path))} -o {out}")
        raise InputError(f"{path} is not valid TOML: {error}{hint}") from None
    if is_deep(table, DEEPEST):
        raise InputError(f"{path} is nested deeper than {DEEPEST} levels, too deep for a config")
    return table


def is_deep(value: Any, levels: int) -> bool:
    """Whether tables and lists are nested in more levels than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(is_deep(item, levels - 1) for item in inner)


def shown(value: Any) -> str:
    """A value inside a sentence."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of very many digits"
    return text if len(text) <= 200 else f"{text[:197]}..."

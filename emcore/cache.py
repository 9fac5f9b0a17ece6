"""Where what can be made again is kept: a private folder of this user; compiled kernels are kept there too."""

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any

import emcore
from emcore.errors import InputError
from emcore.system import is_of_others, lets_others_rename, user


def _is_private_and_writable(folder: Path) -> bool:
    """Whether nobody but this user can put files there: cached code is executed, so a shared folder will not do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return False
        if is_of_others(status):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def cache_folder(name: str) -> Path | None:
    """The folder `name` in the user's cache, else in one of this user in the temporary folder, else None."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    candidates = [user_cache / "emcore" / name, Path(tempfile.gettempdir()) / f"emcore-{user()}" / name]
    # the parent is checked too: its owner could swap the folder under us
    return next((folder for folder in candidates if folder.is_absolute()
                 and _is_private_and_writable(folder.parent) and _is_private_and_writable(folder)), None)


def private_folder(folder: Path) -> Path:
    """A folder that only this user can write, made if it is not there; one that another user made is refused.

    Its name may be one that others can guess, in a folder in which all users write.
    """
    if folder.parent.is_dir() and lets_others_rename(folder.parent.stat()):  # they could exchange ours for theirs
        raise InputError(f"others than you may rename what is in {folder.parent}, so {folder.name} in it is not safe: "
                         "set TMPDIR to a folder of your own")
    if not _is_private_and_writable(folder):
        raise InputError(f"{folder} is not a folder that you alone can write (another user may have made it, or the "
                         "disk is full): remove it, or set TMPDIR to a folder of your own")
    return folder


def job_folder(name: str) -> Path:
    """A private folder of that name on the disk of this node, where the scripts of slurm/ keep compiled code.

    Where another user took the name, it is a new folder with a name that nobody knew before.
    """
    try:
        return private_folder(Path(tempfile.gettempdir()).absolute() / name)
    except InputError as error:
        print(f"note: {error}; a new folder is used", file=sys.stderr)
        return Path(tempfile.mkdtemp(prefix=f"{name}-"))


_COMPILING = Lock()  # Numba learns the folder of its cache by a global setting, and threads share a first call


def compiled(signature: Callable[[Any], object] | None, at_once: bool = False) -> Callable[[Callable], Callable]:
    """A decorator: the function as machine code for exactly this signature, without the GIL, cached between processes.

    A function gives the signature from numba.types, so that a command which calls no such kernel never imports Numba.
    One signature a kernel, compiled by its first call: a command waits for what it uses and for nothing else. No other
    call can set off a compilation, and read-only arrays are served by the same code. What forked processes call is
    compiled at once, when its module is imported: they find it made. Numba itself keeps the code of each kind of
    processor apart.
    """
    def decorate(function: Callable) -> Callable:
        if at_once or signature is None:  # Numba compiles a function without a signature when it is called
            with _COMPILING:
                return _machine_code(function, signature)
        made: list[Callable] = []

        @wraps(function)
        def run(*arguments: object) -> object:
            if not made:
                with _COMPILING:
                    if not made:
                        made.append(_machine_code(function, signature))
            return made[0](*arguments)

        return run
    return decorate


def code_folder() -> Path | None:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, or a folder of this user; None where there is none."""
    import numba

    chosen = numba.config.CACHE_DIR
    return Path(chosen) if chosen else cache_folder(f"emcore-{emcore.__version__}-numba-{numba.__version__}")


def _machine_code(function: Callable, made_of: Callable[[Any], object] | None) -> Callable:
    import numba

    signature = made_of and made_of(numba.types)
    chosen_by_user, folder = numba.config.CACHE_DIR, code_folder()
    if folder is None:
        return numba.njit(signature, nogil=True)(function)
    numba.config.CACHE_DIR = str(folder)  # read once, while decorating; other programs' kernels keep their own
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    finally:
        numba.config.CACHE_DIR = chosen_by_user

"""Where what can be made again is kept: a private folder of this user; compiled kernels are kept there too."""

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import emcore


def _is_private_and_writable(folder: Path) -> bool:
    """Whether nobody but this user can put files there: cached code is executed, so a shared folder will not do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return False
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def cache_folder(name: str) -> Path | None:
    """The folder `name` in the user's cache, else in one of this user in the temporary folder, else None."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    owner = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    candidates = [user_cache / "emcore" / name, Path(tempfile.gettempdir()) / f"emcore-{owner}" / name]
    # the parent is checked too: its owner could swap the folder under us
    return next((folder for folder in candidates if folder.is_absolute()
                 and _is_private_and_writable(folder.parent) and _is_private_and_writable(folder)), None)


def compiled(signature: object) -> Callable[[Callable], Callable]:
    """A decorator: the function as machine code for exactly this signature, without the GIL, cached between processes.

    One signature a kernel, compiled when its module is imported: no call can set off another compilation,
    and read-only arrays are served by the same code. Numba itself keeps the code of each kind of processor apart.
    """
    import numba

    def decorate(function: Callable) -> Callable:
        chosen_by_user = numba.config.CACHE_DIR
        folder = chosen_by_user or cache_folder(f"emcore-{emcore.__version__}-numba-{numba.__version__}")
        if folder is None:
            return numba.njit(signature, nogil=True)(function)
        numba.config.CACHE_DIR = str(folder)  # read once, while decorating; other programs' kernels keep their own
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        finally:
            numba.config.CACHE_DIR = chosen_by_user
    return decorate

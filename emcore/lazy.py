"""Public names that a package fetches when they are first used: its import stays cheap, whatever stands behind it."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def face(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """__all__, __getattr__ and __dir__ of a package whose stub names all that is public.

    The stub, __init__.pyi beside the package, holds lines `from MODULE import NAME as NAME`. Type checkers read it in
    place of __init__.py, so they see what really is fetched.
    """
    stub = Path(sys.modules[package].__file__).with_suffix(".pyi").read_text()
    imports = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    homes = {words[3]: words[1] for words in imports}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(sorted(homes))}")
        if homes[name] == package:  # a module of the package itself
            return import_module(f"{package}.{name}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return list(homes), get, lambda: sorted(homes)

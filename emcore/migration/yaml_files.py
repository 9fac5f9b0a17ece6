"""YAML configs read safely: no code, a limited chain of _base_ files, no bombs of aliases; ${...} filled in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcore.errors import InputError

LARGEST = 1 << 20  # bytes of one file
MOST_FILES = 50
MOST_VALUES = 100_000
DEEPEST = 40
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")


def read_chain(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A config over the files that its _base_ names, and which of those are not there."""
    missing: list[str] = []
    seen: set[Path] = set()
    tree = _read(path.resolve(), (), seen, missing)
    return tree, missing


def _read(path: Path, above: tuple[Path, ...], seen: set[Path], missing: list[str]) -> dict[str, Any]:
    if path in above:
        raise InputError(f"{path.name} includes itself through _base_: {' -> '.join(p.name for p in (*above, path))}")
    seen.add(path)
    if len(seen) > MOST_FILES:
        raise InputError(f"{above[0].name} includes more than {MOST_FILES} files through _base_")
    own = read_yaml(path)
    bases = own.pop("_base_", [])
    tree: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases or []:
        if not isinstance(base, str):
            raise InputError(f"{path}: _base_ must name files; got {type(base).__name__}")
        below = (path.parent / base).resolve()
        if not below.is_file():
            missing.append(base)
            continue
        tree = merged(tree, _read(below, (*above, path), seen, missing))
    return merged(tree, own)


def read_yaml(path: Path) -> dict[str, Any]:
    """The table of one file."""
    try:
        import yaml
    except ImportError:
        raise InputError("reading YAML configs needs PyYAML, which is not installed: "
                         "pip install emcore[yaml]") from None
    if path.is_file() and path.stat().st_size > LARGEST:
        raise InputError(f"{path} is larger than {LARGEST >> 20} MiB, too large for a config")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the config {path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} is no valid YAML{line}: {getattr(error, 'problem', None) or 'it cannot be read'}"
                         ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold a table of settings; it holds a {type(tree).__name__}")
    _check(tree, path, 0, [0])
    return tree


def _check(value: Any, path: Path, depth: int, count: list[int]) -> None:
    """Refuses what aliases blow up, or let contain itself."""
    count[0] += 1
    if depth > DEEPEST or count[0] > MOST_VALUES:
        raise InputError(f"{path} holds too many values, or values nested too deep, for a config")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise InputError(f"{path} has a key that is no name: {str(key)[:40]}")
            _check(item, path, depth + 1, count)
    elif isinstance(value, list):
        for item in value:
            _check(item, path, depth + 1, count)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced by what is above."""
    out = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def look_up(tree: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in path.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def filled(value: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """${a.b} replaced by the value at a.b; numbers that YAML takes for text, such as 1e-5, as numbers."""
    if isinstance(value, Mapping):
        return {str(key): filled(item, root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, root, depth) for item in value]
    if not isinstance(value, str) or depth > 5:
        return value
    whole = REFERENCE.fullmatch(value)
    found = look_up(root, whole[1]) if whole else None
    if whole and found is not None:
        return filled(found, root, depth + 1)

    def text(match: re.Match) -> str:
        inner = filled(look_up(root, match[1]), root, depth + 1)
        return match[0] if inner is None or isinstance(inner, list | dict) else str(inner)

    value = REFERENCE.sub(text, value)
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value

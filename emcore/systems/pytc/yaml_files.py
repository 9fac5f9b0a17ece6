"""YAML configs read safely: no code, a limited chain of _base_ files, no bombs of aliases; ${...} filled in."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcore.config.reading import LONGEST_PATH
from emcore.errors import InputError, lacking
from emcore.reading import read_config, shown

LONGEST_NUMBER = 100  # digits
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
UNFINISHED = (KeyError, AttributeError, TypeError, IndexError)  # from PyYAML, where a tag such as !!bool does not fit
MOST_FILES = 50
MOST_VALUES = 100_000
DEEPEST = 40
LONGEST_TEXT = 100_000  # letters
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")


def read_chain(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A config over the files that its _base_ names, and which of those are not there."""
    missing: list[str] = []
    seen: set[Path] = set()
    tree = _read(Path(os.path.realpath(path)), (), seen, missing)
    return tree, missing


def _read(path: Path, above: tuple[Path, ...], seen: set[Path], missing: list[str]) -> dict[str, Any]:
    if path in above:
        raise InputError(f"{path.name} includes itself through _base_: {' -> '.join(p.name for p in (*above, path))}")
    seen.add(path)
    if len(seen) > MOST_FILES:
        raise InputError(f"{above[0].name} includes more than {MOST_FILES} files through _base_")
    own = read_yaml(path)
    bases = own.pop("_base_", None)
    bases = [] if bases is None else bases if isinstance(bases, list) else [bases]
    tree: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str) or "\0" in base or len(base) > LONGEST_PATH:
            raise InputError(f"{path}: _base_ must name files; got {shown(base)}")
        below = Path(os.path.realpath(path.parent / base))
        if not os.path.exists(below):
            missing.append(" ".join(base.split())[:200])
            continue
        tree = merged(tree, _read(below, (*above, path), seen, missing))
    return merged(tree, own)


def read_yaml(path: Path) -> dict[str, Any]:
    """The table of one file."""
    try:
        import yaml
    except ImportError:
        raise lacking("reading YAML configs", "yaml") from None
    text = read_config(path)

    class Loader(yaml.SafeLoader):
        """Refuses what `<<` blows up, and numbers that take hours to convert."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MOST_VALUES:
                raise ValueError

        def fetch_flow_collection_start(self, kind: type) -> None:
            self.check_depth(self.flow_level)  # PyYAML's time grows with the square of it
            super().fetch_flow_collection_start(kind)

        def add_indent(self, column: int) -> bool:
            self.check_depth(len(self.indents))
            return super().add_indent(column)

        def check_depth(self, depth: int) -> None:
            if depth > DEEPEST:
                raise InputError(f"{path} holds values nested too deep for a config")

        def construct_scalar(self, node: yaml.ScalarNode) -> Any:
            if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise ValueError
            return super().construct_scalar(node)

    try:
        tree = yaml.load(text, Loader)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, MemoryError, *UNFINISHED) as error:
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


def filled(value: Any, root: Mapping[str, Any], depth: int = 0, count: list[int] | None = None) -> Any:
    """${a.b} replaced by the value at a.b; numbers that YAML takes for text, such as 1e-5, as numbers."""
    count = [0] if count is None else count
    count[0] += 1
    if count[0] > MOST_VALUES:
        raise InputError(f"the config says ${{...}} so often that it holds more than {MOST_VALUES} values")
    if isinstance(value, Mapping):
        return {str(key): filled(item, root, depth, count) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, root, depth, count) for item in value]
    if not isinstance(value, str) or depth > 5:
        return value
    whole = REFERENCE.fullmatch(value)
    found = look_up(root, whole[1]) if whole else None
    if whole and found is not None:
        return filled(found, root, depth + 1, count)

    letters = [0]

    def text(match: re.Match) -> str:
        inner = filled(look_up(root, match[1]), root, depth + 1, count)
        text = match[0] if inner is None or isinstance(inner, list | dict) else str(inner)
        letters[0] += len(text)
        if letters[0] > LONGEST_TEXT:
            raise InputError(f"the config says ${{...}} so often that a text has more than {LONGEST_TEXT} letters")
        return text

    value = REFERENCE.sub(text, value)
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value

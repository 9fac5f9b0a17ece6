"""A tree of settings that remembers what was taken from it, so that the rest can be told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from emcore.errors import InputError
from emcore.systems.pytc.yaml_files import look_up

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}


@dataclass(frozen=True)
class Tree:
    values: Mapping[str, Any]
    where: str = ""  # the path of these values in the whole
    taken: set[str] = field(default_factory=set)  # paths in the whole, shared by all parts

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def take(self, kind: type, *names: str, default: Any = None) -> Any:
        """The value under the first of several names that is there; all names that say the same are done with."""
        found = [(name, value) for name in names if (value := look_up(self.values, name)) is not None]
        if not found:
            return default
        first = _checked(kind, found[0][1], self.path(found[0][0]))
        self.taken.update(self.path(name) for name, value in found if value == found[0][1])
        return first

    def same(self, expected: Mapping[str, Any]) -> None:
        """Values that are here what ours always are count as taken."""
        for name, value in expected.items():
            if look_up(self.values, name) == value:
                self.taken.add(self.path(name))

    def part(self, name: str) -> "Tree":
        """The table under a name; empty where there is none."""
        found = look_up(self.values, name)
        return Tree(found if isinstance(found, Mapping) else {}, self.path(name), self.taken)

    def parts(self, name: str) -> list["Tree"]:
        """The tables of a list."""
        found = look_up(self.values, name)
        if not isinstance(found, list):
            return []
        return [Tree(item, self.path(f"{name}.{number}"), self.taken) for number, item in enumerate(found)
                if isinstance(item, Mapping)]

    def done(self, name: str = "") -> None:
        """Everything under a name counts as taken."""
        found = look_up(self.values, name) if name else self.values
        self.taken.update(path for path, _ in leaves(found, self.path(name) if name else self.where))


def leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no table and no list of tables."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from leaves(item, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{where}.{number}")
    elif value is not None:
        yield where, value


def _checked(kind: type, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind is object:
        return value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{path} must be {NAMES[kind]}; got {str(value)[:60]!r}")
    return value


def pair(value: Any, path: str) -> list[float]:
    """[low, high] from two numbers, or from one."""
    values = value if isinstance(value, list) else [value, value]
    if len(values) != 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError(f"{path} must be two numbers; got {str(value)[:60]!r}")
    return [float(v) for v in values]


def whole_numbers(values: list, path: str) -> list[int]:
    """A list of whole numbers as it is, or a sentence."""
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"{path} must hold whole numbers; got {str(values)[:60]!r}")
    return values

"""What a dataclass says of its settings: types, defaults, comments, and the kinds that a table may be of."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

TAGS = ("kind", "name")  # settings that may say of which kind a table is


@cache
def hints(schema: type) -> dict[str, Any]:
    """Setting -> its type."""
    names = [field.name for field in dataclasses.fields(schema)]
    known = typing.get_type_hints(schema)
    return {name: known[name] for name in names}


def alternatives(kind: Any) -> tuple:
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def tables(kind: Any) -> tuple[type, ...]:
    """The dataclasses that a value of a type may be: none for a scalar, several where a tag picks one."""
    return tuple(choice for choice in alternatives(kind) if dataclasses.is_dataclass(choice))


def items(kind: Any) -> tuple[type, ...]:
    """The dataclasses of X for tuple[X, ...]."""
    for choice in alternatives(kind):
        arguments = typing.get_args(choice)
        if typing.get_origin(choice) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
            return tables(arguments[0])
    return ()


def is_free(kind: Any) -> bool:
    """Whether a setting is a table whose names are another program's, so that any are taken."""
    return any(typing.get_origin(choice) is dict for choice in alternatives(kind))


def tag(schema: type) -> tuple[str, Any] | None:
    """The setting that says of which kind a table is, and what it says: ("kind", "affinities"); None for other tables.

    It is the one whose type allows a single value.
    """
    for name in TAGS:
        kind = hints(schema).get(name)
        if typing.get_origin(kind) is Literal and len(typing.get_args(kind)) == 1:
            return name, typing.get_args(kind)[0]
    return None


def required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def defaults(schema: type) -> dict[str, Any]:
    """The table of all defaults; settings without a default and those that are None are absent."""
    table = {}
    for field in dataclasses.fields(schema):
        if required(field):
            continue
        value = plain(field.default if field.default is not dataclasses.MISSING else field.default_factory())
        if value is not None:
            table[field.name] = value
    return table


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def to_table(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars of a config; what is None is left out (TOML has no null)."""
    table = {}
    for field in dataclasses.fields(config):
        value = plain(getattr(config, field.name))
        if value is not None:
            table[field.name] = value
    return table


def differing(config: Any, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The part of a config's table that differs from the usual one, by default that of all defaults.

    A table of another kind says its kind, and all that differs from the defaults of its kind.
    """
    usual = defaults(type(config)) if usual is None else usual
    found = {}
    for name, value in to_table(config).items():
        setting, before = getattr(config, name), usual.get(name)
        if value == before:
            continue
        if dataclasses.is_dataclass(setting):
            same = isinstance(before, dict) and of_kind(hints(type(config))[name], before) is type(setting)
            found[name] = differing(setting, before) if same else named(setting)
        elif isinstance(setting, tuple) and setting and all(map(dataclasses.is_dataclass, setting)):
            found[name] = [named(item) for item in setting]
        else:
            found[name] = value
    return found


def named(config: Any) -> dict[str, Any]:
    """The part of a table that differs from the defaults of its kind, and which kind that is."""
    kind = tag(type(config))
    return ({kind[0]: kind[1]} if kind else {}) | differing(config)


def laid_over(schema: type, table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A table of defaults with what is given in their place: tables are merged, lists and scalars replaced."""
    full = dict(table)
    for name, value in given.items():
        choices = tables(hints(schema).get(name))
        if choices and isinstance(value, Mapping):
            inner = of_kind(choices, value)
            usual = full.get(name)
            if not isinstance(usual, Mapping) or of_kind(choices, usual) is not inner:
                usual = defaults(inner)
            value = laid_over(inner, usual, value)
        full[name] = value
    return full


def of_kind(choices: Any, table: Mapping[str, Any]) -> type:
    """The dataclass that a table's tag picks; the first where the table does not say it or says what no kind is.

    choices: dataclasses, or a type that is a union of them.
    """
    choices = choices if isinstance(choices, tuple) else tables(choices)
    for schema in choices:
        named = tag(schema)
        if named and table.get(named[0]) == named[1]:
            return schema
    return choices[0]


def join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@cache
def comments(schema: type) -> dict[str, str]:
    """Setting -> the comment behind it (or on the lines before it) in the source, also in that of a base class."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__):
        if dataclasses.is_dataclass(part):
            found |= _own_comments(part)
    return found


def _own_comments(schema: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(schema))
    by_line = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            by_line[token.start[0]] = (token.string.lstrip("# ").rstrip(), token.line.strip().startswith("#"))
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        before, line = [], node.lineno - 1
        while line in by_line and by_line[line][1]:
            before.insert(0, by_line[line][0])
            line -= 1
        behind = [by_line[n][0] for n in range(node.lineno, node.end_lineno + 1) if n in by_line and not by_line[n][1]]
        if before or behind:
            found[node.target.id] = " ".join(before + behind)
    return found

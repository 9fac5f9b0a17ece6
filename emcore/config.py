"""TOML file -> frozen dataclasses -> `key=value` overrides: typed, checked, and nothing else.

A setting is one dataclass field with a type, a default and one comment that says meaning and unit; the comments
in the source are what `python -m emcore config` prints. A file may start from another one (base = "other.toml");
there are no profiles and no environment variables.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import io
import math
import os
import textwrap
import tokenize
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from emcore.errors import InputError
from emcore.reading import read_toml, shown

Schema = TypeVar("Schema")
MOST_BASES = 50
LONGEST_PATH = 4096


def load(schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = (),
         parameters: str | Path | None = None) -> Schema:
    """The settings of a TOML file (or the defaults), with those of a second file and then `key=value` laid over them.

    Leading -- of an override is accepted.
    """
    table = _defaults(schema)
    for file in (path, parameters):
        if file is not None:
            for given in read_with_bases(file):
                _overlay(schema, table, given, "")
    for override in overrides:
        _override(schema, table, override)
    return from_table(schema, table)


def read_with_bases(path: str | Path) -> list[dict[str, Any]]:
    """The tables of a TOML file and of the files it is based on, the base first; `base` is relative to its file."""
    path, seen, tables = Path(path), [], []
    while path is not None:
        table = read_toml(path)
        place = Path(os.path.realpath(path))
        if place in seen:
            raise InputError(f"{path} is based on itself, through {', '.join(found.name for found in seen)}")
        seen.append(place)
        if len(seen) > MOST_BASES:
            raise InputError(f"{seen[0]} is based on more than {MOST_BASES} files, one on the other")
        base = table.pop("base", None)
        if base is not None and (not isinstance(base, str) or len(base) > LONGEST_PATH):
            raise InputError(f"base in {path} must be the name of a TOML file, got {shown(base)}")
        tables.insert(0, table)
        path = path.parent / base if base else None
    return tables


def from_table(schema: type[Schema], table: Mapping[str, Any], where: str = "") -> Schema:
    """A checked dataclass from a plain table, as stored in a run folder or a checkpoint."""
    values = {}
    known = typing.get_type_hints(schema)
    for name in table:
        if name not in known:
            raise InputError(_unknown(schema, where, name))
    for field in dataclasses.fields(schema):
        key = _join(where, field.name)
        if field.name in table:
            values[field.name] = _convert(known[field.name], table[field.name], key)
        elif _required(field):
            raise InputError(f"missing setting {key} ({comments(schema).get(field.name, 'no default')})")
    return schema(**values)


def to_table(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars of a config; what is None is left out (TOML has no null)."""
    table = {}
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        if value is not None:
            table[field.name] = value
    return table


def to_toml(config: Any, explained: bool = False) -> str:
    """A config as TOML, on request with the meaning of every setting; loading it gives an equal config."""
    return _write_table(to_table(config), "", type(config) if explained else None)


def describe(schema: type, tables: Sequence[str] | None = None) -> str:
    """Every setting with its default and its comment, as a TOML file; a setting without a default is commented out."""
    return _write_table(_defaults(schema), "", schema, tables)


def comments(schema: type) -> dict[str, str]:
    """Field name -> the comment behind it (or on the lines before it) in the source."""
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


def main(arguments: Sequence[str]) -> int:
    """python -m emcore config train|infer|evaluate"""
    from emcore.settings import READS, Settings

    parser = argparse.ArgumentParser(prog="python -m emcore config", description=describe.__doc__)
    parser.add_argument("script", choices=list(READS), help="whose settings to print")
    options = parser.parse_args(arguments)
    print(describe(Settings, READS[options.script]), end="")
    return 0


# ---- reading


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _defaults(schema: type) -> dict[str, Any]:
    """The table of all defaults; settings without a default and those that are None are absent."""
    table = {}
    for field in dataclasses.fields(schema):
        if _required(field):
            continue
        value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        plain = _plain(value)
        if plain is not None:
            table[field.name] = plain
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _overlay(schema: type, table: dict[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Puts the values of a file over the defaults: tables are merged, lists and scalars replaced."""
    kinds = typing.get_type_hints(schema)
    for name, value in given.items():
        if name not in kinds:
            raise InputError(_unknown(schema, where, name))
        nested = _table_kind(kinds[name])
        if nested and isinstance(value, Mapping):
            _overlay(nested, table.setdefault(name, _defaults(nested)), value, _join(where, name))
        else:
            table[name] = value


def _override(schema: type, table: dict[str, Any], override: str) -> None:
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise InputError(f"an override reads key=value, such as train.lr=3e-4; got {shown(override)}")
    _set(schema, table, key.split("."), text, "", schema)


def _set(schema: type, table: dict[str, Any], steps: list[str], text: str, where: str, root: type) -> None:
    name, rest = steps[0], steps[1:]
    kinds = typing.get_type_hints(schema)
    if name not in kinds:
        raise InputError(_unknown(schema, where, name, root))
    key, item, nested = _join(where, name), _item_kind(kinds[name]), _table_kind(kinds[name])
    if not rest:
        table[name] = _parse(text, kinds[name])
    elif item:
        entries = table.get(name, [])
        if len(rest) < 2 or not rest[0].isdigit() or int(rest[0]) >= len(entries):
            raise InputError(f"{key} is a list of {len(entries)} tables, numbered from 0: write {key}.0.setting=value; "
                             f"got {'.'.join([key, *rest])}")
        _set(item, entries[int(rest[0])], rest[1:], text, f"{key}.{rest[0]}", root)
    elif nested:
        _set(nested, table.setdefault(name, _defaults(nested)), rest, text, key, root)
    else:
        raise InputError(f"{key} is a single value; there is no {'.'.join([key, *rest])}")


def _parse(text: str, kind: Any) -> Any:
    """The value of an override: TOML where it parses, else the text itself (a path need not be quoted)."""
    choices = _alternatives(kind)
    if text.lower() in ("none", "null") and type(None) in choices:
        return None
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)
    if len(value) != 1:
        return text
    value = value["value"]
    if not isinstance(value, str) and str in choices and not any(_fits(choice, value) for choice in choices):
        return text  # a name that happens to look like a number
    return value


def _alternatives(kind: Any) -> tuple:
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def _table_kind(kind: Any) -> type | None:
    return next((choice for choice in _alternatives(kind) if dataclasses.is_dataclass(choice)), None)


def _item_kind(kind: Any) -> type | None:
    """X for tuple[X, ...] of dataclasses."""
    for choice in _alternatives(kind):
        arguments = typing.get_args(choice)
        if typing.get_origin(choice) is tuple and len(arguments) == 2 and dataclasses.is_dataclass(arguments[0]):
            return arguments[0]
    return None


def _fits(kind: Any, value: Any) -> bool:
    try:
        _convert(kind, value, "")
    except InputError:
        return False
    return True


def _convert(kind: Any, value: Any, key: str) -> Any:
    choices = _alternatives(kind)
    if len(choices) > 1:
        if value is None and type(None) in choices:
            return None
        real = [choice for choice in choices if choice is not type(None)]
        for choice in real:
            if _fits(choice, value):
                return _convert(choice, value, key)
        if len(real) == 1 or isinstance(value, Mapping):
            return _convert(real[0], value, key)
        raise InputError(f"{key} must be {' or '.join(_name(choice) for choice in real)}, got {shown(value)}")
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a table, got {shown(value)}")
        return from_table(kind, value, key)
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        if value not in allowed or isinstance(value, bool) is not isinstance(allowed[0], bool):
            close = difflib.get_close_matches(shown(value).strip("'"), [str(a) for a in allowed], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{key} must be one of {', '.join(repr(a) for a in allowed)}, got {shown(value)}{hint}")
        return value
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(kind, value, key)
    if isinstance(value, int) and not -2**63 <= value < 2**64:  # what TOML and every library have
        raise InputError(f"{key} must be a number of at most 64 bits, got {shown(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any:
        return value
    if type(value) is not kind:
        raise InputError(f"{key} must be {_name(kind)}, got {shown(value)}")
    if kind is float and math.isnan(value):
        raise InputError(f"{key} must be a number, got nan")
    return value


def _convert_tuple(kind: Any, value: Any, key: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise InputError(f"{key} must be {_name(kind)}, got {shown(value)}")
    arguments = typing.get_args(kind)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{key}.{i}") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise InputError(f"{key} needs {len(arguments)} values, got {len(value)}: {list(value)}")
    return tuple(_convert(argument, item, f"{key}.{i}") for i, (argument, item) in enumerate(zip(arguments, value)))


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {_name(arguments[0])}"
        return f"[{', '.join(_name(argument) for argument in arguments)}]"
    if typing.get_origin(kind) is Literal:
        return "/".join(repr(choice) for choice in typing.get_args(kind))
    return "a table" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", str(kind))


def _unknown(schema: type, where: str, name: str, root: type | None = None) -> str:
    """'unknown setting train.pach; did you mean train.patch?', looking in the same table first."""
    name = name if len(name) <= 100 else f"{name[:97]}..."
    siblings = [field.name for field in dataclasses.fields(schema)]
    close = difflib.get_close_matches(name, siblings, 1, 0.6)
    hint = _join(where, close[0]) if close else None
    if hint is None:
        everywhere = [key for key in _all_keys(root or schema) if key.split(".")[-1] == name]
        hint = everywhere[0] if everywhere else None
    return f"unknown setting {_join(where, name)}; " + (
        f"did you mean {hint}?" if hint else f"{where or 'the top level'} has {', '.join(siblings)}")


def _all_keys(schema: type, where: str = "") -> list[str]:
    keys = []
    for name, kind in typing.get_type_hints(schema).items():
        keys.append(_join(where, name))
        nested = _table_kind(kind)
        if nested:
            keys += _all_keys(nested, _join(where, name))
    return keys


# ---- writing


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, list):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_scalar(item)}" for name, item in value.items()) + "}"
    return str(value)


def _write_table(table: dict[str, Any], where: str, schema: type | None, only: Sequence[str] | None = None) -> str:
    """Scalars first, then tables, as TOML wants it; with a schema, comments and settings without a default too."""
    told = comments(schema) if schema else {}
    kinds = typing.get_type_hints(schema) if schema else {}
    names = [field.name for field in dataclasses.fields(schema)] if schema else list(table)
    lines, tables = [], []
    for name in names:
        kind, value = kinds.get(name), table.get(name)
        nested = _table_kind(kind) if kind else None
        item = _item_kind(kind) if kind else None
        is_list = isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value)
        if isinstance(value, dict) or is_list or nested or item:
            if only is None or where or name in only:
                tables.append((name, value, nested or item, bool(item)))
            continue
        comment = f"  # {told[name]}" if name in told else ""
        lines.append(f"{name} = {_scalar(value)}{comment}" if name in table else f"# {name} ={comment}")
    text = "".join(line + "\n" for line in lines)
    for name, value, nested, item in tables:
        key = _join(where, name)
        comment = f"  # {told[name]}" if name in told else ""
        if isinstance(value, list) and value:
            text += "".join(f"\n[[{key}]]{comment}\n{_write_table(entry, key, nested)}" for entry in value)
        elif value is None or item:  # nothing by default: shown, commented out
            body = _write_table(_defaults(nested), key, nested)
            head = f"[[{key}]]" if item else f"[{key}]"
            text += f"\n# {head}{comment}\n"
            text += "".join(f"# {line.removeprefix('# ')}\n" for line in body.splitlines() if line)
        else:
            text += f"\n[{key}]{comment}\n{_write_table(value, key, nested)}"
    return text

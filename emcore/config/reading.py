"""Files and overrides become dataclasses: laid over each other, of the kinds that they name, checked."""

import dataclasses
import difflib
import math
import os
import sys
import tomllib
import typing
from collections.abc import Mapping, Sequence
from datetime import date, time
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from emcore.config.checks import WrongSetting
from emcore.config.renamed import RENAMED, known_then, new_value
from emcore.config.schema import (
    alternatives,
    defaults,
    hints,
    is_free,
    items,
    join,
    laid_over,
    of_kind,
    required,
    tables,
    tag,
)
from emcore.config.schema import comments as comments_of
from emcore.errors import InputError
from emcore.reading import read_toml, shown

Schema = TypeVar("Schema")
Siblings = Mapping[str, tuple[type, ...]]  # "decode.kind = affinities" -> the table of that kind at the same place
MOST_BASES = 50
LONGEST_PATH = 4096


def load(schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = (),
         parameters: str | Path | None = None) -> Schema:
    """The settings of a TOML file (or the defaults), with those of a second file and then `key=value` laid over them.

    Leading -- of an override is accepted. A `kind` that is set anew keeps what both kinds have; a setting of another
    kind is refused, but in whole tables of older versions, which hold all of every kind.
    """
    given: dict[str, Any] = {}
    for file in (path, parameters):
        for table in read_with_bases(file) if file is not None else ():
            given = _merged((schema,), given, table, "", {})
    for override in _kinds_first(overrides):
        key, equals, text = override.removeprefix("--").partition("=")
        if not equals or not key:
            raise InputError(f"an override reads key=value, such as train.lr=3e-4; got {shown(override)}")
        _set((schema,), given, defaults(schema), key.split("."), text, "", {}, schema)
    settings = _built(schema, laid_over(schema, defaults(schema), given), "")
    if hasattr(settings, "check"):  # what concerns several tables
        settings.check()
    return settings


def read_with_bases(path: str | Path) -> list[dict[str, Any]]:
    """The tables of a TOML file and of the files it is based on, the base first; `base` is relative to its file."""
    path, seen, found = Path(path), [], []
    while path is not None:
        table = read_toml(path)
        place = Path(os.path.realpath(path))
        if place in seen:
            raise InputError(f"{path} is based on itself, through {', '.join(before.name for before in seen)}")
        seen.append(place)
        if len(seen) > MOST_BASES:
            raise InputError(f"{seen[0]} is based on more than {MOST_BASES} files, one on the other")
        base = table.pop("base", None)
        if base is not None and (not isinstance(base, str) or len(base) > LONGEST_PATH):
            raise InputError(f"base in {path} must be the name of a TOML file, got {shown(base)}")
        found.insert(0, table)
        path = path.parent / base if base else None
    return found


def from_table(schema: type[Schema] | Any, table: Mapping[str, Any], where: str = "") -> Schema:
    """A checked dataclass from a plain table, as this or an older version stored it in a run folder or a checkpoint.

    schema: a dataclass, or a union of those of all kinds.
    """
    return _built(schema, translated(schema, table), where)


def translated(schema: Any, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored table by today's names, without settings of other kinds, which older versions stored and never read."""
    return _translated(tables(schema), table, ())


def _translated(choices: tuple[type, ...], table: Any, others: tuple[type, ...]) -> Any:
    if not isinstance(table, Mapping) or not choices:
        return table
    schema = of_kind(choices, table)
    others = (*others, *(choice for choice in choices if choice is not schema))
    if hasattr(schema, "older"):
        table = schema.older({}, table) or table
    found = {}
    for name, value in table.items():
        name, value = _new_name((schema, *others), name), new_value(schema.__name__, name, value)
        if name not in hints(schema):
            if not any(name in hints(other) for other in others):
                found[name] = value  # belongs to no kind and is refused later
            continue
        aside = tuple(inner for other in others if name in hints(other) for inner in tables(hints(other)[name]))
        if isinstance(value, list | tuple) and items(hints(schema)[name]):
            value = [_translated(items(hints(schema)[name]), item, ()) for item in value]
        found[name] = _translated(tables(hints(schema)[name]), value, aside)
    return found


def _new_name(choices: Sequence[type], name: str) -> str:
    return next((RENAMED[choice.__name__, name] for choice in choices if (choice.__name__, name) in RENAMED), name)


# ---- what a user writes


@cache
def tell(sentence: str) -> None:
    """Says something on stderr, once, and once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)


def _merged(choices: tuple[type, ...], before: Mapping[str, Any], given: Mapping[str, Any], where: str,
            siblings: Siblings) -> dict[str, Any]:
    """A table of a file laid over that of the files before it; what its kind does not have is refused."""
    schema = _chosen(choices, {**before, **given}, where)
    siblings = siblings or _siblings(choices, where)
    before = _kept(schema, siblings, before)
    if hasattr(schema, "older") and (older := schema.older(before, given)):
        tell(schema.OLDER)
        given = older
    if _is_whole(choices, given):
        given = _translated(choices, given, ())
    found = dict(before)
    for name, value in given.items():
        value = new_value(schema.__name__, name, value)
        name = _known(schema, siblings, name, where)
        key, kind = join(where, name), hints(schema)[name]
        if isinstance(value, Mapping) and tables(kind):
            earlier = found.get(name)
            value = _merged(tables(kind), earlier if isinstance(earlier, Mapping) else {}, value, key,
                            _below(siblings, name))
        elif isinstance(value, list) and items(kind):
            value = [_merged(items(kind), {}, item, f"{key}.{number}", {}) if isinstance(item, Mapping) else item
                     for number, item in enumerate(value)]
        elif isinstance(value, Mapping) and is_free(kind):
            value = {**(found.get(name) or {}), **value}
        found[name] = value
    return found


def _kinds_first(overrides: Sequence[str]) -> list[str]:
    """The overrides in an order in which the kind of a table comes before its settings."""
    ordered: list[str] = []
    for override in overrides:
        table, _, name = override.removeprefix("--").partition("=")[0].rpartition(".")
        place = len(ordered)
        if name in ("kind", "name"):
            keys = [one.removeprefix("--").partition("=")[0] for one in ordered]
            place = next((number for number, key in enumerate(keys)
                          if key.startswith(f"{table}.") and key != f"{table}.{name}"), place)
        ordered.insert(place, override)
    return ordered


def _set(choices: tuple[type, ...], given: dict[str, Any], usual: Mapping[str, Any], steps: list[str], text: str,
         where: str, siblings: Siblings, root: type) -> None:
    """Puts the value of an override into what is given so far; usual: the defaults of the table."""
    schema = _chosen(choices, {**usual, **given}, where)
    siblings = siblings or _siblings(choices, where)
    name, rest = _known(schema, siblings, steps[0], where, root), steps[1:]
    key, kind = join(where, name), hints(schema)[name]
    if not rest:
        given[name] = new_value(schema.__name__, steps[0], _parse(text, kind))
        if tag(schema) and tag(schema)[0] == name:  # settings of the kind before are not those of this one
            kept = _kept(_chosen(choices, given, where), siblings, given)
            for lost in given.keys() - kept.keys():
                del given[lost]
            given |= kept
    elif items(kind):
        entries = given.setdefault(name, list(usual.get(name, ())))
        if len(rest) < 2 or not rest[0].isdigit() or int(rest[0]) >= len(entries):
            raise InputError(f"{key} is a list of {len(entries)} tables, numbered from 0: write {key}.0.setting=value; "
                             f"got {'.'.join([key, *rest])}")
        _set(items(kind), entries[int(rest[0])], {}, rest[1:], text, f"{key}.{rest[0]}", {}, root)
    elif tables(kind):
        inner = given.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key} must be a table, got {shown(inner)}")
        _set(tables(kind), inner, usual.get(name, {}), rest, text, key, _below(siblings, name), root)
    elif is_free(kind) and len(rest) == 1:
        given[name] = {**(given.get(name) or {}), rest[0]: _parse(text, Any)}
    else:
        raise InputError(f"{key} is {'one table' if is_free(kind) else 'a single value'}; there is no "
                         f"{'.'.join([key, *rest])}")


def _chosen(choices: tuple[type, ...], table: Mapping[str, Any], where: str) -> type:
    """The dataclass of the kind that a table names; a kind that there is not is refused."""
    named = tag(choices[0]) if len(choices) > 1 else None
    if named and named[0] in table:
        _convert(Literal[tuple(tag(choice)[1] for choice in choices)], table[named[0]], join(where, named[0]))
    return of_kind(choices, table)


def _siblings(choices: tuple[type, ...], where: str) -> Siblings:
    """The kinds of a table by what their settings would be written under; nothing where there is one kind."""
    if len(choices) < 2:
        return {}
    return {f"{join(where, tag(choice)[0])} = {tag(choice)[1]}": (choice,) for choice in choices}


def _below(siblings: Siblings, name: str) -> Siblings:
    """The same for the table `name` in them."""
    inner = {label: tuple(found for choice in choices if name in hints(choice) for found in tables(hints(choice)[name]))
             for label, choices in siblings.items()}
    return {label: found for label, found in inner.items() if found}


def _kept(schema: type, siblings: Siblings, before: Mapping[str, Any]) -> dict[str, Any]:
    """What was given before for a table that now is of this kind: without settings that it does not have."""
    found = {}
    for name, value in before.items():
        if name not in hints(schema):
            continue
        inner = tables(hints(schema)[name])
        found[name] = (_kept(of_kind(inner, value), _below(siblings, name), value)
                       if inner and isinstance(value, Mapping) else value)
    return found


def _is_whole(choices: tuple[type, ...], given: Mapping[str, Any]) -> bool:
    """Whether an older version wrote a table, which held all settings of every kind that have a default."""
    names = {_new_name(choices, name) for name in given}
    return len(choices) > 1 and all(known_then(choice.__name__, defaults(choice)) <= names for choice in choices)


def _known(schema: type, siblings: Siblings, name: str, where: str, root: type | None = None) -> str:
    """The name of a setting in its table, the new one for an old one; what it does not have is refused."""
    others = [choice for choices in siblings.values() for choice in choices]
    new = _new_name((schema, *others), name)
    if new != name and name not in hints(schema):
        tell(f"{join(where, name)} is called {join(where, new)} now; the old name is taken until the next release")
        name = new
    if name in hints(schema):
        return name
    owners = [label for label, choices in siblings.items() if any(name in hints(choice) for choice in choices)]
    if not owners:
        raise InputError(_unknown(schema, where, name, root))
    setting = owners[0].rpartition(" = ")[0]
    kinds = [label.rpartition(" = ")[2] for label in owners]
    here = next(label.rpartition(" = ")[2] for label, choices in siblings.items() if schema in choices)
    several = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if kinds[1:] else kinds[0]
    raise InputError(f"{join(where, name)} belongs to {setting} = {several}; here it is {here}")


def _unknown(schema: type, where: str, name: str, root: type | None = None) -> str:
    """'unknown setting train.pach; did you mean train.patch?', looking in the same table first."""
    name = name if len(name) <= 100 else f"{name[:97]}..."
    siblings = list(hints(schema))
    close = difflib.get_close_matches(name, siblings, 1, 0.6)
    hint = join(where, close[0]) if close else None
    if hint is None:
        everywhere = [key for key in _all_keys(root or schema) if key.split(".")[-1] == name]
        hint = everywhere[0] if everywhere else None
    return f"unknown setting {join(where, name)}; " + (
        f"did you mean {hint}?" if hint else f"{where or 'the top level'} has {', '.join(siblings)}")


def _all_keys(schema: type, where: str = "") -> list[str]:
    keys = []
    for name, kind in hints(schema).items():
        keys.append(join(where, name))
        for nested in tables(kind):
            keys += _all_keys(nested, join(where, name))
    return keys


# ---- values


def _parse(text: str, kind: Any) -> Any:
    """The value of an override: TOML where it parses, else the text itself (a path need not be quoted)."""
    choices = alternatives(kind)
    if text.lower() in ("none", "null") and type(None) in choices:
        return None
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)
    if len(value) != 1:
        return text
    value = value["value"]
    if isinstance(value, time | date):
        return text
    if not isinstance(value, str) and str in choices and not any(_fits(choice, value) for choice in choices):
        return text  # a name that happens to look like a number
    return value


def _built(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """The checked dataclass of a table whose settings are all of its kind."""
    schema = _chosen(tables(kind), table, where)
    known, values = hints(schema), {}
    for name in table:
        if name not in known:
            raise InputError(_unknown(schema, where, name))
    for field in dataclasses.fields(schema):
        key = join(where, field.name)
        if field.name in table:
            values[field.name] = _convert(known[field.name], table[field.name], key)
        elif required(field):
            raise InputError(f"missing setting {key} ({comments_of(schema).get(field.name, 'no default')})")
    try:
        return schema(**values)
    except WrongSetting as error:
        raise InputError(join(where, str(error))) from None


def _fits(kind: Any, value: Any) -> bool:
    try:
        _convert(kind, value, "")
    except InputError:
        return False
    return True


def _convert(kind: Any, value: Any, key: str) -> Any:
    choices = alternatives(kind)
    inner = tables(kind)
    if value is None and type(None) in choices:
        return None
    if inner and (isinstance(value, Mapping) or len(choices) == len(inner)):
        if isinstance(value, inner):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a table, got {shown(value)}")
        return _built(kind, value, key)
    if len(choices) > 1:
        real = [choice for choice in choices if choice is not type(None)]
        for choice in real:
            if _fits(choice, value):
                return _convert(choice, value, key)
        if len(real) == 1:
            return _convert(real[0], value, key)
        raise InputError(f"{key} must be {' or '.join(_name(choice) for choice in real)}, got {shown(value)}")
    if typing.get_origin(kind) is Literal:
        return _convert_literal(typing.get_args(kind), value, key)
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(kind, value, key)
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        return dict(value)
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


def _convert_literal(allowed: tuple, value: Any, key: str) -> Any:
    if value in allowed and isinstance(value, bool) is isinstance(allowed[0], bool):
        return value
    close = difflib.get_close_matches(shown(value).strip("'"), [str(a) for a in allowed], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{key} must be one of {', '.join(repr(a) for a in allowed)}, got {shown(value)}{hint}")


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
    return "a table" if tables(kind) or is_free(kind) else getattr(kind, "__name__", str(kind))

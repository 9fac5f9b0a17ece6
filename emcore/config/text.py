"""Settings as TOML: those of a run, or all that there are with their meaning."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from emcore.config.schema import comments, defaults, differing, hints, items, join, of_kind, tables, to_table


def to_toml(config: Any, explained: bool = False) -> str:
    """A config as TOML, on request with the meaning of every setting; loading it gives an equal config."""
    return _write(to_table(config), "", type(config), explained)


def short_toml(config: Any, remarks: Mapping[str, str]) -> str:
    """What differs from the defaults alone, as TOML; remarks: comments above the tables that they name."""
    text = "\n" + _write(differing(config), "", type(config), False)
    text = re.sub(r"\n\[([\w.]+)\]\n(?=\n\[+\1\.)", "", text)  # heads of tables that hold nothing but tables
    for name, remark in remarks.items():
        for head in (f"\n[{name}]\n", f"\n[[{name}]]\n"):
            text = text.replace(head, f"\n# {remark}{head}", 1)
    return text.removeprefix("\n")


def describe(schema: type, names: Sequence[str] | None = None) -> str:
    """Every setting with its default and its comment, as a TOML file.

    What has no default is commented out, as are the kinds of a table that are not its default.
    """
    table = defaults(schema)
    return _write(table, "", schema, True, True, names)


def _write(table: Mapping[str, Any], where: str, schema: type, explained: bool, whole: bool = False,
           only: Sequence[str] | None = None) -> str:
    """Scalars first, then tables, as TOML wants it; whole: also settings without a default and tables of other kinds.

    only: the settings and tables of the top level that are written, as `table` or `table.setting`.
    """
    told = comments(schema) if explained else {}
    known = hints(schema)
    lines, blocks = [], []
    for name in (field.name for field in dataclasses.fields(schema)):
        key = join(where, name)
        comment = f"  # {told[name]}{_choices(known[name])}" if name in told else ""
        if only is not None and not any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.")
                                        for one in only):
            continue
        value, inner, listed = table.get(name), tables(known[name]), items(known[name])
        if not inner and (not listed or (value == [] and not whole)):
            if name in table or whole:
                lines.append(f"{name} = {_scalar(value)}{comment}" if name in table else f"# {name} ={comment}")
        elif listed:
            blocks += _list(value, key, listed, comment, explained, whole)
        else:
            blocks += _tables(value, key, inner, comment, explained, whole, only)
    return "".join(f"{line}\n" for line in lines) + "".join(blocks)


def _choices(kind: Any) -> str:
    """The words that a setting may be, in brackets; nothing where it is not one of several."""
    words = [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []
    return f" ({', '.join(words[:-1])} or {words[-1]})" if len(words) > 1 else ""


def _list(value: Any, key: str, listed: tuple[type, ...], comment: str, explained: bool, whole: bool) -> list[str]:
    """Every table of a list; whole: also one of each kind that it has none of, commented out."""
    blocks, there = [], set()
    for entry in value or ():
        schema = of_kind(listed, entry)
        there.add(schema)
        blocks.append(f"\n[[{key}]]{comment}\n{_write(entry, key, schema, explained, whole)}")
    others = [schema for schema in listed if schema not in there] if whole else []
    return blocks + [_commented_out(f"[[{key}]]{comment}", key, schema) for schema in others]


def _tables(value: Any, key: str, inner: tuple[type, ...], comment: str, explained: bool, whole: bool,
            only: Sequence[str] | None) -> list[str]:
    blocks, there = [], None
    if value is not None:
        there = of_kind(inner, value)
        blocks.append(f"\n[{key}]{comment}\n{_write(value, key, there, explained, whole, _below(only, key))}")
    others = [schema for schema in inner if schema is not there] if whole else []
    return blocks + [_commented_out(f"[{key}]{comment}", key, schema) for schema in others]


def _below(only: Sequence[str] | None, key: str) -> Sequence[str] | None:
    """The same choice for what is in a table; None where the whole table is meant."""
    return None if only is None or key in only else only


def _commented_out(head: str, key: str, schema: type) -> str:
    body = _write(defaults(schema), key, schema, True, True)
    lines = [line.removeprefix("# ") for line in body.splitlines() if line]
    return f"\n# {head}\n" + "".join(f"# {line}\n" for line in lines)


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
        return "{" + ", ".join(f"{_scalar(name)} = {_scalar(item)}" for name, item in value.items()) + "}"
    return str(value)

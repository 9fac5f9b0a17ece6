"""Writes the pages of docs/reference that follow from the code: every command, and every setting.

    python -m bench.reference
"""

import argparse
import inspect
import re
import runpy
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

from emcore.__main__ import SCRIPTS, TOOLS, script_path
from emcore.config import describe
from emcore.settings import READS, Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
MADE = "This page is made by `python -m bench.reference` from the code; a test tells when it is out of date.\n"


PARTS = {"legacy_v1": ("train", "test")}  # commands whose first argument chooses the parser


class Found(Exception):
    """Carries the parser of a command out of the command, before it does anything."""


def parser_of(main: Callable, *arguments: str) -> argparse.ArgumentParser:
    """The parser that a command makes."""
    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise Found(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", caught):
        try:
            main(list(arguments))
        except Found as found:
            return found.args[0]
    raise AssertionError(f"{main} makes no parser")


def main_of(name: str) -> Callable:
    if name in SCRIPTS:
        return runpy.run_path(str(script_path(name)))["main"]
    return import_module(TOOLS[name][0]).main


def commands_page() -> str:
    """docs/reference/commands.md"""
    parts = ["# Commands\n", MADE, "In a checkout `python train.py` is the same as `python -m emcore train`; so are "
             "`infer.py` and `evaluate.py`.\n"]
    texts = {**SCRIPTS, **{name: text for name, (_, text) in TOOLS.items()}}
    parts += ["| command | what it does |\n|---|---|\n" + "".join(
        f"| [`{name}`](#{name}) | {text} |\n" for name, text in texts.items())]
    for name, text in texts.items():
        parts += [f"## {name}\n", f"`python -m emcore {name}`: {text}.\n"]
        for part in PARTS.get(name, ()):
            parts += [f"### {name} {part}\n", *described(parser_of(main_of(name), part))]
        if name not in PARTS:
            parts += described(parser_of(main_of(name)), text)
    return "\n".join(parts)


def described(parser: argparse.ArgumentParser, said: str = "") -> Iterator[str]:
    """The description of a command and the table of its arguments, then those of its subcommands."""
    text = inspect.cleandoc(parser.description or "")
    if text and text.rstrip(".").casefold() != said.casefold():
        yield f"```text\n{text}\n```\n"
    rows, inner = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = list(action.choices.items())
        elif not isinstance(action, argparse._HelpAction):
            rows.append(row_of(action))
    if rows:
        yield "| argument | default | meaning |\n|---|---|---|\n" + "".join(rows)
    for name, one in inner:
        yield f"### {one.prog.removeprefix('python -m ') if ' ' in one.prog else name}\n"
        yield from described(one)


def row_of(action: argparse.Action) -> str:
    """One argument: its names, what it takes, its default and its meaning."""
    takes = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    takes = " ".join(takes) if isinstance(takes, tuple) else takes
    value = "" if action.nargs == 0 else takes
    if action.nargs in ("*", "+", "?"):
        value = f"[{value}]" if action.nargs == "?" else f"{value} ..."
    elif isinstance(action.nargs, int) and action.nargs > 1 and not isinstance(action.metavar, tuple):
        value = " ".join([value] * action.nargs)
    names = ", ".join(action.option_strings)
    shown = f"{names} {value}".strip() if names else value
    default = action.default
    empty = default in (None, argparse.SUPPRESS, "", [], False, ())
    told = "required" if action.required and names else "" if empty else f"`{default_text(default)}`"
    meaning = (action.help or "") % {**vars(action), "prog": ""}
    return f"| `{shown}` | {told} | {cell(meaning)} |\n"


def default_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def cell(text: str) -> str:
    """A text inside a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def settings_page() -> str:
    """docs/reference/settings.md"""
    parts = ["# Settings\n", MADE,
             "A config is a TOML file; `key=value` behind a command overrides it. Each line is a setting with its "
             "default and its meaning. What is commented out has no default, or belongs to a kind of the table that is "
             "not the default.\n"]
    for script, names in READS.items():
        named = "everything" if names is None else ", ".join(f"`{name}`" for name in names)
        parts.append(f"- `{script}` reads {named}.\n")
    blocks: list[list[str]] = [[]]
    for line in describe(Settings).splitlines():
        top = re.match(r"(?:# )?\[+(\w+)\]+", line)
        if top and not any(re.match(rf"(?:# )?\[+{top[1]}\b", old) for old in blocks[-1]):
            blocks.append([])
        blocks[-1].append(line)
    for block in blocks:
        name = re.match(r"(?:# )?\[+(\w+)", block[0])
        parts.append(f"## {name[1] if name else 'the run'}\n")
        parts.append("```toml\n" + "\n".join(block).strip() + "\n```\n")
    return "\n".join(parts)


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()

"""The reference: docstrings of public names and their examples, pages that are made of the code, links, the site."""

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.reference import PAGES
from tests.test_house import FACES, public

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MARKDOWN = [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Cost|Examples):$", re.MULTILINE)


def names() -> dict[str, object]:
    """Every public name that is a function or a class, by the shortest path to it."""
    found = {}
    for face in sorted(FACES, key=lambda face: face.count("."), reverse=True):
        for name, home in public(face).items():
            value = getattr(importlib.import_module(face), name)
            if home != face or not inspect.ismodule(value):
                found.setdefault(id(value), (f"{face}.{name}", value))
    return {path: value for path, value in found.values() if callable(value)}


NAMES = names()


# ---- docstrings


def sections(text: str) -> dict[str, str]:
    """The parts of a docstring by their headings; the part before the first one has the name ''."""
    parts = SECTION.split(text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def told(section: str) -> dict[str, str]:
    """Name -> text of the entries of Args or Attributes."""
    parts = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def lacking(path: str, value: object) -> Iterator[str]:
    """What the docstring of a public name does not say."""
    text = inspect.cleandoc(value.__doc__ or "")
    first, parts = text.partition("\n")[0], sections(text)
    if not first.endswith("."):
        yield f"{path}: the first line is no sentence"
    fields = [field.name for field in dataclasses.fields(value) if field.init] if dataclasses.is_dataclass(value) else (
        list(getattr(value, "_fields", ())))
    if fields:
        entries = told(parts.get("Attributes", "") + parts.get("Args", ""))
        yield from (f"{path}: {name} is not told" for name in fields if name not in entries)
    else:
        yield from lacking_parameters(path, value, parts)
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if name.startswith("_") or name in fields:
                continue
            function = getattr(member, "__func__", getattr(member, "func", getattr(member, "fget", member)))
            if callable(function) and not inspect.isclass(function):
                inner = inspect.cleandoc(function.__doc__ or "")
                if not inner:
                    yield f"{path}.{name}: nothing is told"
                yield from lacking_parameters(f"{path}.{name}", function, sections(inner))
    else:
        returns = inspect.signature(value).return_annotation
        if returns is not None and "Returns" not in parts:
            yield f"{path}: what it returns is not told"
        if "Cost" not in parts:
            yield f"{path}: what it costs is not told"
    if ">>> " not in parts.get("Examples", ""):
        yield f"{path}: there is no example"


def lacking_parameters(path: str, value: object, parts: dict[str, str]) -> Iterator[str]:
    entries = told(parts.get("Args", ""))
    for name, parameter in inspect.signature(value).parameters.items():
        if name in ("self", "cls"):
            continue
        if name not in entries:
            yield f"{path}: {name} is not told"
        elif parameter.default not in (parameter.empty,) and "default" not in entries[name]:
            yield f"{path}: the default of {name} is not told"
    yield from (f"{path}: {name} is told and is no parameter" for name in entries
                if name not in inspect.signature(value).parameters)


@pytest.mark.parametrize("path", sorted(NAMES))
def test_a_docstring_tells_every_parameter_the_result_the_cost_and_an_example(path):
    assert list(lacking(path, NAMES[path])) == []


def test_what_a_docstring_lacks_is_noticed():
    def poor(labels, size=3) -> int:
        """no sentence

        Args:
            labels: integers.
            other: gone.
        """
        return size + len(labels)

    assert [line.partition(": ")[2] for line in lacking("poor", poor)] == [
        "the first line is no sentence", "size is not told", "other is told and is no parameter",
        "what it returns is not told", "what it costs is not told", "there is no example"]


def test_the_examples_of_all_docstrings_run():
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    tried = set()
    for home in sorted({home for face in FACES for home in public(face).values()} - {"emcore"}):
        module = importlib.import_module(home)
        for example in finder.find(module, home):
            runner.run(example)
            tried.add(example.name)
    assert runner.summarize(verbose=False).failed == 0
    assert len(tried) > 80


# ---- pages


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_made_of_the_code_is_current(name):
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == PAGES[name](), "run python -m bench.reference"


def test_every_public_name_stands_on_its_page_once():
    shown = [name for page in (DOCS / "reference").glob("*.md")
             for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert len(shown) == len(set(shown))
    wanted = {f"{face}.{name}" for face in FACES for name, home in public(face).items()
              if f"{face}.{name}" in NAMES or (face == "emcore" and home != "emcore")}
    wanted -= {"emcore.prediction.predict"}  # it stands there as emcore.predict
    assert set(shown) | {"emcore.prediction.predict"} >= wanted
    for name in shown:
        face, _, last = name.rpartition(".")
        assert last in public(face), name


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, by the rule that GitHub and the site share for the headings that we link."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not page.is_relative_to(DOCS) or there.is_relative_to(DOCS), f"{target} is not on the site"
        assert not anchor or anchor in anchors(there.read_text()), target


def test_every_page_is_in_the_menu_of_the_site():
    menu = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(menu) == len(set(menu))
    assert set(menu) == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None or importlib.util.find_spec("material") is None,
                    reason="mkdocs-material and mkdocstrings are not installed: the extra docs brings them")
def test_the_site_is_built_with_no_warning(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "reference" / "segment.html").read_text()
    for part in ("watershed", "uint8 (code / 255)", "Examples", "Cost"):
        assert part in page

"""Every command, config and setting that docs/tutorials and docs/settings.md name exists; their Python runs."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from emcore import config
from emcore.__main__ import SCRIPTS, TOOLS
from emcore.config.schema import hints, items, tables
from emcore.settings import Settings
from emcore.synth import synthesize, write_layout
from emcore.systems.legacy_v1.flags import read_flags
from emcore.volumes.download import SOURCES
from tests.scripts import run_python

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
ALONE = "README", "contacts", "own_data", "published_volume", "wiring_diagram"
TUTORIALS = [page for page in PAGES if page.stem not in ALONE]  # of published systems
SECTIONS = ["Get the data", "Train", "Predict, decode, evaluate", "Tune", "What to expect"]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page):
    return [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@cache
def help_of(*command):
    done = run_python([*command, "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_options(help_text, words):
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", help_text))
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-?[\d.]+", word):
            assert word.partition("=")[0] in known, word


def check_command(line):
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        assert re.fullmatch(r"--nproc-per-node=\d+", words[1])
        words = ["python", *words[2:]]
    if words[0] == "tensorboard":
        assert words[1] == "--logdir"
        return
    assert words[0] == "python", line
    words = words[1:]
    if words[:3] == ["-m", "emcore", "legacy_v1"]:
        read_flags(words[3], words[4:])
        return
    if words[0] == "-m":
        assert words[1] == "emcore"
        words = words[1:]
        name = words[1]
        assert name in TOOLS or name in SCRIPTS, name
        check_options(help_of("-m", "emcore", name), words[2:])
        assert name != "download" or words[2] in SOURCES, words[2]
    else:
        assert words[0].removesuffix(".py") in SCRIPTS, words[0]
        check_options(help_of(words[0]), words[1:])
    if "--cfg" in words:
        overrides = [word for word in words if re.match(r"[a-z_][\w.]*=", word)]
        path = ROOT / words[words.index("--cfg") + 1]
        if path.name == "challenge.toml":  # the page tells to write it, on top of this recipe
            path = ROOT / "configs" / "cremi" / "cremi_clefts.toml"
        if path.name == "mine.toml":  # `new` writes it, such as this recipe
            path = ROOT / "configs" / "tissue" / "fib25_neurons.toml"
        config.load(Settings, path, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_is_one_that_runs(page):
    found = commands(page)
    assert found
    for line in found:
        check_command(line)


PATCHES_A_GPU = {"cremi_clefts": 4, "snemi_neurons": 2, "dbmim_pretrain_r33": 2}  # in the original's lines


def test_lines_for_several_gpus_give_each_the_documented_patches():
    seen = set()
    for line in (line for page in PAGES for line in commands(page) if line.startswith("torchrun")):
        words = shlex.split(line, comments=True)
        if "train.py" in words:
            settings = config.load(Settings, ROOT / words[words.index("--cfg") + 1], words[words.index("--cfg") + 2:])
            gpus = int(words[1].partition("=")[2])
            assert settings.train.batch == gpus * PATCHES_A_GPU[settings.name], line
            seen.add(settings.name)
    assert seen == set(PATCHES_A_GPU)


def test_a_command_that_does_not_exist_would_be_noticed():
    for line in ("python -m emcore fly", "python train.py --cfg configs/demo.toml --fly", "python fly.py",
                 "python train.py --cfg configs/demo.toml train.fly=1", "python -m emcore legacy_v1 fly"):
        with pytest.raises((Exception, SystemExit)):
            check_command(line)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_has_the_sections_of_all_tutorials(page):
    assert re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE) == SECTIONS
    assert blocks(page, "text"), "the original's commands stand beside ours"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_and_every_recipe_of_a_tutorial_exists(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"configs/[\w-]+\.toml", text):
        assert "ARM" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_toml_of_a_tutorial_loads(page, tmp_path):
    for number, block in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.replace('base = "', f'base = "{ROOT}/'))
        if page.stem == "contacts":  # laid over a recipe by --params
            config.load(Settings, ROOT / "configs" / "tissue" / "fib25_neurons.toml", parameters=path)
        else:
            config.load(Settings, path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_tutorial_runs(page, tmp_path, monkeypatch):
    found = [block for block in blocks(page, "python") if "gs://" not in block]  # test_published.py runs those
    if any(".tif" in block for block in found):
        pytest.importorskip("tifffile")
        tissue = synthesize((8, 48, 48), (40.0, 16.0, 16.0), 0)
        for sample in range(2):
            write_layout(tmp_path / "datasets" / "SNEMI", "snemi", tissue, sample)
    monkeypatch.chdir(tmp_path)
    for block in found:
        exec(compile(block, str(page), "exec"), {"np": np})


# ---- docs/settings.md


def rows():
    text = (ROOT / "docs" / "settings.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
             if line.startswith("|") and not line.startswith(("|---", "| documented"))]
    assert all(len(row) == 3 for row in table), [row for row in table if len(row) != 3]
    return table


def check_key(key):
    """That some kind of settings has a key such as loss.terms.0.kind."""
    kinds = [Settings]
    for step in key.split("."):
        if step.isdigit():
            kinds = [choice for kind in kinds for choice in items(kind)]
        else:
            kinds = [hints(choice)[step] for kind in kinds for choice in tables(kind) if step in hints(choice)]
        assert kinds, key


def test_every_key_of_the_table_of_settings_exists():
    assert len(rows()) > 60
    for row in rows():
        keys = [key for key in re.findall(r"`([^`]+)`", row[1]) if re.fullmatch(r"[a-z_]+(\.\w+)+", key)]
        assert keys, row
        for key in keys:
            check_key(key)


def test_every_test_of_the_table_of_settings_exists():
    for row in rows():
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row[2])
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, test)

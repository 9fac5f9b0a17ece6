"""`python -m emcore config SCRIPT` prints every setting that the script reads: what it reads is recorded as it runs."""

import dataclasses
import runpy
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from emcore import config
from emcore.config.schema import hints, items, join, tables
from emcore.settings import READS, Settings

ROOT = Path(__file__).resolve().parent.parent
# modules that look at all settings alike: they build, compare and write them, or check them when they are loaded
WHOLESALE = ("dataclasses", "emcore.config.", "emcore.settings.")


def places(schema, where=""):
    """Every dataclass of the settings and the tables where it stands."""
    yield schema, where
    for name, kind in hints(schema).items():
        for inner in (*tables(kind), *items(kind)):
            yield from places(inner, join(where, name))


@pytest.fixture
def read(monkeypatch):
    """The settings that are read by name, as they are read; those of the net in a checkpoint are not the user's."""
    where, seen, nets = {}, set(), []
    for schema, place in places(Settings):
        where.setdefault(schema, place)
    load = config.load

    def loaded(*arguments):
        settings = load(*arguments)
        net = vars(settings)["model"]
        nets[:] = [net, *filter(dataclasses.is_dataclass, vars(net).values())]
        return settings

    monkeypatch.setattr(config, "load", loaded)
    for schema, place in where.items():
        names = {field.name for field in dataclasses.fields(schema)}

        def look(self, name, names=names, place=place):
            if name in names:
                caller = sys._getframe(1)
                module = caller.f_globals.get("__name__", "")
                of_checkpoint = place.startswith("model") and not any(self is net for net in nets)
                if not (module.startswith(WHOLESALE) or caller.f_code.co_filename == "<string>" or of_checkpoint):
                    seen.add(join(place, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(schema, "__getattribute__", look)
    return seen


@pytest.mark.parametrize("script", ["infer", "evaluate", "train"])
def test_the_printed_settings_are_all_that_the_script_reads(script, read, tmp_path, monkeypatch):
    with tarfile.open(ROOT / "tests" / "data" / "older_run.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    if script != "evaluate":
        shutil.rmtree("outputs/older/results_step=6")
    arguments = ["--cfg", "run.toml", *(["name=fresh"] if script == "train" else [])]
    main = runpy.run_path(str(ROOT / f"{script}.py"))["main"]
    assert main(arguments) == 0
    if script == "evaluate":
        assert main([*arguments, "--tune", "tune.space.high=[1.0]"]) == 0
    leaves = {key for key in read if not any(other.startswith(f"{key}.") for other in read)}
    assert len(leaves) > 20
    printed = READS[script]
    missing = {key for key in leaves if not any(key == one or key.startswith(f"{one}.") for one in printed)}
    assert not missing

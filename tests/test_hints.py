"""Hints name a command that works as it stands: this Python, from the present folder, and the packages it lacks."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from emcore import config, errors
from emcore.errors import InputError, installation, this_python
from emcore.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def test_a_hint_starts_this_python_from_any_folder(tmp_path, monkeypatch):
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        done = subprocess.run(f"{this_python()} -c 'import sys; print(sys.prefix)'", shell=True, capture_output=True,
                              text=True)
        assert done.stdout.strip() == sys.prefix, done.stderr


def test_a_checkout_names_the_packages_of_an_extra_and_a_wheel_names_the_extra(tmp_path, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shlex.split(installation("tiff")) == [*shlex.split(this_python()), "-m", "pip", "install", *extras["tiff"]]
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "emcore" / "errors.py"))
    assert shlex.split(installation("tiff"))[-2:] == ["install", "emcore[tiff]"]


def test_a_yaml_config_is_told_how_it_becomes_toml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my run.yaml").write_text("model: 1\n")
    with pytest.raises(InputError, match="is not valid TOML") as error:
        config.load(Settings, "my run.yaml")
    assert str(error.value).endswith(f"{this_python()} -m emcore import-config 'my run.yaml' -o 'my run.toml'")

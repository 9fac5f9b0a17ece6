"""The trained weights that come with the project: small, of the recipes as they stand, and they predict."""

import re
from pathlib import Path

import pytest
import torch

from emcore import config
from emcore.engine import checkpoint
from emcore.settings import Settings
from emcore.settings.model import Model
from emcore.systems.checkpoints import load_model

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "weights").glob("*.pt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_weights_belong_to_a_recipe_and_predict(path):
    assert path.stat().st_size < 20e6
    settings = config.load(Settings, ROOT / "configs" / "tissue" / f"{path.stem}.toml", [])
    content = checkpoint.read(path)
    assert set(content) - {"weights"} == {"version", "step", "model", "config"}  # older files do not say which weights
    assert checkpoint.step_of(content) == settings.train.steps
    assert config.from_table(Model, content["config"]["model"], "model") == settings.model
    assert not re.search(r"'/\w", str(content["config"])), "a path of the machine it was trained on"
    net = load_model(path)
    with torch.inference_mode():
        out = net(torch.rand(1, 1, *settings.data.patch))
    assert out.shape == (1, settings.model.out_channels, *settings.data.patch)
    assert out.std() > 0.1


def test_the_page_says_how_each_is_used():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert FILES
    assert all(f"weights/{path.name}" in page for path in FILES)

"""The trained weights that come with the project: small, of the recipes as they stand, with cards, and they predict."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emcore import cards, config, record, results
from emcore.engine import checkpoint, start, weights
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.model import Model
from emcore.systems.checkpoints import load_model

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "weights").glob("*.pt"))
CARDS = cards.cards()


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


def test_every_file_of_weights_has_a_card_and_every_card_a_file():
    files = {path.name for path in (ROOT / "weights").iterdir() if path.suffix != ".toml"}
    assert {card.file for card in CARDS.values()} == files
    assert all(Path(card.file).stem == name for name, card in CARDS.items())


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_the_page_says_and_its_command_names_what_is_there(name):
    card = CARDS[name]
    page = (ROOT / "docs" / ("connectome.md" if name == "synth_synapses" else "benchmarks.md")).read_text()
    figures = re.findall(r"\b0\.\d+\b", card.reaches)
    assert figures
    assert [figure for figure in figures if figure not in page] == []
    assert all((ROOT / path).exists() for path in re.findall(r"(?:configs|bench)/\S+\.toml", card.use))
    assert "CC BY-NC-SA 3.0" in card.licence or "Gerhard" not in card.trained_on
    settings = config.load(Settings, ROOT / re.search(r"configs/\S+", card.use)[0])
    assert cards.checkpoint_file(re.search(r"--checkpoint (\S+)", card.use)[1]).stem == settings.name


def test_the_command_lists_every_card(capsys):
    assert cards.main([]) == 0
    told = capsys.readouterr().out
    for name, card in CARDS.items():
        assert re.search(rf"^{name} +weights/{card.file}$", told, re.MULTILINE)
        assert card.use in told
    assert told.count("fails on") == len(CARDS) == 6


def test_a_name_is_taken_wherever_a_checkpoint_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vnc_clefts").mkdir()  # a folder is no checkpoint
    file = ROOT / "weights" / "vnc_clefts.pt"
    settings = config.load(Settings, ROOT / "configs" / "tissue" / "vnc_clefts.toml", [])
    assert results.of_checkpoint(settings, "vnc_clefts") == results.of_checkpoint(settings, str(file))
    start.check_start(replace(settings, data=replace(settings.data, train=(), validation=()),
                              train=replace(settings.train, start_from="vnc_clefts")), Path("recipe.toml"))
    path, content, digest = weights.taken(tmp_path, "vnc_clefts")
    assert path == file
    assert digest == record.digest_of_file(file)
    assert content["step"] == checkpoint.read("vnc_clefts")["step"] == settings.train.steps
    assert weights.digest(load_model("vnc_clefts")) == weights.digest(load_model(file))
    with pytest.raises(InputError, match="nor the name of weights that come with emcore; there are fib25_neurons"):
        weights.taken(tmp_path, "vnc_cleft")
    with pytest.raises(InputError, match="which an installed package has not"):
        cards.checkpoint_file("vnc_clefts", tmp_path)
    with pytest.raises(InputError, match=r"is no net but .* name .*fib25_contacts\.json in decode\.learned\.file"):
        cards.checkpoint_file("fib25_contacts")
    (tmp_path / "own").write_bytes(b"a file of the user's own goes before a name")
    assert cards.checkpoint_file("own") == Path("own")

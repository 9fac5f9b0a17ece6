"""python -m emcore augment: a row for every augmentation of the config, in a PNG."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore import config
from emcore.data.letters import HEIGHT, write
from emcore.data.sheet import alone, main, names, sheet
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.augment import Augment, Blur, CopyPaste, Flip, Noise

CONFIG = """
name = "x"
[data]
folder = "{folder}"
patch = [6, 32, 32]
[[data.train]]
image = "vol.h5:raw"
label = "vol.h5:labels"
[augment.flip]
probability = [0.0, 0.5, 0.0]
[augment.noise]
probability = 0.3
"""


@pytest.fixture
def place(tmp_path):
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, 9, (4, 5, 5)), np.ones((3, 12, 12), int))
    with h5py.File(tmp_path / "vol.h5", "w") as f:
        f["labels"] = labels.astype(np.uint8)
        f["raw"] = (labels * 20 + random.integers(0, 30, labels.shape)).astype(np.uint8)
        f["raw"].attrs["resolution"] = (24, 8, 8)
    (tmp_path / "x.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def test_a_row_is_drawn_for_each_augmentation_of_the_config_or_for_all(place):
    settings = config.load(Settings, place / "x.toml", [])
    assert names(settings.augment) == ["flip", "noise"]
    few, all_of_them = sheet(settings), sheet(settings, True)
    assert few.dtype == np.uint8
    assert few.shape[2] == 3
    rows = len(names(settings.augment, True)) + 2
    assert rows == 24
    assert all_of_them.shape[0] * 4 == few.shape[0] * rows
    height = few.shape[0] // 4
    assert not np.array_equal(few[:height], few[height:2 * height])
    assert np.array_equal(few, sheet(settings)), "the same picture every time"


def test_a_step_alone_is_always_done_with_its_own_parameters_and_nothing_else():
    augment = Augment(flip=Flip((0.5, 0.0, 0.0)), noise=Noise(0.1, 0.2), exclusive=("blur",), blur=Blur(0.3))
    assert alone(augment, "noise") == Augment(noise=Noise(1.0, 0.2))
    assert alone(augment, "flip") == Augment(flip=Flip((1.0, 0.0, 0.0)))
    assert alone(Augment(), "flip") == Augment(flip=Flip((1.0, 1.0, 1.0)))
    assert alone(augment, "copy_paste") == Augment(copy_paste=CopyPaste(1.0))


def test_the_command_writes_a_png_and_tells_mistakes_in_one_sentence(place):
    done = subprocess.run([sys.executable, "-m", "emcore", "augment", "--cfg", str(place / "x.toml"), "--out",
                           str(place / "a.png"), "augment.blur.probability=0.5"], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parent.parent)
    assert done.returncode == 0, done.stderr
    assert (place / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"--out must end in .png; got a.jpg"):
        main(["--cfg", str(place / "x.toml"), "--out", "a.jpg"])
    with pytest.raises(InputError, match="needs square sections"):
        main(["--cfg", str(place / "x.toml"), "data.patch=[6, 32, 30]", "augment.turn.probability=1"])


def test_images_without_labels_have_a_sheet_too(place):
    text = (place / "x.toml").read_text().replace('label = "vol.h5:labels"\n', "")
    (place / "x.toml").write_text(text)
    assert sheet(config.load(Settings, place / "x.toml", []), True).shape[2] == 3


def test_every_letter_of_a_name_is_drawn_and_different():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789_.,:"
    drawn = [write(letter) for letter in letters]
    assert all(dots.shape == (HEIGHT, 6) and dots.any() for dots in drawn)
    assert len({dots.tobytes() for dots in drawn}) == len(letters)
    assert write("ab", 3).shape == (3 * HEIGHT, 36)
    assert not write(" ").any()

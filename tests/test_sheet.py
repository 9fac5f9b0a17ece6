"""python -m emcore augment: pictures for every augmentation of the config, in a page."""

import base64
import re

import h5py
import numpy as np
import pytest

from emcore import config
from emcore.data.sheet import alone, main, names, sheet
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.augment import Augment, Blur, CopyPaste, Flip, Noise
from tests.scripts import run_python
from tests.test_png import decode_png

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


def sections(html):
    """Name -> caption -> picture."""
    found = {}
    for part in html.split("<section>")[1:]:
        pictures = re.findall(r'base64,([^"]+)"[^>]*><figcaption>([^<]+)<', part)
        found[re.search("<h2>(.+?)</h2>", part)[1]] = {
            caption: decode_png(base64.b64decode(data)) for data, caption in pictures}
    return found


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
    few, everything = sheet(settings), sheet(settings, True)
    assert few == sheet(settings), "the same page every time"
    assert sections(few).keys() == {"as it is", "flip", "noise", "as trained on"}
    assert len(sections(everything)) == 24
    before, flipped = sections(few)["as it is"], sections(few)["flip"]
    assert [caption.split(",")[0] for caption in before] == ["image", "labels", "both"] * 2
    image, labels, both, *side = before.values()
    assert image.shape == (32, 32)
    assert labels.shape == both.shape == (32, 32, 3)
    assert [picture.shape[:2] for picture in side] == [(6, 32)] * 3
    assert 'width="224" height="126"' in few  # a section is as thick as three voxels are wide
    raw = h5py.File(place / "vol.h5")["raw"][...]
    assert any(np.corrcoef(image.ravel(), raw[z, y:y + 32, x:x + 32].ravel())[0, 1] > 0.999
               for z in range(12) for y in range(29) for x in range(29))
    assert flipped.keys() == before.keys()
    assert np.array_equal(next(iter(flipped.values())), image[::-1])
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", everything)
    assert not re.search(r"https?:|url\(|@import|<script", without_pictures)


def test_a_step_alone_is_always_done_with_its_own_parameters_and_nothing_else():
    augment = Augment(flip=Flip((0.5, 0.0, 0.0)), noise=Noise(0.1, 0.2), exclusive=("blur",), blur=Blur(0.3))
    assert alone(augment, "noise") == Augment(noise=Noise(1.0, 0.2))
    assert alone(augment, "flip") == Augment(flip=Flip((1.0, 0.0, 0.0)))
    assert alone(Augment(), "flip") == Augment(flip=Flip((1.0, 1.0, 1.0)))
    assert alone(augment, "copy_paste") == Augment(copy_paste=CopyPaste(1.0))


def test_the_command_writes_a_page_and_tells_mistakes_in_one_sentence(place):
    done = run_python(["-m", "emcore", "augment", "--cfg", str(place / "x.toml"), "--out", str(place / "a.html"),
                       "augment.blur.probability=0.5"], place)
    assert done.returncode == 0, done.stderr
    assert "blur" in sections((place / "a.html").read_text())
    with pytest.raises(InputError, match=r"--out must end in .html; got a.png"):
        main(["--cfg", str(place / "x.toml"), "--out", "a.png"])
    with pytest.raises(InputError, match="needs square sections"):
        main(["--cfg", str(place / "x.toml"), "data.patch=[6, 32, 16]", "augment.turn.probability=1"])


def test_images_without_labels_have_a_sheet_too(place):
    text = (place / "x.toml").read_text().replace('label = "vol.h5:labels"\n', "")
    (place / "x.toml").write_text(text)
    found = sections(sheet(config.load(Settings, place / "x.toml", []), True))
    assert {len(pictures) for pictures in found.values()} == {2}

"""Commands on a disk that is full, or becomes full: one sentence, nothing half-written; with room the same goes on."""

import csv

import numpy as np
import pytest

from emcore.engine import checkpoint
from emcore.volumes import create_volume, list_datasets, open_volume
from emcore.volumes.stamp import content
from tests.disks import disk, ended_well, resize, run, used
from tests.scripts import ROOT
from tests.test_train import place, same  # noqa: F401 (place is a fixture)

ROOM = 64 << 20
SHAPE = (24, 64, 64)
FORMATS = ("h5", "npy", "tif", "zarr", "precomputed")


def sizes(*names, each=2, daily=pytest.mark.slow):
    """(name, share of the room that it takes): one case for every day, others for the long suite."""
    shares = [0.02, 0.3, 0.55, 0.8, 0.9, 0.97, 0.999, 0.15, 0.7, 0.99]
    cases = [(name, shares[(index * each + turn) % len(shares)]) for index, name in enumerate(names)
             for turn in range(each)]
    return [pytest.param(names[0], 0.6, marks=daily),
            *(pytest.param(name, share, marks=pytest.mark.long) for name, share in cases)]


WITH_ROOM = {}


def kept(key, words, inside, look):
    """(what look(folder) finds, bytes that are taken) after a command with a large disk; run once for each key."""
    if key not in WITH_ROOM:
        with disk(ROOM) as folder:
            assert ended_well(run(words(folder), inside), folder)
            WITH_ROOM[key] = look(folder), used(folder)
    return WITH_ROOM[key]


def on_small_disk(key, words, share, inside):
    """Runs the command words(folder) on a disk of this share of what it takes, then with more room."""
    whole, taken = kept(key, words, inside, contents)
    with disk(max(4096, int(share * taken) // 4096 * 4096)) as folder:
        ended = ended_well(run(words(folder), inside), folder)
        assert not ended or share > 0.9, "it fits, so the test tests nothing"
        left = contents(folder)
        assert left.keys() <= whole.keys()
        for name, value in left.items():
            assert value == whole[name], f"{name} is half-written"
        resize(folder, ROOM)
        if not ended:
            assert ended_well(run(words(folder), inside), folder)
        assert contents(folder) == whole


def contents(folder):
    """What stands in a folder: volumes by their voxels, other files by their bytes where two runs give the same."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        inside = any(above.suffix in (".zarr", ".precomputed") for above in path.relative_to(folder).parents)
        if path.suffix in (".zarr", ".precomputed", ".h5", ".hdf", ".npy", ".tif"):
            listed = [item for item in list_datasets(path) if len(item.shape) > 2]
            found[name] = str([(item.name, content(open_volume(path, item.name))) for item in listed])
        elif path.is_file() and not inside:
            found[name] = path.suffix
    return found


@pytest.mark.parametrize("kind, share", sizes(*FORMATS))
def test_a_conversion(tmp_path, kind, share):
    pytest.importorskip({"zarr": "zarr", "tif": "tifffile"}.get(kind, "numpy"))
    voxels = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)
    with create_volume(tmp_path / "a.h5:raw", SHAPE, voxels.dtype, (40, 4, 4), chunks=(8, 16, 16)) as writer:
        writer[...] = voxels
    on_small_disk(kind, lambda folder: ["-m", "emcore", "convert", "a.h5:raw", f"{folder}/b.{kind}"], share, tmp_path)


@pytest.mark.parametrize("layout, share", sizes("plain", "cremi", "snemi", "polarity", "cremi-clefts",
                                                daily=pytest.mark.long))
def test_synthetic_tissue(tmp_path, layout, share):
    pytest.importorskip("tifffile" if layout == "snemi" else "numpy")
    on_small_disk(layout, lambda folder: ["-m", "emcore", "synth", f"{folder}/tissue", "--layout", layout, "--neurites",
                                          "10", "--shape", "12,64,64", "--resolution", "30,6,6"], share, tmp_path)


@pytest.mark.parametrize("case, share", sizes("train", each=10))
def test_a_training(place, case, share):  # noqa: F811 (the fixture)
    def words(folder):
        return [str(ROOT / "train.py"), "--cfg", "run.toml", f"outputs={folder}", "train.steps=6", "train.log_steps=1",
                "train.save.steps=2", "train.save.last=5", "train.preview_steps=3"]

    def state(folder):
        with open(folder / "tiny" / "log.csv", newline="") as file:
            rows = list(csv.reader(file))
        names = sorted(path.name for path in folder.rglob("*"))
        return rows, names, checkpoint.read(folder / "tiny" / "checkpoints" / "step_000000006.pt")

    (rows, names, last), taken = kept(case, words, place, state)
    with disk(max(4096, int(share * taken) // 4096 * 4096)) as folder:
        ended = ended_well(run(words(folder), place), folder)
        assert not ended or share > 0.9, "it fits, so the test tests nothing"
        for path in folder.rglob("*.pt"):
            checkpoint.read(path)
        for path in folder.rglob("log.csv"):
            assert rows[: len(path.read_text().splitlines())] == list(csv.reader(path.open(newline="")))
        resize(folder, ROOM)
        if not ended:
            assert ended_well(run(words(folder), place), folder)
        again = state(folder)
        assert again[:2] == (rows, names)
        assert same(last, again[2])

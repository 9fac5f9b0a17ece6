"""The skeletons of labels: traced once into a file beside them, or into the run's folder, until the labels change."""

import os
import threading

import h5py
import numpy as np
import pytest

from emcore.data import skeletons
from emcore.data.sampler import Sampler
from emcore.data.skeletons import skeleton_folder, skeletons_of
from emcore.data.sources import open_sources
from emcore.errors import InputError
from emcore.segment import skeleton_volume
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.target import SkeletonDistanceTarget
from emcore.volumes import open_volume

UNIT = (30.0, 8.0, 8.0)


@pytest.fixture
def place(tmp_path):
    labels = np.zeros((6, 24, 40), np.uint32)
    labels[1:5, 4:12, 2:38] = 7
    labels[1:5, 14:22, 2:38] = 9
    with h5py.File(tmp_path / "vol.h5", "w") as f:
        f["raw"] = np.zeros(labels.shape, np.uint8)
        for name in ("labels", "others"):
            f[name] = labels
            f[name].attrs["resolution"] = UNIT
    return tmp_path


@pytest.fixture
def traced(monkeypatch):
    """How often something was traced."""
    calls, trace = [], skeletons._trace
    monkeypatch.setattr(skeletons, "_trace", lambda *given: calls.append(given[1]) or trace(*given))
    return calls


def found(place, dataset="labels", unlabelled=()):
    return skeletons_of(open_volume(f"{place / 'vol.h5'}:{dataset}"), UNIT, unlabelled, place / "run" / "skeletons")


def test_skeletons_are_traced_once_and_again_when_the_labels_change(place, traced):
    labels = h5py.File(place / "vol.h5")["labels"][...]
    volume = found(place)
    assert np.array_equal(volume[...], skeleton_volume(labels, UNIT, dust_voxels=125))
    assert set(np.unique(volume[...])) == {0, 7, 9}
    assert volume.resolution == UNIT
    found(place)
    assert traced == ["labels"]
    assert sorted(path.name for path in place.iterdir()) == ["vol.h5", "vol_skeleton.h5"]
    found(place, "others")
    found(place)
    assert traced == ["labels", "others"]
    for moment in (3600, -3600):  # a file server whose clock is ahead, or behind
        written = (place / "vol_skeleton.h5").stat().st_mtime + moment
        os.utime(place / "vol.h5", (written, written))
        found(place)
        found(place)
    assert traced == ["labels", "others", "labels", "labels"]
    assert set(np.unique(found(place, unlabelled=(9,))[...])) == {0, 7}


def test_skeletons_that_other_rules_traced_are_traced_anew(place, traced, monkeypatch):
    monkeypatch.setattr(skeletons, "RULES", skeletons.RULES - 1)
    found(place)
    monkeypatch.undo()
    found(place)
    assert (place / "vol_skeleton.h5").exists()
    with h5py.File(place / "vol_skeleton.h5") as file:
        assert file["labels"].attrs["rules"] == skeletons.RULES


def test_where_the_labels_cannot_be_written_beside_the_runs_folder_takes_them(place, traced, monkeypatch):
    monkeypatch.setattr(skeletons, "_writable", lambda folder: False)
    found(place)
    found(place)
    assert traced == ["labels"]
    assert not (place / "vol_skeleton.h5").exists()
    assert len(list((place / "run" / "skeletons").glob("vol_*_skeleton.h5"))) == 1


def test_of_many_at_once_one_traces_and_all_read_it(place, traced):
    results = []
    threads = [threading.Thread(target=lambda: results.append(found(place)[...])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(traced) == 1
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_recipe_whose_skeleton_file_is_missing_traces_it_and_keeps_it_new(place, traced, capsys):
    settings = Settings(name="x", outputs=str(place / "run"), target=(SkeletonDistanceTarget(),))
    for name in ("vol_skeleton.h5:labels", "elsewhere.h5"):
        volume = VolumeFiles("vol.h5:raw", "vol.h5:labels", skeleton=name)
        data = Data(folder=str(place), train=(volume,), validation=(volume,), patch=(6, 24, 40))
        for which in ("train", "validation", "train"):
            source = open_sources(data, which, skeleton_folder(settings))[0]
            assert set(np.unique(source.arrays["skeleton"][...])) == {0, 7, 9}
        assert traced == ["labels"]
        assert ("elsewhere.h5: the skeletons are traced from" in capsys.readouterr().out) == ("elsewhere" in name)
    with h5py.File(place / "vol.h5", "r+") as f:
        f["labels"][:, 12:] = 0
    files = VolumeFiles("vol.h5:raw", "vol.h5:labels", skeleton="vol_skeleton.h5:labels")
    data = Data(folder=str(place), train=(files,))
    source = open_sources(data, "train", skeleton_folder(settings))[0]
    assert set(np.unique(source.arrays["skeleton"][...])) == {0, 7}
    assert traced == ["labels", "labels"]
    without = Data(folder=str(place), train=(VolumeFiles("vol.h5:raw", "nothing.h5", skeleton="b.h5"),))
    with pytest.raises(InputError, match=r"there is no file \S*nothing\.h5"):  # labels cannot be traced from nothing
        open_sources(without, "train", skeleton_folder(settings))
    wrong = (VolumeFiles("vol.h5:raw", "nothing.h5"), VolumeFiles("vol.h5:raw", "vol.h5:others", skeleton="b.h5"))
    with pytest.raises(InputError, match=r"^data\.train\.0: there is no file \S*nothing\.h5$"):
        open_sources(Data(folder=str(place), train=wrong), "train", skeleton_folder(settings))
    assert traced == ["labels", "labels"]


def test_skeletons_that_somebody_else_made_are_used_as_they_are_or_left_alone(place, traced):
    with h5py.File(place / "vol_skeleton.h5", "w") as f:
        f["labels"] = np.full((6, 24, 40), 3, np.uint32)
    before = (place / "vol_skeleton.h5").read_bytes()
    assert set(np.unique(found(place)[...])) == {0, 7, 9}  # nobody named the file: traced, but apart
    found(place)
    assert (traced, (place / "vol_skeleton.h5").read_bytes()) == (["labels"], before)
    data = Data(folder=str(place), train=(VolumeFiles("vol.h5:raw", "vol.h5:labels", skeleton="vol_skeleton.h5"),))
    source = open_sources(data, "train", place / "run")[0]
    assert np.unique(source.arrays["skeleton"][...]).tolist() == [3]


def test_a_run_asks_for_skeletons_only_where_a_target_needs_them(place):
    assert skeleton_folder(Settings(name="x")) is None
    settings = Settings(name="x", outputs=str(place), target=(SkeletonDistanceTarget(),))
    data = Data(folder=str(place), train=(VolumeFiles("vol.h5:raw", "vol.h5:labels"),), patch=(6, 24, 40))
    source = open_sources(data, "train", skeleton_folder(settings))[0]
    sample = Sampler([source], data, 0)[0]
    assert set(sample["skeleton"].unique().tolist()) == {0, 7, 9}
    assert ((sample["skeleton"] == 0) | (sample["skeleton"] == sample["label"])).all()
    assert "skeleton" not in Sampler(open_sources(data, "train"), data, 0)[0]

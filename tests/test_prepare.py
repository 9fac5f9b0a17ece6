"""Public stacks become HDF5 with a manifest; what is missing or damaged is one sentence and leaves nothing behind."""

import json
import re

import h5py
import numpy as np
import pytest

from emcore.errors import run_command
from emcore.volumes import prepare

tifffile = pytest.importorskip("tifffile", reason="TIFF needs tifffile")


def stacks(folder, *names, shape=(4, 9, 11), dtype=np.uint8):
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(names):
        found[name] = np.random.default_rng(number).integers(0, 256, shape).astype(dtype)
        tifffile.imwrite(folder / name, found[name], photometric="minisblack")
    return found


def run(tmp_path, name, folder):
    return run_command(prepare.main, [name, str(folder), "--target", str(tmp_path / "out")])


def test_stacks_are_written_as_dbmim_reads_them_and_both_sets_share_a_manifest(tmp_path):
    isbi = stacks(tmp_path / "isbi", "train-volume.tif", "test-volume.tif")
    snemi = stacks(tmp_path / "snemi" / "image", "train-input.tif", "test-input.tif", shape=(3, 8, 8))
    for _ in range(2):  # once more changes nothing
        assert run(tmp_path, "isbi2012", tmp_path / "isbi") == 0
        assert run(tmp_path, "snemi", tmp_path / "snemi") == 0
    names = {"isbi2012_train_raw": isbi["train-volume.tif"], "isbi2012_test_raw": isbi["test-volume.tif"],
             "snemi3d_train_raw": snemi["train-input.tif"], "snemi3d_test_raw": snemi["test-input.tif"]}
    manifest = json.loads((tmp_path / "out" / "public_em_manifest.json").read_text())
    assert {entry["name"] for entry in manifest} == set(names)
    assert len(manifest) == 4
    for entry in manifest:
        with h5py.File(entry["path"]) as file:
            assert np.array_equal(file["raw"][...], names[entry["name"]])
            assert file["raw"].compression == "gzip"
            assert file["raw"].attrs["axis_order"] == "zyx"
            assert file["raw"].attrs["source"] == entry["source"]
        assert entry["shape"] == list(names[entry["name"]].shape)
        assert entry["bytes"] == (tmp_path / "out" / f"{entry['name']}.h5").stat().st_size


def text_file(folder):
    (folder / "test-volume.tif").write_text("<html>404</html>")


def truncated(folder):
    data = (folder / "test-volume.tif").read_bytes()
    (folder / "test-volume.tif").write_bytes(data[:len(data) // 2])


def sixteen_bits(folder):
    stacks(folder, "test-volume.tif", dtype=np.uint16)


def absent(folder):
    (folder / "test-volume.tif").unlink()


@pytest.mark.parametrize("damage, sentence", [
    (text_file, "test-volume.tif"), (truncated, "test-volume.tif"), (sixteen_bits, "of 8 bits.*uint16"),
    (absent, "has no test-volume.tif.*it holds train-volume.tif.*download ISBI 2012"),
])
def test_damaged_and_missing_input_is_one_sentence(tmp_path, capsys, damage, sentence):
    stacks(tmp_path / "isbi", "train-volume.tif", "test-volume.tif", shape=(6, 40, 50))
    damage(tmp_path / "isbi")
    assert run(tmp_path, "isbi2012", tmp_path / "isbi") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, told), told
    assert not (tmp_path / "out" / "isbi2012_test_raw.h5").exists()
    assert not (tmp_path / "out" / "public_em_manifest.json").exists()


def test_a_folder_that_is_not_there_and_a_strange_manifest_are_named(tmp_path, capsys):
    assert run(tmp_path, "snemi", tmp_path / "none") == 2
    assert "there is no such folder" in capsys.readouterr().err
    stacks(tmp_path / "isbi", "train-volume.tif", "test-volume.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "public_em_manifest.json").write_text("[1, 2]")
    assert run(tmp_path, "isbi2012", tmp_path / "isbi") == 2
    assert "is not a manifest" in capsys.readouterr().err

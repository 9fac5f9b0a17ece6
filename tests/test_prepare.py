"""Public stacks become HDF5 with a manifest; what is missing or damaged is one sentence and leaves nothing behind."""

import io
import json
import os
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore import config
from emcore.data.sources import open_sources
from emcore.errors import run_command
from emcore.settings.data import Data
from emcore.systems.dbmim import prepare

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


def hdf(values, key):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file[key] = values
    return out.getvalue()


def archive(path, **files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            out.writestr(name, content)


def full(folder, target):
    return run_command(prepare.main, ["fullem", str(folder), "--target", str(target)])


def test_archives_of_fullem_end_up_where_the_recipes_look_and_a_manifest_says_what_is_there(tmp_path, capsys):
    raw = [np.random.default_rng(number).integers(0, 256, (5, 6, 7)).astype(np.uint8) for number in range(6)]
    given, target = tmp_path / "given", tmp_path / "data" / "EM_pretrain_data"
    archive(given / "FAFB_crop_hdf_1.zip", **{"FAFB/a.hdf": hdf(raw[0], "main"), "FAFB/b.hdf": hdf(raw[1], "main"),
                                              "readme.txt": b"x"})
    archive(given / "MitoEM_rat_hdf_1.zip", **{"c.h5": hdf(raw[2], "volumes/raw")})
    unpacked = given / "mb_moc_hdf_3" / "d.hdf5"
    unpacked.parent.mkdir()
    unpacked.write_bytes(hdf(raw[3], "raw"))
    (given / "other.h5").write_bytes(hdf(raw[4], "raw"))  # belongs to none of the data sets
    assert full(given, target) == 0
    told = capsys.readouterr().out.splitlines()
    assert "fafb: 2 files of the 1421 published" in told
    assert "kasthuri: 0 files of the 1732 published" in told
    manifest = json.loads((target / "all_manifest.json").read_text())
    assert manifest["groups"] == {"fafb": 2, "mitoem": 1, "mb_moc": 1}
    names = {"all/fafb/FAFB_crop_hdf_1/FAFB/a.h5": raw[0], "all/fafb/FAFB_crop_hdf_1/FAFB/b.h5": raw[1],
             "all/mitoem/MitoEM_rat_hdf_1/c.h5": raw[2], "all/mb_moc/mb_moc_hdf_3/d.h5": raw[3]}
    assert {item["name"] for item in manifest["files"]} == set(names)
    for item in manifest["files"]:
        with h5py.File(target / item["name"]) as file:
            assert np.array_equal(file[item["key"]], names[item["name"]])
        assert (item["shape"], item["dtype"]) == ([5, 6, 7], "uint8")
    assert os.path.samefile(unpacked, target / "all/mb_moc/mb_moc_hdf_3/d.h5")  # 620 GB are not copied
    recipe = config.read_toml(Path(__file__).parent.parent / "configs" / "dbmim" / "dbmim_pretrain_r33.toml")
    data = config.from_table(Data, {"folder": str(tmp_path / "data"), "patch": [2, 4, 4],
                                    "train": recipe["data"]["train"][3:], "storage": "memory"})
    assert len(open_sources(data, "train")) == 4
    # what came since is added, what was cut off is made again, what is there stays
    before = {name: (target / name).stat().st_mtime_ns for name in names}
    cut = target / "all/fafb/FAFB_crop_hdf_1/FAFB/b.h5"
    cut.write_bytes(cut.read_bytes()[:100])
    (given / "MitoEM_rat_hdf_1.zip").unlink()
    archive(given / "FIB-25_hdf_1.zip", **{"e.h5": hdf(raw[5], "data")})
    assert full(given, target) == 0
    manifest = json.loads((target / "all_manifest.json").read_text())
    assert manifest["groups"] == {"fafb": 2, "fib25": 1, "mitoem": 1, "mb_moc": 1}
    assert [name for name in names if (target / name).stat().st_mtime_ns != before[name]] == [
        "all/fafb/FAFB_crop_hdf_1/FAFB/b.h5"]


def test_what_cannot_be_prepared_of_fullem_is_one_sentence_and_leads_nowhere(tmp_path, capsys):
    good = hdf(np.zeros((2, 3, 4), np.uint8), "main")
    whole = tmp_path / "whole.zip"
    archive(whole, **{"a.h5": good * 1})
    broken = bytearray(whole.read_bytes())
    broken[60:90] = b"\xff" * 30  # within the packed bytes
    for number, (content, sentence) in enumerate((
            (None, "has none of the archives FAFB_crop_hdf_.*it holds nothing: fetch them"),
            ({"../evil.h5": good}, "which leads out of its folder"),
            ({"/evil.h5": good}, "which leads out of its folder"),
            ({"a.h5": b"no HDF5"}, "a.h5"),
            ({"a.h5": hdf(np.zeros((3, 4)), "main")}, r"\(3, 4\)|2 axes|z, y, x"),
            (b"PK nonsense", "is no whole zip archive"),
            (bytes(broken), "a.h5 of .* cannot be unpacked"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "in" / "mb_moc_hdf_1.zip"
        if isinstance(content, dict):
            archive(path, **content)
        else:
            path.parent.mkdir()
            if content is not None:
                path.write_bytes(content)
        assert full(folder / "in", folder / "out") == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("error: ")
        assert re.search(sentence, told), told
        assert not (folder / "out" / "all_manifest.json").exists()
        assert not [found for found in folder.rglob("*") if "evil" in found.name or found.suffix == ".partial"]
    assert full(tmp_path / "none", tmp_path / "out") == 2
    assert "there is no such folder" in capsys.readouterr().err

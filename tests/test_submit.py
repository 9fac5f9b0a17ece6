"""Submissions to CREMI: ids to the last bit, label 0 by kind, placement, and nothing half-written."""

import h5py
import numpy as np
import pytest

from emcore.errors import run_command
from emcore.volumes import create_volume, open_volume, submit

NO_CLEFT = 2**64 - 1
LARGE = 2**53 + 1  # the first whole number that a float64 cannot hold


def labels(path, values, offset=None, resolution=(40, 4, 4)):
    with create_volume(path, values.shape, values.dtype, resolution, offset) as out:
        out[...] = values
    return str(path)


def run(*arguments):
    return run_command(submit.main, ["cremi", *map(str, arguments)])


def ids(shape, dtype=np.uint64, seed=0):
    values = np.random.default_rng(seed).integers(0, 5, shape).astype(dtype)
    if dtype == np.uint64:
        values[values == 4] = LARGE
        values[0, 0, 0] = 2**64 - 3
    return values


def test_clefts_and_neurons_are_written_as_the_challenge_reads_them(tmp_path):
    clefts, neurons = ids((3, 4, 5)), ids((3, 4, 5), seed=1)
    clefts[1, 1, 1] = NO_CLEFT  # CREMI's own mark of background
    out = tmp_path / "sample_A+.hdf"
    out.write_bytes(b"an older file, which is no HDF5")
    assert run(out, "--clefts", labels(tmp_path / "c.h5:labels", clefts), "--shape", "3,4,5",
               "--neuron-ids", labels(tmp_path / "n.h5:labels", neurons)) == 0
    with h5py.File(out) as file:
        assert file.attrs["file_format"] == "0.2"
        written = {name: file[f"volumes/labels/{name}"] for name in ("clefts", "neuron_ids")}
        for dataset in written.values():
            assert dataset.dtype == np.uint64
            assert dataset.shape == (3, 4, 5)
            assert dataset.attrs["resolution"].tolist() == [40, 4, 4]
            assert dataset.attrs["offset"].tolist() == [0, 0, 0]
        assert np.array_equal(written["neuron_ids"][...], neurons)
        assert LARGE in neurons
        assert np.array_equal(written["clefts"][...], np.where(clefts == 0, np.uint64(NO_CLEFT), clefts))
    again = tmp_path / "again.hdf"  # what is read from such a file is written as it is, each from its own dataset
    assert run(again, "--clefts", out, "--neuron-ids", out, "--shape", "3,4,5") == 0
    with h5py.File(out) as one, h5py.File(again) as other:
        for name in ("clefts", "neuron_ids"):
            assert np.array_equal(one[f"volumes/labels/{name}"], other[f"volumes/labels/{name}"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_labels_of_every_type_keep_their_ids(tmp_path, dtype):
    values = ids((2, 3, 4), dtype)
    assert run(tmp_path / "o.hdf", "--clefts", labels(tmp_path / "c.h5", values), "--shape", "2,3,4") == 0
    found = open_volume(tmp_path / "o.hdf", "volumes/labels/clefts")[...]
    assert np.array_equal(found, np.where(values == 0, np.uint64(NO_CLEFT), values.astype(np.uint64)))


@pytest.mark.parametrize("how", ["offset", "at", "padded"])
def test_labels_lie_where_they_say_and_the_rest_is_background(tmp_path, capsys, monkeypatch, how):
    monkeypatch.setattr(submit, "CHUNK", (2, 4, 3))  # so that blocks end within the labels and outside of them
    shape, place, own = (7, 9, 11), (2, 3, 4), (3, 4, 5)
    if how == "padded":  # labels of more than the challenge's volume: its middle is taken
        place, own = (-2, -3, -1), (12, 15, 13)
    values = ids(own)
    more = ["--at", ",".join(map(str, place))] if how == "at" else []
    more = [f"--at={','.join(map(str, place))}"] if how == "padded" else more
    file = labels(tmp_path / "n.h5", values, np.multiply(place, (40, 4, 4)) if how == "offset" else None)
    assert run(tmp_path / "o.hdf", "--neuron-ids", file, "--clefts", file, "--shape", "7,9,11", *more) == 0
    told = capsys.readouterr().out
    for name, background in (("neuron_ids", 0), ("clefts", NO_CLEFT)):
        expected = np.full(shape, background, np.uint64)
        for at in np.ndindex(shape):
            inner = tuple(np.subtract(at, place))
            if min(inner) >= 0 and all(np.less(inner, own)) and values[inner]:
                expected[at] = values[inner]
        assert np.array_equal(open_volume(tmp_path / "o.hdf", f"volumes/labels/{name}")[...], expected)
    inside = 7 * 9 * 11 if how == "padded" else 3 * 4 * 5
    assert f"{7 * 9 * 11 - inside} voxels beyond the labels are background" in told
    assert f"{values.size - inside} voxels of the labels lie outside" in told


def test_what_cannot_be_submitted_is_one_sentence_and_leaves_what_was_there(tmp_path, capsys):
    good, shape = labels(tmp_path / "g.h5", ids((2, 3, 4))), ["--shape", "2,3,4"]
    negative, unknown = ids((2, 3, 4), np.int64), ids((2, 3, 4))
    negative[1, 2, 3], unknown[1, 2, 3] = -1, 2**64 - 2
    out = tmp_path / "o.hdf"
    out.write_bytes(b"what was there")
    for arguments, sentence in (
            ([], "there is nothing to submit: name labels by --clefts"),
            (["--neuron-ids", good], r"shape (2, 3, 4), the challenge (125, 1250, 1250), and no offset says"),
            (["--neuron-ids", labels(tmp_path / "w.h5", ids((1, 3, 4)), (80, 0, 0)), *shape], "outside of the chall"),
            (["--neuron-ids", labels(tmp_path / "h.h5", ids((1, 3, 4)), (20, 0, 0)), *shape], "not a whole number"),
            (["--neuron-ids", labels(tmp_path / "r.h5", ids((2, 3, 4)), None, (30, 6, 6)), *shape], "has voxels of"),
            (["--clefts", labels(tmp_path / "f.h5", np.zeros((2, 3, 4), np.float32)), *shape], "labels are integers"),
            # the clefts have been written by then, and must not stay
            (["--clefts", good, "--neuron-ids", labels(tmp_path / "n.h5", negative), *shape], "holds -1; labels of"),
            (["--clefts", labels(tmp_path / "u.h5", unknown), *shape], "holds 2^64 - 2"),
            (["--neuron-ids", tmp_path / "none.h5", *shape], "there is no file")):
        assert run(out, *arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert sentence in told
        assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "o"))) == ["o.hdf"]
    assert run(tmp_path / "o.tif", "--clefts", good, *shape) == 2
    assert run(tmp_path / "away" / "o.hdf", "--clefts", good, *shape) == 2
    told = capsys.readouterr().err
    assert "the challenge takes HDF5" in told
    assert "its folder does not exist" in told

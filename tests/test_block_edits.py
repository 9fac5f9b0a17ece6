"""Edits in blocks and by infer.py: the labels of the whole volume with the same edits, to the bit."""

import os
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emcore import files
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.handover import main as handover
from emcore.blocks.run import cut_in_blocks, damaged_blocks, work_of
from emcore.blocks.windows import Source
from emcore.blocks.work import run_inline
from emcore.decode import decode, recut
from emcore.decode.affinities import labels_of, read_affinities, segmentation_of
from emcore.errors import InputError, run_command
from emcore.record import read as read_record
from emcore.report.doubts import list_doubts
from emcore.results import why_decode
from emcore.segment import Edit, apply_edits, read_edits, write_edits
from emcore.settings.blocks import Blocks
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.test_blocks import labels_by, make_prediction, random_grid, random_settings
from tests.test_edits import random_edits

ROOT = Path(__file__).resolve().parent.parent
STATISTICS = ("mean", "max", "aff85_his256", "aff75_his256_all")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests write thousands of tiny files, and no machine fails under them."""
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)


def check_volume(folder, seed):
    """Random edits of a random volume, in two grids and at two thresholds."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(length) for length in rng.integers(4, 13, 3))
    path = make_prediction(folder / f"{seed}_prediction.h5", rng, shape)
    settings = replace(random_settings(rng, STATISTICS[seed % len(STATISTICS)], False), end=1.0)
    whole = segmentation_of(read_affinities(open_volume(path), settings), settings)
    labels = labels_of(whole, settings)
    edits = random_edits(whole, labels, rng, 20)
    wanted = apply_edits(whole, labels, settings.threshold, edits)
    for turn in range(2):
        grid = random_grid(rng, shape, False, 16)
        work = AffinityWork(folder / f"{seed}-{turn}.blocks", grid, Source(str(path), settings), "content")
        assert np.array_equal(labels_by(work), labels)
        turned = tuple(edits[at] for at in rng.permutation(len(edits)))
        assert np.array_equal(labels_by(replace(work, edits=turned)), wanted), (seed, settings, grid, edits)
    return bool((labels != wanted).any())


def test_edits_in_blocks_are_those_of_the_whole(tmp_path):
    assert sum(check_volume(tmp_path, seed) for seed in (1, 2)) == 2


@pytest.mark.long
@pytest.mark.parametrize("first", range(100, 200, 20))
def test_a_hundred_volumes_with_edits_in_blocks_equal_the_whole(tmp_path, first):
    assert sum(check_volume(tmp_path, seed) for seed in range(first, first + 20)) >= 12


def test_a_block_that_no_edit_changes_is_not_written_again(tmp_path):
    rng = np.random.default_rng(3)
    path = make_prediction(tmp_path / "a_prediction.h5", rng, (8, 16, 16))
    settings = AffinityDecode(low=0.1, high=0.9, threshold=0.2)
    whole = segmentation_of(read_affinities(open_volume(path), settings), settings)
    labels = labels_of(whole, settings)
    place = tuple(np.argwhere(labels > 0)[0].tolist())
    grid = random_grid(rng, labels.shape, False, 16)
    work = AffinityWork(tmp_path / "a.blocks", grid, Source(str(path), settings), "content")
    run_inline(work)
    changed = replace(work, edits=(Edit("drop", place),))
    run_inline(changed)
    before, after = work.stages()[-1], changed.stages()[-1]
    same = [os.path.samefile(work.path(before, number), changed.path(after, number)) for number in range(after.count)]
    holds = [bool((labels[grid.box(number)] == labels[place]).any()) for number in range(after.count)]
    assert same == [not one for one in holds]
    assert any(same)
    assert any(holds)


# ---- the command


CONFIG = """
name = "tiny"
[data]
folder = "."
[decode]
kind = "affinities"
low = 0.1
high = 0.95
threshold = 0.3
end = 0.8
dust_size = 4
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a stored prediction and a config; edits.csv holds edits of its labels."""
    folder = tmp_path_factory.mktemp("edits")
    rng = np.random.default_rng(0)
    affs = rng.random((3, 10, 20, 20), np.float32)
    with create_volume(f"{folder}/a_prediction.h5:main", affs.shape, affs.dtype, (30, 8, 8), None,
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    (folder / "run.toml").write_text(CONFIG)
    whole = segmentation_of(read_affinities(open_volume(folder / "a_prediction.h5"), AffinityDecode()),
                            AffinityDecode(low=0.1, high=0.95))
    write_edits(folder / "edits.csv", random_edits(whole, whole.labels(0.1, dust_size=4), rng, 30))
    return folder


def infer(folder, *arguments, prediction="a_prediction.h5"):
    """The exit code of infer.py --from the prediction."""
    main = runpy.run_path(str(ROOT / "infer.py"))["main"]
    return run_command(main, [str(one) for one in (
        "--cfg", folder / "run.toml", "--from", folder / prediction, *arguments)])


def test_infer_holds_edits_in_labels_that_are_there_whole_and_in_blocks(place):
    edits, settings = read_edits(place / "edits.csv"), AffinityDecode(low=0.1, high=0.95, dust_size=4)
    whole = segmentation_of(read_affinities(open_volume(place / "a_prediction.h5"), settings), settings)
    for blocks in ((), ("blocks.size=[10,10,20]", "blocks.workers=1")):
        assert infer(place, *blocks) == 0
        assert infer(place, "--edits", place / "edits.csv", *blocks) == 0
        assert infer(place, "--edits", place / "edits.csv", "--cut", 0.6, *blocks) == 0
        for threshold, name in ((0.3, "a_labels_edits=edits.h5"), (0.6, "a_labels_0.6_edits=edits.h5")):
            found = open_volume(place / name, "labels")
            labels = labels_of(whole, replace(settings, threshold=threshold))
            assert np.array_equal(found[...], apply_edits(whole, labels, threshold, edits))
            assert not np.array_equal(found[...], labels)
            record = read_record(place / name, "labels")
            assert record["edits"]["count"] == len(set(edits))
            assert record["decode"]["threshold"] == threshold
            assert damaged_blocks(place / name) == []
        wanted = {name: value for name, value in record.items() if name != "edits"}
        assert "edits" in why_decode(place / name, place / "a_prediction.h5", wanted)
        assert "edits" not in (why_decode(place / "a_labels.h5", place / "a_prediction.h5", wanted) or "")
        out = place / f"handed_over_{len(blocks)}"
        assert handover([str(place / "a_labels.h5"), str(out), "--edits", str(place / "edits.csv")]) == 0
    for name in ("edges.csv", "supervoxels.csv", "merges/lines/0_0_0"):
        assert (place / "handed_over_0" / name).read_bytes() == (out / name).read_bytes()
    whole, parts = (open_volume(place / f"handed_over_{number}" / "supervoxels.precomputed") for number in (0, 2))
    assert np.array_equal(whole[...], parts[...])
    assert infer(place, "blocks.size=[10,10,20]", "blocks.workers=1") == 0
    assert damaged_blocks(place / "a_labels_0.6_edits=edits.h5") == []  # Its blocks and its edits are still there.


def test_infer_names_edits_that_it_cannot_hold_and_writes_nothing(place, capfd):
    (place / "wrong.csv").write_text("edit,z,y,x,to_z,to_y,to_x\ndrop,3,4,5,,,\njoin,3,4,5,60,0,0\n")
    for blocks in ("blocks.size=[10,10,20]", "blocks.workers=1"), ():
        assert infer(place, *blocks) == 0
        assert infer(place, "--edits", place / "wrong.csv", *blocks) == 2
        said = capfd.readouterr().err
        assert "wrong.csv, line 3" in said
        assert "outside of the volume" in said
        assert "Traceback" not in said
        assert not (place / "a_labels_edits=wrong.h5").exists()
    assert infer(place, "--edits", place / "edits.csv", prediction="b_prediction.h5") == 2
    assert "run infer.py without --edits first" in capfd.readouterr().err


def test_labels_that_hold_edits_are_not_handed_over(place, capfd):
    for blocks in ((), ("blocks.size=[10,10,20]", "blocks.workers=1")):
        assert infer(place, *blocks) == 0
        assert infer(place, "--edits", place / "edits.csv", *blocks) == 0
        assert run_command(handover, [str(place / "a_labels_edits=edits.h5"), str(place / "held")]) == 2
        assert "name the labels without edits and give --edits" in capfd.readouterr().err
        assert not (place / "held").exists()


def test_labels_of_another_file_of_that_name_are_not_replaced_in_silence(place, capfd):
    (place / "other").mkdir()
    write_edits(place / "other" / "edits.csv", read_edits(place / "edits.csv")[:3])
    for blocks in ((), ("blocks.size=[10,10,20]", "blocks.workers=1")):
        assert infer(place, *blocks) == 0
        for name, told in (("edits.csv", None), ("edits.csv", False), ("other/edits.csv", True)):
            capfd.readouterr()
            assert infer(place, "--edits", place / name, *blocks) == 0
            assert told is None or ("it held other edits" in capfd.readouterr().out) == told


def test_a_cut_of_labels_with_edits_says_that_it_holds_none(place):
    blocks = "blocks.size=[10,10,20]", "blocks.workers=1"
    assert infer(place, *blocks) == 0
    assert infer(place, "--edits", place / "edits.csv", *blocks) == 0
    cut_in_blocks(place / "a_labels_edits=edits.h5", None, place / "a_labels_plain.h5", Blocks(workers=1))
    found, plain = (open_volume(place / name, "labels") for name in ("a_labels_plain.h5", "a_labels.h5"))
    assert np.array_equal(found[...], plain[...])
    assert "edits" not in found.attrs["blocks"]
    assert "edits" not in read_record(place / "a_labels_plain.h5", "labels")


def test_edits_are_refused_where_no_record_would_tell_of_them(place, tmp_path):
    made = decode(open_volume(place / "a_prediction.h5"), AffinityDecode(low=0.1, high=0.95), tmp_path / "a_labels.h5")
    with pytest.raises(InputError, match="has no record of what made it"):
        recut(made, None, tmp_path / "edited.h5", edits=read_edits(place / "edits.csv"))
    assert not (tmp_path / "edited.h5").exists()


def test_doubts_are_not_of_labels_that_hold_edits(place):
    blocks = "blocks.size=[10,10,20]", "blocks.workers=1"
    assert infer(place, *blocks) == 0
    assert infer(place, "--edits", place / "edits.csv", *blocks) == 0
    with pytest.raises(InputError, match="the merges in it are as they are without them"):
        list_doubts(place / "a_labels_edits=edits.h5", 5)


@pytest.mark.parametrize(("flags", "told"), [
    (("--again",), "--again would do nothing"), (("--export", "net.pt"), "--export would do nothing"),
    (("--status",), "--edits would do nothing")])
def test_what_does_nothing_beside_edits_is_refused(place, capsys, flags, told):
    main = runpy.run_path(str(ROOT / "infer.py"))["main"]
    given = ["--cfg", str(place / "run.toml"), "--edits", str(place / "edits.csv"), *flags]
    assert run_command(main, given) == 2
    assert told in capsys.readouterr().err


def test_an_empty_name_of_edits_is_one_that_is_not_there(place, capsys):
    assert infer(place) == 0
    assert infer(place, "--edits", "") == 2
    assert "cannot read the edits" in capsys.readouterr().err


def test_edits_of_programs_are_checked_in_blocks(place):
    assert infer(place, "blocks.size=[10,10,20]", "blocks.workers=1") == 0
    with pytest.raises(InputError, match="z, y, x of a voxel"):
        cut_in_blocks(place / "a_labels.h5", None, place / "wrong.h5", Blocks(workers=1), [Edit("drop", (0, 0, 0, 0))])
    assert not (place / "wrong.h5").exists()


def test_a_damaged_block_of_the_plain_labels_is_named_with_its_way_out(place, capfd):
    blocks = "blocks.size=[10,10,20]", "blocks.workers=1"
    assert infer(place, *blocks) == 0
    work = work_of(place / "a_labels.h5")
    stage = work.stages()[-1]
    path = work.path(stage, stage.count - 1)
    data = path.read_bytes()
    path.unlink()  # Its bytes may have other names.
    path.write_bytes(data[:len(data) // 2])
    capfd.readouterr()
    assert infer(place, "--edits", place / "edits.csv", *blocks) == 2
    assert "infer.py without --cut and --edits makes the labels whole again" in capfd.readouterr().err
    assert infer(place, *blocks) == 0
    assert infer(place, "--edits", place / "edits.csv", *blocks) == 0

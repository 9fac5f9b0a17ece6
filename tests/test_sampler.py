"""Samples: the right voxels, the same for any number of workers and ranks, one copy of the data a node."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from emcore.data import sources as sources_module
from emcore.data.sampler import Sampler, load, read, sample_numbers
from emcore.data.sources import open_sources
from emcore.data.targets import FALSE, IGNORE
from emcore.errors import InputError
from emcore.settings.data import Data, VolumeFiles

SHAPE = (12, 20, 24)


@pytest.fixture
def files(tmp_path):
    """a.h5: raw whose value says the voxel, labels; b.h5: another size, labels smaller and placed by offset."""
    ramp = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["raw"] = (ramp % 251).astype(np.uint8)
        f["labels"] = (ramp // 37).astype(np.uint32)
        f["raw"].attrs["resolution"] = (40, 4, 4)
    with h5py.File(tmp_path / "b.h5", "w") as f:
        raw = f.create_dataset("raw", data=(ramp[:10] % 241).astype(np.uint8), chunks=(4, 8, 8), compression="gzip")
        raw.attrs["resolution"] = (40, 4, 4)
        f["labels"] = (ramp[3:9, 5:15, 6:18] + 1).astype(np.uint64)
        f["labels"].attrs["resolution"] = (40, 4, 4)
        f["labels"].attrs["offset"] = (120, 20, 24)
    return tmp_path


def settings(files, **options):
    volumes = (VolumeFiles("a.h5:raw", "a.h5:labels"), VolumeFiles("b.h5:raw", "b.h5:labels"))
    return dataclasses.replace(Data(folder=str(files), train=volumes, patch=(4, 6, 8)), **options)


def drawn(data, numbers, workers=0, seed=5, **options):
    sampler = Sampler(open_sources(data, "train"), data, seed, **options)
    return list(load(sampler, numbers, workers))


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


@pytest.mark.parametrize("storage", ["memory", "mapped", "lazy"])
def test_a_sample_is_exactly_the_voxels_it_says(files, storage):
    data = settings(files, storage=storage)
    raws = [h5py.File(files / f"{name}.h5")["raw"][...] for name in "ab"]
    whole = h5py.File(files / "a.h5")["labels"][...]
    part = h5py.File(files / "b.h5")["labels"][...]
    volumes = set()
    for batch in drawn(data, [[n] for n in range(30)]):
        z, y, x = batch["corner"][0].tolist()
        volume = int(batch["volume"])
        volumes.add(volume)
        box = slice(z, z + 4), slice(y, y + 6), slice(x, x + 8)
        assert np.array_equal(batch["image"][0, 0].numpy(), raws[volume][box])
        expected = whole[box] if volume == 0 else part[z - 3:z + 1, y - 5:y + 1, x - 6:x + 2]
        assert np.array_equal(batch["label"][0].numpy(), expected.astype(np.int64))
    assert volumes == {0, 1}


def test_samples_are_the_same_for_any_number_of_workers_and_after_a_resume(files):
    data = settings(files, storage="lazy")
    numbers = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(8)]
    first = drawn(data, numbers)
    for workers in (1, 4):
        assert same(first, drawn(data, numbers, workers))
        assert same(first, drawn(settings(files, storage="memory"), numbers, workers))
    assert same(first[5:], drawn(data, numbers[5:], 2))
    assert not same(first, drawn(data, numbers, seed=6))
    assert not same(first, drawn(data, numbers, stream=1))
    corners = {tuple(batch["corner"][i].tolist()) for batch in first for i in range(3)}
    assert len(corners) > 12


def test_two_ranks_draw_together_what_one_rank_draws():
    one = list(sample_numbers(2, 6, 8, 2, 0, 1))
    two = [list(sample_numbers(2, 6, 8, 2, rank, 2)) for rank in range(2)]
    assert one[0] == [16, 17, 18, 19]
    assert [a + b for a, b in zip(*two)] == one
    assert list(sample_numbers(4, 6, 8, 2, 0, 1)) == one[4:]
    with pytest.raises(InputError, match=r"train.batch = 6 cannot be shared by 4 ranks .* the nearest that can is 8"):
        next(sample_numbers(0, 1, 6, 1, 0, 4))


def test_spawned_workers_draw_the_same_samples(files):
    data = settings(files)
    sampler = Sampler(open_sources(data, "train"), data, 1)
    loader = torch.utils.data.DataLoader(sampler, batch_size=2, sampler=range(6), num_workers=2,
                                         multiprocessing_context=multiprocessing.get_context("spawn"))
    plain = torch.utils.data.DataLoader(sampler, batch_size=2, sampler=range(6))
    for a, b in zip(loader, plain, strict=True):
        assert torch.equal(a["image"], b["image"])


def test_a_margin_is_real_context_inside_and_mirrored_outside(files):
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:labels"),))
    raw = h5py.File(files / "a.h5")["raw"][...]
    margin = ((1, 2), (3, 0), (5, 5))
    mirrored = np.pad(raw, ((15, 15), (15, 15), (15, 15)), mode="reflect")
    for batch in drawn(data, [[n] for n in range(40)], margin=margin):
        z, y, x = (batch["corner"][0] + 15).tolist()
        assert np.array_equal(batch["image"][0, 0].numpy(), mirrored[z - 1:z + 6, y - 3:y + 6, x - 5:x + 13])


def test_labels_are_unknown_where_the_image_goes_on_without_them(files):
    data = settings(files, train=(VolumeFiles("b.h5:raw", "b.h5:labels"),))
    raw = h5py.File(files / "b.h5")["raw"][...]
    for batch in drawn(data, [[n] for n in range(10)], margin=((2, 1), (2, 2), (2, 2))):
        z, y, x = batch["corner"][0].tolist()
        assert 3 <= z <= 5
        assert np.array_equal(batch["image"][0, 0].numpy(), raw[z - 2:z + 5, y - 2:y + 8, x - 2:x + 10])
        label = batch["label"][0].numpy()
        place = np.arange(z - 2, z + 5)
        assert ((label == -1).all((1, 2)) == ((place < 3) | (place >= 9))).all()
        assert (label[2:6, 2:8, 2:10] > 0).all()


def test_padding_extends_a_volume_and_a_small_volume_fills_the_patch(files):
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:labels"),), pad=(0, 4, 0))
    rows = [int(batch["corner"][0, 1]) for batch in drawn(data, [[n] for n in range(200)])]
    assert (min(rows), max(rows)) == (-4, 18)
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:labels"),), patch=(30, 6, 8))
    batch = drawn(data, [[0]])[0]
    assert batch["image"].shape == (1, 1, 30, 6, 8)
    assert int(batch["corner"][0, 0]) == -9
    y, x = batch["corner"][0, 1:].tolist()
    raw = h5py.File(files / "a.h5")["raw"][...]
    assert np.array_equal(batch["image"][0, 0, 9:21].numpy(), raw[:, y:y + 6, x:x + 8])
    assert np.array_equal(batch["image"][0, 0, 8].numpy(), raw[1, y:y + 6, x:x + 8])


def test_reading_anywhere_equals_reading_from_the_mirrored_volume(files):
    data = settings(files, train=(VolumeFiles("a.h5:raw", box=(2, 7, 0, 20, 3, 24)),), storage="lazy")
    source = open_sources(data, "train")[0]
    raw = h5py.File(files / "a.h5")["raw"][2:7, :, 3:24]
    far = np.pad(raw, ((30, 30), (30, 30), (30, 30)), mode="reflect")
    random = np.random.default_rng(0)
    for _ in range(200):
        low = random.integers((-24, -20, -20), (25, 40, 40))
        size = random.integers(1, 10, 3)
        box = [(a, a + b) for a, b in zip(low, size)]
        start = low - (2, 0, 3) + 30
        if (start < 0).any() or (start + size > far.shape).any():
            continue
        expected = far[tuple(slice(s, s + n) for s, n in zip(start, size))]
        assert np.array_equal(read(source, "image", box), expected), box


def test_volumes_are_chosen_by_weight_size_or_positions(files):
    for choose, weight, expected in (("uniform", 3.0, 0.75), ("size", 1.0, 5760 / (5760 + 4800)),
                                     ("positions", 1.0, 9 * 15 * 17 / (9 * 15 * 17 + 3 * 5 * 5))):
        data = settings(files, choose=choose, train=(VolumeFiles("a.h5:raw", "a.h5:labels", weight=weight),
                                                     VolumeFiles("b.h5:raw", "b.h5:labels")))
        sampler = Sampler(open_sources(data, "train"), data, 0)
        share = np.mean([sampler.place(n)[0] == 0 for n in range(1500)])
        assert share == pytest.approx(expected, abs=0.04)


def test_patches_with_little_foreground_are_rejected_with_the_given_chance(files):
    with h5py.File(files / "a.h5", "a") as f:
        labels = np.zeros(SHAPE, np.uint8)
        labels[:, :, :8] = 1
        f["half"] = labels
    volume = (VolumeFiles("a.h5:raw", "a.h5:half"),)
    shares, most = {}, 0
    for chance in (0.0, 0.5, 1.0):
        data = settings(files, train=volume, reject_below=24, reject_probability=chance)
        sampler = Sampler(open_sources(data, "train"), data, 0)
        places = [sampler.place(n) for n in range(1000)]
        shares[chance] = np.mean([corner[2] <= 7 for _, corner, _ in places])
        most = max(most, *(draws for *_, draws in places))
    assert shares[0.0] == pytest.approx(8 / 17, abs=0.05)
    assert shares[0.5] == pytest.approx(8 / (8 + 9 * 0.5), abs=0.05)
    assert shares[1.0] == 1
    assert most > 3
    data = settings(files, train=volume, reject_below=10**6, reject_probability=1.0, reject_tries=7)
    assert Sampler(open_sources(data, "train"), data, 0).place(0)[2] == 7


def test_masks_keep_patches_where_they_may_be_used(files):
    with h5py.File(files / "a.h5", "a") as f:
        mask = np.zeros(SHAPE, np.uint8)
        mask[:, :10] = 1
        f["mask"] = mask
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:labels", "a.h5:mask"),))
    for batch in drawn(data, [[n] for n in range(50)]):
        assert int(batch["corner"][0, 1]) + 3 < 10
        assert batch["mask"].dtype == torch.bool


@pytest.mark.parametrize("storage", ["memory", "lazy"])
def test_what_a_net_found_is_marked_where_none_of_it_is_true(files, storage):
    """Object 1 touches a label by one voxel, 2 and 4 touch none, 3 touches what nobody knows."""
    labels, found = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint32)
    labels[2, 5, 5], labels[6, 5, 5] = 7, 9
    found[2, 5, 5:15] = 1
    found[3:5, 10:14, 3:20] = 2
    found[6, 5, 5:9] = 3
    found[11, 19, 23] = 4
    with h5py.File(files / "a.h5", "a") as f:
        f["clefts"], f["found"] = labels, found
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:clefts", found="a.h5:found"),), storage=storage,
                    ignore=(9,), patch=SHAPE)
    label = drawn(data, [[0]])[0]["label"][0].numpy()
    assert np.array_equal(label == FALSE, (found == 2) | (found == 4))
    assert np.array_equal(label == 7, labels == 7)
    assert np.array_equal(label == IGNORE, labels == 9)
    for end, invented in ((4, []), (5, []), (6, [2])):  # beyond the cut through 2 a label might touch it
        part = dataclasses.replace(data, train_part=(0.0, end / 12), patch=(3, 20, 24))
        assert Sampler(open_sources(part, "train"), part, 5).invented[0].tolist() == invented
    alone = dataclasses.replace(data, train=(VolumeFiles("a.h5:raw", found="a.h5:found"),))
    sources = open_sources(alone, "train")
    with pytest.raises(InputError, match="names what a net found, but no labels"):
        Sampler(sources, alone, 5)


def invented_in(data, which="train"):
    return Sampler(open_sources(data, which), data, 5).invented[0].tolist()


@pytest.mark.parametrize("base", [2**53, 2**63, 2**64 - 4])
def test_what_a_net_found_is_told_apart_by_every_bit_of_its_ids(files, base):
    """Two ids that one float holds: the first touches a label, the second does not."""
    labels, found = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint64)
    labels[2, 5, 5], found[2, 5, 5:9], found[8, 5, 5:9] = 7, base, base + 1
    found[10, 5, 5:9] = 1  # so far from the others that no table of all ids between them is made
    with h5py.File(files / "a.h5", "a") as f:
        f["clefts"], f["found"] = labels, found
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:clefts", found="a.h5:found"),), patch=SHAPE)
    assert invented_in(data) == [1, base + 1]
    label = drawn(data, [[0]])[0]["label"][0].numpy()
    assert np.array_equal(label == FALSE, (found == base + 1) | (found == 1))


@pytest.mark.parametrize("storage", ["memory", "lazy"])
@pytest.mark.parametrize("cut", ["box", "train_part", "validation_part"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_a_cut_divides_is_not_taken_for_invented(files, storage, cut, axis):
    """1 touches a label beyond a cut, 2 lies at the other side, which is that of the image, and 3 in the middle."""
    length = SHAPE[axis]
    labels, found = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint32)
    for array, places in ((labels, {9: range(length - 2, length - 1)}),
                          (found, {1: range(length - 5, length - 1), 2: range(2), 3: range(3, 5)})):
        for value, steps in places.items():
            np.moveaxis(array, axis, 0)[steps.start:steps.stop, 5, 5] = value
    with h5py.File(files / "a.h5", "a") as f:
        f["clefts"], f["found"] = labels, found
    box = [edge for size in SHAPE for edge in (0, size)]
    box[2 * axis + 1] = length - 4
    volume = VolumeFiles("a.h5:raw", "a.h5:clefts", found="a.h5:found", box=tuple(box) if cut == "box" else None)
    part = {} if cut == "box" else {cut: (0.0, (length - 4) / length), "split_axis": axis}
    data = settings(files, train=(volume,), validation=(volume,), storage=storage, patch=(2, 6, 6), **part)
    assert invented_in(data, "validation" if cut == "validation_part" else "train") == [2, 3]


def test_ids_that_mean_background_or_unknown_are_configured(files):
    with h5py.File(files / "a.h5", "a") as f:
        labels = np.full(SHAPE, 2**64 - 1, np.uint64)
        labels[:, :10] = 2**64 - 2
        labels[:, 15:] = 2**53 + 1
        f["clefts"] = labels
    volume = (VolumeFiles("a.h5:raw", "a.h5:clefts"),)
    data = settings(files, train=volume, background=(2**64 - 1,), ignore=(2**64 - 2,), patch=(4, 20, 8))
    label = drawn(data, [[0]])[0]["label"][0, 0, :, 0]
    assert label.tolist() == [-1] * 10 + [0] * 5 + [2**53 + 1] * 5
    data = settings(files, train=volume, background=(2**64 - 1,), patch=(4, 20, 8))
    with pytest.raises(InputError, match=r"hold 18446744073709551614, which is no object: name it in data.background"):
        drawn(data, [[0]])


def test_parts_along_an_axis_do_not_overlap(files):
    volume = (VolumeFiles("a.h5:raw", "a.h5:labels"),)
    data = settings(files, train=volume, validation=volume, patch=(2, 6, 8), train_part=(0, 0.5),
                    validation_part=(0.5, 1))
    for which, low, high in (("train", 0, 4), ("validation", 6, 10)):
        sampler = Sampler(open_sources(data, which), data, 0)
        z = [sampler.place(n)[1][0] for n in range(60)]
        assert (min(z), max(z)) == (low, high)


def test_statistics_of_a_volume_travel_with_the_sample(files):
    raw = h5py.File(files / "a.h5")["raw"][...]
    volume = (VolumeFiles("a.h5:raw", "a.h5:labels"),)
    for options, expected in (
            (dict(normalise="range", percentiles=(1, 99)), np.diff([0, *np.percentile(raw, (1, 99))])),
            (dict(normalise="score"), (raw.mean(), raw.std())), (dict(normalise="divide"), (0, 255)),
            (dict(normalise="none"), (0, 1))):
        data = settings(files, train=volume, normalise_by="volume", **options)
        assert drawn(data, [[0]])[0]["statistics"][0].tolist() == pytest.approx(list(expected), rel=1e-5)


def test_everything_wrong_with_the_files_is_said_at_once(files):
    wrong = VolumeFiles("absent.h5"), VolumeFiles("a.h5:nothing"), VolumeFiles("a.h5:raw", "b.h5:raw")
    data = settings(files, train=wrong)
    with pytest.raises(InputError) as caught:
        open_sources(data, "train")
    text = str(caught.value)
    assert "data.train.0: there is no file" in text
    assert "data.train.1:" in text
    assert "data.train.2: label" in text
    assert "offset attribute" in text
    too_deep = settings(files, train=(VolumeFiles("a.h5:raw", box=(0, 13, 0, 20, 0, 24)),))
    with pytest.raises(InputError, match="does not fit the image"):
        open_sources(too_deep, "train")
    with pytest.raises(InputError, match="each end above its start"):
        VolumeFiles("a.h5:raw", box=(3, 3, 0, 20, 0, 24))
    with pytest.raises(InputError, match="leaves nothing of the 12 voxels"):
        open_sources(settings(files, train_part=(0.0, 0.01)), "train")
    with pytest.raises(InputError, match="there are no volumes"):
        Sampler([], data, 0)
    mixed = settings(files, train=(VolumeFiles("a.h5:raw"), VolumeFiles("a.h5:raw", "a.h5:labels")))
    with pytest.raises(InputError, match="with and without labels"):
        drawn(mixed, [list(range(8))])
    with h5py.File(files / "a.h5", "a") as f:
        f["bad"] = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(InputError, match="NaN or infinite"):
        open_sources(settings(files, train=(VolumeFiles("a.h5:bad"),), normalise_by="volume"), "train")


def test_every_missing_file_of_both_lists_is_told_before_any_is_read(files):
    data = settings(files, train=(VolumeFiles("no1.h5", "no2.h5:labels", "no3.h5"), VolumeFiles("a.h5:raw")),
                    validation=(VolumeFiles("a.h5:raw", "no4.h5"),))
    with pytest.raises(InputError) as caught:
        open_sources(data, "train")
    assert all(f"no{number}.h5" in str(caught.value) for number in (1, 2, 3, 4))
    assert "data.validation.0: there is no file" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("storage", ["memory", "lazy"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_not_finite_is_told_in_one_sentence(files, value, storage, workers):
    with h5py.File(files / "a.h5", "a") as f:
        f["bad"] = np.full(SHAPE, value, np.float32)
    data = settings(files, train=(VolumeFiles("a.h5:bad"),), storage=storage)
    with pytest.raises(InputError, match=r"^the image of a holds NaN or infinite values in the patch at \[.*finite$"):
        drawn(data, [[0], [1]], workers)


def test_labels_without_any_object_are_told_where_patches_need_some(files):
    with h5py.File(files / "a.h5", "a") as f:
        f["none"] = np.zeros(SHAPE, np.uint8)
        f["one"] = np.zeros(SHAPE, np.uint8)
        f["one"][11, 19, 23] = 1
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:none"),))
    assert len(drawn(data, [[0]])) == 1
    needy = dataclasses.replace(data, reject_below=1)
    with pytest.raises(InputError, match=r"reject_below = 1 asks for labelled voxels, but the labels of a hold none"):
        Sampler(open_sources(needy, "train"), needy, 0)
    for part in ((0.0, 0.9), (0.9, 1.0)):  # the one labelled voxel is in the last section
        labelled = (VolumeFiles("a.h5:raw", "a.h5:one"),)
        some = dataclasses.replace(needy, train=labelled, train_part=part, patch=(1, 6, 8))
        if part[0] == 0:
            with pytest.raises(InputError, match="hold none in the part that is used"):
                Sampler(open_sources(some, "train"), some, 0)
        else:
            Sampler(open_sources(some, "train"), some, 0)


def test_minus_one_means_unknown_only_where_that_is_configured(files):
    with h5py.File(files / "a.h5", "a") as f:
        f["signed"] = np.full(SHAPE, -1, np.int32)
    volume = (VolumeFiles("a.h5:raw", "a.h5:signed"),)
    with pytest.raises(InputError, match="hold -1, which is no object: name it in"):
        drawn(settings(files, train=volume), [[0]])
    assert (drawn(settings(files, train=volume, ignore=(-1,)), [[0]])[0]["label"] == -1).all()
    assert (drawn(settings(files, train=volume, background=(-1,)), [[0]])[0]["label"] == 0).all()


def test_a_patch_larger_than_its_volume_on_every_axis_is_mirrored_around_it(files):
    data = settings(files, train=(VolumeFiles("a.h5:raw", "a.h5:labels"),), patch=(31, 50, 70))
    batch = drawn(data, [[0]])[0]
    assert batch["image"].shape == (1, 1, 31, 50, 70)
    assert (batch["label"] >= 0).all()
    flat = settings(files, train=(VolumeFiles("a.h5:raw", box=(3, 4, 0, 20, 0, 24)),), patch=(5, 8, 8))
    image = drawn(flat, [[0]])[0]["image"]
    assert torch.equal(image, image[:, :, :1].expand_as(image))


def copies(folder):
    return sorted(path.name for path in Path(folder).glob("*.npy"))


def test_all_processes_share_one_copy_and_the_last_removes_it(files, tmp_path):
    """Two runs at once write one file; one is killed, the other ends: nothing is left."""
    folder = tmp_path / "shared"
    folder.mkdir()
    code = (f"import pathlib, sys, time; sys.path.insert(0, {str(Path.cwd())!r})\n"
            "from emcore.volumes import open_volume; from emcore.data.sources import shared_copy\n"
            f"volume = open_volume({str(files / 'a.h5')!r} + ':raw')\n"
            f"array = shared_copy(volume, (slice(2, 9), slice(0, 20), slice(0, 24)), pathlib.Path({str(folder)!r}), "
            "(volume.name, 'image'))\n"
            "print(int(array.sum()), flush=True); sys.stdin.read()")
    runs = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    sums = {run.stdout.readline() for run in runs}
    assert sums == {f"{int(h5py.File(files / 'a.h5')['raw'][2:9].sum())}\n"}
    assert len(copies(folder)) == 1
    os.kill(runs[0].pid, signal.SIGKILL)
    runs[0].wait()
    assert len(copies(folder)) == 1
    runs[1].communicate("", timeout=30)
    for _ in range(50):
        if not copies(folder):
            break
        time.sleep(0.1)
    assert copies(folder) == []
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_a_volume_too_large_for_memory_is_told_before_it_is_copied(files, monkeypatch):
    monkeypatch.setattr(sources_module.shutil, "disk_usage", lambda folder: shutil_usage(free=100))
    with pytest.raises(InputError, match=r"free: set data.storage = \"lazy\""):
        open_sources(settings(files, train=(VolumeFiles("a.h5:labels"),)), "train")


def shutil_usage(free):
    import collections
    return collections.namedtuple("usage", "total used free")(10**9, 0, free)

"""Synthetic tissue: every promise about the truth, the defects and the files, on volumes of a few microns."""

import time
from functools import cache

import h5py
import numpy as np
import pytest

import emcore.synth
from emcore.__main__ import TOOLS
from emcore.errors import InputError, run_command
from emcore.metrics.score_points import read_partners
from emcore.synth import Defects, synthesize, write_layout
from emcore.synth.surface import SEALED
from emcore.volumes import open_volume
from tests.oracles.synth import connected_objects, distance_nm

SHAPES = {"thin": ((16, 96, 96), (40.0, 4.0, 4.0)), "cube": ((64, 64, 64), (10.0, 10.0, 10.0)),
          "snemi": ((24, 112, 104), (30.0, 6.0, 6.0))}
ARRAYS = ("raw", "neuron_ids", "clefts", "polarity", "mitochondria", "membranes")


@cache
def tissue(name: str, seed: int = 0):
    return synthesize(*SHAPES[name], seed)


@cache
def large():
    return synthesize((40, 256, 256), (30.0, 6.0, 6.0), 3)


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_threads():
    first = tissue("snemi")
    for threads in (1, 3):
        again = synthesize(*SHAPES["snemi"], 0, threads=threads)
        for name in ARRAYS:
            assert getattr(again, name).tobytes() == getattr(first, name).tobytes(), name
        assert again.synapses == first.synapses
    assert (tissue("snemi", 1).neuron_ids != first.neuron_ids).any()


@pytest.mark.parametrize("name", SHAPES)
def test_ids_fill_every_voxel_densely_and_every_id_is_one_object_connected_by_faces(name):
    ids = tissue(name).neuron_ids
    assert ids.dtype == np.uint32
    assert ids.shape == SHAPES[name][0]
    present = np.unique(ids)
    assert np.array_equal(present, np.arange(1, len(present) + 1))
    assert connected_objects(ids) == len(present)


@pytest.mark.parametrize("name", SHAPES)
def test_membranes_are_closed(name):
    """No path of face neighbours leads from one neuron to another without a voxel of membrane."""
    ids, wall = tissue(name).neuron_ids, tissue(name).membranes >= SEALED
    for axis in range(3):
        ahead, behind = (np.take(ids, range(*span), axis) for span in ((1, ids.shape[axis]), (0, ids.shape[axis] - 1)))
        either = np.take(wall, range(1, ids.shape[axis]), axis) | np.take(wall, range(ids.shape[axis] - 1), axis)
        assert either[ahead != behind].all()
    # the same said with components: what is not membrane falls apart into objects of one id each
    objects = np.where(wall, 0, 1)
    assert connected_objects(objects, background=0) == connected_objects(np.where(wall, 0, ids), background=0)


def test_membranes_are_darker_than_cytoplasm_and_thin():
    t = large()
    membrane, cytoplasm = t.membranes > 200, t.membranes == 0
    assert t.raw[membrane].mean() + 60 < t.raw[cytoplasm].mean()
    assert 0.1 < (t.membranes > 128).mean() < 0.4


@pytest.mark.parametrize("name", SHAPES)
def test_grey_values_spread_like_those_of_real_sections(name):
    """Public volumes (ISBI 2012, FIB-25, Drosophila VNC) have means of 124 to 130 and deviations of 33 to 55."""
    raw = tissue(name).raw
    assert 110 < raw.mean() < 150
    assert 22 < raw.std() < 55
    assert (raw == 0).mean() + (raw == 255).mean() < 0.01


def test_a_membrane_is_as_wide_in_nm_at_any_resolution():
    """Its share of the tissue at 4 nm and 8 nm differs by less than a tenth."""
    shares = [(synthesize((20, n, n), (20.0, nm, nm), 5).membranes / 255).mean() for n, nm in ((160, 4.0), (80, 8.0))]
    assert abs(shares[0] - shares[1]) < 0.1 * shares[0]


def test_the_same_tissue_is_photographed_at_any_resolution():
    fine = synthesize((40, 80, 80), (10.0, 10.0, 10.0), 5).neuron_ids[1::3]
    coarse = synthesize((13, 80, 80), (30.0, 10.0, 10.0), 5, neurites=8).neuron_ids
    again = synthesize((40, 80, 80), (10.0, 10.0, 10.0), 5, neurites=8).neuron_ids[1::3]
    assert fine.shape[1:] == coarse.shape[1:]
    table = np.zeros((again.max() + 1, coarse.max() + 1), int)
    np.add.at(table, (again[:13].ravel(), coarse.ravel()), 1)
    assert table.max(1).sum() > 0.9 * table.sum()


def test_objects_are_of_all_sizes_and_some_are_thin():
    t = large()
    sizes = np.bincount(t.neuron_ids.ravel())[1:] * np.prod(t.resolution) / 1e9
    assert len(sizes) > 25
    assert np.quantile(sizes, 0.9) > 8 * np.quantile(sizes, 0.1)
    section = t.neuron_ids[20]
    areas = np.bincount(section.ravel())[1:]
    assert (areas[areas > 0] * 36 < np.pi * 60**2).any()  # a profile thinner than 120 nm


def test_clefts_lie_between_two_neurons_with_the_presynaptic_side_on_one_and_the_postsynaptic_side_on_the_other():
    t = large()
    assert len(t.synapses) >= 3
    for synapse in t.synapses:
        n = synapse.number
        assert synapse.pre != synapse.post
        assert set(np.unique(t.neuron_ids[t.polarity == 2 * n - 1])) == {synapse.pre}
        assert set(np.unique(t.neuron_ids[t.polarity == 2 * n])) == {synapse.post}
        cleft = t.clefts == n
        assert set(np.unique(t.neuron_ids[cleft])) == {synapse.pre, synapse.post}
        assert (t.polarity[cleft] + 1 >> 1 == n).all()
        for side, owner in ((synapse.pre_site, synapse.pre), (synapse.post_site, synapse.post)):
            at = tuple(np.round(np.array(side) / t.resolution).astype(int))
            assert t.neuron_ids[at] == owner
    assert set(np.unique(t.clefts)) == {0} | {synapse.number for synapse in t.synapses}
    assert ((t.polarity > 0) >= (t.clefts > 0)).all()


def test_a_cleft_is_thin_and_its_sides_reach_as_far_as_stated():
    t = large()
    synapse = t.synapses[0]
    cleft = t.clefts == synapse.number
    pre = t.polarity == 2 * synapse.number - 1
    away = distance_nm(np.argwhere(pre)[::7], np.argwhere(cleft), t.resolution)
    assert away.max() <= 55 + t.resolution[0]
    across = distance_nm(np.argwhere(cleft & pre), np.argwhere(cleft & ~pre), t.resolution)
    assert across.max() <= 30 + t.resolution[0]


def test_mitochondria_lie_within_one_neuron_each():
    t = large()
    assert t.mitochondria.max() > 0
    for number in np.unique(t.mitochondria)[1:]:
        assert len(np.unique(t.neuron_ids[t.mitochondria == number])) == 1


def test_defects_come_on_request_only():
    assert tissue("snemi").missing == ()
    assert not tissue("snemi").shifts.any()
    assert (tissue("snemi").raw.reshape(24, -1).max(1) > 0).all()
    t = synthesize(*SHAPES["snemi"], 0, defects=Defects(missing_sections=3))
    assert len(t.missing) == 3
    assert not t.raw[list(t.missing)].any()
    assert np.array_equal(t.neuron_ids, tissue("snemi").neuron_ids)
    kept = [z for z in range(24) if z not in t.missing]
    assert np.array_equal(t.raw[kept], tissue("snemi").raw[kept])


def test_misaligned_sections_move_raw_and_labels_together():
    t = synthesize(*SHAPES["snemi"], 2, defects=Defects(misaligned_sections=3, largest_shift=10))
    assert t.raw.shape == SHAPES["snemi"][0]
    assert t.shifts.any()
    assert abs(t.shifts).max() <= 10
    present = np.unique(t.neuron_ids)
    assert np.array_equal(present, np.arange(1, len(present) + 1))
    assert t.raw[t.membranes > 200].mean() + 50 < t.raw[t.membranes == 0].mean()
    for synapse in t.synapses:
        at = tuple(np.round(np.array(synapse.pre_site) / t.resolution).astype(int))
        assert t.polarity[at] == 2 * synapse.number - 1
        assert t.neuron_ids[at] == synapse.pre


def test_the_parts_can_be_chosen():
    t = synthesize((10, 48, 48), neurites=0, somata=0, synapses=0, defects=Defects(noise=0.0))
    assert t.neuron_ids.max() == 1
    assert not t.membranes.any()
    assert t.synapses == []
    assert not t.clefts.any()
    body = synthesize((30, 120, 120), neurites=4, somata=1, seed=1)
    assert np.bincount(body.neuron_ids.ravel()).max() > 0.2 * body.raw.size


def test_thick_neurites_come_from_asking_for_few():
    few, many = (synthesize((20, 128, 128), neurites=n, somata=0).neuron_ids.max() for n in (6, 40))
    assert few < many


def test_the_cremi_layout_reads_back_with_labels_placed_by_offset(tmp_path):
    t = large()
    path, = write_layout(tmp_path, "cremi", t)
    padded, = write_layout(tmp_path, "cremi", t, 1, (4, 20, 30))
    assert path.name == "sample_A_20160501.hdf"
    with h5py.File(path, locking=False) as file, h5py.File(padded) as inner:
        assert np.array_equal(file["volumes/raw"][:], t.raw)
        neurons, clefts = file["volumes/labels/neuron_ids"], file["volumes/labels/clefts"]
        assert neurons.dtype == clefts.dtype == np.uint64
        assert np.array_equal(open_volume(f"{path}:volumes/labels/neuron_ids")[:], t.neuron_ids)
        assert np.array_equal(clefts[:] == 0xFFFFFFFFFFFFFFFF, t.clefts == 0)
        assert tuple(neurons.attrs["resolution"]) == t.resolution
        assert "offset" not in neurons.attrs
        kinds = dict(zip(file["annotations/ids"][:].tolist(), file["annotations/types"][:].tolist()))
        places = dict(zip(file["annotations/ids"][:].tolist(), file["annotations/locations"][:]))
        for (pre, post), synapse in zip(file["annotations/presynaptic_site/partners"][:].tolist(), t.synapses):
            assert (kinds[pre], kinds[post]) == (b"presynaptic_site", b"postsynaptic_site")
            assert neurons[tuple(np.round(places[pre] / t.resolution).astype(int))] == synapse.pre
            assert neurons[tuple(np.round(places[post] / t.resolution).astype(int))] == synapse.post
        assert inner["volumes/raw"].shape == t.raw.shape
        assert inner["volumes/labels/clefts"].shape == (32, 216, 196)
        assert tuple(inner["volumes/labels/clefts"].attrs["offset"]) == (120, 120, 180)
        assert np.array_equal(inner["volumes/labels/neuron_ids"][:], t.neuron_ids[4:-4, 20:-20, 30:-30])
        assert tuple(inner["annotations"].attrs["offset"]) == (120, 120, 180)
        for place in inner["annotations/locations"][:]:
            at = tuple(np.round(place / t.resolution).astype(int) + np.array((4, 20, 30)))
            assert t.polarity[at] > 0


def test_the_other_hdf5_layouts_read_back(tmp_path):
    t = tissue("snemi")
    raw, truth = write_layout(tmp_path, "cremi-clefts", t, 2)
    assert (raw.name, truth.name) == ("im_C.h5", "syn_C.h5")
    with h5py.File(raw) as image, h5py.File(truth) as labels:
        assert np.array_equal(image["main"][:], t.raw)
        assert np.array_equal(labels["main"][:], t.clefts)
        assert tuple(labels["main"].attrs["resolution"]) == t.resolution
    raw, truth = write_layout(tmp_path, "polarity", t, 1)
    assert raw.relative_to(tmp_path).as_posix() == "vol4/im_orig_noPad.h5"
    with h5py.File(truth) as labels:
        assert np.array_equal(labels["main"][:], t.polarity)
    path, = write_layout(tmp_path, "plain", t)
    with h5py.File(path) as file:
        assert set(file) == {"raw", "labels", "clefts", "polarity", "mitochondria", "annotations"}
        assert np.array_equal(file["labels"][:], t.neuron_ids)
        assert file["labels"].dtype == np.uint32
    sites = [(synapse.pre_site, synapse.post_site) for synapse in t.synapses]
    assert len(sites) > 0
    assert read_partners(path).tolist() == np.array(sites).tolist()
    assert not list(tmp_path.rglob("*.partial"))


def test_the_snemi_layout_reads_back(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="TIFF needs the extra tifffile")
    for sample in range(2):
        write_layout(tmp_path, "snemi", tissue("snemi", sample), sample)
    assert np.array_equal(tifffile.imread(tmp_path / "train-input.tif"), tissue("snemi").raw)
    assert open_volume(tmp_path / "train-input.tif").resolution == tissue("snemi").resolution
    assert np.array_equal(tifffile.imread(tmp_path / "train-labels.tif"), tissue("snemi").neuron_ids)
    assert np.array_equal(tifffile.imread(tmp_path / "test-input.tif"), tissue("snemi", 1).raw)
    with h5py.File(tmp_path / "test-labels.h5") as file:
        assert np.array_equal(file["main"][:], tissue("snemi", 1).neuron_ids)


def test_the_command_writes_what_it_says(tmp_path, capsys):
    assert TOOLS["synth"][0] == "emcore.synth"
    arguments = [str(tmp_path), "--shape", "16,64,64", "--samples", "2", "--missing-sections", "1"]
    assert run_command(emcore.synth.main, arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"A.h5", "B.h5"}
    assert "A.h5" in capsys.readouterr().out
    with h5py.File(tmp_path / "A.h5") as first, h5py.File(tmp_path / "B.h5") as second:
        assert first["raw"].shape == (16, 64, 64)
        assert (first["raw"][:] != second["raw"][:]).any()


@pytest.mark.parametrize("arguments, sentence", [
    (["--layout", "nonsense"], "there is no layout 'nonsense'; there are cremi,"),
    (["--shape", "16,64,64", "--partners", "0"], "partners must be 1 or more neurons behind a synapse; got 0"),
    (["--shape", "12,64"], "expected three numbers z,y,x such as 128,512,512; got '12,64'"),
    (["--shape", "4,16,16"], "neurites need at least 200 nm along each axis"),
    (["--resolution", "0,6,6"], "resolution must be three numbers of nm"),
    (["--shape", "16,64,64", "--missing-sections", "15"], "missing_sections must be 0 to 14 for 16 sections"),
    (["--shape", "100000,100000,100000"], "more than the 2**31 voxels"),
    (["--shape", "16,64,64", "--padding", "1,1,1"], "padding is part of the layout cremi, not of plain"),
    (["--neurites", "-1"], "neurites must be 0 or more; got -1"),
])
def test_bad_input_is_said_in_one_sentence(tmp_path, capsys, arguments, sentence):
    assert run_command(emcore.synth.main, [str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_an_unwritable_folder_is_said_before_anything_is_left_there(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write"):
        write_layout(tmp_path / "file", "plain", tissue("cube"))


@pytest.mark.long
def test_a_volume_of_128_by_512_by_512_takes_less_than_a_minute():
    started = time.perf_counter()
    t = synthesize((128, 512, 512), threads=2)
    assert time.perf_counter() - started < 60
    assert t.neuron_ids.max() > 250
    assert len(t.synapses) > 30

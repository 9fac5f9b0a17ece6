"""Neuroglancer's precomputed folders: the bytes on disk, the scales, and folders that lie."""

import gzip
import io
import itertools
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.progress import Progress
from emcore.volumes.precomputed import (
    DTYPES,
    create_precomputed,
    list_file,
    mean_of_four,
    mode_of_four,
    open_file,
)
from emcore.volumes.writing import Writer

GRID = {"resolution": [40.0, 8.0, 4.0], "offset": [80.0, 24.0, 20.0]}


def write(path, array, attributes=GRID, **options):
    with create_precomputed(path, array.shape, array.dtype, attributes, **options) as (target, chunks):
        Writer(path, array.shape, array.dtype, chunks, target)[...] = array
    return path


def sample(shape, dtype, seed=0):
    random = np.random.default_rng(seed)
    if dtype == "float32":
        return random.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def edit(path, change):
    info = json.loads((path / "info").read_text())
    change(info)
    (path / "info").write_text(json.dumps(info))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 14), (3, 4, 5, 6), (1, 2, 3, 4)])
def test_every_type_and_shape_comes_back_bit_equal(tmp_path, dtype, shape):
    array = sample(shape, dtype)
    volume = open_file(write(tmp_path / "a.precomputed", array, chunks=(9,) * (len(shape) - 3) + (2, 4, 5)))
    assert (volume.shape, volume.dtype) == (shape, np.dtype(dtype))
    assert (volume.resolution, volume.offset) == ((40, 8, 4), (80, 24, 20))
    np.testing.assert_array_equal(volume[...], array)


def test_a_chunk_file_holds_x_fastest_and_is_named_by_absolute_voxels(tmp_path):
    array = sample((2, 5, 6, 7), "uint16")
    path = write(tmp_path / "a.precomputed", array, chunks=(2, 4, 4, 4))
    info = json.loads((path / "info").read_text())
    assert info["type"] == "image"
    assert info["data_type"] == "uint16"
    assert info["num_channels"] == 2
    scale = info["scales"][0]
    assert (scale["size"], scale["resolution"], scale["voxel_offset"]) == ([7, 6, 5], [4, 8, 40], [5, 3, 2])
    assert (scale["chunk_sizes"], scale["encoding"], scale["key"]) == ([[4, 4, 4]], "raw", "4_8_40")
    names = sorted(file.name for file in (path / "4_8_40").iterdir())
    assert names == sorted(f"{x}_{y}_{z}" for x in ("5-9", "9-12") for y in ("3-7", "7-9") for z in ("2-6", "6-7"))
    raw = np.fromfile(path / "4_8_40" / "9-12_3-7_2-6", "<u2").reshape((3, 4, 4, 2), order="F")  # x, y, z, c
    np.testing.assert_array_equal(raw, array[:, 0:4, 0:4, 4:7].transpose())


def test_an_installed_reader_agrees(tmp_path):
    stores = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    array = sample((5, 40, 50), "uint8")
    path = write(tmp_path / "a.precomputed", array, chunks=(4, 16, 16))
    store = stores.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/"}).result()
    np.testing.assert_array_equal(np.asarray(store.read().result())[..., 0].transpose(), array)


def test_any_slice_is_the_slice_of_the_array(tmp_path):
    random = np.random.default_rng(3)
    array = sample((3, 7, 11, 13), "int32")
    volume = open_file(write(tmp_path / "a.precomputed", array, chunks=(3, 2, 4, 5)))
    assert volume.chunks == (3, 2, 4, 5)
    for _ in range(200):
        index = []
        for length in array.shape:
            a, b = sorted(random.integers(0, length + 1, 2).tolist())
            step, place = int(random.integers(1, 9)), int(random.integers(length))
            index.append(slice(a, b, step) if random.random() < 0.8 else place)
        block = volume[tuple(index)]
        np.testing.assert_array_equal(block, array[tuple(index)])
        assert block.flags.writeable


def test_blocks_may_come_in_any_order_and_cut_through_chunks(tmp_path):
    random = np.random.default_rng(4)
    array = sample((6, 9, 10), "uint8")
    expected = np.zeros_like(array)
    with create_precomputed(tmp_path / "a.precomputed", array.shape, array.dtype, {}, (4, 4, 4)) as (target, chunks):
        writer = Writer(tmp_path / "a.precomputed", array.shape, array.dtype, chunks, target)
        for number in range(16):
            box = tuple(slice(*sorted(random.integers(0, n + 1, 2).tolist())) for n in array.shape)
            box = (box[0], slice(None), slice(None)) if number % 4 == 0 else box  # sections are written without reading
            writer[box] = array[box]
            expected[box] = array[box]
    np.testing.assert_array_equal(open_file(tmp_path / "a.precomputed")[...], expected)


def test_voxels_never_written_are_zero(tmp_path):
    with create_precomputed(tmp_path / "a.precomputed", (3, 70, 5), np.dtype("uint32"), {}):
        pass
    assert not open_file(tmp_path / "a.precomputed")[...].any()


def shrunk(array, start, reduce):
    """The coarser scale by looking every voxel up in a table: slow and obvious."""
    windows = {}
    for z, y, x in np.ndindex(array.shape):
        windows.setdefault((z, (y + start[1]) // 2, (x + start[2]) // 2), []).append(array[z, y, x])
    low = np.min(list(windows), 0)
    result = np.zeros(np.max(list(windows), 0) - low + 1, array.dtype)
    for place, values in windows.items():
        result[tuple(place - low)] = reduce(values)
    return result


def most_frequent(values):
    return Counter(values).most_common(1)[0][0]  # of equals the one met first


def rounded_mean(values):
    return (2 * sum(map(int, values)) + len(values)) // (2 * len(values))


@pytest.mark.parametrize("layer,dtype,reduce", [("segmentation", "uint64", most_frequent),
                                                ("image", "uint8", rounded_mean),
                                                ("image", "int16", rounded_mean)])
@pytest.mark.parametrize("start", [(0, 0, 0), (1, 1, 0), (-3, -1, 5)])
def test_coarser_scales_are_the_mode_or_the_mean_on_a_grid_fixed_to_the_origin(tmp_path, layer, dtype, reduce, start):
    random = np.random.default_rng(5)
    array = random.integers(0, 4, (2, 13, 18)).astype(dtype)
    grid = {"resolution": [40, 8, 8], "offset": [start[0] * 40, start[1] * 8, start[2] * 8]}
    path = write(tmp_path / "a.precomputed", array, grid, chunks=(1, 4, 4), layer=layer)
    listing = list_file(path)
    assert [item.name for item in listing][:2] == ["8_8_40", "16_16_40"]
    assert max(listing[-1].shape[1:]) <= 4 < max(listing[-2].shape[1:])
    for number, item in enumerate(listing):
        volume = open_file(path, item.name)
        assert volume.shape == item.shape
        assert volume.resolution == (40, 8 * 2**number, 8 * 2**number)
        assert volume.offset == tuple(a * b for a, b in zip(start, volume.resolution))
        np.testing.assert_array_equal(volume[...], array)
        array = shrunk(array, start, reduce)
        start = (start[0], start[1] // 2, start[2] // 2)


def test_the_mode_of_four_is_right_for_every_pattern_of_four_labels():
    for values in itertools.product(range(4), repeat=4):
        block = np.array(values, np.uint64).reshape(1, 2, 2)
        assert mode_of_four(block)[0, 0, 0] == most_frequent(values)


def test_the_mean_of_four_does_not_overflow():
    for dtype in ("uint8", "int8", "uint16", "uint32", "int32"):
        for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
            assert mean_of_four(np.full((1, 2, 2), value, dtype))[0, 0, 0] == value
    assert mean_of_four(np.array([[[0, 1], [2, 3]]], np.float32))[0, 0, 0] == np.float32(1.5)


def test_attributes_and_an_offset_between_voxels_survive(tmp_path):
    attributes = {"offsets": [[-1, 0, 0], [0, -1, 0]], "name": "affinities", "resolution": [30, 4.6, 4.6],
                  "offset": [7, 1.5, 0]}
    volume = open_file(write(tmp_path / "a.precomputed", sample((2, 3, 4, 5), "float32"), attributes))
    assert volume.attrs == {"offsets": [[-1, 0, 0], [0, -1, 0]], "name": "affinities"}
    assert (volume.resolution, volume.offset) == ((30, 4.6, 4.6), (7, 1.5, 0))


def test_a_resolution_that_nobody_knew_stays_unknown(tmp_path):
    path = write(tmp_path / "a.precomputed", sample((2, 3, 4), "uint8"), {})
    assert json.loads((path / "info").read_text())["scales"][0]["resolution"] == [1, 1, 1]
    assert open_file(path).resolution is None
    edit(path, lambda info: info["scales"][0].update(resolution=[4, 4, 40]))
    assert open_file(path).resolution == (40, 4, 4)


def test_labels_are_a_segmentation_and_float_labels_are_refused(tmp_path):
    layers = {"uint8": "image", "uint32": "segmentation", "uint64": "segmentation", "float32": "image"}
    for dtype, layer in layers.items():
        path = write(tmp_path / f"{dtype}.precomputed", sample((2, 3, 4), dtype))
        assert json.loads((path / "info").read_text())["type"] == layer
    with pytest.raises(InputError, match=r"cannot be a segmentation of float32"):
        write(tmp_path / "a.precomputed", sample((2, 3, 4), "float32"), layer="segmentation")
    with pytest.raises(InputError, match=r"cannot hold float64; .* uint8"):
        write(tmp_path / "a.precomputed", np.zeros((2, 3, 4)))
    assert not (tmp_path / "a.precomputed").exists()


def test_nothing_appears_under_the_final_name_when_writing_fails(tmp_path):
    def work():
        with create_precomputed(tmp_path / "a.precomputed", (4, 8, 8), np.dtype("uint8"), {}) as (target, _):
            target[slice(0, 4), slice(0, 8), slice(0, 8)] = np.ones((4, 8, 8), np.uint8)
            assert [file.suffix for file in tmp_path.iterdir()] == [".partial"]
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_precomputed_volume_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="without info"):
        write(tmp_path, sample((2, 3, 4), "uint8"))
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_an_older_volume_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.precomputed"
    write(path, sample((9, 9, 9), "uint8"), chunks=(2, 2, 2))
    write(path, sample((2, 3, 4), "uint8"), {})
    assert sorted(file.name for file in path.iterdir()) == ["1_1_1", "info"]
    assert list(tmp_path.iterdir()) == [path]


def test_gzipped_chunks_are_read_and_a_bomb_is_not_unpacked(tmp_path):
    array = sample((4, 5, 6), "uint8")
    path = write(tmp_path / "a.precomputed", array)
    chunk = next(file for file in path.rglob("*") if "-" in file.name)
    packed = chunk.with_name(chunk.name + ".gz")
    packed.write_bytes(gzip.compress(chunk.read_bytes()))
    chunk.unlink()
    np.testing.assert_array_equal(open_file(path)[...], array)
    packed.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(InputError, match="holds more than the 120 bytes"):
        open_file(path)[...]
    packed.write_bytes(gzip.compress(bytes(120))[:-12])
    with pytest.raises(InputError, match="cannot be unpacked"):
        open_file(path)[...]


@pytest.mark.parametrize("size,text", [(119, "fewer"), (121, "more"), (0, "fewer")])
def test_a_chunk_of_the_wrong_size_is_named(tmp_path, size, text):
    path = write(tmp_path / "a.precomputed", sample((4, 5, 6), "uint8"), {})
    (path / "1_1_1" / "0-6_0-5_0-4").write_bytes(bytes(size))
    with pytest.raises(InputError, match=rf"0-6_0-5_0-4 holds {text} than the 120 bytes"):
        open_file(path)[...]


def test_a_missing_chunk_is_no_silent_zero(tmp_path):
    path = write(tmp_path / "a.precomputed", sample((4, 5, 6), "uint8"), {})
    (path / "1_1_1" / "0-6_0-5_0-4").unlink()
    with pytest.raises(InputError, match=r"0-6_0-5_0-4 is missing"):
        open_file(path)[0]


LIES = [
    (lambda info: info.update(data_type="object"), "data_type out of uint8"),
    (lambda info: info.update(num_channels=0), "num_channels"),
    (lambda info: info.update(num_channels=True), "num_channels"),
    (lambda info: info.update(num_channels=10**9), "num_channels"),
    (lambda info: info.update(scales=[]), "list of scales"),
    (lambda info: info.update(scales=[3]), "list of scales"),
    (lambda info: info["scales"][0].update(size=[10, 10]), "three whole numbers x, y, z as size"),
    (lambda info: info["scales"][0].update(size=[10, 10, -1]), "as size"),
    (lambda info: info["scales"][0].update(size=[10, 10, 0]), "as size"),
    (lambda info: info["scales"][0].update(size=[10, 10, 2.5]), "as size"),
    (lambda info: info["scales"][0].update(size=[10**30, 10, 2]), "as size"),
    (lambda info: info["scales"][0].update(voxel_offset="abc"), "as voxel_offset"),
    (lambda info: info["scales"][0].update(chunk_sizes=[[0, 1, 1]]), "as chunk_sizes"),
    (lambda info: info["scales"][0].update(chunk_sizes=[]), "chunk_sizes"),
    (lambda info: info["scales"][0].update(size=[10**6] * 3, chunk_sizes=[[10**6] * 3]), "chunks of at most 1024 MB"),
    (lambda info: info["scales"][0].update(resolution=[0, 1, 1]), "resolution"),
    (lambda info: info["scales"][0].update(key="../../etc"), "folder inside its own"),
    (lambda info: info["scales"][0].update(key="/etc"), "folder inside its own"),
    (lambda info: info["scales"][0].update(key=7), "folder inside its own"),
    (lambda info: info["scales"][0].update(encoding=7), "encoded as raw"),
    (lambda info: info["scales"][0].update(encoding="compresso"), "encoded as .*compresso"),
    (lambda info: info["scales"][0].update(sharding={}), "extra remote|sharding"),
]


@pytest.mark.parametrize("change,text", LIES)
def test_an_info_that_lies_is_refused_with_what_it_says(tmp_path, change, text):
    path = write(tmp_path / "a.precomputed", sample((2, 3, 4), "uint8"), {})
    edit(path, change)
    with pytest.raises(InputError, match=text):
        open_file(path)


BROKEN = ["", "[1]", "{", "[" * 100_000, "9" * 5000, '{"a": ' + " " * (5 << 20) + "1}", "\0\xff"]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_an_info_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "info").write_text(text)
    with pytest.raises(InputError, match="info"):
        open_file(tmp_path)


def test_a_huge_size_costs_no_memory_until_its_chunks_exist(tmp_path):
    path = write(tmp_path / "a.precomputed", sample((2, 3, 4), "uint8"), {})
    edit(path, lambda info: info["scales"][0].update(size=[10**9] * 3))
    volume = open_file(path)
    assert volume.shape == (10**9,) * 3
    with pytest.raises(InputError, match="missing"):
        volume[5:6, 5:6, 5:6]


def test_an_unknown_scale_lists_the_scales(tmp_path):
    path = write(tmp_path / "a.precomputed", sample((2, 3, 4), "uint8"), {})
    with pytest.raises(InputError, match="no scale '5'; it has: 1_1_1"):
        open_file(path, "5")


def test_a_volume_can_be_sent_to_another_process(tmp_path):
    array = sample((2, 3, 4), "uint8")
    volume = pickle.loads(pickle.dumps(open_file(write(tmp_path / "a.precomputed", array))))
    np.testing.assert_array_equal(volume[1], array[1])


def test_the_progress_counts_every_voxel_of_the_coarser_scales(tmp_path):
    with Progress(2400, "write", "voxels", io.StringIO()) as progress:
        path = write(tmp_path / "a.precomputed", sample((2, 30, 40), "uint8"), {}, chunks=(2, 8, 8), progress=progress)
    voxels = [int(np.prod(item.shape)) for item in list_file(path)]
    assert progress.total == sum(voxels)
    assert progress.done == sum(voxels[1:])
    assert not list(Path(tmp_path).glob(".*"))

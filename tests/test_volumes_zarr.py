"""zarr volumes: versions 2 and 3, OME-Zarr, groups, and folders that are broken."""

import json
import subprocess
import sys

import numpy as np
import pytest

from emcore.errors import InputError, installation
from emcore.volumes import create_volume, list_datasets, open_volume
from tests.test_volumes import FULL, random_volume

zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr:volumes/labels"])
@pytest.mark.parametrize("dtype", ["uint8", "bool", "uint16", "uint64", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 11), (3, 2, 5, 4)])
def test_what_is_written_block_by_block_is_read_back(tmp_path, name, dtype, shape):
    data = random_volume(shape, dtype)
    attributes = {"offsets": [[-1, 0, 0]], "nested": {"a": [1, None]}}
    with create_volume(
        f"{tmp_path}/{name}", shape, dtype, (40, 4, 4.6), (80, -4, 0), attributes, chunks=(2,) * len(shape)
    ) as writer:
        for z in reversed(range(shape[0])):
            writer[z, ..., :3] = data[z, ..., :3]
            writer[z, ..., 3:] = data[z, ..., 3:]
    volume = open_volume(f"{tmp_path}/{name}")
    assert volume[...].dtype == volume.dtype == np.dtype(dtype)
    assert (volume[...] == data).all()
    assert (volume[-1, ..., 1:, ::2] == data[-1, ..., 1:, ::2]).all()
    assert (volume.resolution, volume.offset, volume.attrs) == ((40, 4, 4.6), (80, -4, 0), attributes)
    assert volume.chunks == tuple(min(2, length) for length in shape)
    assert [item.name for item in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_other_arrays_of_a_group_stay_when_one_is_written(tmp_path, version):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("raw", data=np.ones((4, 5, 6), "uint8"))
    zarr.consolidate_metadata(str(path))
    for value in (1, 2):
        with create_volume(f"{path}:labels/ids", (4, 5, 6), "uint32") as writer:
            writer[...] = value
            assert (open_volume(path, kind="image")[...] == 1).all()
    assert (open_volume(f"{path}:labels/ids")[...] == 2).all()
    assert "labels/ids" in zarr.open_consolidated(str(path))
    assert [item.name for item in list_datasets(path)] == ["labels/ids", "raw"]
    assert not list(path.rglob("*.partial")) + list(path.rglob("*.old"))
    text = r"is a group; name the dataset .*labels/ids \(4, 5, 6\) uint32"
    with pytest.raises(InputError, match=text), create_volume(path, (2, 2, 2), "uint8"):
        pass
    for name in ("labels", "raw/x"):
        with pytest.raises(InputError, match="stands in the way"), create_volume(f"{path}:{name}", (2, 2, 2), "uint8"):
            pass
    with pytest.raises(ZeroDivisionError), create_volume(f"{path}:raw", (2, 2, 2), "uint8") as writer:
        writer[...] = 1 // 0
    assert (open_volume(f"{path}:raw")[...] == 1).all()


def test_an_array_is_replaced_by_a_new_one(tmp_path):
    for value in (1, 2):
        with create_volume(tmp_path / "a.zarr", (4, 5, 6), "uint32") as writer:
            writer[...] = value
    assert (open_volume(tmp_path / "a.zarr")[...] == 2).all()
    assert [item.name for item in tmp_path.iterdir()] == ["a.zarr"]
    with pytest.raises(InputError, match="is an array"), create_volume(tmp_path / "a.zarr:b", (2, 2, 2), "uint8"):
        pass


def ome(path, version, axes, shape, units="nanometer", outer=None):
    """An OME-Zarr image of two levels with a scale of 40, 4, 4 and a translation of half a voxel at level 1."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    lead = len(axes) - 3
    datasets = []
    for level, step in enumerate((1, 2)):
        array = np.arange(np.prod(shape)).reshape(shape).astype("uint16")[..., ::step, ::step]
        group.create_array(f"s{level}", data=array)
        scale = {"type": "scale", "scale": [1.0] * lead + [40.0, 4.0 * step, 4.0 * step]}
        shift = {"type": "translation", "translation": [0.0] * lead + [80.0, 2.0 * level, 2.0 * level]}
        datasets.append({"path": f"s{level}", "coordinateTransformations": [scale, shift]})
    named = [{"name": axis, "type": "space", **({"unit": units} if axis in "zyx" and units else {})} for axis in axes]
    image = {"axes": named, "datasets": datasets, "version": version, "name": "em"}
    if outer:
        image["coordinateTransformations"] = outer
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    "axes, shape, expected",
    [
        ("zyx", (3, 4, 6), (3, 4, 6)),
        ("czyx", (2, 3, 4, 6), (2, 3, 4, 6)),
        ("czyx", (1, 3, 4, 6), (3, 4, 6)),
        ("tczyx", (1, 1, 3, 4, 6), (3, 4, 6)),
        ("tczyx", (1, 2, 3, 4, 6), (2, 3, 4, 6)),
    ],
)
def test_ome_zarr_opens_its_finest_level_with_scale_and_translation(tmp_path, version, axes, shape, expected):
    path = ome(tmp_path / "a.zarr", version, axes, shape)
    volume = open_volume(path)
    assert volume.shape == expected
    assert (volume[...] == np.arange(np.prod(shape)).reshape(expected)).all()
    assert (volume[..., 1:3, ::2] == np.arange(np.prod(shape)).reshape(expected)[..., 1:3, ::2]).all()
    assert (volume.resolution, volume.offset) == ((40, 4, 4), (80, 0, 0))
    for reference in (f"{path}:s1", path / "s1"):
        coarse = open_volume(reference)
        assert (coarse.resolution, coarse.offset) == ((40, 8, 8), (80, 2, 2))
        assert coarse.shape == (*expected[:-2], 2, 3)


def test_units_of_ome_zarr_become_nanometres(tmp_path):
    outer = [{"type": "scale", "scale": [0.5, 1.0, 1.0]}]
    volume = open_volume(ome(tmp_path / "a.zarr", "0.4", "zyx", (2, 2, 2), "micrometer", outer))
    assert volume.resolution == (20_000, 4_000, 4_000)
    assert volume.offset == (40_000, 0, 0)
    assert open_volume(ome(tmp_path / "b.zarr", "0.5", "zyx", (2, 2, 2), None)).resolution == (40, 4, 4)


def test_ome_zarr_with_many_times_or_other_axes_is_refused(tmp_path):
    with pytest.raises(InputError, match="5 axes"):
        open_volume(ome(tmp_path / "a.zarr", "0.4", "tczyx", (2, 2, 3, 4, 6)))
    with pytest.raises(InputError, match="axes x, y, z; the last three of a volume are z, y, x"):
        open_volume(ome(tmp_path / "b.zarr", "0.5", "xyz", (3, 4, 6)))


@pytest.mark.parametrize("version", [2, 3])
def test_groups_attributes_and_arrays_of_both_versions_are_read(tmp_path, version):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    data = random_volume((5, 6, 7), ">u2" if version == 2 else "u2")
    group.create_array("volumes/raw", data=data, chunks=(2, 3, 4)).attrs["voxel_size"] = [40, 4, 4]
    group.create_array("volumes/labels/neuron_ids", data=data.astype("uint64"))
    group["volumes"].attrs["offset"] = [40, 0, 0]
    raw = open_volume(tmp_path / "a.zarr", kind="image")
    assert (raw.name.endswith(":volumes/raw"), raw.resolution, raw.offset) == (True, (40, 4, 4), (40, 0, 0))
    assert raw.dtype.isnative
    assert (raw[1:, 2, ::2] == data[1:, 2, ::2]).all()
    assert open_volume(tmp_path / "a.zarr", kind="labels").dtype == np.uint64
    with pytest.raises(InputError, match=r"no dataset 'x'; it has: volumes/labels/neuron_ids \(5, 6, 7\) uint64"):
        open_volume(f"{tmp_path}/a.zarr:x")
    with pytest.raises(InputError, match="a group, not a dataset"):
        open_volume(f"{tmp_path}/a.zarr:volumes/labels")


def test_broken_folders_are_one_sentence(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty.zarr cannot be read as zarr"):
        open_volume(tmp_path / "empty.zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.zeros((2, 2, 2)), zarr_format=2)
    header = tmp_path / "a.zarr" / ".zarray"
    good = json.loads(header.read_text())
    header.write_text('{"shape": [2')
    with pytest.raises(InputError, match=r"a.zarr cannot be read as zarr"):
        open_volume(tmp_path / "a.zarr")
    header.write_text(json.dumps({**good, "chunks": [10**6] * 3}))
    with pytest.raises(InputError, match="more than 2 GB each"):
        open_volume(tmp_path / "a.zarr")
    header.write_text(json.dumps({**good, "shape": [0, 2, 2]}))
    with pytest.raises(InputError, match="is empty"):
        open_volume(tmp_path / "a.zarr")


def test_a_damaged_chunk_is_one_sentence(tmp_path):
    with create_volume(tmp_path / "a.zarr", (4, 4, 4), "uint16", compression="gzip") as writer:
        writer[...] = 1
    (chunk,) = [item for item in (tmp_path / "a.zarr").rglob("0") if item.is_file()]
    for damage in (chunk.read_bytes()[:-10], b"text", chunk.read_bytes()[:12] + b"damage"):
        chunk.write_bytes(damage)
        with pytest.raises(InputError, match=r"a.zarr cannot be read at"):
            open_volume(tmp_path / "a.zarr")[...]


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, f"{tmp_path}/a.zarr", "(64, 128, 128)"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: cannot write {tmp_path}/a.zarr: it would grow beyond the file size limit")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_one_sentence(tmp_path):
    missing = tmp_path / "nowhere" / "a.zarr"
    with pytest.raises(InputError, match="its folder does not exist"), create_volume(missing, (2, 2, 2), "uint8"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_zarr_the_extra_is_named(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    code = "import sys; sys.modules['zarr'] = None; from emcore import open_volume; open_volume(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, f"{tmp_path}/a.zarr"], capture_output=True, text=True)
    assert f"reading and writing zarr needs the extra zarr, which is not installed here: {installation('zarr')}" in (
        ended.stderr)

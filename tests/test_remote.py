"""Volumes that others wrote, read in folders and from a server: voxels, their place, what goes wrong."""

import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from emcore.errors import InputError, installation
from emcore.volumes import list_datasets, open_volume, remote
from emcore.volumes.address import has_secrets, is_address, name_of, parsed, without_secrets
from emcore.volumes.inspect import inspect, text_of
from emcore.volumes.stamp import stamp
from tests.served import served

tensorstore = pytest.importorskip("tensorstore", reason="the extra remote is not installed")

SHAPE = (21, 34, 45)
RESOLUTION = (40.0, 8.0, 4.0)  # nm, z y x
OFFSET = (360.0, 64.0, 28.0)
START = (9, 8, 7)  # of the first voxel from the origin
SHARDING = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "hash": "murmurhash3_x86_128",
            "minishard_bits": 2, "shard_bits": 1, "minishard_index_encoding": "gzip", "data_encoding": "gzip"}
WHOLE = tuple(slice(0, length) for length in SHAPE)
BOXES = [(...,), (slice(3, 20), slice(15, 17), slice(None)), (slice(0, 21, 4), slice(1, 30, 7), slice(44, 45)),
         (20, slice(5, 5), 3), (slice(16, 18), 33, slice(0, 45, 16))]


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(remote, "RETRIES", 2)
    remote.context.cache_clear()


def sample(dtype: str, shape=SHAPE) -> np.ndarray:
    random, dtype = np.random.default_rng(7), np.dtype(dtype)
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    blocks = np.repeat(np.repeat(np.repeat(values[::4, ::4, ::4], 4, 0), 4, 1), 4, 2)[tuple(map(slice, shape))]
    blocks[0, 0, 0], blocks[-1, -1, -1] = limits.max, limits.min
    return blocks


def smooth(shape=SHAPE) -> np.ndarray:
    """An image that jpeg hardly changes."""
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    return (100 + 60 * np.sin(z / 9) * np.cos(y / 11) * np.cos(x / 13)).astype(np.uint8)


def precomputed(path: Path, values: np.ndarray, encoding: str = "raw", sharded: bool = False, **more) -> Path:
    """A folder as tensorstore writes it."""
    scale = {"size": list(values.shape[:-4:-1]), "resolution": list(RESOLUTION[::-1]),
             "voxel_offset": list(START[::-1]), "chunk_size": [16, 16, 16], "encoding": encoding, **more}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    if sharded:
        scale["sharding"] = SHARDING
    channels = values.shape[0] if values.ndim == 4 else 1
    about = {"type": "image" if encoding in ("jpeg", "png") else "segmentation", "data_type": str(values.dtype),
             "num_channels": channels}
    store = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/", "create": True,
                              "scale_metadata": scale, "multiscale_metadata": about, "open": True}).result()
    store.write(np.transpose(values if values.ndim == 4 else values[None], (3, 2, 1, 0))).result()
    return path


def check(volume, values, resolution=RESOLUTION, offset=OFFSET):
    assert (volume.shape, volume.dtype, volume.resolution, volume.offset) == (
        values.shape, values.dtype, resolution, offset)
    for box in BOXES:
        inner = box if volume.ndim == 3 else (slice(None), *box)
        found = volume[inner]
        assert found.flags.owndata or found.base.flags.owndata
        np.testing.assert_array_equal(found, values[inner])


# ---- every voxel and its place


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("encoding,dtype", [
    ("raw", "uint8"), ("raw", "int16"), ("raw", "uint64"), ("raw", "float32"), ("png", "uint8"), ("png", "uint16"),
    ("compressed_segmentation", "uint32"), ("compressed_segmentation", "uint64")])
def test_precomputed_volumes_are_read_to_the_bit_in_a_folder_and_from_a_server(tmp_path, encoding, dtype, sharded):
    values = sample(dtype)
    precomputed(tmp_path / "a", values, encoding, sharded)
    check(open_volume(tmp_path / "a"), values)
    with served(tmp_path) as server:
        for way in ("/a", "/a/info", "/a/", "/a:0", "/a:4_8_40", "/a:40x8x4nm"):
            check(open_volume(f"{server.address}{way}"), values)
        check(open_volume(f"precomputed://{server.address}/a", kind="labels" if values.dtype.kind == "u" else None),
              values)


@pytest.mark.parametrize("sharded", [False, True])
def test_jpeg_is_read_as_tensorstore_reads_it(tmp_path, sharded):
    path = precomputed(tmp_path / "a", smooth(), "jpeg", sharded, jpeg_quality=95)
    stored = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/"}).result()
    values = np.ascontiguousarray(np.transpose(stored[..., 0].read().result()))
    assert abs(values.astype(int) - smooth()).max() < 8
    check(open_volume(path), values)


def test_several_channels_are_an_axis(tmp_path):
    values = sample("uint16", (3, *SHAPE))
    check(open_volume(precomputed(tmp_path / "a", values, sharded=True)), values)


BY_CLOUD_VOLUME = {  # folder -> the type of its voxels, how chunks are encoded, and whether each is packed as NAME.gz
    "image": ("uint8", "raw", False), "packed_image": ("uint8", "raw", True),
    "ids": ("uint64", "compressed_segmentation", False), "packed_ids": ("uint64", "compressed_segmentation", True)}


def write_by_cloud_volume(folder: Path) -> None:
    """What tests/data/cloud_volume.tar.xz holds, which version 12.15.2 wrote."""
    cloudvolume = pytest.importorskip("cloudvolume", reason="cloud-volume is not installed")
    for name, (dtype, encoding, packed) in BY_CLOUD_VOLUME.items():
        info = cloudvolume.CloudVolume.create_new_info(
            1, "segmentation" if dtype == "uint64" else "image", dtype, encoding, [int(nm) for nm in RESOLUTION[::-1]],
            START[::-1], SHAPE[::-1], chunk_size=(16, 16, 16))
        volume = cloudvolume.CloudVolume(f"file://{folder}/{name}", info=info, bounded=True, non_aligned_writes=True,
                                         compress=packed)
        volume.commit_info()
        volume[:, :, :] = np.transpose(cells(dtype))[..., None]


def cells(dtype: str) -> np.ndarray:
    """Boxes of 4 x 5 x 6 voxels with ids beyond 2^63, or stripes of grey."""
    z, y, x = np.ogrid[tuple(map(slice, SHAPE))]
    if dtype == "uint64":
        return (z // 4 * 100 + y // 5 * 10 + x // 6 + 1).astype(np.uint64) * 3 + np.uint64(2**63)
    return ((5 * z + 3 * y + 7 * x) % 251).astype(np.uint8)


@pytest.mark.parametrize("fresh", [False, True])
def test_volumes_of_cloud_volume_are_read_to_the_bit(tmp_path, fresh):
    if fresh:
        write_by_cloud_volume(tmp_path)
    else:
        with tarfile.open(Path(__file__).parent / "data" / "cloud_volume.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
    with served(tmp_path) as server:
        for name in ("image", "ids"):
            for place in (f"{tmp_path}/{name}", f"precomputed://{tmp_path}/{name}", f"{server.address}/{name}"):
                check(open_volume(place), cells(BY_CLOUD_VOLUME[name][0]))
    check(open_volume(tmp_path / "packed_image"), cells("uint8"))
    for place in (f"{tmp_path}/packed_ids", f"precomputed://{tmp_path}/packed_ids#missing=0",
                  f"precomputed://{tmp_path}/packed_image#missing=0"):
        with pytest.raises(InputError, match=r"\A[^\n]*packed[^\n]* gunzip -r [^\n]*\Z"):
            open_volume(place)[...]  # and never zeros


@pytest.mark.parametrize("suffix", [".gz", ".br", ".zstd", ".xz", ".bz2"])
def test_packed_chunks_are_never_zeros_though_their_publisher_leaves_some_out(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(remote, "FEW", 0)
    folder = precomputed(tmp_path / "a", sample("uint8"))
    chunk = max(path for path in folder.rglob("*") if path.is_file() and "-" in path.name)
    chunk.rename(f"{chunk}{suffix}")
    with pytest.raises(InputError, match=rf"\A[^\n]*such as {chunk.name}{suffix}; unpack them first[^\n]*\Z"):
        open_volume(f"precomputed://{folder}#missing=0")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float64"])
def test_n5_counts_x_first(tmp_path, dtype):
    values = sample(dtype)
    for level, factors in (("s0", [1, 1, 1]), ("s1", [2, 2, 1])):
        store = tensorstore.open({"driver": "n5", "kvstore": f"file://{tmp_path}/a.n5/em/{level}/", "create": True,
                                  "metadata": {"dimensions": list(SHAPE[::-1]), "blockSize": [16, 16, 8],
                                               "dataType": dtype, "compression": {"type": "gzip"}}}).result()
        store.write(np.transpose(values)).result()
        about = tmp_path / "a.n5" / "em" / level / "attributes.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "downsamplingFactors": factors}))
    (tmp_path / "a.n5" / "em" / "attributes.json").write_text(json.dumps({"pixelResolution": {
        "unit": "nm", "dimensions": RESOLUTION[::-1]}, "offset": [70, 80, 90]}))
    (tmp_path / "a.n5" / "attributes.json").write_text('{"n5": "2.0.0"}')
    offset = (90.0, 80.0, 70.0)
    with served(tmp_path) as server:
        for place in (f"{tmp_path}/a.n5/em", f"{server.address}/a.n5/em", f"n5://{server.address}/a.n5/em/s0"):
            check(open_volume(place), values, offset=offset)
        check(open_volume(f"{tmp_path}/a.n5/em", scale=1), values, (40.0, 16.0, 8.0), offset)
        check(open_volume(f"{server.address}/a.n5/em/s1/attributes.json"), values, (40.0, 16.0, 8.0), offset)
        assert [item.name for item in list_datasets(f"{server.address}/a.n5/em")] == ["s0", "s1"]
    check(open_volume(f"{tmp_path}/a.n5:em/s0"), values, offset=offset)
    with pytest.raises(InputError, match="does not say what is in it; name an array below it"):
        open_volume(tmp_path / "a.n5")


def test_the_transform_of_n5_names_its_axes(tmp_path):
    values = sample("uint8")
    store = tensorstore.open({"driver": "n5", "kvstore": f"file://{tmp_path}/a.n5/", "create": True, "metadata": {
        "dimensions": list(SHAPE[::-1]), "blockSize": [16, 16, 8], "dataType": "uint8",
        "compression": {"type": "zstd"}}}).result()
    store.write(np.transpose(values)).result()
    about = tmp_path / "a.n5" / "attributes.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "transform": {
        "axes": ["z", "y", "x"], "scale": [0.04, 0.008, 0.004], "translate": [0.36, 0.064, 0.028],
        "units": ["um"] * 3}}))
    volume = open_volume(tmp_path / "a.n5")
    np.testing.assert_allclose((volume.resolution, volume.offset), (RESOLUTION, (360, 64, 28)))
    np.testing.assert_array_equal(volume[...], values)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32"])
def test_zarr_is_read_to_the_bit(tmp_path, version, dtype):
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    numcodecs, values = pytest.importorskip("numcodecs"), sample(dtype)
    ways = {"blosc": numcodecs.Blosc() if version == 2 else zarr.codecs.BloscCodec(),
            "zstd": numcodecs.Zstd() if version == 2 else zarr.codecs.ZstdCodec()}
    if version == 3:
        ways["shards"] = zarr.codecs.ZstdCodec()
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_group("em", attributes={"resolution": list(RESOLUTION), "offset": [360, 64, 28]})
    for way, packing in ways.items():
        array = group.create_array(f"em/{way}", shape=SHAPE, dtype=dtype, chunks=(8, 16, 8), compressors=packing,
                                   shards=(16, 32, 16) if way == "shards" else None, fill_value=0)
        array[...] = values
    with served(tmp_path) as server:
        for way in ways:
            check(open_volume(f"{server.address}/a.zarr/em/{way}"), values)
            check(open_volume(f"zarr://{tmp_path}/a.zarr/em/{way}"), values)
            check(open_volume(tmp_path / "a.zarr" / "em" / way), values)
        with pytest.raises(InputError, match="does not say what is in it"):
            open_volume(f"{server.address}/a.zarr/em")
        zarr.consolidate_metadata(tmp_path / "a.zarr", zarr_format=version)
        assert {item.name for item in list_datasets(f"{server.address}/a.zarr")} == {f"em/{way}" for way in ways}
        check(open_volume(f"{server.address}/a.zarr", "em/zstd"), values)
        with pytest.raises(InputError, match="several volumes, name one by its address"):
            open_volume(f"{server.address}/a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_the_levels_of_ome_zarr_are_scales(tmp_path, version):
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    values = sample("uint16", (1, 2, *SHAPE))
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"},
            *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx")]
    levels = [{"path": f"s{level}", "coordinateTransformations": [
        {"type": "scale", "scale": [1, 1, 0.04, 0.008 * 2**level, 0.004 * 2**level]},
        {"type": "translation", "translation": [0, 0, 0.36, 0.064, 0.028]}]} for level in range(2)]
    said = {"multiscales": [{"version": "0.4" if version == 2 else "0.5", "axes": axes, "datasets": levels}]}
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version,
                            attributes=said if version == 2 else {"ome": said})
    group.create_array("s0", shape=values.shape, dtype="uint16", chunks=(1, 1, 8, 16, 16))[...] = values
    coarse = values[..., ::2, ::2]
    group.create_array("s1", shape=coarse.shape, dtype="uint16", chunks=(1, 1, 8, 16, 16))[...] = coarse
    with served(tmp_path) as server:
        for place in (f"{server.address}/a.zarr", f"{server.address}/a.zarr/s0", f"{tmp_path}/a.zarr"):
            volume = open_volume(place, scale=None if place.endswith("s0") or "http" in place else 0)
            np.testing.assert_allclose((volume.resolution, volume.offset), (RESOLUTION, (360, 64, 28)))
            np.testing.assert_array_equal(volume[...], values[0])
        for scale in (1, "s1", 8.0, (40, 16, 8), "8x16x40nm"):
            if scale in (8.0, "8x16x40nm"):  # no scale is equally fine along y and x, or has these axes
                with pytest.raises(InputError, match="no scale"):
                    open_volume(f"{server.address}/a.zarr", scale=scale)
                continue
            np.testing.assert_array_equal(open_volume(f"{server.address}/a.zarr", scale=scale)[...], coarse[0])


def test_the_finest_scale_is_the_default_wherever_it_stands(tmp_path):
    precomputed(tmp_path / "a", sample("uint8"))
    coarse = sample("uint8", (21, 17, 23))
    precomputed(tmp_path / "a", coarse, key="coarse", resolution=[8, 16, 40], size=[23, 17, 21])
    about = tmp_path / "a" / "info"
    info = json.loads(about.read_text())
    info["scales"].reverse()
    about.write_text(json.dumps(info))
    with served(tmp_path) as server:
        assert open_volume(f"{server.address}/a").shape == SHAPE
        for way in ("coarse", "0", "40x16x8nm"):
            np.testing.assert_array_equal(open_volume(f"{server.address}/a:{way}")[...], coarse)
        assert open_volume(f"{server.address}/a", scale=1).shape == SHAPE


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_buckets_are_read_as_their_owners_serve_them(tmp_path, scheme):
    values = sample("uint64")
    precomputed(tmp_path / "bucket" / "some" / "em", values, "compressed_segmentation", True)
    precomputed(tmp_path / "bucket" / "some" / "em2", values)
    code = f"""
import sys
import numpy as np
from emcore.volumes import open_volume
volume = open_volume("{scheme}://bucket/some/em")
np.save({str(tmp_path / "read.npy")!r}, volume[...])
print(volume.name, volume.offset)
"""
    with served(tmp_path) as server:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_"))}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280,
                              cwd=Path(__file__).parent.parent, env={
                                  **known, "AWS_ENDPOINT_URL": server.address, "HOME": str(tmp_path),
                                  "TENSORSTORE_GCS_HTTP_URL": server.address})
        assert done.stdout == f"{scheme}://bucket/some/em:4_8_40 {OFFSET}\n", done.stderr
        assert all("/bucket" in path for path in server.requests)
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), values)


# ---- what an address is


def test_addresses_are_told_from_paths():
    for text in ("gs://b/x", "s3://b/x", "https://h/x", "precomputed://gs://b/x", "zarr://some/folder", "file:///a"):
        assert is_address(text), text
    for text in ("a.h5", "a.h5:raw", "C:\\data\\a.h5", "C:/a.zarr", "/a/b:c", "ftp://h/x", Path("gs://b")):
        assert not is_address(text), text
    found = parsed("precomputed://https://me:word@h.org:8080/a/b/info?key=1#missing=0")
    assert (found.kind, found.host, found.path, found.query, found.sparse) == (
        "precomputed", "me:word@h.org:8080", "a/b", "key=1", True)
    assert str(found) == "precomputed://https://h.org:8080/a/b#missing=0"
    assert "word" not in repr(found)
    assert name_of("gs://b/em/v2:8nm") == "v2"
    assert name_of("a/im.h5:raw") == "im"
    for wrong, says in (("https:///x", "names no host"), ("gs://b/x#y", "ends in #y"),
                        ("https://h:port/x", "no address"), ("gs://b/a\nb", "letters")):
        with pytest.raises(InputError, match=says):
            parsed(wrong)


SECRET = "s3cr3t"


def test_what_logs_in_is_never_told(tmp_path, capfd):
    values = sample("uint8")
    precomputed(tmp_path / "a", values)
    text = f"https://me:{SECRET}@host/a?X-Amz-Signature={SECRET}"
    assert has_secrets(text)
    assert without_secrets(f"x {text}, y") == "x https://host/a?..., y"
    with served(tmp_path) as server:
        address = server.address.replace("//", f"//me:{SECRET}@")
        volume = open_volume(f"{address}/a?sig={SECRET}")
        np.testing.assert_array_equal(volume[...], values)
        assert all(SECRET in path for path in server.requests)  # it goes to the server, and nowhere else
        told = [repr(volume), volume.name, json.dumps(inspect(f"{address}/a?sig={SECRET}"))]
        for path in (tmp_path / "a").glob("*/*"):
            path.unlink()
        for wrong in (f"{address}/a?sig={SECRET}", f"{address}/b?sig={SECRET}", f"{address}/a?sig={SECRET}#x",
                      f"https://me:{SECRET}@/a"):
            with pytest.raises(InputError) as caught:
                _ = open_volume(wrong, cache_bytes=1)[...]
            told.append(str(caught.value))
            assert caught.value.__cause__ is None
    told += capfd.readouterr()
    assert not [text for text in told if SECRET in text]


def test_passwords_and_signatures_with_signs_in_them_are_cut_out_whole():
    told = without_secrets("cannot read https://me:pass@word@host/a?se=2026-12-01T00:00:00Z&sig=a,b:SECRET: no route")
    assert told == "cannot read https://host/a?...: no route"


def test_a_config_takes_no_secrets():
    from emcore.config.checks import WrongSetting
    from emcore.settings.data import VolumeFiles

    VolumeFiles("gs://bucket/em:8nm", label="https://host/labels")
    for reference in (f"https://me:{SECRET}@host/em", f"https://host/em?sig={SECRET}"):
        with pytest.raises(WrongSetting, match="would be written into every record") as caught:
            VolumeFiles("a.h5", label=reference)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("about,what", [("neuroglancer_legacy_mesh", "meshes"), ("neuroglancer_skeletons", "skeletons"),
                                        ("neuroglancer_multilod_draco", "meshes"),
                                        ("neuroglancer_annotations_v1", "annotations")])
def test_a_folder_of_something_else_is_told(tmp_path, about, what):
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "info").write_text(json.dumps({"@type": about}))
    with served(tmp_path) as server:
        for place in (tmp_path / "mesh", f"{server.address}/mesh"):
            with pytest.raises(InputError, match=f"of {what}, not of a volume"):
                open_volume(place)


def test_without_the_extra_one_sentence_names_the_command(tmp_path):
    precomputed(tmp_path / "a", sample("uint64"), "compressed_segmentation")
    code = ("import sys; sys.modules['tensorstore'] = None\nfrom emcore.volumes.inspect import main\n"
            f"sys.exit(main([{str(tmp_path / 'a')!r}, 'gs://bucket/em']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)
    assert "4_8_40  21 x 34 x 45 uint64" in done.stdout
    for told, what in ((done.stdout, f"{tmp_path}/a"), (done.stderr, "gs://bucket/em")):
        assert f'reading {what}' in told
        assert f"needs the extra remote, which is not installed here: {installation('remote')}" in told
    assert "Traceback" not in done.stderr


# ---- what goes wrong on the way


@pytest.mark.parametrize("trouble,delay", [("drop", 0), ("truncate", 0), ("500", 0), ("503", 0), ("", 0.02)])
def test_one_request_of_five_may_fail(tmp_path, trouble, delay):
    values = sample("uint64")
    precomputed(tmp_path / "a", values, "compressed_segmentation", True)
    with served(tmp_path, trouble, every=5, delay=delay) as server:
        np.testing.assert_array_equal(open_volume(f"{server.address}/a")[...], values)
        assert len(server.requests) > 20


@pytest.mark.parametrize("trouble,says", [("drop", "was tried 3 times"), ("500", "Internal Server Error"),
                                          ("403", "Forbidden"), ("404", "missing"), ("truncate", "was tried 3 times")])
def test_what_cannot_be_fetched_is_one_sentence_and_never_zeros(tmp_path, capfd, trouble, says):
    precomputed(tmp_path / "a", sample("uint8"))
    with served(tmp_path) as server:
        volume = open_volume(f"{server.address}/a")
        server.trouble = trouble
        with pytest.raises(InputError, match=r"\A[^\n]+\Z") as caught:
            volume[...]
    assert says in str(caught.value), str(caught.value)
    assert ("is tried again" in capfd.readouterr().err) == (trouble not in ("403", "404"))


def test_a_server_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match=r"\A[^\n]*(connect|Connect)[^\n]*\Z"):
        open_volume("http://127.0.0.1:1/a")


def test_a_missing_chunk_of_precomputed_is_refused_unless_its_publisher_leaves_out_zeros(tmp_path):
    values = sample("uint8")
    path = precomputed(tmp_path / "a", values)
    next((path / "4_8_40").glob("7-23_8-24_9-25")).unlink()
    expected = values.copy()
    expected[:16, :16, :16] = 0
    with served(tmp_path) as server:
        volume = open_volume(f"{server.address}/a")
        np.testing.assert_array_equal(volume[16:], values[16:])
        with pytest.raises(InputError, match="#missing=0 behind the address"):
            volume[...]
        np.testing.assert_array_equal(open_volume(f"{server.address}/a:0#missing=0")[...], expected)
        server.trouble = "500"
        with pytest.raises(InputError, match="Internal Server Error"):  # not to be had is not missing
            open_volume(f"{server.address}/a#missing=0")[...]


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_of_zarr_that_was_never_written_has_the_fill_value_and_one_that_fails_has_none(tmp_path, version):
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="uint8", chunks=(8, 16, 16), fill_value=7,
                              zarr_format=version)
    array[:8] = 3
    with served(tmp_path) as server:
        volume = open_volume(f"{server.address}/a.zarr", cache_bytes=0)
        np.testing.assert_array_equal(volume[...], array[...])
        server.trouble = "500"
        with pytest.raises(InputError, match="Internal Server Error"):
            volume[...]


# ---- many readers, little memory, no lists


def test_a_volume_is_pickled_and_read_by_threads(tmp_path):
    values = sample("uint64")
    precomputed(tmp_path / "a", values, "compressed_segmentation", True)
    with served(tmp_path) as server:
        volume = pickle.loads(pickle.dumps(open_volume(f"{server.address}/a")))
        wrong = []

        def read(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(20):
                low = random.integers(0, [length - 1 for length in SHAPE])
                box = tuple(slice(int(a), int(random.integers(a, length)) + 1) for a, length in zip(low, SHAPE))
                if not np.array_equal(volume[box], values[box]):
                    wrong.append(box)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_is_told_instead_of_being_ended(tmp_path):
    precomputed(tmp_path / "a", sample("uint8"), "png")
    code = f"""
import os
from emcore.errors import InputError, installation
from emcore.volumes import open_volume
volume = open_volume({str(tmp_path / "a")!r})
assert volume[...].any()
if os.fork() == 0:
    try:
        volume[...]
    except InputError as error:
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(2)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parent.parent)
    assert done.returncode == 7


def test_chunks_are_kept_up_to_the_size_that_is_stated(tmp_path):
    values = sample("uint8", (64, 64, 64))
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        for cache_bytes, fetched in ((2 << 20, 64), (5000, 128)):
            volume = open_volume(f"{server.address}/a", cache_bytes=cache_bytes)
            server.requests.clear()
            assert (volume[...] == values).all()
            assert (volume[...] == values).all()
            assert len(server.requests) >= fetched
            if cache_bytes > values.nbytes:
                assert len(server.requests) == fetched


def test_ten_gigavoxels_open_at_once_and_no_chunk_is_asked_for(tmp_path):
    info = {"@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": "uint8", "num_channels": 1,
            "scales": [{"key": "big", "size": [10240, 10240, 100], "resolution": [4, 4, 40], "encoding": "jpeg",
                        "voxel_offset": [0, 0, 0], "chunk_sizes": [[10, 10, 10]]}]}  # 10^7 chunks
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "info").write_text(json.dumps(info))
    with served(tmp_path) as server:
        remote.tensorstore("a volume")
        start = time.perf_counter()
        volume = open_volume(f"{server.address}/big")
        assert time.perf_counter() - start < 0.5  # 0.02 s alone; others use this machine too
        assert volume.size > 10**10
        assert all("info" in path or "zarr" in path or ".z" in path or "attributes" in path
                   for path in server.requests)
        assert "10240" in text_of(inspect(f"{server.address}/big"))


# ---- whether it is still the same


def test_a_volume_that_was_made_anew_has_another_stamp(tmp_path):
    values = sample("uint8")
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        before = stamp(f"{server.address}/a")
        assert before == stamp(f"{server.address}/a")
        assert before != stamp(f"{server.address}/a#missing=0")
        about = (tmp_path / "a" / "info").read_bytes(), (tmp_path / "a" / "info").stat()
        precomputed(tmp_path / "b", values + 1)
        for path in (tmp_path / "b" / "4_8_40").iterdir():
            path.replace(tmp_path / "a" / "4_8_40" / path.name)
        os.utime(tmp_path / "a" / "info", ns=(about[1].st_atime_ns, about[1].st_mtime_ns))
        assert (tmp_path / "a" / "info").read_bytes() == about[0]
        assert stamp(f"{server.address}/a") not in (before, None)
    assert stamp("http://127.0.0.1:1/a") is None

"""TIFF volumes: what Fiji, OME and tifffile write, folders of slices, and headers that lie."""

import struct
import subprocess
import sys

import numpy as np
import pytest

from emcore.errors import InputError, installation
from emcore.volumes import create_volume, list_datasets, open_volume
from tests.test_volumes import FULL, random_volume

tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 11), (5, 6, 3), (3, 2, 5, 4), (1, 2, 3, 4), (3, 1, 5, 4)])
def test_what_is_written_block_by_block_is_read_back_by_us_and_by_tifffile(tmp_path, dtype, shape):
    data = random_volume(shape, dtype)
    attributes = {"offsets": [[-1, 0, 0]], "note": "Präparat"}
    with create_volume(tmp_path / "a.tif", shape, dtype, (40, 4, 4.6), (80, -4, 0), attributes) as writer:
        for z in reversed(range(shape[0])):
            writer[z, ..., :2] = data[z, ..., :2]
            writer[z, ..., 2:] = data[z, ..., 2:]
    volume = open_volume(tmp_path / "a.tif")
    assert volume.shape == shape
    assert volume[...].dtype == volume.dtype == np.dtype(dtype)
    assert (volume[...] == data).all()
    assert (volume[-1, ..., 1:, ::2] == data[-1, ..., 1:, ::2]).all()
    assert (volume.resolution, volume.offset, volume.attrs) == ((40, 4, 4.6), (80, -4, 0), attributes)
    assert (tifffile.imread(tmp_path / "a.tif").reshape(shape) == data).all()
    assert [item.name for item in tmp_path.iterdir()] == ["a.tif"]


def test_a_written_stack_is_an_imagej_stack_with_its_voxel_size(tmp_path):
    with create_volume(tmp_path / "a.tif", (5, 6, 7), "uint16", (40, 4, 8)) as writer:
        writer[...] = 1
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata["spacing"] == 40
        assert file.imagej_metadata["unit"] == "nm"
        assert file.pages[0].tags["XResolution"].value == (1, 8)
        assert file.series[0].shape == (5, 6, 7)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate": True},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"rowsperstrip": 3},
        {"tile": (16, 16)},
        {"imagej": True},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"bigtiff": True},
        {"metadata": None},
        {"compression": "zlib", "rowsperstrip": 2},
    ],
)
def test_stacks_of_other_programs_are_read(tmp_path, options, byteorder):
    data = random_volume((12, 20, 30), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", data, byteorder=byteorder, photometric="minisblack", **options)
    volume = open_volume(tmp_path / "a.tif")
    assert volume.shape == data.shape
    assert volume.dtype.isnative
    assert volume.chunks == ((1, 20, 30) if {"compression", "tile"} & set(options) else None)
    assert (volume[...] == data).all()
    assert (volume[2:9:3, 5:17, 3] == data[2:9:3, 5:17, 3]).all()
    assert [item.shape for item in list_datasets(tmp_path / "a.tif")] == [data.shape]


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
def test_channels_come_first(tmp_path, options):
    data = random_volume((5, 3, 8, 9), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", data, metadata={"axes": "ZCYX"}, **options)
    assert (open_volume(tmp_path / "a.tif")[...] == data.swapaxes(0, 1)).all()


def test_a_single_image_is_a_volume_of_one_section(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 9), "uint8"))
    assert open_volume(tmp_path / "a.tif").shape == (1, 8, 9)


def test_pages_that_were_appended_one_by_one_are_a_stack(tmp_path):
    data = random_volume((4, 5, 6))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in data:
            writer.write(page, photometric="minisblack")
    assert (open_volume(tmp_path / "a.tif")[...] == data).all()


def test_an_imagej_stack_with_one_header_and_raw_data_behind_it_is_read_whole(tmp_path):
    """ImageJ writes stacks beyond 4 GB so; the file here is sparse."""
    page = np.zeros((2048, 2048), ">u2")
    description = "ImageJ=1.53c\nimages=600\nslices=600\nunit=micron\nspacing=0.04\nmin=0.0\nmax=9.0\n"
    tifffile.imwrite(
        tmp_path / "a.tif", page, byteorder=">", description=description, metadata=None, resolution=(250, 125)
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start = file.pages[0].dataoffsets[0]
    with open(tmp_path / "a.tif", "r+b") as file:
        file.truncate(start + 600 * page.nbytes)
        file.seek(start + 599 * page.nbytes + 2 * (7 * 2048 + 5))
        file.write(b"\x01\x02")
    volume = open_volume(tmp_path / "a.tif")
    assert (volume.shape, volume.nbytes > 2**32) == ((600, 2048, 2048), True)
    assert volume.resolution == pytest.approx((40, 8, 4))
    assert volume[599, 6:9, 4:7].tolist() == [[0, 0, 0], [0, 0x0102, 0], [0, 0, 0]]
    with open(tmp_path / "a.tif", "r+b") as file:
        file.truncate(start + 599 * page.nbytes + 100)
    with pytest.raises(InputError, match=r"says that it holds 600 slices .* has room for 599"):
        open_volume(tmp_path / "a.tif")


def test_the_voxel_size_of_ome_is_read_with_its_units(tmp_path):
    sizes = {"PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.005, "PhysicalSizeZ": 400.0}
    sizes["PhysicalSizeZUnit"] = "Å"
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((3, 4, 5), "uint8"), metadata={"axes": "ZYX", **sizes})
    assert open_volume(tmp_path / "a.ome.tif").resolution == pytest.approx((40, 5, 4))


def test_imagej_pixels_are_no_length(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4, 5), "uint8"), imagej=True, metadata={"unit": "pixel"})
    assert open_volume(tmp_path / "a.tif").resolution is None


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_folder_of_slices_is_read_in_numerical_order(tmp_path, compression):
    data = random_volume((12, 7, 8))
    for number, page in enumerate(data):
        tifffile.imwrite(tmp_path / f"img{number}.tif", page, compression=compression)
    (tmp_path / "Thumbs.db").touch()
    volume = open_volume(tmp_path)
    assert volume.shape == data.shape
    assert (volume[...] == data).all()
    assert (volume[::5, 2:4] == data[::5, 2:4]).all()
    tifffile.imwrite(tmp_path / "img12.tif", np.zeros((7, 9), "uint16"))
    with pytest.raises(InputError, match=r"differ: img0.tif is \(7, 8\) uint16, img12.tif is \(7, 9\) uint16"):
        open_volume(tmp_path)
    tifffile.imwrite(tmp_path / "img12.tif", data[:2])
    with pytest.raises(InputError, match=r"img12.tif holds 2 pages"):
        open_volume(tmp_path)


def test_a_folder_without_slices_is_refused(tmp_path):
    (tmp_path / "a.bmp").touch()
    with pytest.raises(InputError, match=r"no slices \(.tif, .png or .jpg\); it has: .bmp"):
        open_volume(tmp_path)


def tag(path, code, value, page=0):
    """Overwrites the value of a TIFF tag in place."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[page].tags[code].overwrite(value)


def lying(path, what):
    data = random_volume((4, 16, 16), "uint8")
    compression = "zlib" if "compressed" in what else None
    tifffile.imwrite(path, data, compression=compression, metadata=None, photometric="minisblack")
    if what == "size beyond the file":
        tag(path, 257, 2**30)
    elif what == "compressed, size of a bomb":
        tag(path, 256, 2**16)
        tag(path, 257, 2**16)
    elif what == "place beyond the file":
        tag(path, 273, 2**30)
    elif what == "compressed, place beyond the file":
        tag(path, 273, 2**30, page=3)
    elif what == "pages in a circle":
        with tifffile.TiffFile(path) as file:
            first, last = file.pages[0].offset, file.pages[3].offset
        with open(path, "r+b") as file:
            file.seek(last)
            file.seek(last + 2 + 12 * struct.unpack("<H", file.read(2))[0])
            file.write(struct.pack("<I", first))
    elif what == "cut off":
        path.write_bytes(path.read_bytes()[:300])
    elif what == "slices in the description":
        tifffile.imwrite(path, data[0], description="ImageJ=1.53c\nimages=20000\nslices=20000\n", metadata=None)
    elif what == "axes in the description":
        tifffile.imwrite(path, data[0], description='{"shape": [2000000000, 16, 16]}', metadata=None)
    elif what == "pages that differ":
        tifffile.imwrite(path, data[0, :8], append=True, metadata=None)
    elif what == "text":
        path.write_text("no picture")
    elif what == "colour":
        tifffile.imwrite(path, np.zeros((4, 16, 16, 3), "uint8"), photometric="rgb")
    elif what == "LZW":
        tag(path, 259, 5)
    elif what == "five axes":
        tifffile.imwrite(path, np.zeros((2, 3, 4, 8, 8), "uint8"), imagej=True, metadata={"axes": "TZCYX"})


@pytest.mark.parametrize(
    "what, text",
    [
        ("size beyond the file", "beyond the end of the file"),
        ("compressed, size of a bomb", r"claims \(65536, 65536\) pixels in"),
        ("place beyond the file", "beyond the end of the file"),
        ("compressed, place beyond the file", "page 3 of .* beyond the end of the file"),
        ("cut off", "a.tif"),
        ("slices in the description", "holds 20000 slices .* has room for 1"),
        ("axes in the description", "holds 2000000000 slices; its header is wrong"),
        ("pages that differ", r"differ: page 0 is \(16, 16\) uint8, page 4 is \(8, 16\) uint8"),
        ("text", "cannot be read as TIFF"),
        ("colour", "3 samples per pixel"),
        ("LZW", "compression by LZW needs the extra tiff, which is not installed here: .* -m pip install 'tifffile"),
        ("five axes", r"\(c, z, y, x\)"),
    ],
)
def test_a_header_that_lies_is_one_sentence_that_names_the_file(tmp_path, what, text):
    if what == "LZW" and 5 in tifffile.TIFF.DECOMPRESSORS:
        pytest.skip("imagecodecs is installed")
    path = tmp_path / "a.tif"
    lying(path, what)
    with pytest.raises(InputError, match=text) as caught:
        open_volume(path)
    assert str(path) in str(caught.value)


def test_pages_in_a_circle_come_to_an_end(tmp_path):
    lying(tmp_path / "a.tif", "pages in a circle")
    assert open_volume(tmp_path / "a.tif").shape == (4, 16, 16)


def test_damage_anywhere_in_a_file_is_read_or_refused_but_never_a_traceback(tmp_path):
    rng = np.random.default_rng(0)
    data = random_volume((4, 16, 16), "uint8")
    outcomes = {"read": 0, "refused": 0}
    for place, options in enumerate([{"compression": "zlib"}, {"imagej": True}, {"ome": True}, {"bigtiff": True}]):
        tifffile.imwrite(tmp_path / "good.tif", data, photometric="minisblack", **options)
        good = np.fromfile(tmp_path / "good.tif", "uint8")
        for _ in range(100):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 700), rng.integers(1, 6))] = rng.integers(0, 256)
            path = tmp_path / f"bad{place}.tif"
            bad[: rng.integers(len(bad) // 2, 2 * len(bad))].tofile(path)
            try:
                volume = open_volume(path)
                assert volume.nbytes < 2**24
                volume[...]
                outcomes["read"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize(
    "arguments, text",
    [(("a.tif", (2, 3, 4), bool), "booleans"), (("nowhere/a.tif", (2, 3, 4), "uint8"), "its folder does not exist")],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path, arguments, text):
    with pytest.raises(InputError, match=text), create_volume(tmp_path / arguments[0], *arguments[1:]):
        pass


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, f"{tmp_path}/a.tif", "None"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: cannot write {tmp_path}/a.tif: it would grow beyond the file size limit")
    assert not list(tmp_path.iterdir())


def test_without_tifffile_the_extra_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 9), "uint8"))
    code = "import sys; sys.modules['tifffile'] = None; from emcore import open_volume; open_volume(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, f"{tmp_path}/a.tif"], capture_output=True, text=True)
    assert f"reading and writing TIFF needs the extra tiff, which is not installed here: {installation('tiff')}" in (
        ended.stderr)

"""MRC volumes as mrcfile writes them: modes, axes, voxel size, and headers that lie."""

import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from emcore.errors import InputError, installation
from emcore.volumes import create_volume, open_volume
from emcore.volumes.convert import convert
from emcore.volumes.inspect import inspect

mrcfile = pytest.importorskip("mrcfile", reason="mrcfile is not installed: the extra mrc brings it")
MODES = ["int8", "int16", "float32", "uint16", "float16"]


def sample(shape, dtype):
    return (np.arange(np.prod(shape)).reshape(shape) % 113).astype(dtype)


def write(path, array, size=(40.0, 80.0, 300.0), **header):
    """size: angstrom x, y, z."""
    with mrcfile.new(path) as file:
        file.set_data(array)
        file.voxel_size = size
        for name, value in header.items():
            file.header[name] = value
    return path


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", MODES)
def test_every_mode_is_read_with_its_voxel_size_in_nm(tmp_path, dtype, byte_order):
    array = sample((5, 6, 7), dtype)
    path = write(tmp_path / "a.mrc", array.astype(np.dtype(dtype).newbyteorder(byte_order)))
    found = open_volume(path)
    assert (found.shape, found.dtype) == ((5, 6, 7), np.dtype(dtype))
    assert found.resolution == pytest.approx((30, 8, 4))
    assert (found.offset, found.attrs) == ((0, 0, 0), {})
    np.testing.assert_array_equal(found[...], array)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[3, ::2, 1:4], array[3, ::2, 1:4])
    assert found[...].flags.writeable
    assert inspect(str(path))["format"] == "MRC"


@pytest.mark.parametrize("axes", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (0, 0, 0)])
def test_axes_in_any_order_come_as_z_y_x(tmp_path, axes):
    stored = sample((5, 6, 7), "int16")  # sections, rows, columns
    path = write(tmp_path / "a.mrc", stored, mapc=axes[0], mapr=axes[1], maps=axes[2])
    names = dict(zip(axes if any(axes) else (1, 2, 3), (7, 6, 5)))
    with mrcfile.open(path, mode="r+") as file:
        file.header.mx, file.header.my, file.header.mz = names[1], names[2], names[3]
        file.voxel_size = (40, 80, 300)
    found = open_volume(path)
    assert found.shape == (names[3], names[2], names[1])
    assert found.resolution == pytest.approx((30, 8, 4))
    for section, row, column in np.ndindex(stored.shape):
        place = dict(zip(axes if any(axes) else (1, 2, 3), (column, row, section)))
        if (section + row + column) % 7 == 0:
            assert found[place[3], place[2], place[1]] == stored[section, row, column]


def test_a_single_image_and_a_stack_of_volumes(tmp_path):
    image = sample((6, 7), "int16")
    np.testing.assert_array_equal(open_volume(write(tmp_path / "a.mrc", image))[...], image[None])
    stack = sample((2, 3, 4, 5), "float32")
    np.testing.assert_array_equal(open_volume(write(tmp_path / "b.mrc", stack))[...], stack)


def test_bytes_that_imod_marks_as_unsigned_are_unsigned(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for flags, dtype in ((0, "uint8"), (1, "int8")):
        path = write(tmp_path / f"{dtype}.rec", array.view("int8"))
        data = bytearray(path.read_bytes())
        data[152:160] = struct.pack("<2i", 1146047817, flags)
        path.write_bytes(data)
        assert open_volume(path).dtype == dtype
        np.testing.assert_array_equal(open_volume(path)[...].view("uint8"), array)


def test_where_it_lies_is_told_but_not_believed(tmp_path):
    path = write(tmp_path / "a.mrc", sample((2, 3, 4), "int16"), origin=(1, 2, 3), nxstart=7)
    found = open_volume(path)
    assert found.offset == (0, 0, 0)
    assert found.attrs == {"mrc_origin_angstrom": [3, 2, 1], "mrc_start": [0, 0, 7]}


def test_no_voxel_size_is_unknown_and_the_file_converts(tmp_path):
    path = write(tmp_path / "a.mrc", sample((2, 3, 4), "int16"), size=(0, 0, 0))
    assert open_volume(path).resolution is None
    convert(open_volume(path), f"{tmp_path}/a.h5")
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/a.h5")[...], sample((2, 3, 4), "int16"))


LIES = [
    (0, struct.pack("<i", 2**31 - 1), "it is cut off, or its header is wrong"),
    (0, struct.pack("<i", -5), "its header is wrong"),
    (8, struct.pack("<i", 0), "its header is wrong"),
    (12, struct.pack("<i", 4), r"is of mode 4; MRC is read in the modes 0 \(int8\)"),
    (12, struct.pack("<i", 101), "is of mode 101"),
    (92, struct.pack("<i", 2**31 - 1), "it is cut off"),
    (92, struct.pack("<i", -1), "its header is wrong"),
    (64, struct.pack("<3i", 1, 1, 2), "says that its axes are"),
    (208, b"PAM ", "no MRC file of 2000 or later"),
    (212, b"\x11\x11\0\0", "is of mode"),
]


@pytest.mark.parametrize("place,data,text", LIES)
def test_a_header_that_lies_is_one_sentence(tmp_path, place, data, text):
    path = write(tmp_path / "a.mrc", sample((2, 3, 4), "int16"))
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)
    with pytest.raises(InputError, match=text):
        open_volume(path)


def test_a_file_that_is_cut_off_or_no_volume_is_refused(tmp_path):
    path = write(tmp_path / "a.mrc", sample((2, 3, 4), "int16"))
    whole = path.read_bytes()
    for length, text in ((len(whole) - 1, "it is cut off"), (500, "too few for the header")):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=text):
            open_volume(path)
    with pytest.raises(InputError, match="no format to write"), create_volume(tmp_path / "b.mrc", (2, 2, 2), "int16"):
        pass


def test_without_mrcfile_the_extra_is_named(tmp_path):
    write(tmp_path / "a.mrc", sample((2, 3, 4), "int16"))
    code = "import sys; sys.modules['mrcfile'] = None; from emcore import open_volume; open_volume(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, f"{tmp_path}/a.mrc"], capture_output=True, text=True)
    assert f"reading MRC needs the extra mrc, which is not installed here: {installation('mrc')}" in ended.stderr

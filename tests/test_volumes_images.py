"""Folders of PNG and JPEG, and TIFF that needs imagecodecs: what is read, in which order, and what is refused."""

import io
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from emcore.errors import InputError, installation
from emcore.png import encode_png
from emcore.volumes import create_volume, open_volume
from emcore.volumes.sections import in_order

imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed: the extra tiff brings it")


def sections(count=12, dtype="uint8", shape=(20, 33)):
    random = np.random.default_rng(0)
    return random.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)


def write(folder, array, encode, suffix, name="im"):
    folder.mkdir(exist_ok=True)
    for number, section in enumerate(array):
        (folder / f"{name}{number}{suffix}").write_bytes(encode(section))
    return folder


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_folder_of_png_is_a_volume_in_the_order_of_numbers(tmp_path, dtype):
    array = sections(dtype=dtype)
    folder = write(tmp_path / "a", array, imagecodecs.png_encode, ".PNG")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    found = open_volume(folder)
    assert (found.shape, found.dtype, found.resolution, found.chunks) == (array.shape, array.dtype, None, (1, 20, 33))
    np.testing.assert_array_equal(found[...], array)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[9:3:1, ::3], array[9:3:1, ::3])
    np.testing.assert_array_equal(found[1::4, 3:9:2, 5], array[1::4, 3:9:2, 5])
    np.testing.assert_array_equal(open_volume(folder / "im10.PNG")[...], array[10:11])


def test_what_our_own_writer_makes_is_read(tmp_path):
    array = sections()
    np.testing.assert_array_equal(open_volume(write(tmp_path / "a", array, encode_png, ".png"))[...], array)


def test_a_folder_of_jpeg_is_what_the_library_decodes(tmp_path):
    array = sections()
    folder = write(tmp_path / "a", array, imagecodecs.jpeg8_encode, ".jpg")
    wanted = [imagecodecs.jpeg8_decode((folder / f"im{number}.jpg").read_bytes()) for number in range(len(array))]
    np.testing.assert_array_equal(open_volume(folder)[...], wanted)
    (folder / "im3.jpg").rename(folder / "im3.jpeg")
    np.testing.assert_array_equal(open_volume(folder)[...], wanted)


def test_names_are_in_the_order_that_people_read():
    names = ["z10_a2", "z9_b", "z010_a1", "a", "z9_a", "z2"]
    assert sorted(names, key=in_order) == ["a", "z2", "z9_a", "z9_b", "z010_a1", "z10_a2"]


def test_a_folder_with_tiff_in_it_is_tiff(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    folder = write(tmp_path / "a", sections(2), encode_png, ".png")
    tifffile.imwrite(folder / "0.tif", sections(1)[0])
    assert open_volume(folder).shape == (1, 20, 33)


REFUSED = [
    ({"a1.png": encode_png(sections(1)[0]), "a2.png": encode_png(sections(1)[0, :5])}, r"differ: a1.png is \(20, 33\)"),
    ({"a1.png": encode_png(sections(1)[0]), "a2.jpg": imagecodecs.jpeg8_encode(sections(1)[0])}, "both JPEG and PNG"),
    ({"a.png": imagecodecs.png_encode(np.zeros((4, 5, 3), np.uint8))}, "has colour; save it as grey"),
    ({"a.png": imagecodecs.png_encode(np.zeros((4, 5, 2), np.uint8))}, "has transparency"),
    ({"a.jpg": imagecodecs.jpeg8_encode(np.zeros((4, 5, 3), np.uint8))}, "3 samples per pixel"),
    ({"a.png": b""}, "neither PNG nor JPEG"),
    ({"a.png": encode_png(sections(1)[0])[:20]}, "neither PNG nor JPEG"),
    ({"a.jpg": b"\xff\xd8\xff\xe0"}, "no frame of an image"),
    ({"a.jpg": b"\xff\xd8" + b"\xff\xe0\0\x02" * 20_000}, "no frame of an image"),
    ({"notes.txt": b"x"}, r"holds no slices \(.tif, .png or .jpg\)"),
]


@pytest.mark.parametrize("files,text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_stack_of_grey_images_is_one_sentence(tmp_path, files, text):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=text):
        open_volume(tmp_path)


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    good = bytearray(encode_png(sections(1)[0]))
    good[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    (tmp_path / "a.png").write_bytes(good)
    with pytest.raises(InputError, match="claims"):
        open_volume(tmp_path / "a.png")
    jpeg = bytearray(imagecodecs.jpeg8_encode(sections(1)[0]))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5:frame + 9] = struct.pack(">HH", 65500, 65500)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    with pytest.raises(InputError, match="claims"):
        open_volume(tmp_path / "a.jpg")
    with open(tmp_path / "b.png", "wb") as file:
        file.write(encode_png(sections(1)[0]))
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="far more than its"):
        open_volume(tmp_path / "b.png")


def test_a_damaged_or_changed_image_is_named_when_it_is_read(tmp_path):
    folder = write(tmp_path / "a", sections(3), encode_png, ".png")
    found = open_volume(folder)
    (folder / "im1.png").write_bytes((folder / "im1.png").read_bytes()[:-40])
    np.testing.assert_array_equal(found[0], sections(3)[0])
    with pytest.raises(InputError, match=r"im1\.png is damaged"):
        found[1]
    (folder / "im2.png").write_bytes(encode_png(sections(1)[0, :4]))
    with pytest.raises(InputError, match=r"im2\.png has changed"):
        found[2]
    with pytest.raises(InputError, match="no format to write"), create_volume(tmp_path / "b.png", (1, 2, 3), "u1"):
        pass


def test_without_imagecodecs_the_extra_is_named(tmp_path):
    folder = write(tmp_path / "a", sections(2), encode_png, ".png")
    code = "import sys; sys.modules['imagecodecs'] = None; from emcore import open_volume; open_volume(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert f"reading PNG and JPEG needs the extra tiff, which is not installed here: {installation('tiff')}" in (
        ended.stderr)


# ---- TIFF


@pytest.mark.parametrize("compression,predictor", [("lzw", False), ("lzw", True), ("zlib", False), ("zlib", True),
                                                   ("packbits", False), ("lzma", False), ("zstd", False)])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 3}, {"bigtiff": True}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_is_read_in_every_packing(tmp_path, compression, predictor, options, dtype):
    tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    array = sections(3, dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, predictor=predictor, photometric="minisblack",
                     **options)
    found = open_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(found[...], array)
    np.testing.assert_array_equal(found[1, 3:7, 2:30:3], array[1, 3:7, 2:30:3])


def lying(path, compression, data, height=64, width=64):
    """A TIFF file of one strip whose header says that it holds fewer pixels than the strip unpacks to."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 134),
            (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    file = io.BytesIO()
    file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)))
    for tag, kind, value in tags:
        file.write(struct.pack("<HHII", tag, kind, 1, value))
    file.write(bytes(4))
    path.write_bytes(file.getvalue().ljust(134, b"\0") + data)


READ_BOMB = """import sys
from emcore.errors import InputError, installation
from emcore.volumes import open_volume
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
volume = open_volume(sys.argv[1])
before = peak()
try:
    volume[...]
except InputError as error:
    print(error)
assert peak() - before < 60_000, peak() - before
"""


@pytest.mark.parametrize("compression,encode", [(5, "lzw_encode"), (8, "zlib_encode"), (50000, "zstd_encode"),
                                                (7, "jpeg8_encode")])
def test_a_strip_that_unpacks_to_more_than_its_page_takes_no_memory(tmp_path, compression, encode):
    pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    big = np.zeros((10_000, 12_000), np.uint8)
    lying(tmp_path / "a.tif", compression, getattr(imagecodecs, encode)(big if compression == 7 else big.tobytes()))
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", READ_BOMB, f"{tmp_path}/a.tif"], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_packing_that_is_not_read_is_named(tmp_path):
    pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    lying(tmp_path / "a.tif", 34887, bytes(200))
    with pytest.raises(InputError, match="is compressed by LERC; TIFF is read uncompressed or compressed by LZW, JPEG"):
        open_volume(tmp_path / "a.tif")

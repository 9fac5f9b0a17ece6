"""PNG files, checked against the format by a decoder of its own, and the colours of labels."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.png import colour_labels, encode_png, overlay, write_png


def decode_png(data):
    """The image in a PNG file of the kinds written here: slow, obvious, checks every checksum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, parts, names = 8, {}, []
    while position < len(data):
        length, name = struct.unpack(">I4s", data[position:position + 8])
        body = data[position + 8:position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length:position + 12 + length])[0] == zlib.crc32(name + body)
        parts[name] = body
        names.append(name)
        position += 12 + length
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, kind, compression, method, interlace = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, compression, method, interlace) == (8, 0, 0, 0)
    channels = {0: 1, 2: 3}[kind]
    raw = zlib.decompress(parts[b"IDAT"])
    stride = width * channels
    assert len(raw) == height * (stride + 1)
    rows, above = [], bytes(stride)
    for y in range(height):
        kind_of_filter, row = raw[y * (stride + 1)], raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)]
        if kind_of_filter == 2:
            row = bytes((a + b) % 256 for a, b in zip(row, above))
        rows.append(row)
        above = row
    image = np.frombuffer(b"".join(rows), np.uint8)
    return image.reshape((height, width) if channels == 1 else (height, width, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 17), (1, 1, 3), (9, 5, 3)])
def test_a_decoder_gets_back_every_pixel(shape):
    random = np.random.default_rng(0)
    for image in (random.integers(0, 256, shape, dtype=np.uint8), np.zeros(shape, np.uint8),
                  np.cumsum(np.ones(shape), 0).astype(np.uint8)):
        np.testing.assert_array_equal(decode_png(encode_png(image)), image)


def test_read_only_and_strided_images_are_taken_as_they_are():
    image = np.arange(200, dtype=np.uint8).reshape(10, 20)
    image.setflags(write=False)
    np.testing.assert_array_equal(decode_png(encode_png(image[::-2, ::3])), image[::-2, ::3])


def test_an_installed_reader_agrees(tmp_path):
    images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = np.random.default_rng(1).integers(0, 256, (31, 18, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", image)
    np.testing.assert_array_equal(np.asarray(images.open(tmp_path / "picture.png")), image)


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 3), np.uint8),
                                   np.zeros(5, np.uint8)])
def test_other_arrays_are_refused_with_what_came(image):
    with pytest.raises(InputError, match="uint8 image"):
        encode_png(image)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    code = ("import resource, sys, numpy as np; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
            "from emcore.png import write_png;"
            "write_png(sys.argv[1], np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8))")
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, check=False)
    assert result.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_background_is_black_and_every_other_label_is_bright_and_keeps_its_colour():
    labels = np.array([0, 1, 2, 3, 2**40, 2**64 - 1, 1, 0], dtype=np.uint64)
    colours = colour_labels(labels)
    assert colours.dtype == np.uint8
    assert colours.shape == (8, 3)
    assert not colours[labels == 0].any()
    assert colours[labels != 0].max(1).min() >= 180
    np.testing.assert_array_equal(colours[1], colours[6])
    np.testing.assert_array_equal(colour_labels(labels[1:4].astype(np.int32)), colours[1:4])


def test_labels_next_to_each_other_differ_in_colour():
    colours = colour_labels(np.arange(1, 2001)).astype(int)
    distance = np.abs(np.diff(colours, axis=0)).sum(1)
    assert np.median(distance) > 150
    assert (distance == 0).mean() < 0.005


def test_float_labels_have_no_colours():
    with pytest.raises(InputError, match="integers"):
        colour_labels(np.zeros((2, 2)))


def test_an_overlay_tints_labelled_pixels_and_leaves_the_others_grey():
    image = np.full((2, 3), 100, np.uint8)
    labels = np.array([[0, 5, 5], [0, 0, 9]])
    result = overlay(image, labels, strength=0.5)
    assert (result[labels == 0] == 100).all()
    expected = np.round(50 + 0.5 * colour_labels(labels)[labels != 0].astype(float))
    assert np.abs(result[labels != 0] - expected).max() <= 1
    with pytest.raises(InputError, match="one shape"):
        overlay(image, labels[:1])

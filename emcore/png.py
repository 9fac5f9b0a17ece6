"""Pictures as PNG with zlib alone: grey and RGB images, labels in colours, labels over an image."""

import os
import struct
import zlib

import numpy as np

from emcore.errors import InputError
from emcore.files import write_bytes


def encode_png(image: np.ndarray) -> bytes:
    """The PNG file of a uint8 image: grey (y, x) or RGB (y, x, 3)."""
    image = np.asarray(image)
    grey, colour = image.ndim == 2, image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (grey or colour) or image.size == 0:
        raise InputError(f"a PNG needs a non-empty uint8 image (y, x) or (y, x, 3); got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, -1)
    # Every row starts with its filter: 0 stores it, 2 stores the difference to the row above.
    # Differences suit micrographs, plain bytes suit flat label colours; the smaller file is taken.
    stored = np.pad(rows, ((0, 0), (1, 0)))
    differences = stored.copy()
    differences[:, 0] = 2
    differences[1:, 1:] -= rows[:-1]
    pixels = min((zlib.compress(data.tobytes(), 6) for data in (stored, differences)), key=len)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 image (y, x) or (y, x, 3); the file appears under its name when it is whole."""
    write_bytes(path, encode_png(image))


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """RGB uint8 (..., 3) of integer labels: 0 is black, every other label has always the same bright colour."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "uib":
        raise InputError(f"labels must be integers; got {labels.dtype}")
    # Neighbouring ids get unrelated colours: a multiplicative hash picks one of 4096.
    index = (labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(52)
    colours = _palette()[index]
    colours[labels == 0] = 0
    return colours


def _palette() -> np.ndarray:
    number = np.arange(4096)
    hue = number * 0.6180339887 % 1 * 6
    saturation = np.array([1.0, 0.6, 0.8, 0.45])[number % 4]
    value = np.array([1.0, 0.75, 0.9])[number % 3]
    pure = np.clip(np.abs((hue[:, None] + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    return np.round(255 * value[:, None] * (1 - saturation[:, None] * (1 - pure))).astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, strength: float = 0.4) -> np.ndarray:
    """RGB uint8 (y, x, 3): a grey uint8 image (y, x) tinted with the colours of its labels; label 0 stays grey."""
    image, labels = np.asarray(image), np.asarray(labels)
    if image.dtype != np.uint8 or image.shape != labels.shape:
        raise InputError(f"an overlay needs a uint8 image and labels of one shape; got {image.shape} {image.dtype} "
                         f"and {labels.shape}")
    weight = np.where(labels != 0, np.float32(strength), np.float32(0))[..., None]
    return np.round(image[..., None] * (1 - weight) + colour_labels(labels) * weight).astype(np.uint8)

"""What the headers of PNG and JPEG images say of their size, read before anything of them is unpacked."""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from emcore.errors import InputError

COLOURS = {2: "colour", 3: "a palette", 4: "transparency", 6: "colour and transparency"}
NO_FRAME = {0xC4, 0xC8, 0xCC}  # markers of JPEG among those of its frames
MOST_MARKERS = 10_000
Header = tuple[int, int, np.dtype]  # height, width and type


def png_header(path: Path, file: BinaryIO) -> Header:
    begins = file.read(26)
    if len(begins) < 26 or not begins.startswith(b"\x89PNG\r\n\x1a\n") or begins[12:16] != b"IHDR":
        raise InputError(f"{path} is neither PNG nor JPEG; it begins with {begins[:8]!r}")
    width, height, depth, colour = struct.unpack(">IIBB", begins[16:26])
    if colour:
        raise InputError(f"{path} has {COLOURS.get(colour, 'an unknown kind of pixels')}; save it as grey values")
    if depth not in (8, 16):
        raise InputError(f"{path} has {depth} bits a pixel; save it with 8 or 16")
    return height, width, np.dtype("uint8" if depth == 8 else "uint16")


def jpeg_header(path: Path, file: BinaryIO) -> Header:
    """What the frame of a JPEG file says; the segments before it are passed over."""
    file.seek(2)
    for _ in range(MOST_MARKERS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            break
        if marker[1] == 0xFF:  # a byte that fills up
            file.seek(-1, 1)
            continue
        length = file.read(2)
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in NO_FRAME:
            frame = file.read(6)
            if len(frame) < 6:
                break
            bits, height, width, samples = struct.unpack(">BHHB", frame)
            if samples != 1:
                raise InputError(f"{path} has {samples} samples per pixel (colour); save it as grey values")
            if bits != 8:
                raise InputError(f"{path} has {bits} bits a pixel; save it with 8")
            return height, width, np.dtype("uint8")
        if len(length) < 2 or int.from_bytes(length) < 2:
            break
        file.seek(int.from_bytes(length) - 2, 1)
    raise InputError(f"{path} is damaged: no frame of an image is found in it")

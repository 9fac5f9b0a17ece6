"""Neuroglancer's precomputed annotations read as their specification describes them, one byte after the other."""

import json
import struct
from pathlib import Path

SIZES = {"float32": ("<f", 4), "uint32": ("<I", 4), "uint8": ("<B", 1)}


class Annotations:
    """The lines in a folder: by their numbers, by related objects, by cells of each level."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = json.loads((self.folder / "info").read_text())
        assert self.info["annotation_type"] == "LINE"
        self.size = 24 + sum(SIZES[row["type"]][1] for row in self.info["properties"])
        self.size += -self.size % 4

    def index(self, about):
        """Number -> bytes of every entry of an index."""
        found, sharding = {}, about["sharding"]
        assert (sharding["hash"], sharding["preshift_bits"], sharding["shard_bits"]) == ("identity", 0, 0)
        data = (self.folder / about["key"] / "0.shard").read_bytes()
        begin = 16 << sharding["minishard_bits"]
        for minishard in range(1 << sharding["minishard_bits"]):
            start, stop = struct.unpack_from("<QQ", data, 16 * minishard)
            count = (stop - start) // 24
            numbers = struct.unpack_from(f"<{3 * count}Q", data, begin + start)
            number = at = 0
            for entry in range(count):
                number += numbers[entry]
                assert number & ((1 << sharding["minishard_bits"]) - 1) == minishard
                at += numbers[count + entry]
                size = numbers[2 * count + entry]
                assert number not in found
                found[number] = data[begin + at:begin + at + size]
                at += size
        return found

    def line(self, data):
        """((ax, ay, az), (bx, by, bz)) and the properties of a line."""
        places, at, values = struct.unpack_from("<6f", data), 24, {}
        for row in self.info["properties"]:
            code, size = SIZES[row["type"]]
            (values[row["id"]],) = struct.unpack_from(code, data, at)
            at += size
        return places[:3], places[3:], values

    def by_id(self):
        """Number -> (line, related objects in the order of the relationships)."""
        found = {}
        for number, data in self.index(self.info["by_id"]).items():
            at, related = self.size, []
            for _ in self.info["relationships"]:
                (count,) = struct.unpack_from("<I", data, at)
                related.append(struct.unpack_from(f"<{count}Q", data, at + 4))
                at += 4 + 8 * count
            assert at == len(data)
            found[number] = self.line(data), related
        return found

    def lists(self, about):
        """Number of an object or cell -> {number of a line: line}."""
        found = {}
        for key, data in self.index(about).items():
            (count,) = struct.unpack_from("<Q", data)
            assert len(data) == 8 + count * (self.size + 8)
            numbers = struct.unpack_from(f"<{count}Q", data, 8 + count * self.size)
            found[key] = {number: self.line(data[8 + place * self.size:]) for place, number in enumerate(numbers)}
        return found


def cell_number(cell, grid):
    """The bits of a cell along x, y and z in turn, as long as the grid has bits left there."""
    number = place = 0
    for bit in range(32):
        for along, count in zip(cell, grid):
            if (count - 1) >> bit:
                number |= (along >> bit & 1) << place
                place += 1
    return number

"""The trees of webknossos (NML): XML of which nothing is taken but elements and their attributes."""

import math
from typing import Any
from xml.parsers import expat

import numpy as np

from emcore.errors import InputError
from emcore.reading import shown

UNITS = {"nm": 1.0, "nanometer": 1.0, "nanometers": 1.0, "um": 1e3, "µm": 1e3, "micrometer": 1e3, "micrometers": 1e3}
LONGEST_NUMBER = 40
Parts = dict[int, tuple[np.ndarray, np.ndarray]]


class Trees:
    """What the elements of a file say, in the order in which they come."""

    def __init__(self, name: str):
        self.name = name
        self.scale: list[float] | None = None
        self.things: dict[int, tuple[dict[int, list[float]], list[tuple[int, int]]]] = {}
        self.current: tuple[dict, list] | None = None

    def refuse(self, *_: Any) -> None:
        raise InputError(f"{self.name} declares a document type or entities, which no file of webknossos does; it is "
                         "not read")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "scale":
            unit = UNITS.get(attributes.get("unit", "nm"))
            if unit is None:
                raise InputError(f"{self.name} has the unit {shown(attributes['unit'])}; nm and um are known")
            self.scale = [self.number(tag, attributes, axis) * unit for axis in "zyx"]
        elif tag == "thing":
            label = self.whole(tag, attributes, "id")
            if label in self.things:
                raise InputError(f"{self.name} has two trees of the id {label}")
            self.current = self.things[label] = ({}, [])
        elif tag == "node" and self.current is not None:
            node = self.whole(tag, attributes, "id")
            if node in self.current[0]:
                raise InputError(f"{self.name} has two nodes of the id {node} in one tree")
            self.current[0][node] = [self.number(tag, attributes, axis) for axis in "zyx"]
        elif tag == "edge" and self.current is not None:
            self.current[1].append((self.whole(tag, attributes, "source"), self.whole(tag, attributes, "target")))

    def end(self, tag: str) -> None:
        if tag == "thing":
            self.current = None

    def number(self, tag: str, attributes: dict[str, str], key: str) -> float:
        text = attributes.get(key, "")
        try:
            value = float(text) if len(text) <= LONGEST_NUMBER else math.nan
        except ValueError:
            value = math.nan
        if not abs(value) < 1e15:
            raise InputError(f"{self.name} has an element {tag} whose {key} is no number: {shown(text)}")
        return value

    def whole(self, tag: str, attributes: dict[str, str], key: str) -> int:
        text = attributes.get(key, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64):
            raise InputError(f"{self.name} has an element {tag} whose {key} is no whole number: {shown(text)}")
        return int(text)


def read_nml(data: bytes, name: str) -> Parts:
    """Nodes in nm, z y x, and edges of every tree, by its id; nodes of NML are voxels of the size that it says."""
    trees = Trees(name)
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = trees.start, trees.end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = trees.refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{name} is not XML that can be read: {expat.errors.messages.get(error.code, error)} in line "
                         f"{error.lineno}") from None
    except (LookupError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not XML that can be read: its encoding is not known") from None
    if trees.scale is None or min(trees.scale) <= 0:
        raise InputError(f"{name} does not say the size of a voxel: it has no element scale with x, y and z above 0")
    found: Parts = {}
    for label, (nodes, edges) in trees.things.items():
        place = {node: row for row, node in enumerate(nodes)}
        if lost := [end for edge in edges for end in edge if end not in place]:
            raise InputError(f"{name} has an edge to node {lost[0]}, which its tree {label} does not have")
        places = np.array(list(nodes.values()), np.float64).reshape(-1, 3) * trees.scale
        found[label] = places, np.array([[place[end] for end in edge] for edge in edges], np.int64).reshape(-1, 2)
    return found

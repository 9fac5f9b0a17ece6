"""Skeletons as files: SWC and Neuroglancer's precomputed ones are written, and these and others are read.

    write_skeletons("folder", skeletons, "swc")       # a file for each tree
    skeletons = read_skeletons("folder")              # or a file .swc, .nml, .csv, .pkl
"""

import json
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.reading import DEEPEST, is_deep, open_regular, read_text, shown
from emcore.segment.plain_pickle import read_graph
from emcore.segment.skeleton_xml import read_nml
from emcore.segment.skeletons import Skeleton

FORMATS = ("swc", "precomputed")
MOST_BYTES = 1 << 30  # A larger file of skeletons is refused.
NAME = re.compile(r"(\d{1,20})(?:-\d+)?")  # the id of an object, and which of its trees the file holds
KIND = "neuroglancer_skeletons"
TYPES = {"float32": 4, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4}
IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
HEAD = "# emcore; x, y, z and radius in nm; nodes follow their parents\n"


# ---- writing


def write_skeletons(folder: str | PathLike, skeletons: Mapping[int, Skeleton], format: str = "swc") -> Path:
    """Writes the skeletons of objects into a new folder, which appears when it is whole.

    "swc" writes ID.swc, or ID-1.swc, ID-2.swc, ... where an object has several trees, in nm. An SWC file holds one
    tree, so cycles are broken: from the root nodes are taken breadth first, neighbours by rising number, and an edge
    that meets a node which is there already is left out. The root is the first node from which no edge leads on, or
    where there is none the first of all. "precomputed" writes Neuroglancer's format without shards, x, y, z in nm with
    the radius.

    Args:
        folder: the folder to make.
        skeletons: a dict from id to `Skeleton`.
        format: "swc" (the default) or "precomputed".

    Returns:
        The path of the folder.

    Raises:
        InputError: the folder is there already, there is no such format, or the disk fails.

    Cost:
        A node takes about 60 bytes of SWC.

    Examples:
        `read_skeletons` shows both.

        >>> import numpy as np, tempfile
        >>> from emcore import segment
        >>> found = segment.skeletonize(np.ones((3, 3, 40), np.uint8), (8, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_skeletons(f"{folder}/skeletons", found, "precomputed").name
        'skeletons'
    """
    checked = {_object_id(label): check_skeleton(skeleton, f"skeleton {label}")
               for label, skeleton in skeletons.items()}
    path = check_folder(folder, format)
    write_each(path, checked.items(), format)
    return path


def check_folder(folder: str | PathLike, format: str) -> Path:
    """The folder of skeletons to make; refused where it is there already."""
    path = Path(folder)
    if format not in FORMATS:
        raise InputError(f"skeletons are written as {' or '.join(FORMATS)}; got {format!r}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name for the folder of skeletons, or remove it")
    return path


def write_each(path: Path, skeletons: Iterable[tuple[int, Skeleton]], format: str) -> None:
    """Writes sound skeletons, one after the other, into a new folder that appears when it is whole."""
    with replaced(path) as temporary, reported(path):
        temporary.mkdir()
        for label, skeleton in skeletons:
            if format == "precomputed":
                (temporary / str(label)).write_bytes(to_precomputed(skeleton))
                continue
            trees = trees_of(skeleton)
            for number, order in enumerate(trees, start=1):
                name = f"{label}.swc" if len(trees) == 1 else f"{label}-{number}.swc"
                (temporary / name).write_text(to_swc(skeleton, order), encoding="ascii", newline="\n")
        if format == "precomputed":
            (temporary / "info").write_text(json.dumps({
                "@type": KIND, "transform": IDENTITY,
                "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}]}))


def _object_id(label: int) -> int:
    if not isinstance(label, int | np.integer) or not 0 <= label < 2**64:
        raise InputError(f"skeletons are named by ids from 0 to 2**64 - 1; got {label!r}")
    return int(label)


def check_skeleton(skeleton: Skeleton, name: str) -> Skeleton:
    """The skeleton with plain arrays, if its edges and numbers are sound."""
    vertices, edges, radius = (np.asarray(part) for part in (skeleton.vertices, skeleton.edges, skeleton.radius))
    edges = edges.reshape(0, 2) if edges.size == 0 else edges
    sound = (vertices.ndim == 2 and vertices.shape[1] == 3 and radius.shape == (len(vertices),)
             and edges.ndim == 2 and edges.shape[1] == 2)
    if not sound:
        raise InputError(f"{name} must have vertices (n, 3), edges (m, 2) and a radius (n,); got {vertices.shape}, "
                         f"{edges.shape} and {radius.shape}")
    if not (np.isfinite(vertices).all() and np.isfinite(radius).all()):
        raise InputError(f"{name} has places or radii that are no finite numbers")
    if len(edges) and not (edges.dtype.kind in "iu" and 0 <= edges.min() <= edges.max() < len(vertices)):
        raise InputError(f"{name} has {len(vertices)} nodes, but its edges name {edges.min()} to {edges.max()}")
    return Skeleton(vertices, edges.astype(np.int64), radius)


def trees_of(skeleton: Skeleton) -> list[list[tuple[int, int]]]:
    """Every tree as (node, its parent or -1), parents first; trees by their first nodes."""
    around: list[list[int]] = [[] for _ in range(len(skeleton.vertices))]
    for one, other in skeleton.edges.tolist():
        around[one].append(other)
        around[other].append(one)
    leads_on = np.zeros(len(around), bool)
    leads_on[skeleton.edges[:, 0]] = True
    piece = np.full(len(around), -1)
    roots: list[int] = []
    for node in range(len(around)):
        if piece[node] >= 0:
            continue
        members, piece[node] = [node], len(roots)
        for member in members:
            for other in around[member]:
                if piece[other] < 0:
                    piece[other] = len(roots)
                    members.append(other)
        ends = [member for member in members if not leads_on[member]]
        roots.append(min(ends or members))
    trees = []
    seen = np.zeros(len(around), bool)
    for root in roots:
        seen[root] = True
        order = [(root, -1)]
        for node, _ in order:
            for other in sorted(around[node]):
                if not seen[other]:
                    seen[other] = True
                    order.append((other, node))
        trees.append(order)
    return trees


def to_swc(skeleton: Skeleton, order: list[tuple[int, int]]) -> str:
    """The text of a tree: number, compartment 0, x, y, z, radius and the number of the parent, -1 for the root."""
    number = {node: place for place, (node, _) in enumerate(order, start=1)}
    places, radii = skeleton.vertices.tolist(), skeleton.radius.tolist()
    lines = [f"{number[node]} 0 {places[node][2]!r} {places[node][1]!r} {places[node][0]!r} {radii[node]!r} "
             f"{number.get(parent, -1)}\n" for node, parent in order]
    return HEAD + "".join(lines)


def to_precomputed(skeleton: Skeleton) -> bytes:
    """Neuroglancer's bytes of a skeleton: both counts, places x, y, z, edges, radii."""
    counts = np.array([len(skeleton.vertices), len(skeleton.edges)], "<u4")
    places = np.ascontiguousarray(skeleton.vertices[:, ::-1], "<f4")
    return (counts.tobytes() + places.tobytes() + skeleton.edges.astype("<u4").tobytes()
            + skeleton.radius.astype("<f4").tobytes())


# ---- reading


def read_skeletons(path: str | PathLike) -> dict[int, Skeleton]:
    """Reads the skeletons of a file or folder.

    A folder of SWC files names each skeleton by the number that its file begins with (12.swc, 12-1.swc); where some
    name has none, all are numbered from 1 by their names. One SWC file is skeleton 1, or its number. A folder of
    Neuroglancer's precomputed skeletons without shards, the NML of webknossos, a CSV with the columns skeleton, node,
    z, y, x and parent in nm (the parent of a root is empty or below 0), and the PKL of NISB can be read, too. A pickle
    is read as data, and nothing in it is executed; its places stay in the order of the axes of NISB's arrays.

    Args:
        path: the file or folder.

    Returns:
        A dict from id to `Skeleton`, in nm, z, y, x; a radius that the file does not say is 0.

    Raises:
        InputError: the file is of no known format, or damaged.

    Cost:
        The file is read whole; a node takes about 100 bytes.

    Examples:
        >>> import numpy as np, tempfile
        >>> from emcore import segment
        >>> found = segment.skeletonize(np.ones((3, 3, 40), np.uint8), (8, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = segment.write_skeletons(f"{folder}/skeletons", found)
        ...     sorted(segment.read_skeletons(written))
        [1]
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix.lower() == ".swc":
            return {_name(path, 1): read_swc(path)}
        if path.suffix.lower() == ".csv":
            return read_csv(path)
        readers = {".nml": read_nml, ".pkl": read_graph, ".pickle": read_graph}
        if path.suffix.lower() not in readers:
            raise InputError(f"{path} is no file of skeletons that is known: .swc, .nml, .csv, .pkl, or a folder")
        data = read_bytes(path)
        parts = readers[path.suffix.lower()](data, str(path))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return {label: check_skeleton(Skeleton(places, edges, np.zeros(len(places))), f"skeleton {label} of {path}")
            for label, (places, edges) in parts.items()}


def read_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} is larger than {MOST_BYTES >> 20} MiB, too large for a file of skeletons")
    return data


def _name(path: Path, otherwise: int) -> int:
    match = NAME.fullmatch(path.stem)
    return int(match[1]) if match and int(match[1]) < 2**64 else otherwise


def _read_folder(path: Path) -> dict[int, Skeleton]:
    if (path / "info").exists():
        return read_precomputed(path)
    files = sorted(path.glob("*.swc"))
    if not files:
        raise InputError(f"{path} holds no skeletons: neither files *.swc nor the file info of Neuroglancer's")
    labels = [_name(file, -1) for file in files]
    if -1 in labels:
        labels = list(range(1, len(files) + 1))
    found: dict[int, Skeleton] = {}
    for label, file in zip(labels, files):
        found[label] = joined(found[label], read_swc(file)) if label in found else read_swc(file)
    return found


def joined(one: Skeleton, other: Skeleton) -> Skeleton:
    """Both skeletons as one."""
    return Skeleton(np.concatenate([one.vertices, other.vertices]),
                    np.concatenate([one.edges, other.edges + len(one.vertices)]),
                    np.concatenate([one.radius, other.radius]))


def read_swc(path: Path) -> Skeleton:
    """The tree, or trees, of an SWC file; edges lead from a node to its parent."""
    lines = [line.split() for line in _lines(path) if line.strip() and not line.lstrip().startswith("#")]
    try:
        rows = [(int(line[0]), *map(float, line[2:6]), int(line[6])) for line in lines]
    except (ValueError, IndexError, OverflowError):
        raise InputError(f"{path} is not an SWC file: each line needs the numbers id, type, x, y, z, radius and "
                         "parent") from None
    return _of_parents(path, [row[0] for row in rows], [row[5] if row[5] >= 0 else None for row in rows],
                       np.array([row[3:0:-1] for row in rows], np.float64).reshape(-1, 3),
                       np.array([row[4] for row in rows], np.float64))


def read_csv(path: Path) -> dict[int, Skeleton]:
    """The skeletons of a table with a header."""
    lines = [line.split(",") for line in _lines(path) if line.strip()]
    head = [word.strip().lower() for word in lines[0]] if lines else []
    needed = ("skeleton", "node", "z", "y", "x", "parent")
    if missing := [name for name in needed if name not in head]:
        raise InputError(f"{path} needs the columns {', '.join(needed)}; it lacks {missing[0]}")
    at = {name: head.index(name) for name in head}
    rows: dict[int, list] = {}
    try:
        for line in lines[1:]:
            parent = line[at["parent"]].strip()
            radius = float(line[at["radius"]]) if "radius" in at else 0.0
            rows.setdefault(int(line[at["skeleton"]]), []).append(
                (int(line[at["node"]]), None if parent == "" or int(parent) < 0 else int(parent),
                 [float(line[at[axis]]) for axis in "zyx"], radius))
    except (ValueError, IndexError, OverflowError):
        raise InputError(f"{path} holds a line that is not made of numbers for {', '.join(needed)}") from None
    return {_object_id(label): _of_parents(path, *(list(column) for column in zip(*nodes)))
            for label, nodes in rows.items()}


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path, MOST_BYTES).splitlines()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None


def _of_parents(path: Path, names: list[int], parents: list[int | None], places, radius) -> Skeleton:
    place = {name: row for row, name in enumerate(names)}
    if len(place) < len(names):
        raise InputError(f"{path} gives two nodes of a skeleton one number")
    if lost := [parent for parent in parents if parent is not None and parent not in place]:
        raise InputError(f"{path} names the parent {shown(lost[0])}, but has no such node")
    edges = [(row, place[parent]) for row, parent in enumerate(parents) if parent is not None]
    return check_skeleton(Skeleton(np.array(places, np.float64).reshape(-1, 3),
                                   np.array(edges, np.int64).reshape(-1, 2), np.array(radius, np.float64)), str(path))


def read_precomputed(path: Path) -> dict[int, Skeleton]:
    """The skeletons of a folder of Neuroglancer's."""
    try:
        info = json.loads(read_text(path / "info"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path / 'info'} is not valid JSON") from None
    if is_deep(info, DEEPEST) or not isinstance(info, dict) or info.get("@type") != KIND:
        raise InputError(f"{path / 'info'} does not describe skeletons: its @type is not {KIND}")
    if info.get("sharding") is not None:
        raise InputError(f"{path} holds skeletons in shards, which are not read; write them without shards")
    matrix, attributes = _transform(path, info), _attributes(path, info)
    found = {}
    for file in sorted(path.iterdir()):
        if NAME.fullmatch(file.name) and file.name.isdigit() and int(file.name) < 2**64:
            found[int(file.name)] = of_precomputed(read_bytes(file), str(file), matrix, attributes)
    if not found and any(file.suffix == ".gz" for file in path.iterdir()):
        raise InputError(f"{path} holds files that end in .gz and no plain skeletons: unpack them by gzip -d")
    return found


def _transform(path: Path, info: dict) -> np.ndarray:
    numbers = info.get("transform", IDENTITY)
    good = isinstance(numbers, list) and len(numbers) == 12 and all(
        isinstance(number, int | float) and abs(number) < 1e12 for number in numbers)
    if not good:
        raise InputError(f"{path / 'info'} must have 12 numbers as its transform; got {shown(numbers)}")
    return np.array(numbers, np.float64).reshape(3, 4)


def _attributes(path: Path, info: dict) -> list[tuple[str, str, int]]:
    """Name, type and number of components of each attribute."""
    listed = info.get("vertex_attributes", [])
    for entry in listed if isinstance(listed, list) else [None]:
        good = isinstance(entry, dict) and isinstance(entry.get("id"), str) and (
            isinstance(entry.get("data_type"), str) and entry["data_type"] in TYPES) and (
            isinstance(entry.get("num_components"), int) and 1 <= entry["num_components"] <= 1000)
        if not good:
            raise InputError(f"{path / 'info'} has a vertex attribute without a name, a known type and a number of "
                             f"components: {shown(entry)}")
    return [(entry["id"], entry["data_type"], entry["num_components"]) for entry in listed]


def of_precomputed(data: bytes, name: str, matrix: np.ndarray, attributes: list[tuple[str, str, int]]) -> Skeleton:
    """The skeleton that Neuroglancer's bytes describe."""
    if len(data) < 8:
        raise InputError(f"{name} is cut off: a skeleton begins with two counts")
    nodes, links = (int(count) for count in np.frombuffer(data, "<u4", 2))
    size = 8 + 12 * nodes + 8 * links + sum(nodes * TYPES[kind] * count for _, kind, count in attributes)
    if len(data) != size:
        raise InputError(f"{name} should have {size} bytes for {nodes} nodes and {links} edges; it has {len(data)}")
    places = np.frombuffer(data, "<f4", 3 * nodes, 8).reshape(-1, 3).astype(np.float64)
    edges = np.frombuffer(data, "<u4", 2 * links, 8 + 12 * nodes).reshape(-1, 2).astype(np.int64)
    radius, at = np.zeros(nodes), 8 + 12 * nodes + 8 * links
    for attribute, kind, count in attributes:
        if attribute == "radius" and count == 1:
            radius = np.frombuffer(data, np.dtype(kind).newbyteorder("<"), nodes, at).astype(np.float64)
        at += nodes * TYPES[kind] * count
    with np.errstate(all="ignore"):  # what is no number is refused below
        places = places @ matrix[:, :3].T + matrix[:, 3]
    return check_skeleton(Skeleton(places[:, ::-1].copy(), edges, radius), name)

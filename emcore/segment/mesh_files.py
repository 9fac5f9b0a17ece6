"""Meshes as files: PLY (binary), OBJ, and the mesh folders of Neuroglancer's precomputed format; x, y, z in nm.

A precomputed folder has for the object N a manifest `N:0` that names one fragment, `N:0:mesh`, and the fragment.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.files import writing
from emcore.segment.meshes import Mesh

FORMATS = ("precomputed", "ply", "obj")
LEGACY_INFO = {"@type": "neuroglancer_legacy_mesh"}
LINES = 100_000  # So many lines of an OBJ file are made at a time.


def write_mesh(path: str | Path, whole: Mesh) -> None:
    """Writes a mesh as PLY (binary, little endian) or OBJ, by the ending of the name; axes are x, y, z in nm.

    Args:
        path: ends in .ply or .obj; a file of that name is replaced when the new one is whole.
        whole: the `Mesh`, as `mesh` returns it.

    Raises:
        InputError: the name ends in something else.

    Cost:
        It takes 1,100 ns of one core and 35 bytes per triangle.

    Examples:
        >>> import numpy as np, tempfile
        >>> from emcore import segment
        >>> one = segment.mesh(np.ones((4, 4, 4), np.uint8), (8, 8, 8))[1]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_mesh(f"{folder}/one.ply", one)
    """
    form = Path(path).suffix.lower().removeprefix(".")
    if form not in ("ply", "obj"):
        raise InputError(f"a mesh is written as .ply or .obj; got {path}")
    with writing(path) as file:
        for part in encoded(whole, form):
            file.write(part)


def encoded(whole: Mesh, form: str) -> Iterator[bytes]:
    """The bytes of a mesh in a format, part by part; precomputed: of its fragment."""
    points = np.ascontiguousarray(whole.vertices[:, ::-1], "<f4")
    faces = np.ascontiguousarray(whole.faces, "<u4")
    if form == "precomputed":
        yield np.array([len(points)], "<u4").tobytes()
        yield points.tobytes()
        yield faces.tobytes()
    elif form == "ply":
        yield ("ply\nformat binary_little_endian 1.0\ncomment x y z in nm\n"
               f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
               f"element face {len(faces)}\nproperty list uchar uint vertex_indices\nend_header\n").encode()
        yield points.tobytes()
        rows = np.empty(len(faces), [("count", "u1"), ("corners", "<u4", 3)])
        rows["count"], rows["corners"] = 3, faces
        yield rows.tobytes()
    else:
        yield b"# x y z in nm\n"
        for start in range(0, len(points), LINES):
            yield "".join(f"v {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in points[start : start + LINES].tolist()).encode()
        for start in range(0, len(faces), LINES):
            rows = (faces[start : start + LINES].astype(np.int64) + 1).tolist()  # OBJ counts from 1
            yield "".join(f"f {a} {b} {c}\n" for a, b, c in rows).encode()


def read_fragment(path: Path) -> Mesh:
    """The mesh in a fragment of a precomputed folder."""
    data = np.fromfile(path, np.uint8)
    count = int(data[:4].view("<u4")[0]) if len(data) >= 4 else -1
    begin = 4 + 12 * count
    if count < 0 or begin > len(data) or (len(data) - begin) % 12:
        raise InputError(f"{path} is no fragment of a mesh: its {len(data)} bytes do not hold the {count} vertices "
                         "that it announces, and triangles; remove it and make the meshes again")
    faces = data[begin:].view("<u4").reshape(-1, 3)
    if len(faces) and faces.max() >= count:
        raise InputError(f"{path} has a triangle at vertex {faces.max()}, but {count} vertices; remove it and make the "
                         "meshes again")
    return Mesh(np.ascontiguousarray(data[4:begin].view("<f4").reshape(-1, 3)[:, ::-1]), faces.astype(np.uint32))


def names(label: int, form: str) -> list[str]:
    """The files of an object in a folder; the first one holds the mesh."""
    return [f"{label}:0:mesh", f"{label}:0"] if form == "precomputed" else [f"{label}.{form}"]


def manifest(label: int) -> bytes:
    return json.dumps({"fragments": names(label, "precomputed")[:1]}).encode()

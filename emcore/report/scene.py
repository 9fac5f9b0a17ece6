"""A page that shows neurons and their synapses in 3-d: one file, which needs neither a server nor a network."""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from emcore.files import write_text
from emcore.png import colour_labels
from emcore.report.html import filled, policy, read
from emcore.segment.edges import Degrees
from emcore.segment.mesh_files import names, read_fragment
from emcore.segment.meshes import Mesh, simplify_mesh
from emcore.segment.wiring import Partners
from emcore.threads import run_parallel, thread_count

MESH_BYTES = 8_000_000  # The packed surfaces of a page share so many; simpler ones are taken until they fit.
MOST_SYNAPSES = 5000  # the largest ones; the page says where there are more
LEAST_MESH_BYTES = 20_000  # Each surface has this room, as a simple one takes some hundred triangles whatever its size.
STEPS = 65535  # into which the box of a neuron is divided along each axis


@dataclass(frozen=True)
class Neurons:
    """The neurons of a page, the first one on top of its list."""

    ids: np.ndarray  # (n,) uint64
    voxels: np.ndarray  # (n,) int64
    outgoing: np.ndarray  # (n,) int64: synapses in which it is presynaptic
    incoming: np.ndarray
    undirected: np.ndarray
    partners: np.ndarray


def neurons_of(ids: np.ndarray, voxels: np.ndarray, degrees: Degrees) -> Neurons:
    """The rows of all labels; those without a synapse have none of anything."""
    known = np.isin(ids, degrees.neurons)
    places = np.searchsorted(degrees.neurons, ids[known])
    columns = np.zeros((4, len(ids)), np.int64)
    for column, values in zip(columns, degrees[1:]):
        column[known] = values[places]
    return Neurons(ids, voxels, *columns)


def picked(neurons: Neurons, chosen: np.ndarray) -> Neurons:
    """The rows of some neurons, in that order."""
    return Neurons(*(getattr(neurons, name)[chosen] for name in Neurons.__dataclass_fields__))


def write_scene(out: Path, meshes: Path, neurons: Neurons, table: Partners | None, resolution: Sequence[float],
                box: np.ndarray, title: str) -> None:
    """Writes the page.

    meshes: the folder of precomputed meshes in which the neurons are. resolution: nm of a voxel, z y x. box: (2, 3),
    where the volume begins and ends, nm, z y x. Places in the page are x, y, z in nm from the middle of the volume.
    """
    middle = box.mean(0)
    bodies = drawn(meshes, neurons, middle)
    notes = [f"Neuron {label} has a surface too rich to be shown here: choose fewer neurons."
             for label, body in zip(neurons.ids.tolist(), bodies) if body is None]
    kept = [number for number, body in enumerate(bodies) if body is not None]
    shown, largest = picked(neurons, np.array(kept, np.int64)), max((bodies[row]["error"] for row in kept), default=0)
    synapses = synapses_of(table, shown.ids, resolution, middle) if table is not None else []
    if len(synapses) > MOST_SYNAPSES:
        notes.append(f"Shown are the {MOST_SYNAPSES:,} largest of {len(synapses):,} synapses of these neurons.")
    notes.append("Surfaces are those of the labels" + (
        f", simplified so that the page stays small: no vertex lies farther than {largest:.3g} nm from the simpler "
        "surface." if largest else "."))
    voxel = float(np.prod(resolution)) / 1e9
    rows = zip(shown.ids.tolist(), shown.voxels.tolist(), shown.outgoing.tolist(), shown.incoming.tolist(),
               shown.undirected.tolist(), shown.partners.tolist(), colour_labels(shown.ids).tolist())
    data = {"neurons": [
        {"id": str(label), "voxels": voxels, "volume": voxels * voxel, "outgoing": out, "incoming": into,
         "undirected": either, "partners": partners, "colour": colour, **bodies[number]}
        for number, (label, voxels, out, into, either, partners, colour) in zip(kept, rows)],
        "synapses": synapses[:MOST_SYNAPSES], "wired": table is not None,
        "half": ((box[1] - box[0])[::-1] / 2).tolist(), "middle": middle[::-1].tolist()}
    style, script = read("page.css") + read("scene.css"), read("scene_drawing.js") + read("scene.js")
    write_text(out, filled("scene.html", {
        "policy": policy(style, script), "style": style, "script": script, "title": "Neurons in 3-d",
        "subtitle": escape(title), "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c")}))


def drawn(meshes: Path, neurons: Neurons, middle: np.ndarray) -> list[dict[str, Any] | None]:
    """The packed surface of each neuron; None where it does not get small enough.

    Each has a share of MESH_BYTES that follows from the size of its file, and at least LEAST_MESH_BYTES.
    A thread holds one whole surface at a time.
    """
    paths = [meshes / names(label, "precomputed")[0] for label in neurons.ids.tolist()]
    sizes = [path.stat().st_size for path in paths]
    return run_parallel(lambda path, size: packed(read_fragment(path), middle,
                                                  max(MESH_BYTES * size // sum(sizes), LEAST_MESH_BYTES)),
                        list(zip(paths, sizes)), thread_count(None))


def packed(mesh: Mesh, middle: np.ndarray, room: int) -> dict[str, Any] | None:
    """A mesh as the page takes it, simplified until it has at most `room` letters."""
    extent = float(np.ptp(mesh.vertices, axis=0).max()) if len(mesh.vertices) else 0.0
    error, step = 0.0, extent / 1000
    while True:
        text = encoded(mesh, middle)
        if len(text["data"]) <= room:
            return {**text, "error": error}
        if error > extent:
            return None
        mesh = simplify_mesh(mesh, step)
        error, step = error + step, 2 * step


def encoded(mesh: Mesh, middle: np.ndarray) -> dict[str, Any]:
    """Vertices as whole steps of 16 bits from the low corner of their box, and triangles, as differences, packed."""
    places = (mesh.vertices.astype(np.float64) - middle)[:, ::-1]
    low = places.min(0, initial=np.inf) if len(places) else np.zeros(3)
    step = np.maximum(places.max(0, initial=-np.inf) - low, 1e-3) / STEPS if len(places) else np.ones(3)
    whole = np.rint((places - low) / step).astype(np.uint16)
    # A vertex and a corner of a triangle most often lie close to the one before, so differences pack better.
    vertices = np.diff(whole, axis=0, prepend=np.zeros((1, 3), np.uint16)).T
    corners = np.diff(mesh.faces.astype(np.uint32).reshape(-1), prepend=np.uint32(0))
    data = zlib.compress(np.ascontiguousarray(vertices, "<u2").tobytes() + corners.astype("<u4").tobytes(), 6)
    return {"vertices": len(whole), "triangles": len(mesh.faces), "low": low.tolist(), "step": step.tolist(),
            "data": base64.b64encode(data).decode()}


def synapses_of(table: Partners, ids: np.ndarray, resolution: Sequence[float], middle: np.ndarray) -> list[list]:
    """The synapses that a neuron of the page has: number, pre, post, directed, voxels, confidence and both sites."""
    own = np.isin(table.pre[table.resolved], ids) | np.isin(table.post[table.resolved], ids)
    rows = np.flatnonzero(table.resolved)[own]
    sites = (table.sites[own] + np.array(resolution) / 2 - middle)[:, :, ::-1].round(2)
    order = np.argsort(-table.size[rows], kind="stable")
    return [[str(table.synapse[row]), str(table.pre[row]), str(table.post[row]), int(table.directed[row]),
             int(table.size[row]), round(float(table.confidence[row]), 3), *sites[place].reshape(-1).tolist()]
            for place, row in zip(order.tolist(), rows[order].tolist())]

"""The files of a wiring diagram: tables as CSV, the graph as GraphML and as a sparse matrix that SciPy opens."""

import csv
import io
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.files import csv_text, write_bytes, write_text
from emcore.reading import read_text
from emcore.segment.edges import Connections
from emcore.segment.wiring import Partners

AXES = "zyx"
HEAD = ("synapse", *(f"{axis}_nm" for axis in AXES), "voxels", "pre", "post", "directed", "confidence",
        "contact_area_nm2", *(f"{side}_{axis}_nm" for side in ("pre", "post") for axis in AXES))
MOST_BYTES = 1 << 30  # A larger table of synapses is refused.


def write_files(folder: Path, table: Partners, edges: Connections) -> None:
    """Writes synapses.csv, edges.csv, graph.graphml and graph.npz, each of them whole."""
    write_text(folder / "synapses.csv", synapses_csv(table))
    write_text(folder / "edges.csv", edges_csv(edges))
    write_text(folder / "graph.graphml", graphml(edges))
    write_bytes(folder / "graph.npz", sparse_matrix(edges))


def synapses_csv(table: Partners) -> str:
    """A line for each row of the table, places in nm; empty where there is no place."""
    columns = [table.synapse, *table.place.T, table.size, table.pre, table.post, table.directed.astype(int),
               table.confidence, table.contact_area, *table.pre_place.T, *table.post_place.T]
    return csv_text([HEAD, *zip(*(plain(column) for column in columns))])


def read_synapses(folder: Path) -> Partners:
    """The table that write_files wrote into a folder, each number as it was."""
    path = folder / "synapses.csv"
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, MOST_BYTES), newline="")))
    except FileNotFoundError:
        raise InputError(f"{folder} has no synapses.csv; python -m emcore connectome writes it") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table of synapses: {error}") from None
    if not rows or tuple(rows[0]) != HEAD:
        raise InputError(f"{path} does not begin with the columns {', '.join(HEAD)}, as python -m emcore connectome "
                         "writes them")
    try:
        columns = dict(zip(HEAD, zip(*rows[1:], strict=True), strict=True)) if rows[1:] else dict.fromkeys(HEAD, ())
        ids = {name: np.array([int(text) for text in columns[name]], np.uint64) for name in ("synapse", "pre", "post")}
        size = np.array([int(text) for text in columns["voxels"]], np.int64)
        directed = np.array([{"0": False, "1": True}[text] for text in columns["directed"]], bool)
        numbers = {name: np.array([float(text or "nan") for text in columns[name]])
                   for name in HEAD if name.endswith(("_nm", "_nm2")) or name == "confidence"}
    except (ValueError, KeyError, OverflowError):
        raise InputError(f"{path} has a line that is not made of the {len(HEAD)} numbers that its first line "
                         "names") from None
    place, pre_place, post_place = (np.stack([numbers[f"{before}{axis}_nm"] for axis in AXES], axis=1)
                                    for before in ("", "pre_", "post_"))
    table = Partners(ids["synapse"], place, size, ids["pre"], ids["post"], directed, numbers["confidence"],
                     numbers["contact_area_nm2"], pre_place, post_place)
    if not (np.isfinite(place).all() and np.isfinite(table.sites).all()):
        raise InputError(f"{path} has a synapse of two neurons that lacks a place, or one that is no number")
    return table


def edges_csv(edges: Connections) -> str:
    head = ["pre", "post", "directed", "synapses", "voxels", "contact_area_nm2"]
    columns = [edges.pre, edges.post, edges.directed.astype(int), edges.count, edges.size, edges.contact_area]
    return csv_text([head, *zip(*(plain(column) for column in columns))])


def plain(column: np.ndarray) -> list:
    """The values as Python writes them, so that they are read back to the bit; nothing in place of nan."""
    return ["" if value != value else value for value in column.tolist()]


def graphml(edges: Connections) -> str:
    """The graph: a node is named by its neuron; an edge has its synapses, voxels, area and whether it is directed."""
    keys = {"synapses": "long", "voxels": "long", "contact_area_nm2": "double", "directed": "boolean"}
    default = "directed" if len(edges) == 0 or edges.directed.any() else "undirected"
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">']
    lines += [f'<key id="{name}" for="edge" attr.name="{name}" attr.type="{kind}"/>' for name, kind in keys.items()]
    lines.append(f'<graph id="connectome" edgedefault="{default}">')
    lines += [f'<node id="{neuron}"/>' for neuron in edges.neurons.tolist()]
    columns = (edges.pre, edges.post, edges.count, edges.size, edges.contact_area, edges.directed)
    for pre, post, *values in zip(*(column.tolist() for column in columns)):
        data = "".join(f'<data key="{name}">{str(value).lower()}</data>' for name, value in zip(keys, values))
        lines.append(f'<edge source="{pre}" target="{post}">{data}</edge>')
    return "\n".join([*lines, "</graph>", "</graphml>", ""])


def sparse_matrix(edges: Connections) -> bytes:
    """The numbers of synapses, pre x post, as scipy.sparse.load_npz reads them; neurons: the ids of its rows."""
    neurons, out = edges.neurons, io.BytesIO()
    order = np.lexsort((edges.post, edges.pre))
    rows, columns = (np.searchsorted(neurons, ids[order]).astype(np.int32) for ids in (edges.pre, edges.post))
    np.savez_compressed(out, format=np.array(b"coo"), shape=np.array([len(neurons)] * 2), row=rows, col=columns,
                        data=edges.count[order].astype(np.int64), neurons=neurons)
    return out.getvalue()

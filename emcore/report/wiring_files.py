"""The files of a wiring diagram: tables as CSV, the graph as GraphML and as a sparse matrix that SciPy opens."""

import io
from pathlib import Path

import numpy as np

from emcore.files import csv_text, write_bytes, write_text
from emcore.segment.edges import Connections
from emcore.segment.wiring import Partners

AXES = "zyx"


def write_files(folder: Path, table: Partners, edges: Connections) -> None:
    """Writes synapses.csv, edges.csv, graph.graphml and graph.npz, each of them whole."""
    write_text(folder / "synapses.csv", synapses_csv(table))
    write_text(folder / "edges.csv", edges_csv(edges))
    write_text(folder / "graph.graphml", graphml(edges))
    write_bytes(folder / "graph.npz", sparse_matrix(edges))


def synapses_csv(table: Partners) -> str:
    """A line for each row of the table, places in nm; empty where there is no place."""
    head = ["synapse", *(f"{axis}_nm" for axis in AXES), "voxels", "pre", "post", "directed", "confidence",
            "contact_area_nm2", *(f"{side}_{axis}_nm" for side in ("pre", "post") for axis in AXES)]
    columns = [table.synapse, *table.place.T, table.size, table.pre, table.post, table.directed.astype(int),
               table.confidence, table.contact_area, *table.pre_place.T, *table.post_place.T]
    return csv_text([head, *zip(*(plain(column) for column in columns))])


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

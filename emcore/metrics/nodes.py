"""The score run_length of evaluate.py: the labels under the nodes of skeletons, from files or of the true labels."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emcore.errors import InputError
from emcore.memory import TooLittleMemory, check_memory
from emcore.metrics.case import Case, Row, finite, row
from emcore.metrics.foreground import true_foreground, unknown
from emcore.metrics.placement import Shared
from emcore.metrics.points import labels_at
from emcore.metrics.run_curves import run_length_curve
from emcore.metrics.skeletons import run_length
from emcore.segment.skeleton_files import read_skeletons
from emcore.segment.skeletons import VOXEL_BYTES, Skeleton, skeletonize
from emcore.settings.data import Data
from emcore.volumes import Volume

MOST_LISTED = 10_000  # skeletons in scores.json, the longest
POINTS = 400  # A stored curve has at most so many.
# contact_nodes, convention, and what is said of both
RULES = ((50.0, "em_erl", "em_erl, segments with 50 nodes of two skeletons merge"),
         *((ignored + 1.0, "banis", f"nisb, contacts of more than {ignored:g} nodes merge")
           for ignored in (0, 5, 20, 100, math.inf)))
# what a tune makes small: 1 - NERL by these two rules
RUN_OBJECTIVES = {"lost_run_length": RULES[0], "lost_run_length_nisb": RULES[1]}


class Nodes(NamedTuple):
    """The nodes of all skeletons in one row."""

    skeletons: NDArray[np.uint64]  # (n,): the skeleton of each
    places: NDArray[np.float64]  # (n, 3): nm, z y x
    edges: NDArray[np.int64]  # (m, 2): nodes
    lengths: NDArray[np.float64]  # (m,): nm


def node_table(skeletons: Mapping[int, Skeleton]) -> Nodes:
    """Skeletons as one list of nodes and one of edges."""
    ids, places, edges, before = [np.zeros(0, np.uint64)], [np.zeros((0, 3))], [np.zeros((0, 2), np.int64)], 0
    for label, skeleton in skeletons.items():
        ids.append(np.full(len(skeleton.vertices), label, np.uint64))
        places.append(skeleton.vertices)
        edges.append(skeleton.edges + before)
        before += len(skeleton.vertices)
    ids, places, edges = (np.concatenate(parts) for parts in (ids, places, edges))
    return Nodes(ids, places, edges, np.linalg.norm(places[edges[:, 0]] - places[edges[:, 1]], axis=1))


def run_length_rows(case: Case) -> list[Row]:
    """ERL and NERL by em_erl's rule and by those of NISB, edges by what is wrong with them, and the curve.

    Beside the rows stand the numbers of every skeleton, and where fragments and merges are stored NERL at every merge.
    """
    nodes, voxels = nodes_in(case.labels, case.truth, case.place, case.settings.skeletons, case.data)
    if case.settings.skeletons is not None and case.settings.crop is not None:
        case.notes.append("run_length looks at all nodes of evaluate.skeletons: evaluate.crop does not change it")
    if not len(nodes.edges):
        case.notes.append("run_length has no skeleton with an edge to go by")
    segments = labels_at(case.labels, voxels, (1, 1, 1), rounding="down")
    rows, single = [], {}
    for contact_nodes, convention, rule in RULES:
        found = run_length(nodes.skeletons, segments, nodes.edges, nodes.lengths, contact_nodes, convention)
        rows += [row("erl", found.expected, f"{rule}, nm"), row("nerl", found.normalized, rule),
                 row("merged_edges", found.merged_edges, rule)]
        single[rule] = found
    rows += [row("split_edges", found.split_edges, "between two segments"),
             row("omitted_edges", found.omitted_edges, "with an end on label 0")]
    case.found["skeletons"] = {rule: listed(found) for rule, found in list(single.items())[:2]}
    add_curve(case, nodes, voxels)
    return rows


def nodes_in(labels: Volume, truth: Volume, place: Shared, file: str | None,
             data: Data) -> tuple[Nodes, NDArray[np.float64]]:
    """The skeletons of a file, or of the truth, and their nodes in voxels of the labels, at the middles of voxels where
    the truth is traced."""
    resolution = truth.resolution or labels.resolution or data.resolution
    if resolution is None:
        raise InputError(f"run_length is in nm, but neither {truth.name} nor {labels.name} says its resolution; set "
                         "data.resolution")
    if file is not None:
        nodes = node_table(read_skeletons(file))
        voxels = (nodes.places - labels.offset) / np.array(resolution)
        outside = ((np.floor(voxels) < 0) | (np.floor(voxels) >= labels.shape)).any(1)
        if outside.any():
            raise InputError(f"{outside.sum()} of {len(voxels)} nodes of {file} lie outside the labels {labels.name}, "
                             f"as {nodes.places[outside][0].tolist()} nm; skeletons must be in nm where the labels "
                             "lie: check the resolution and offset of the labels")
        return nodes, voxels
    check_memory(VOXEL_BYTES * math.prod(place.shape), f"tracing the skeletons of a truth of {place.shape} voxels",
                 "score a part with evaluate.crop, or name a file in evaluate.skeletons")
    ids = truth[place.theirs]
    inside = true_foreground(ids, data.background) & ~unknown(ids, data.ignore)
    nodes = node_table(skeletonize(np.where(inside, ids, 0).astype(np.uint64), resolution))
    return nodes, np.rint(nodes.places / resolution) + place.start + 0.5


def listed(found) -> list[dict]:
    """The numbers of every skeleton, the longest first."""
    longest = np.argsort(-found.skeleton_lengths, kind="stable")[:MOST_LISTED]
    columns = found.skeleton_ids, found.skeleton_lengths, found.skeleton_expected, *found.skeleton_edges.T
    names = ("id", "length", "erl", "correct_edges", "split_edges", "omitted_edges", "merged_edges")
    rows = [dict(zip(names, values)) for values in zip(*(column[longest].tolist() for column in columns))]
    return [{**one, "length": finite(one["length"]), "erl": finite(one["erl"])} for one in rows]


def add_curve(case: Case, nodes: Nodes, voxels: NDArray[np.float64]) -> None:
    """NERL at every merge by either rule, and at the best thresholds, where fragments and merges are stored."""
    stored = case.parts_of(case.labels_file)
    if stored is None:
        return
    try:
        tree, fragments = stored.tree(), labels_at(stored.fragments(), voxels, (1, 1, 1), rounding="down")
    except TooLittleMemory as error:
        case.notes.append(f"there is no run length over the thresholds: {error}")
        return
    states = np.unique(np.linspace(0, len(tree.height), POINTS).astype(int))
    curves = {}
    for contact_nodes, convention, rule in RULES[:2]:
        curve = run_length_curve(nodes.skeletons, fragments, nodes.edges, nodes.lengths, tree, contact_nodes,
                                 convention)
        best = curve.best()._asdict()
        curves[rule] = {"nerl": [finite(value) for value in curve.normalized[states]],
                        "best": {name: finite(value) for name, value in best.items()}}
    thresholds = np.append(0.0, tree.height)[states]
    case.found["run_length"] = {"threshold": [finite(value) for value in thresholds], **curves}

"""python -m emcore score LABELS SKELETONS --skeletons, and PREDICTION TRUTH --partners: scores of single points."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.metrics.label_files import described, listed, open_labels
from emcore.metrics.nodes import node_table
from emcore.metrics.points import labels_at
from emcore.metrics.skeletons import run_length, skeleton_voi
from emcore.metrics.synapses import synaptic_partners
from emcore.segment.skeleton_files import read_skeletons
from emcore.volumes import Volume, open_path
from emcore.volumes.hdf5 import opened

NEURONS = "volumes/labels/neuron_ids"  # in files of CREMI
PLAIN_NEURONS = "labels"  # in files of synth
PARTNERS = "annotations/presynaptic_site/partners"
OF_SKELETONS = {"erl": "expected run length, nm", "erl_perfect": "that of a perfect segmentation, nm",
                "nerl": "the ratio of both; higher is better", "split_edges": "between two segments",
                "omitted_edges": "with an end outside of all segments", "merged_edges": "on a segment that merges",
                "voi_split": "of the nodes, bits", "voi_merge": "of the nodes, bits"}
OF_PARTNERS = {"partners_f1": "higher is better", "partners_precision": "of the predicted pairs",
               "partners_recall": "of the true pairs", "partners_false_positives": "predicted pairs without a match",
               "partners_false_negatives": "true pairs without a match"}


def score_skeletons(prediction: Any, truth: str | Path, contact_nodes: float = 1,
                    resolution: Sequence[float] | None = None) -> dict[str, Any]:
    """Run lengths and VOI of skeletons in a segmentation, JSON-able; undefined scores are None.

    truth: a file or folder of skeletons, as segment.read_skeletons takes it. contact_nodes: with so many nodes of two
    neurons a segment merges them.
    """
    prediction = open_labels(prediction, "prediction")
    sizes = _resolution(resolution, prediction)
    found = read_skeletons(truth)
    neurons, nodes, edges, lengths = node_table(found)
    segments = labels_at(prediction, nodes, sizes, prediction.offset)
    rows = []
    for convention in ("em_erl", "banis"):
        runs = run_length(neurons, segments, edges, lengths, contact_nodes, convention)
        values = (runs.expected, runs.perfect, runs.normalized, runs.split_edges, runs.omitted_edges,
                  runs.merged_edges, *skeleton_voi(neurons, segments))
        rows += [_row(name, value, convention) for name, value in zip(OF_SKELETONS, values)]
    return {"prediction": described(prediction), "truth": {"name": str(truth), "skeletons": len(found)},
            "compared": f"{len(nodes)} nodes and {len(edges)} edges of {len(found)} skeletons; from {contact_nodes:g} "
                        "nodes of two of them on a segment merges",
            "scores": rows, "notes": []}


def score_partners(prediction: str | Path, truth: str | Path, distance_nm: float = 400.0,
                   resolution: Sequence[float] | None = None) -> dict[str, Any]:
    """CREMI's F1 of synaptic partners of two files as the challenge gives them out, JSON-able."""
    neurons = open_labels(open_path(Path(truth), NEURONS, "labels"), "truth")
    ours, theirs = read_partners(Path(prediction)), read_partners(Path(truth))
    found = synaptic_partners(theirs, ours, neurons, _resolution(resolution, neurons), neurons.offset, distance_nm)
    return {"prediction": {"name": str(prediction), "partners": len(ours)},
            "truth": {**described(neurons), "partners": len(theirs)},
            "compared": f"{len(ours)} predicted and {len(theirs)} true pairs",
            "scores": [_row(name, value, f"cremi, {distance_nm:g} nm") for name, value in zip(OF_PARTNERS, found)],
            "notes": []}


def read_partners(path: Path) -> np.ndarray:
    """(n, 2, 3): pre- and postsynaptic sites in nm, z y x."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with opened(path) as file:
        if "annotations" not in file or "presynaptic_site/partners" not in file["annotations"]:
            raise InputError(f"{path} has no annotations/presynaptic_site/partners, as files of CREMI have")
        group = file["annotations"]
        place = {int(key): at for key, at in zip(group["ids"][...], group["locations"][...])}
        pairs, offset = group["presynaptic_site/partners"][...], group.attrs.get("offset", (0.0, 0.0, 0.0))
    if lost := [int(key) for key in np.ravel(pairs) if int(key) not in place]:
        raise InputError(f"{path} has partners with the id {lost[0]}, but no annotation has it")
    return np.array([[place[int(key)] for key in pair] for pair in pairs], float).reshape(-1, 2, 3) + offset


def _resolution(given: Sequence[float] | None, volume: Volume) -> Sequence[float]:
    if given is None and volume.resolution is None:
        raise InputError(f"points in nm need the size of a voxel, but {volume.name} does not say its resolution; give "
                         "--resolution Z Y X")
    return volume.resolution if given is None else given


def _row(name: str, value: float, convention: str) -> dict[str, Any]:
    return {"score": name, "value": value if math.isfinite(value) else None, "convention": convention}


def printed_points(result: dict[str, Any]) -> str:
    return "\n".join(listed(result, result["compared"], OF_SKELETONS | OF_PARTNERS))

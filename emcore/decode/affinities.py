"""Affinities to labels by [decode], step by step; decode.decode does them all and stores what they make.

    affs = read_affinities(prediction, settings)          # three channels, calibrated
    fragments = make_fragments(affs, settings)
    graph = make_graph(fragments, affs, settings)
    tree = make_tree(graph, settings)                     # serves every threshold
    labels = make_labels(fragments, graph, tree, affs, settings)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emcore import segment
from emcore.errors import InputError
from emcore.segment.affinities import NEAREST, check_table, nearest_channels, signed_offsets, stored_table
from emcore.segment.cleanup import merge_dust
from emcore.segment.graph import RegionGraph
from emcore.segment.merge_tree import MergeTree, finish, start
from emcore.segment.slices import SEEDS
from emcore.settings.decode import AffinityDecode, ConnectedDecode
from emcore.threads import run_parallel, thread_count
from emcore.volumes import Volume

LARGEST_LOGIT = 50.0


class Affinities(NamedTuple):
    """Affinities along z, y and x (3, z, y, x), and how segment.watershed is to take them: offsets and table."""

    values: np.ndarray
    convention: dict[str, Any]


def read_affinities(prediction: Volume, settings: AffinityDecode | ConnectedDecode) -> Affinities:
    """The three nearest-neighbour channels of a prediction, calibrated by [decode]; only they are read."""
    channels, offsets = pick_channels(prediction, settings.channels)
    values = np.empty((3, *prediction.shape[1:]), prediction.dtype)
    for row, channel in zip(values, channels):
        row[...] = prediction[channel]
    convention = {"offsets": offsets}
    table = stored_table(prediction)
    if table is not None:
        convention["table"] = table
    return calibrate(Affinities(values, convention), settings.bias, settings.temperature)


def pick_channels(prediction: Volume, channels: Sequence[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The channels along z, y, x and their offsets: those that are named, else those of nearest neighbours.

    A named channel of longer range counts as one of nearest neighbours; the sign of its step says where it is stored.
    """
    offsets = stored_offsets(prediction)
    if not channels:
        if offsets is None:
            raise InputError(f"{prediction.name} has no attribute offsets, so its channels cannot be told apart: "
                             "set decode.channels to those along z, y and x")
        picked = list(nearest_channels(offsets, len(offsets))[0])
        return picked, [tuple(offsets[c]) for c in picked]
    if len(channels) != 3 or len(set(channels)) != 3 or not all(0 <= c < prediction.shape[0] for c in channels):
        raise InputError(f"decode.channels must be three different channels, those along z, y and x, of the "
                         f"{prediction.shape[0]} of {prediction.name}; got {list(channels)}")
    if offsets is None:
        return list(channels), list(NEAREST)
    steps = []
    for axis, channel in enumerate(channels):
        offset = offsets[channel] if channel < len(offsets) else (0, 0, 0)
        if not offset[axis] or any(offset[other] for other in range(3) if other != axis):
            raise InputError(f"decode.channels must be along z, y and x; channel {channel} of {prediction.name} has "
                             f"the offset {tuple(offset)}, which is not along {'zyx'[axis]}")
        steps.append(tuple(int(np.sign(step)) for step in offset))
    return list(channels), steps


def stored_offsets(prediction: Volume) -> list[tuple[int, int, int]] | None:
    """The offsets that a prediction names, one for each of its first channels."""
    if prediction.ndim != 4:
        raise InputError(f"affinities are (channels, z, y, x); {prediction.name} has the shape {prediction.shape}")
    stored = prediction.attrs.get("offsets")
    if stored is None:
        return None
    if not isinstance(stored, list) or len(stored) > prediction.shape[0]:
        raise InputError(f"the attribute offsets of {prediction.name} must be one (z, y, x) triple for each of its "
                         f"{prediction.shape[0]} channels; got {stored}")
    try:
        return [tuple(triple) for triple in signed_offsets(stored, len(stored)).tolist()]
    except ValueError:  # ragged
        raise InputError(f"the attribute offsets of {prediction.name} must be (z, y, x) triples; "
                         f"got {stored}") from None


def calibrate(affs: Affinities, bias: Sequence[float], temperature: float) -> Affinities:
    """Affinities whose logits are (logit + bias) / temperature, float32; as they are for bias 0 and temperature 1.

    Affinities of 0 and 1 count as the logits -50 and 50, and no logit leaves that range.
    """
    if not (np.isfinite([*bias, temperature]).all() and temperature > 0):
        raise InputError(f"a calibration needs finite biases and a temperature above 0; got {list(bias)} and "
                         f"{temperature}")
    if not any(bias) and temperature == 1:
        return affs
    segment.check_affinities(affs.values, **affs.convention)
    table = check_table(affs.convention.get("table"), affs.values.dtype)
    out = np.empty(affs.values.shape, np.float32)

    def plane(channel: int, z: int) -> None:
        values = affs.values[channel, z]
        if table is None:
            out[channel, z] = moved(values, bias[channel], temperature)
        else:
            out[channel, z] = moved(table, bias[channel], temperature)[values]

    jobs = [(channel, z) for channel in range(3) for z in range(out.shape[1])]
    run_parallel(plane, jobs, thread_count(None))
    return Affinities(out, {"offsets": affs.convention["offsets"]})


def moved(values: np.ndarray, bias: float, temperature: float) -> np.ndarray:
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = np.clip(np.log(values) - np.log1p(-values), -LARGEST_LOGIT, LARGEST_LOGIT)
    return 1 / (1 + np.exp(-np.clip((logits + bias) / temperature, -LARGEST_LOGIT, LARGEST_LOGIT)))


def make_fragments(affs: Affinities, settings: AffinityDecode) -> np.ndarray:
    """Fragments of the watershed of the volume, or of floods of its sections."""
    if settings.fragments == "watershed":
        return segment.watershed(affs.values, settings.low, settings.high, plateau=settings.ties,
                                 **affs.convention)
    if settings.fragments.partition("-")[0] not in SEEDS:
        raise InputError(f"decode.fragments must be watershed, {', '.join(SEEDS)}, the last four with a number after "
                         f"a dash if wanted; got {settings.fragments!r}")
    return segment.seeded_slices(affs.values, settings.fragments, **affs.convention)


def make_graph(fragments: np.ndarray, affs: Affinities, settings: AffinityDecode) -> RegionGraph:
    statistics = ("sizes", "running_mean") if settings.ties == "waterz" else ("sizes",)
    return segment.region_graph(fragments, affs.values, score=settings.statistic, statistics=statistics,
                                **affs.convention)


def make_tree(graph: RegionGraph, settings: AffinityDecode) -> MergeTree:
    return segment.agglomerate(graph, settings.statistic, tie_break=settings.ties)


def make_labels(fragments: np.ndarray, graph: RegionGraph | None, tree: MergeTree, affs: Affinities | None,
                settings: AffinityDecode) -> np.ndarray:
    """The tree cut at the threshold; then boundaries are cleared, dust merged and removed, sections linked.

    The graph is needed where `needs_graph` says so, the affinities where `needs_affinities` does.
    """
    labels = segment.cut(fragments, tree, settings.threshold)
    if settings.boundary > 0:
        labels = segment.boundary_threshold(labels, affs.values, settings.boundary, **affs.convention)
    if settings.dust_size or settings.remove_size:
        borders = None
        if settings.dust_size:
            borders = finish(start(graph, settings.statistic, settings.ties), settings.threshold,
                             with_remaining=True)[1]
        labels = merge_dust(labels, tree.table(settings.threshold), borders, settings.dust_size,
                            affinity=settings.dust_affinity, remove=settings.remove_size)
    if settings.link is not None:
        link = settings.link
        labels = segment.link_sections(
            labels, affs.values, iou=link.iou, best_buddy=link.best_buddy, one_sided=link.one_sided,
            one_sided_min_size=link.one_sided_size, affinity=link.affinity, min_size=link.min_size, **affs.convention)
    return labels


def needs_graph(settings: AffinityDecode) -> bool:
    return settings.dust_size > 0


def needs_affinities(settings: AffinityDecode) -> bool:
    return settings.boundary > 0 or settings.link is not None

"""Affinities of a stored prediction by [decode]: three channels, calibrated, and what is made of them.

    affs = read_affinities(prediction, settings)
    segmentation = segmentation_of(affs, settings)  # fragments, graph and tree, each made once
    labels = labels_of(segmentation, settings)
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from emcore.errors import InputError
from emcore.segment import Affinities, LinkRule, Segmentation
from emcore.segment.affinities import NEAREST, nearest_channels, signed_offsets, stored_table
from emcore.settings.decode import AffinityDecode, ConnectedDecode
from emcore.threads import run_parallel, thread_count
from emcore.volumes import Volume

LARGEST_LOGIT = 50.0
Box = tuple[slice, slice, slice]


def read_affinities(prediction: Volume, settings: AffinityDecode | ConnectedDecode,
                    box: Box | None = None) -> Affinities:
    """The three nearest-neighbour channels of a prediction, calibrated by [decode]; only they are read.

    box: only the voxels in it, whose values are looked at here, so that a wrong one is named where it lies.
    """
    channels, offsets = pick_channels(prediction, settings.channels)
    affs = Affinities(read_channels(prediction, channels, box or (slice(None),) * 3), offsets,
                      table=stored_table(prediction))
    if box is not None:
        affs.check_values(origin=[span.start for span in box])
    return calibrate(affs, settings.bias, settings.temperature)


def read_channels(prediction: Volume, channels: Sequence[int], box: Box) -> np.ndarray:
    """The named channels of a prediction (c, z, y, x) within a box; only they are read."""
    first, count = channels[0], len(channels)
    if list(channels) == list(range(first, first + count)):
        return prediction[(slice(first, first + count), *box)]
    sizes = [len(range(*span.indices(length))) for span, length in zip(box, prediction.shape[1:])]
    values = np.empty((len(channels), *sizes), prediction.dtype)
    for row, channel in zip(values, channels):
        row[...] = prediction[(channel, *box)]
    return values


def pick_channels(prediction: Volume, channels: Sequence[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The channels along z, y, x and their offsets: those that are named, else those of nearest neighbours.

    A named channel of longer range counts as one of nearest neighbours; the sign of its step says where it is stored.
    """
    offsets = stored_offsets(prediction)
    if not channels:
        if offsets is None:
            raise InputError(f"{prediction.name} has no attribute offsets, so its channels cannot be told apart: "
                             "set decode.channels to those along z, y and x")
        picked = list(nearest_channels(offsets)[0])
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
    affs.check_values()
    table = affs.table
    out = np.empty(affs.values.shape, np.float32)

    def plane(channel: int, z: int) -> None:
        values = affs.values[channel, z]
        if table is None:
            out[channel, z] = moved(values, bias[channel], temperature)
        else:
            out[channel, z] = moved(table, bias[channel], temperature)[values]

    jobs = [(channel, z) for channel in range(3) for z in range(out.shape[1])]
    run_parallel(plane, jobs, thread_count(None))
    return Affinities(out, affs.offsets)


def moved(values: np.ndarray, bias: float, temperature: float) -> np.ndarray:
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = np.clip(np.log(values) - np.log1p(-values), -LARGEST_LOGIT, LARGEST_LOGIT)
    return 1 / (1 + np.exp(-np.clip((logits + bias) / temperature, -LARGEST_LOGIT, LARGEST_LOGIT)))


def segmentation_of(affs: Affinities | None, settings: AffinityDecode) -> Segmentation:
    """Fragments, graph and tree of affinities by [decode]; none of them is made yet."""
    if settings.learned is not None:
        raise InputError("decode.learned looks at the longer affinities of a whole prediction, so only infer.py works "
                         "with it: leave the table [decode.learned] out, such as by decode.learned=none")
    return Segmentation(affs, low=settings.low, high=settings.high, fragments=settings.fragments,
                        statistic=settings.statistic, ties=settings.ties, end=settings.end or None)


def labels_of(segmentation: Segmentation, settings: AffinityDecode) -> np.ndarray:
    """The tree cut at the threshold; then boundaries are cleared, dust merged and removed, sections linked."""
    link = None if settings.link is None else LinkRule(**asdict(settings.link))
    return segmentation.labels(settings.threshold, boundary=settings.boundary, dust_size=settings.dust_size,
                               dust_affinity=settings.dust_affinity, remove_size=settings.remove_size, link=link)


def needs_affinities(settings: AffinityDecode) -> bool:
    """Whether labels at another threshold look at the affinities again."""
    return settings.boundary > 0 or settings.link is not None

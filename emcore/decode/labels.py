"""Labels from a stored prediction by [decode]; what another threshold needs is stored beside them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emcore import config, segment
from emcore.decode.affinities import (
    Box,
    labels_of,
    needs_affinities,
    read_affinities,
    read_channels,
    segmentation_of,
    stored_offsets,
)
from emcore.decode.learned import learned_segmentation
from emcore.errors import InputError
from emcore.files import assembled
from emcore.record import ATTRIBUTE, LABELS, of_edits
from emcore.record import read as read_record
from emcore.results import check_source
from emcore.segment import Affinities, Edit, Segmentation, apply_edits
from emcore.segment.affinities import above, check_table, stored_table
from emcore.segment.merge_tree import look_up
from emcore.settings.decode import (
    AffinityDecode,
    ComponentsDecode,
    ConnectedDecode,
    ContourDecode,
    Decode,
    MutexDecode,
    NoDecode,
    PartnersDecode,
    PolarityDecode,
)
from emcore.volumes import Volume, create_volume, open_volume


def decode(prediction: Volume, settings: Decode, out: Path, record: dict[str, Any] | None = None) -> Path:
    """Decodes a prediction into labels by the settings [decode], and writes them.

    Affinities leave their fragments, graph and merges in the same file, which `recut` reads.

    Args:
        prediction: the opened volume (c, z, y, x).
        settings: the table [decode] of a config, for instance emcore.settings.decode.AffinityDecode(threshold=0.4).
        out: the HDF5 file to write; its dataset is called labels.
        record: what made the labels, to be kept with them (see emcore/record.py). None by default.

    Returns:
        The path of the file.

    Raises:
        InputError: the prediction does not fit the settings, or the file cannot be written.

    Cost:
        It takes 88 ns of one core and 30 bytes per voxel.

    Examples:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from emcore import create_volume, decode, open_volume
        >>> from emcore.settings.decode import AffinityDecode
        >>> offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with create_volume(f"{folder}/p.h5", (3, 2, 8, 8), "float32", attributes={"offsets": offsets}) as out:
        ...         out[...] = np.full((3, 2, 8, 8), 0.9, np.float32)
        ...     made = decode.decode(open_volume(f"{folder}/p.h5"), AffinityDecode(), Path(folder, "labels.h5"))
        ...     int(open_volume(made, "labels")[...].max())
        1
    """
    if isinstance(settings, NoDecode):
        raise InputError("decode.kind is none: set it to affinities, connected, mutex, components, polarity, partners "
                         "or contour to make labels")
    place = (prediction.resolution, prediction.offset)
    segmentation = None
    if isinstance(settings, AffinityDecode):
        if settings.learned is not None:
            segmentation = learned_segmentation(prediction, settings)
        else:
            segmentation = segmentation_of(read_affinities(prediction, settings), settings)
        labels = labels_of(segmentation, settings)
    else:
        labels = KINDS[type(settings)](prediction, settings)
    with assembled(out) as path:  # old labels stay until the new ones are whole
        if segmentation is not None:
            segmentation.write(path, *place, {"decode": config.to_table(settings)})
        _write(path, LABELS, labels, place, settings, record)
    return out


def recut(stored: Path, threshold: float | None, out: Path, prediction: Path | None = None,
          edits: Sequence[Edit] = ()) -> Path:
    """Writes the labels that a decoding would have made with another threshold, from what it stored.

    Args:
        stored: the file that `decode` wrote.
        threshold: 0 to 1; regions merge while 1 - statistic is below it. None takes that of the stored labels.
        out: the HDF5 file to write; its dataset is called labels.
        prediction: the file of the prediction, which is needed where the stored settings clear boundaries or link
            sections. None by default.
        edits: decisions of proofreaders, which the labels then hold (see `segment.apply_edits`). Empty by default.

    Returns:
        The path of the file.

    Raises:
        InputError: the file holds no merge tree, the threshold lies beyond it, or there are edits and no record.

    Cost:
        It takes 40 ns of one core and 14 bytes per voxel.

    Examples:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from emcore import create_volume, decode, open_volume
        >>> from emcore.settings.decode import AffinityDecode
        >>> offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
        >>> affs = np.full((3, 2, 8, 8), 0.9, np.float32)
        >>> affs[2, :, :, 4] = 0.2  # a membrane between x = 3 and x = 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with create_volume(f"{folder}/p.h5", affs.shape, "float32", attributes={"offsets": offsets}) as out:
        ...         out[...] = affs
        ...     made = decode.decode(open_volume(f"{folder}/p.h5"), AffinityDecode(), Path(folder, "labels.h5"))
        ...     again = decode.recut(made, 0.9, Path(folder, "other.h5"))
        ...     [int(open_volume(path, "labels")[...].max()) for path in (made, again)]
        [2, 1]
    """
    segmentation, labels = Segmentation.read(stored), open_volume(stored, LABELS)
    made_by = labels.attrs.get("decode")
    if not isinstance(made_by, dict):
        raise InputError(f"{stored} does not say by which [decode] it was made; decode the prediction again")
    made_of, settings = read_record(stored, LABELS), config.from_table(Decode, made_by, "decode")
    if edits and made_of is None:
        raise InputError(f"{stored} has no record of what made it, in which labels with edits say that they hold some: "
                         "run infer.py again, which writes one")
    threshold = settings.threshold if threshold is None else threshold
    check_end(stored, segmentation.tree.complete_below, threshold)
    settings = replace(settings, threshold=threshold)
    if needs_affinities(settings):
        if prediction is None or not prediction.exists():
            raise InputError(f"{stored} was made with decode.boundary or decode.link, which look at the affinities, "
                             f"but there is no {prediction or 'prediction beside it'}: predict again, or decode "
                             "without them")
        check_source(made_of, stored, prediction)
        segmentation = Segmentation.read(stored, read_affinities(open_volume(prediction), settings))
    record = made_of and {**made_of, "decode": config.to_table(settings), **of_edits(edits)}
    made = labels_of(segmentation, settings)
    if edits:
        made = apply_edits(segmentation, made, threshold, edits)
    _write(out, LABELS, made, (labels.resolution, labels.offset), settings, record)
    return out


def check_end(stored: Path, end: float, threshold: float) -> None:
    """Refuses a cut that the stored merges do not reach."""
    if threshold > end:
        raise InputError(f"{stored} has merges up to the threshold {end:g} and cannot be cut at {threshold:g}: set "
                         f"decode.end = {threshold:g} and run infer.py again")


def connected(prediction: Volume, settings: ConnectedDecode) -> np.ndarray:
    """Voxels joined by affinities above the threshold, or above one threshold each along z, y and x."""
    return without_small(connect(read_affinities(prediction, settings), settings), settings.remove_size)


def connect(affs: Affinities, settings: ConnectedDecode) -> np.ndarray:
    """What the affinities of a volume, or of a part of it, join."""
    if not settings.thresholds:
        return segment.affinity_components(affs, settings.threshold)
    affs.check_values()
    joined = np.empty(affs.values.shape, np.uint8)
    for row, values, threshold in zip(joined, affs.values, settings.thresholds):
        row[...] = above(values, threshold, affs.table)
    joined *= 255
    return segment.affinity_components(Affinities(joined, affs.offsets), 0.5)


def mutex(prediction: Volume, settings: MutexDecode) -> np.ndarray:
    """The mutex watershed of all channels with an offset: nearest neighbours attract, longer steps hold apart."""
    affs, attractive = mutex_affinities(prediction, settings)
    labels = segment.mutex_watershed(affs, attractive=attractive, strides=settings.strides)
    return without_small(labels, settings.remove_size)


def mutex_affinities(prediction: Volume, settings: MutexDecode,
                     box: Box | None = None) -> tuple[Affinities, list[bool]]:
    """The affinities of a volume or a box of it that a mutex watershed takes, and which channels attract."""
    channels, steps = mutex_channels(prediction, settings)
    attractive = [sum(map(abs, step)) == 1 for step in steps]
    return Affinities(chosen(prediction, channels, box), steps, table=stored_table(prediction)), attractive


def mutex_channels(prediction: Volume, settings: MutexDecode) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The channels that a mutex watershed takes, and their offsets."""
    offsets = stored_offsets(prediction)
    if offsets is None:
        raise InputError(f"{prediction.name} has no attribute offsets, which a mutex watershed needs")
    channels = list(settings.channels) or list(range(len(offsets)))
    if not all(0 <= channel < len(offsets) for channel in channels):
        raise InputError(f"decode.channels must be among the {len(offsets)} channels of {prediction.name} that have an "
                         f"offset; got {channels}")
    steps = [offsets[channel] for channel in channels]
    if len({sum(map(abs, step)) == 1 for step in steps}) < 2:
        raise InputError("a mutex watershed needs channels of nearest neighbours, which attract, and of longer steps, "
                         f"which hold apart; {prediction.name} has the offsets {steps}")
    return channels, steps


def components(prediction: Volume, settings: ComponentsDecode) -> np.ndarray:
    """Pieces of the voxels where some channel is above its threshold; with seeds, those that grow from them.

    Seeds are pieces above seed_threshold. They flood the foreground from its largest values down; foreground that
    none reaches is background.
    """
    labels, _, peaks = grow(prediction, settings)
    if peaks is not None:
        sure = with_peak(labels, peaks, int(labels.max(initial=0)))
        labels = look_up(labels, np.where(sure, np.arange(len(sure)), 0).astype(labels.dtype))
    return without_small(labels, settings.remove_size)


def with_peak(labels: np.ndarray, peaks: np.ndarray, largest: int) -> np.ndarray:
    """Which of the labels 0 to the largest hold a peak."""
    out = np.zeros(largest + 1, bool)
    out[labels[peaks]] = True
    return out


def grow(prediction: Volume, settings: ComponentsDecode,
         box: Box | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The pieces in a volume or a box of it, what they grew from, and where some channel is above settings.peak.

    They grew from the seeds, or without seeds from themselves.
    """
    values, table = chosen(prediction, settings.channels, box), stored_table(prediction)
    thresholds = settings.thresholds or (settings.threshold,) * len(values)
    if len(thresholds) != len(values):
        raise InputError(f"decode.thresholds must be one for each of the {len(values)} channels that are decoded of "
                         f"{prediction.name}; got {list(thresholds)}")
    foreground = above(values[0], thresholds[0], table)
    for channel, threshold in zip(values[1:], thresholds[1:]):
        foreground |= above(channel, threshold, table)
    peaks = None
    if settings.peak:
        peaks = np.logical_or.reduce([above(channel, settings.peak, table) for channel in values])
    if not settings.seed_threshold:
        pieces = segment.connected_components(foreground, settings.connectivity)
        return pieces, pieces, peaks
    best = values.max(0)
    seeds = segment.connected_components(above(best, settings.seed_threshold, table), settings.connectivity)
    # codes rise with what they stand for, so they serve as heights as well as the values
    heights = -best.astype(np.float32)
    if settings.connectivity in (4, 8):  # sections that have nothing to do with each other
        labels = np.concatenate([segment.flood(*(part[z:z + 1] for part in (heights, seeds, foreground)))
                                 for z in range(len(seeds))])
    else:
        labels = segment.flood(heights, seeds, foreground)
    return labels, seeds, peaks


def polarity(prediction: Volume, settings: PolarityDecode) -> np.ndarray:
    """Synapses with two sides: 2n - 1 and 2n."""
    labels = segment.polarity_instances(sides(prediction, settings), settings.threshold, settings.small,
                                        exclusive=settings.exclusive)
    return without_small(labels, settings.remove_size)


def sides(prediction: Volume, settings: PolarityDecode, box: Box | None = None) -> np.ndarray:
    """The channels that polarity decodes, of a volume or a box of it; numbers where the file has a table of codes."""
    values = chosen(prediction, settings.channels, box)
    return values if stored_table(prediction) is None else real(values, prediction)


def partners(prediction: Volume, settings: PartnersDecode) -> np.ndarray:
    """Synapses with two sides, 2n - 1 and 2n, from masks and vectors that point from the presynaptic side."""
    sizes, values = sizes_of(prediction), with_vectors(prediction, settings)
    return segment.partner_instances(values, sizes, settings.threshold, settings.small, exclusive=settings.exclusive,
                                     reach_nm=settings.reach_nm)


def sizes_of(prediction: Volume) -> tuple[float, float, float]:
    """The size of a voxel in nm, in which vectors are."""
    if prediction.resolution is None:
        raise InputError(f"decode.kind = partners measures in nm, but {prediction.name} has no resolution: set "
                         "data.resolution and predict again, or write it by python -m emcore convert --resolution")
    return prediction.resolution


def with_vectors(prediction: Volume, settings: PartnersDecode, box: Box | None = None) -> np.ndarray:
    """The channels that partners decode, of a volume or a box of it."""
    return real(chosen(prediction, settings.channels, box), prediction)


def contour(prediction: Volume, settings: ContourDecode) -> np.ndarray:
    """Instances from foreground, contour and distance; remove_size is their smallest size."""
    limits = settings.contour
    return segment.contour_instances(real(chosen(prediction, settings.channels), prediction), binary=limits.binary,
                                     contour=limits.contour, distance=limits.distance, min_seed=limits.min_seed,
                                     remove_size=settings.remove_size)


KINDS = {ConnectedDecode: connected, MutexDecode: mutex, ComponentsDecode: components, PolarityDecode: polarity,
         PartnersDecode: partners, ContourDecode: contour}


def chosen(prediction: Volume, channels: tuple[int, ...] | list[int], box: Box | None = None) -> np.ndarray:
    """The named channels (all if none is named) as (c, z, y, x); a volume without channels has one. box: only there."""
    count = prediction.shape[0] if prediction.ndim == 4 else 1
    channels = list(channels) or list(range(count))
    if not all(0 <= channel < count for channel in channels):
        raise InputError(f"decode.channels must be among the {count} channels of {prediction.name}; got {channels}")
    box = box or (slice(None),) * 3
    if prediction.ndim == 3 or channels == list(range(count)):
        values = prediction[(..., *box)]
        return values.reshape(count, *values.shape[-3:])
    return read_channels(prediction, channels, box)


def real(values: np.ndarray, prediction: Volume) -> np.ndarray:
    """Numbers instead of codes of 8 bits."""
    if values.dtype != np.uint8:
        return values
    return check_table(stored_table(prediction), values.dtype)[values]


def without_small(labels: np.ndarray, size: int) -> np.ndarray:
    return segment.remove_small(labels, size) if size else labels


def _write(path: Path, dataset: str, values: np.ndarray, place: tuple, settings: Decode,
           record: dict[str, Any] | None = None) -> None:
    attributes: dict[str, Any] = {"decode": config.to_table(settings)} | ({ATTRIBUTE: record} if record else {})
    with create_volume(f"{path}:{dataset}", values.shape, values.dtype, *place, attributes) as out:
        out[...] = values

"""Labels from a stored prediction by [decode]; what another threshold needs is stored beside them."""

from pathlib import Path

import numpy as np

from emcore import segment
from emcore.errors import InputError
from emcore.segment.affinities import TABLE_ATTRIBUTE
from emcore.settings.predict import Decode
from emcore.volumes import Volume, create_volume, open_volume


def decode(prediction: Volume, settings: Decode, out: Path) -> Path:
    """Writes labels (dataset labels, and for affinities fragments and merges, which `recut` reads) to `out`."""
    values = prediction[...]
    place = (prediction.resolution, prediction.offset)
    how = {"decode": {name: value for name, value in settings.__dict__.items() if value is not None}}
    if settings.kind == "affinities":
        if "offsets" not in prediction.attrs:
            raise InputError(f"{prediction.name} has no attribute offsets, so its channels cannot be told apart")
        convention = {"offsets": prediction.attrs["offsets"]}
        if TABLE_ATTRIBUTE in prediction.attrs:
            convention["table"] = np.array(prediction.attrs[TABLE_ATTRIBUTE], np.float32)
        fragments = segment.watershed(values, settings.low, settings.high, **convention)
        channels = segment.check_affinities(values, values=False, **convention).channels
        graph = segment.region_graph(fragments, values, channels=channels, score=settings.score, **convention)
        tree = segment.agglomerate(graph, settings.score)
        labels = segment.cut(fragments, tree, settings.threshold)
        if settings.dust_size or settings.remove_size:
            labels = segment.merge_small(labels, values, settings.dust_size, affinity=settings.dust_affinity,
                                         remove=settings.remove_size, score=settings.score, channels=channels,
                                         **convention)
        _write(out, "fragments", fragments, place, how)
        segment.write_tree(out, tree)
    elif settings.kind == "components":
        foreground = values.reshape(-1, *values.shape[-3:]).max(0) > _threshold(values, settings.threshold)
        labels = segment.connected_components(foreground, settings.connectivity)
        if settings.remove_size:
            labels = segment.remove_small(labels, settings.remove_size)
    elif settings.kind == "polarity":
        labels = segment.polarity_instances(values, settings.threshold, settings.small, exclusive=settings.exclusive)
    else:
        raise InputError("decode.kind is none: set it to affinities, components or polarity to make labels")
    _write(out, "labels", labels, place, how)
    return out


def recut(stored: Path, threshold: float, out: Path) -> Path:
    """Writes the labels of another threshold from the stored fragments and merges."""
    fragments = open_volume(stored, "fragments")
    labels = segment.cut(fragments[...], segment.read_tree(stored), threshold)
    _write(out, "labels", labels, (fragments.resolution, fragments.offset), {"threshold": threshold})
    return out


def _threshold(values: np.ndarray, threshold: float) -> float:
    return threshold * 255 if values.dtype == np.uint8 else threshold


def _write(path: Path, dataset: str, values: np.ndarray, place: tuple, attributes: dict) -> None:
    with create_volume(f"{path}:{dataset}", values.shape, values.dtype, *place, attributes) as out:
        out[...] = values

"""Affinity targets with masks and eroded borders against numpy: loops over offsets, filters of scipy for erosion."""

from collections.abc import Iterator

import numpy as np
import torch

from bench.data_pipelines import FOLDER, tissue
from bench.data_rows import Result, in_turns
from emcore import config
from emcore.data.targets import make_targets, prepare_labels
from emcore.settings import Settings


def numpy_targets(labels: np.ndarray, offsets: tuple, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 affinities and bool validity, (channels, z, y, x)."""
    from scipy import ndimage
    window = (1, 2 * radius + 1, 2 * radius + 1)
    top = labels.max() + 1
    largest = ndimage.maximum_filter(labels, window, mode="reflect")
    smallest = ndimage.minimum_filter(np.where(labels > 0, labels, top), window, mode="reflect")
    labels = np.where((labels > 0) & (largest != smallest), 0, labels)
    values = np.zeros((len(offsets), *labels.shape), np.float32)
    valid = np.zeros(values.shape, bool)
    for channel, offset in enumerate(offsets):
        here = tuple(slice(-step, None) for step in offset)
        there = tuple(slice(None, n + step) for n, step in zip(labels.shape, offset))
        a, b = labels[here], labels[there]
        values[(channel, *here)] = (a == b) & (a > 0)
        valid[(channel, *here)] = (a != -1) & (b != -1)
    return values, valid


def targets(device: str, repeats: int) -> Iterator[Result]:
    """The 12 channels of the SNEMI set on 16 x 224 x 224 labels."""
    settings = config.load(Settings, FOLDER / "snemi.toml", [])
    labels = tissue(settings.data.patch)[1]
    labels[:, ::50] = -1
    read = torch.from_numpy(labels)[None].to(device)

    def ours(number: int):
        found = make_targets(prepare_labels(read, settings.labels), settings.target)
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    offsets = settings.target[0].offsets
    expected = numpy_targets(labels, offsets, settings.labels.erosion)
    for mine, theirs in zip(ours(0), expected):
        assert np.array_equal(mine[0].cpu().numpy(), theirs), "ours and numpy differ"
    yield in_turns("affinities, 12 channels, 16 x 224 x 224", ours,
                   lambda number: numpy_targets(labels, offsets, settings.labels.erosion), repeats, 5, ">= 5",
                   "numpy loops, same values")

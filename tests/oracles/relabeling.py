"""Relabelling by dictionaries, voxel by voxel."""

import numpy as np


def relabel(labels):
    """(dense labels, table) by order of first appearance; 0 stays 0."""
    numbers = {0: 0}
    flat = [numbers.setdefault(label, len(numbers)) for label in labels.ravel().tolist()]
    return np.array(flat, np.uint64).reshape(labels.shape), np.array(list(numbers), np.uint64)


def remap(labels, mapping, missing):
    """labels through a dict; missing "keep" or the label that unnamed ones become; 0 stays 0 unless named."""
    mapping = {0: 0, **mapping}
    flat = [mapping.get(label, label if missing == "keep" else missing) for label in labels.ravel().tolist()]
    return np.array(flat, np.uint64).reshape(labels.shape)

"""Labels of blocks as runs."""

from itertools import groupby

import numpy as np
import pytest

from emcore.blocks import runs
from emcore.errors import InputError


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_labels_come_back_from_their_runs(dtype):
    for number in range(40):
        rng = np.random.default_rng(number)
        shape = tuple(rng.integers(1, 9, 3))
        labels = np.repeat(rng.integers(0, 3, shape), rng.integers(1, 5), axis=2).astype(dtype)
        labels[labels == 2] = np.iinfo(dtype).max
        begins, values = runs.runs_of(labels).values()
        flat = labels.ravel()
        assert list(values) == [label for label, _ in groupby(flat)]
        found = runs.labels_of(begins, values, labels.shape)
        assert found.dtype == labels.dtype
        np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("begins, labels", [([], [1]), ([0b10000000], [1, 2]), ([0b01000000], [1]),
                                            ([0b10000000, 0], [1])])
def test_runs_that_do_not_fill_a_block_are_told(begins, labels):
    with pytest.raises(InputError, match="do not fill it"):
        runs.labels_of(np.array(begins, np.uint8), np.array(labels, np.uint32), (2, 2, 2))

"""Damaged files end in what was read or in one sentence: a few for every reader at once, 300 in the long suite."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the limits of the children are Linux's", allow_module_level=True)

from tests.fuzz import READERS, fuzz

NEEDS = {"tiff": ["tifffile"], "tiff-packed": ["tifffile", "imagecodecs"], "images": ["imagecodecs"],
         "mrc": ["mrcfile"], "zarr-v2": ["zarr"], "zarr-v3": ["zarr"], "yaml": ["yaml"],
         "precomputed-packed": ["tensorstore"], "n5": ["tensorstore"],
         "zarr-v2-address": ["zarr", "tensorstore"], "zarr-v3-address": ["zarr", "tensorstore"]}
SHARE = 30  # mutations of one test, so that a tenth of the long suite meets some of every reader


def check(name, first, last, seed="0"):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    tally = fuzz(name, last, seed, first)
    assert not tally.defects, "\n".join(map(str, [tally, *tally.defects]))
    assert sum(tally.counts.values()) == last - first
    return tally


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    tally = check(name, 0, 20)
    assert tally.counts["refused"]  # the damage does some


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 300, SHARE))
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, first):
    check(name, first, first + SHARE, "long")

"""Relabel, remap, unique and mask_out against dictionaries, numpy and fastremap."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.kernels import relabeling as kernel
from emcore.segment import mask_out, relabel, remap, unique
from emcore.segment.relabeling import label_dtype
from tests.oracles import relabeling as oracle

SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (1, 1, 1), (5, 9), (3, 4, 5), (2, 3, 2, 5)]
DTYPES = [bool, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def random_labels(shape, seed, dtype=np.uint64):
    random = np.random.default_rng(seed)
    largest = 1 if dtype is bool else np.iinfo(dtype).max
    ids = np.array([0, 1, largest, largest // 3, largest // 2, largest - 1], np.uint64)
    size = np.prod(shape, dtype=int)
    return np.repeat(random.choice(ids, size), 3)[:size].reshape(shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relabel_and_unique_equal_dictionaries_and_numpy(shape, dtype):
    for seed in range(4):
        labels = random_labels(shape, seed, dtype)
        labels.setflags(write=False)
        dense, table = relabel(labels, threads=1 + seed)
        expected, expected_table = oracle.relabel(labels.astype(np.uint64))
        assert dense.dtype == np.uint32
        assert dense.shape == labels.shape
        assert np.array_equal(dense, expected)
        assert np.array_equal(table, expected_table)
        assert np.array_equal(table[dense], labels)
        ids, counts = unique(labels, counts=True, threads=1 + seed)
        expected_ids, expected_counts = np.unique(labels, return_counts=True)
        assert ids.dtype == labels.dtype
        assert np.array_equal(ids, expected_ids)
        assert np.array_equal(counts, expected_counts)
        assert np.array_equal(unique(labels), expected_ids)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_strided_and_reversed_labels_are_numbered_in_their_own_raster_order(threads):
    base = random_labels((9, 10, 11), 3)
    for view in (base[::-1], base[:, :, ::-2], base.T, base[::2, 1::3, ::-1], base[4], base.swapaxes(1, 2),
                 np.broadcast_to(base[:1], (5, 10, 11)), base.astype(">u8")):
        expected, table = oracle.relabel(view.astype(np.uint64))
        dense, own = relabel(view, threads=threads)
        assert np.array_equal(dense, expected)
        assert np.array_equal(own, table)
        assert np.array_equal(remap(view, (table, 2 * np.arange(len(table))), threads=threads), 2 * expected)


def test_rows_longer_than_one_piece_and_many_labels_are_numbered_the_same_for_any_threads():
    labels = np.random.default_rng(0).integers(0, 40_000, (3, 2, 9000)).astype(np.uint32) * 104_729
    expected, table = oracle.relabel(labels)
    for threads in (1, 2, 3, 7):
        for view in (labels, np.stack([labels, labels], -1)[..., 0]):
            dense, own = relabel(view, threads=threads)
            assert np.array_equal(dense, expected)
            assert np.array_equal(own, table)


@pytest.mark.parametrize("number, dtype", [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)])
def test_relabel_takes_the_smallest_dtype_only_when_asked(number, dtype):
    labels = np.arange(number, 0, -1, dtype=np.int64) * 2**40
    for threads in (1, 2, 3):
        dense, table = relabel(labels, smallest=True, threads=threads)
        assert dense.dtype == dtype
        assert np.array_equal(dense, np.arange(1, number + 1))
        assert np.array_equal(table[1:], labels)
    assert relabel(labels)[0].dtype == np.uint32


def test_labels_beyond_32_bits_of_numbers_would_be_uint64():
    assert label_dtype(2**32 - 1) == np.uint32
    assert label_dtype(2**32) == np.uint64
    assert label_dtype(255, smallest=True) == np.uint8
    out = np.zeros((1, 1, 4), np.uint64)
    labels = np.array([[[9, 8, 7, 9]]], np.uint8)
    assert kernel.number(labels, out, 2) is None
    assert kernel.number(labels, out, 3) is not None
    assert out.ravel().tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize("missing", ["keep", 0, 7, 2**40])
def test_remap_equals_a_dictionary(missing):
    for seed in range(60):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 9, random.integers(0, 6, 3)).astype(random.choice(DTYPES[1:]))
        mapping = {int(old): int(new) for old, new in random.integers(0, 300, (4, 2)) // [30, 1]}
        new = remap(labels, mapping, missing=missing, threads=int(random.integers(1, 4)))
        assert np.array_equal(new, oracle.remap(labels, mapping, missing))
        if missing in (0, 7):
            assert new.dtype == np.uint32


def test_remap_undoes_relabel_in_the_dtype_of_the_new_labels():
    for dtype in DTYPES:
        labels = random_labels((4, 5, 6), 1, dtype)
        dense, table = relabel(labels)
        back = remap(dense, (np.arange(len(table)), table))
        assert back.dtype == table.dtype
        assert np.array_equal(back, labels)


def test_remap_leaves_its_inputs_and_takes_repeated_equal_entries():
    labels = np.array([0, 5, 5, 6], np.uint8)
    old, new = np.array([5, 6, 5]), np.array([1, 2, 1], np.uint16)
    for array in (labels, old, new):
        array.setflags(write=False)
    assert remap(labels, (old, new)).tolist() == [0, 1, 1, 2]
    assert remap(labels, {0: 9}, missing="keep").tolist() == [9, 5, 5, 6]


def test_mask_out_sets_the_given_ids_or_all_others_to_zero():
    for dtype in DTYPES[1:]:
        labels = random_labels((3, 4, 5), 2, dtype)
        ids = [1, int(np.iinfo(dtype).max), 2**63]
        hit = np.isin(labels, np.array([1, np.iinfo(dtype).max], dtype))
        for threads in (1, 2):
            masked, kept = mask_out(labels, ids, threads=threads), mask_out(labels, ids, keep=True, threads=threads)
            assert masked.dtype == kept.dtype == dtype
            assert np.array_equal(masked, np.where(hit, 0, labels))
            assert np.array_equal(kept, np.where(hit, labels, 0))
    assert mask_out(np.array([1, 2]), []).tolist() == [1, 2]
    assert mask_out(np.array([1, 2]), np.array([]).astype(int), keep=True).tolist() == [0, 0]


@pytest.mark.parametrize("call, sentence", [
    (lambda: relabel(np.array([0.5])), "labels must be integers or bool; got float64"),
    (lambda: relabel(np.array([3, -1])), "labels must not be negative; found -1"),
    (lambda: unique(np.array([-2], np.int8)), "labels must not be negative; found -2"),
    (lambda: remap(np.array([1, 2]), {1: 1}), "mapping has no new label for 2"),
    (lambda: remap(np.array([1, 2]), {1: -1}), "mapping must hold whole numbers from 0"),
    (lambda: remap(np.array([1, 2]), {1: 1.5}), "mapping must hold whole numbers from 0"),
    (lambda: remap(np.array([1]), (np.array([1, 1]), np.array([2, 3]))), "mapping gives label 1 two different new"),
    (lambda: remap(np.array([1]), (np.array([1, 2]), np.array([2]))), "as many new labels as old ones"),
    (lambda: remap(np.array([1]), [1, 2]), "mapping must be a dict or a pair of arrays"),
    (lambda: remap(np.array([1]), {1: 1}, missing="drop"), "missing must be 'error', 'keep' or a label"),
    (lambda: mask_out(np.array([1]), [-1]), "ids must hold whole numbers from 0"),
])
def test_bad_input_is_named_in_one_sentence(call, sentence):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        call()
    assert sentence in str(error.value)


@pytest.mark.bench
def test_relabel_unique_and_remap_equal_fastremap():
    fastremap = pytest.importorskip("fastremap", reason="the peer fastremap is not installed")
    labels = np.repeat(np.random.default_rng(1).integers(0, 500, (20, 30, 10)) ** 3, 4, axis=2).astype(np.uint32)
    dense, table = relabel(labels)
    theirs, mapping = fastremap.renumber(labels, in_place=False)
    assert np.array_equal(dense, theirs)
    assert {int(table[new]): new for new in range(len(table))} == {int(k): int(v) for k, v in mapping.items()} | {0: 0}
    for own, their in zip(unique(labels, counts=True), fastremap.unique(labels, return_counts=True)):
        assert np.array_equal(own, their)
    doubled = {int(label): 2 * int(label) for label in table}
    assert np.array_equal(remap(labels, doubled), fastremap.remap(labels, doubled))

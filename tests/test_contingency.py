"""The contingency table against a dictionary of counts, for every type, layout and cutting; bad input."""

import os
import stat
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from emcore.metrics.tables import CHUNK
from tests.oracles.partitions import pair_counts

HUGE = [2**32 + 5, 2**40, 2**53 + 1, 2**63 + 1, 2**64 - 2, 2**64 - 1]


def as_dictionary(table):
    return {(int(table.truth_ids[i]), int(table.label_ids[j])): int(n)
            for i, j, n in zip(table.rows, table.columns, table.n)}


def same_bits(one, other):
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right, field.name


def test_counts_equal_a_dictionary_on_random_tiny_volumes():
    random = np.random.default_rng(1)
    for _ in range(200):
        shape = tuple(random.integers(0, 5, random.integers(1, 4)))
        truth, labels = random.integers(0, 4, (2, *shape))
        mask = random.random(shape) < 0.3 if random.random() < 0.5 else None
        rule = ((0,), ()) if random.random() < 0.5 else ((1, 3), (0, 2))
        table = metrics.contingency(truth, labels, *rule, mask=mask)
        expected = pair_counts(truth, labels, *rule, mask)
        assert as_dictionary(table) == expected
        assert table.voxels == sum(expected.values())
        assert table.total == truth.size
        assert table.masked == (0 if mask is None else mask.sum())
        assert table.truth_sizes.sum() == table.label_sizes.sum() == table.voxels


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i2", "u4", "i4", "u8", ">u8", "i8", "?"])
def test_every_integer_type_counts_alike_and_types_mix(dtype):
    random = np.random.default_rng(2)
    truth = random.integers(0, 2 if dtype == "?" else 100, (3, 5, 70))
    labels = random.integers(0, 2, (3, 5, 70)).astype(np.uint64) * np.uint64(2**63)
    assert as_dictionary(metrics.contingency(truth.astype(dtype), labels)) == pair_counts(truth, labels)
    assert as_dictionary(metrics.contingency(labels, truth.astype(dtype))) == pair_counts(labels, truth)


def test_ids_up_to_the_largest_stay_apart():
    truth = np.array([*HUGE, *HUGE], np.uint64)
    labels = np.array([*HUGE, *HUGE[1:], HUGE[0]], np.uint64)
    assert as_dictionary(metrics.contingency(truth, labels)) == pair_counts(truth, labels)
    kept = metrics.contingency(truth, labels, ignore_truth=(2**64 - 1,))
    assert as_dictionary(kept) == pair_counts(truth, labels, (2**64 - 1,))


def test_threads_chunks_and_many_pairs_give_identical_tables():
    random = np.random.default_rng(3)
    truth = random.integers(0, 300, (7, 150, 301)).astype(np.uint32)
    labels = np.repeat(random.integers(0, 2000, (7, 150, 43)), 7, axis=2).astype(np.uint64)
    mask = random.random(truth.shape) < 0.1
    assert truth.size > 3 * CHUNK
    expected = metrics.contingency(truth, labels, mask=mask, threads=1)
    pairs, counts = np.unique(np.stack([truth[~mask], labels[~mask]]).astype(np.uint64), axis=1, return_counts=True)
    assert np.array_equal([expected.truth, expected.labels], pairs)
    assert np.array_equal(expected.counts, counts)
    for threads in (2, 3, 7):
        same_bits(metrics.contingency(truth, labels, mask=mask, threads=threads), expected)


def test_layout_does_not_matter_and_inputs_stay_as_they_are():
    random = np.random.default_rng(4)
    truth, labels = random.integers(0, 5, (2, 60, 70, 40))
    mask = random.random(truth.shape) < 0.5
    expected = metrics.contingency(truth, labels, mask=mask)
    both = [np.asfortranarray(truth), np.asfortranarray(labels), np.asfortranarray(mask)]
    padded = np.zeros((60, 70, 80), int)
    padded[:, :, ::2] = labels
    flipped = np.ascontiguousarray(truth[::-1])[::-1]
    for array in (*both, flipped):
        array.flags.writeable = False
    for t, s, m in (both, (truth, both[1], mask), (both[0], labels, mask), (flipped, padded[:, :, ::2], both[2])):
        same_bits(metrics.contingency(t, s, mask=m), expected)


class SlicedVolume:
    """Shape, dtype and slicing, as open_volume gives; remembers how much was asked for at once."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.largest = max(self.largest, part.nbytes)
        return part


def test_volumes_are_read_in_blocks(monkeypatch):
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", 40_000)
    truth, labels = np.random.default_rng(5).integers(0, 9, (2, 23, 30, 31))
    mask = truth == 3
    volumes = [SlicedVolume(truth), SlicedVolume(labels)]
    for threads in (1, 3):
        same_bits(metrics.contingency(*volumes, mask=SlicedVolume(mask), threads=threads),
                  metrics.contingency(truth, labels, mask=mask))
    assert max(volume.largest for volume in volumes) <= 40_000
    same_bits(metrics.contingency(truth, volumes[1]), metrics.contingency(truth, labels))


def test_blocks_pool_to_the_whole_and_volumes_keep_their_objects_apart():
    truth, labels = np.random.default_rng(6).integers(0, 4, (2, 9, 8, 7))
    blocks = [metrics.contingency(truth[k:k + 4], labels[k:k + 4]) for k in (0, 4, 8)]
    same_bits(metrics.pool(blocks), metrics.contingency(truth, labels))
    apart = metrics.pool(blocks, same_objects=False)
    step = np.repeat([0, 10, 20], [4, 4, 1])[:, None, None]
    renamed = metrics.contingency(np.where(truth, truth + step, 0), np.where(labels, labels + step, 0))
    assert sorted(apart.n) == sorted(renamed.n)
    assert metrics.voi(apart) == pytest.approx(metrics.voi(renamed), abs=1e-12)
    assert metrics.rand(apart, "cremi") == pytest.approx(metrics.rand(renamed, "cremi"), abs=1e-12)
    assert apart.total == truth.size


def test_pooling_is_not_the_mean_of_the_scores():
    first = metrics.contingency(np.array([1, 1, 2, 2]), np.array([1, 1, 1, 1]))
    second = metrics.contingency(np.repeat([1, 2], 6), np.repeat([1, 2], 6))
    pooled = metrics.rand(metrics.pool([first, second], same_objects=False), "funlib").error
    assert pooled == pytest.approx(1 - 2 * 80 / (80 + 88))
    assert (metrics.rand(first, "funlib").error + metrics.rand(second, "funlib").error) / 2 == pytest.approx(1 / 6)


def test_another_rule_needs_no_other_pass():
    truth, labels = np.random.default_rng(7).integers(0, 4, (2, 6, 6))
    table = metrics.contingency(truth, labels)
    same_bits(table.ignoring((1,), (0, 2)), metrics.contingency(truth, labels, (1,), (0, 2)))


@pytest.mark.parametrize("truth, labels, options, sentence", [
    (np.zeros((2, 3), int), np.zeros((3, 2), int), {}, r"truth is \(2, 3\), labels are \(3, 2\)"),
    (np.zeros(3), np.zeros(3, int), {}, "truth must be integer labels; got float64"),
    (np.zeros(3, int), np.array([1, np.nan, 2], "f4"), {}, "labels must be integer labels; got float32"),
    (np.array([1, -7]), np.array([1, 2]), {}, "truth must not be negative; it holds -7 as int64"),
    (np.array([1, 7]), np.array([-1, 2], "i1"), {}, "labels must not be negative; it holds -1 as int8"),
    (np.ones(3, int), np.ones(3, int), {"mask": np.ones(2, bool)}, r"mask must have the shape .*\(3,\); it is \(2,\)"),
    (np.ones(3, int), np.ones(3, int), {"mask": np.ones(3, int)}, "mask must be boolean"),
    (np.ones(3, int), np.ones(3, int), {"ignore_truth": (-1,)}, "write -1 as 2"),
    (np.ones(3, int), np.ones(3, int), {"ignore_labels": (0.5,)}, "ignored ids must be integers"),
    (np.ones(3, int), np.ones(3, int), {"threads": 0}, "threads must be at least 1"),
])
def test_bad_input_is_refused_in_a_sentence(truth, labels, options, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.contingency(truth, labels, **options)


def test_pooling_refuses_tables_of_different_rules():
    table = metrics.contingency(np.ones(3, int), np.ones(3, int))
    with pytest.raises(InputError, match="must ignore the same ids"):
        metrics.pool([table, table.ignoring(())])
    with pytest.raises(InputError, match="at least one table"):
        metrics.pool([])


COLD_START = """
import sys, time, pathlib
start = time.process_time()  # a busy machine must not fail the test
import numpy as np
from types import SimpleNamespace
from emcore import metrics
ids = np.arange(1, 9).reshape(1, 2, 4)
print(metrics.rand(metrics.contingency(ids, ids)))
if MORE:
    tree = SimpleNamespace(a=np.array([1]), b=np.array([2]), height=np.array([0.5]), fragments=8)
    print(metrics.threshold_curve(ids, tree, ids).voi.merge[1])
print("numba" in sys.modules)
metrics.neuron_border_mask(ids, (40, 4, 4))
import emcore, numba
from emcore.cache import cache_folder
print(cache_folder(f"emcore-{emcore.__version__}-numba-{numba.__version__}"))
print(time.process_time() - start)
"""


def run_cold(home, temporary, more=False):
    """The folder of compiled code and the seconds of a process that uses one kernel, or with more all of a score."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "TMPDIR": str(temporary),
                   "PYTHONDONTWRITEBYTECODE": "1"} | ({"HOME": str(home)} if home else {})
    done = subprocess.run([sys.executable, "-W", "error", "-c", COLD_START.replace("MORE", str(more))],
                          env=environment, capture_output=True, text=True, check=True)
    *scores, folder, seconds = done.stdout.splitlines()
    assert scores == ["Rand(error=0.0, precision=1.0, recall=1.0)", *["0.25"] * more, "False"]  # no score needs Numba
    return folder, float(seconds)


@pytest.mark.slow
def test_compiled_code_is_kept_where_this_user_can_write_and_a_cold_start_takes_seconds(tmp_path):
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    folder, cold = run_cold(home, temporary, more=True)
    assert folder.startswith(str(home))
    assert list((home / ".cache").rglob("*.nbi"))
    _, warm = run_cold(home, temporary, more=True)
    assert cold < 15
    assert warm < cold

    no_home = tmp_path / "a file"
    no_home.write_text("")  # nothing can be made below it, even by root
    folder, _ = run_cold(no_home, temporary)
    assert folder.startswith(str(temporary))
    assert list(temporary.rglob("*.nbi"))
    assert stat.S_IMODE(os.stat(folder).st_mode) & 0o022 == 0

    (temporary / f"emcore-{os.getuid()}").chmod(0o777)  # somebody else could plant code there
    folder, _ = run_cold(no_home, temporary)
    assert folder == "None"

import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from tests.oracles import agglomeration as oracle

LONG = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -2, 1), (-1, -1, -1), (1, 2, -1))
ALL = ("sizes", "boxes", "histogram")
STATISTICS = ("u", "v", "count", "sum", "max", "min", "key", "sizes", "boxes", "bin_starts", "bins", "bin_counts")


def volume(rng, shape, labels=7, levels=5, channels=3):
    """Fragments with gaps and zeros, and affinities full of ties."""
    fragments = rng.integers(0, labels, shape).astype(np.uint32)
    affs = (rng.integers(0, levels + 1, (channels, *shape)) / levels).astype(np.float32)
    return fragments, affs


def shapes(rng, count):
    yield from [(0, 3, 3), (3, 0, 2), (1, 1, 1), (1, 1, 7), (7, 1, 1)]
    for _ in range(count):
        yield tuple(rng.integers(1, 7, 3))


def assert_same(a, b):
    for name in STATISTICS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_every_statistic_equals_that_of_the_contacts_one_by_one():
    rng = np.random.default_rng(0)
    for i, shape in enumerate(shapes(rng, 60)):
        fragments, affs = volume(rng, shape, channels=7)
        offsets = LONG if i % 2 else oracle.NEAREST
        used = affs[: len(offsets)]
        graph = segment.region_graph(fragments, segment.Affinities(used, offsets), extras=ALL, threads=1 + i % 3)
        found = oracle.contacts(fragments, used, offsets)
        assert list(zip(graph.u.tolist(), graph.v.tolist())) == sorted(found)
        assert graph.fragments == fragments.max(initial=0)
        for e, pair in enumerate(sorted(found)):
            values = np.array([value for value, _ in found[pair]])
            assert graph.count[e] == len(values)
            assert graph.sum[e] == sum(int(value * 2**24) for value in values)
            assert (graph.max[e], graph.min[e]) == (values.max(), values.min())
            assert graph.key[e] == max(key for _, key in found[pair])
            np.testing.assert_allclose(graph.mean[e], values.mean(), atol=1e-6)
            row = slice(graph.bin_starts[e], graph.bin_starts[e + 1])
            bins, counts = np.unique(np.minimum((values * 256).astype(int), 255), return_counts=True)
            np.testing.assert_array_equal(graph.bins[row], bins)
            np.testing.assert_array_equal(graph.bin_counts[row], counts)
        np.testing.assert_array_equal(graph.sizes, np.bincount(fragments.ravel(), minlength=1))
        for label in range(1, graph.fragments + 1):
            where = np.argwhere(fragments == label)
            box = [*where.min(0), *where.max(0)] if len(where) else [0, 0, 0, -1, -1, -1]
            assert graph.boxes[label].tolist() == box


def test_the_graph_is_the_same_bits_for_any_number_of_threads():
    rng = np.random.default_rng(1)
    fragments, affs = volume(rng, (23, 70, 19), labels=2000, levels=50)
    one = segment.region_graph(fragments, affs, extras=ALL, threads=1)
    for threads in (2, 3, 7, 40):
        assert_same(one, segment.region_graph(fragments, affs, extras=ALL, threads=threads))


def test_strided_read_only_and_other_label_types_give_the_same_graph():
    rng = np.random.default_rng(2)
    fragments, affs = volume(rng, (6, 8, 10))
    wanted = segment.region_graph(fragments, affs, extras=ALL)
    strided = np.repeat(fragments[::-1, ::-1, ::-1], 2, axis=2).astype(np.uint64)[::-1, ::-1, ::-2]
    strided_affs = np.asfortranarray(affs)
    for array in (strided, strided_affs):
        array.flags.writeable = False
    kept = fragments.copy()
    for labels in (strided, *(fragments.astype(dtype) for dtype in ("i8", "u1", ">u4", "i2"))):
        assert_same(wanted, segment.region_graph(labels, strided_affs, extras=ALL))
    np.testing.assert_array_equal(fragments, kept)


def test_float16_and_uint8_count_as_the_float32_they_stand_for():
    rng = np.random.default_rng(3)
    fragments, _ = volume(rng, (5, 6, 7))
    codes = rng.integers(0, 256, (3, 5, 6, 7)).astype(np.uint8)
    table = np.sort(rng.random(256).astype(np.float32))
    table[[0, 255]] = 0, 1
    assert_same(segment.region_graph(fragments, segment.Affinities(codes, table=table), extras=ALL),
                segment.region_graph(fragments, table[codes], extras=ALL))
    half = rng.random((3, 5, 6, 7)).astype(np.float16)
    assert_same(segment.region_graph(fragments, half, extras=ALL),
                segment.region_graph(fragments, half.astype(np.float32), extras=ALL))


def test_edges_stored_at_the_earlier_voxel_give_the_same_graph():
    rng = np.random.default_rng(4)
    fragments, affs = volume(rng, (5, 6, 7))
    earlier = np.zeros_like(affs)
    for axis in range(3):
        earlier[axis] = np.roll(affs[axis], -1, axis=axis)
    names = ("u", "v", "count", "sum", "key")
    wanted = segment.region_graph(fragments, affs)
    backwards = segment.Affinities(earlier[::-1], ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    for graph in (segment.region_graph(fragments, segment.Affinities(earlier, edge="earlier")),
                  segment.region_graph(fragments, backwards)):
        for name in names:
            np.testing.assert_array_equal(getattr(wanted, name), getattr(graph, name))


def test_chosen_channels_alone_count():
    rng = np.random.default_rng(5)
    fragments, affs = volume(rng, (4, 5, 6), channels=4)
    affs[2] = np.nan
    graph = segment.region_graph(fragments, affs, channels=(1,))
    found = oracle.contacts(fragments, affs[1:2], oracle.NEAREST[1:2])
    assert graph.count.sum() == sum(len(seen) for seen in found.values())


def test_keys_of_a_block_are_those_of_the_whole_volume():
    rng = np.random.default_rng(6)
    fragments, affs = volume(rng, (5, 6, 7))
    whole = oracle.contacts(fragments, affs)
    block = segment.region_graph(fragments[2:, 1:5, 3:], affs[:, 2:, 1:5, 3:],
                                place=segment.Place((2, 1, 3), (5, 6, 7)))
    keys = {key for seen in whole.values() for _, key in seen}
    assert len(block.key) > 0
    assert set(block.key.tolist()) <= keys


def test_graphs_of_blocks_pool_to_that_of_the_volume():
    rng = np.random.default_rng(8)
    for _ in range(20):
        shape = tuple(rng.integers(2, 9, 3))
        fragments, affs = volume(rng, shape)
        parts = []
        cuts = [(0, int(rng.integers(1, size)), size) for size in shape]
        for corner in np.ndindex(2, 2, 2):
            start = [cut[i] for cut, i in zip(cuts, corner)]
            begin = [max(0, s - 1) for s in start]
            block = tuple(slice(b, cut[i + 1]) for b, cut, i in zip(begin, cuts, corner))
            parts.append(segment.region_graph(fragments[block], affs[:, *block], extras=("sizes", "histogram"),
                                              place=segment.Place(begin, shape, np.subtract(start, begin))))
        whole = segment.region_graph(fragments, affs, extras=("sizes", "histogram"))
        pooled = segment.pool_graphs(parts)
        for name in ("u", "v", "count", "sum", "max", "min", "key", "sizes", "bin_starts", "bins", "bin_counts"):
            np.testing.assert_array_equal(getattr(pooled, name), getattr(whole, name), err_msg=name)


BAD = {
    "fragments must be whole-number labels": lambda f, a: ((f.astype(np.float32), a), {}),
    "fragments must be whole-number labels .z, y, x.; got .3, 4.": lambda f, a: ((f[0], a), {}),
    "over the fragments' shape": lambda f, a: ((f[1:], a), {}),
    "affs must be float32, float16 or uint8; got float64": lambda f, a: ((f, a.astype(np.float64)), {}),
    "affs must lie in 0..1; found nan": lambda f, a: ((f, np.where(a > .5, np.nan, a)), {}),
    "affs must lie in 0..1; found 1.6": lambda f, a: ((f, a * 2), {}),
    "found label 9007199254740993 in 24 voxels; segment": lambda f, a: ((f.astype(np.int64) % 2 + 2**53, a), {}),
    "found label 18446744073709551615": lambda f, a: ((f.astype(np.int64) - 2, a), {}),
    "extras may name .*; got median": lambda f, a: ((f, a), {"extras": ("median",)}),
    "channels must be different numbers": lambda f, a: ((f, a), {"channels": (0, 3)}),
    "pairs of another channel over again":
        lambda f, a: ((f, segment.Affinities(a, ((-1, 0, 0), (0, -1, 0), (1, 0, 0)))), {}),
    "is no step": lambda f, a: ((f, segment.Affinities(a, ((0, 0, 0), (0, -1, 0), (0, 0, -1)))), {}),
    "must place fragments": lambda f, a: ((f, a), {"place": segment.Place(origin=(1, 0, 0))}),
    "threads must be at least 1": lambda f, a: ((f, a), {"threads": 0}),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_answered_with_a_sentence(sentence):
    rng = np.random.default_rng(7)
    fragments, affs = volume(rng, (2, 3, 4))
    affs[:, 1] = 1  # so that doubled ones are seen
    arguments, options = BAD[sentence](fragments, affs)
    with pytest.raises(InputError, match=sentence):
        segment.region_graph(*arguments, **options)

"""Section linking and face merging against dicts of pixels and hand-made cases."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import Affinities, LinkRule, join_pairs, link_sections, merge_faces
from tests.oracles import linking as oracle


def blocky(rng, shape, labels):
    """Small rectangles of few labels, some of them background."""
    image = rng.integers(0, labels, [-(-n // 2) for n in shape])
    return image.repeat(2, -1).repeat(2, -2)[..., :shape[-2], :shape[-1]][:shape[0]]


def test_linking_equals_dicts_of_pixels():
    rng = np.random.default_rng(1)
    joins = 0
    for _ in range(250):
        shape = (*rng.integers(1, 5, 1), *rng.integers(1, 8, 2))
        labels = blocky(rng, (2 * shape[0], *shape[1:]), 12)[:shape[0]].astype(rng.choice(["u1", "i4", "u4", "u8"]))
        if rng.random() < 0.5:
            labels = labels + (20 * np.arange(shape[0])[:, None, None] * (labels > 0)).astype(labels.dtype)
        affs = rng.integers(0, 5, (3, *shape)).astype(np.float32) / 4
        options = {"iou": rng.choice([0, 0.3, 0.5]), "best_buddy": bool(rng.integers(2)),
                   "one_sided": rng.choice([0, 0.5, 0.8]), "one_sided_size": rng.integers(0, 6),
                   "affinity": rng.choice([0, 0.5]), "min_size": rng.integers(0, 4)}
        linked = link_sections(labels, affs, LinkRule(**options))
        np.testing.assert_array_equal(linked, oracle.link_sections(labels, affs[0], **options))
        assert linked.dtype == labels.dtype
        joins += (linked != labels).any()
    assert joins > 50


def test_faces_equal_dicts_of_pixels():
    rng = np.random.default_rng(2)
    kept = 0
    for _ in range(250):
        shape = (1, *rng.integers(1, 9, 2))
        first, second = (blocky(rng, shape, 6)[0] for _ in range(2))
        affinities = rng.integers(0, 5, shape[1:]).astype(np.float32) / 4
        options = {"min_overlap": rng.integers(1, 4), "iou": rng.choice([0, 0.3]),
                   "one_sided": rng.choice([0, 0.5, 0.9]), "one_sided_size": rng.integers(0, 6),
                   "affinity": rng.choice([0, 0.5])}
        joined = merge_faces(first, second.astype(np.uint8), affinities, **options)
        expected = oracle.face_pairs(first, second, affinities, **options)
        assert [tuple(pair) for pair in joined.pairs.tolist()] == expected
        assert dict(zip(joined.old.tolist(), joined.new.tolist())) == oracle.groups(expected)
        kept += len(expected)
    assert kept > 100


def test_a_neuron_of_three_sections_becomes_one():
    labels = np.zeros((3, 6, 6), np.uint32)
    for z in range(3):
        labels[z, :4, z:z + 3] = 10 + z
    assert set(np.unique(link_sections(labels))) == {0, 10}
    strict = LinkRule(best_buddy=False, iou=0.6, one_sided=0)
    assert set(np.unique(link_sections(labels, None, strict))) == {0, 10, 11, 12}


def test_a_segment_that_goes_on_elsewhere_is_not_joined():
    labels = np.zeros((3, 2, 8), np.uint32)
    labels[0, :, :4] = 1
    labels[1:, :, 4:] = 1  # 1 does not end in section 0 ...
    labels[1:, :, :4] = 2  # ... nor in section 1, where 2 goes on beside it
    labels[0, 0, 7] = 2  # and 2 begins in section 0
    np.testing.assert_array_equal(link_sections(labels, None, LinkRule(one_sided_size=1)), labels)


def test_more_affinity_asked_joins_less():
    rng = np.random.default_rng(3)
    labels = np.arange(1, 4 * 25 + 1).reshape(4, 5, 5).repeat(3, 1).repeat(3, 2)
    affs = rng.random((3, *labels.shape)).astype(np.float32)
    counts = [len(np.unique(link_sections(labels, affs, LinkRule(affinity=a)))) for a in (0, 0.4, 0.5, 0.6, 1)]
    assert counts == sorted(counts)
    assert counts[0] == 25
    assert counts[-1] == 100


def test_affinities_stored_at_the_earlier_voxel_join_the_same():
    rng = np.random.default_rng(5)
    labels = np.arange(1, 4 * 25 + 1).reshape(4, 5, 5).repeat(3, 1).repeat(3, 2)
    affs = rng.random((3, *labels.shape)).astype(np.float32)
    earlier = Affinities(np.stack([np.roll(a, -1, axis) for axis, a in enumerate(affs)]), edge="earlier")
    linked = link_sections(labels, affs, LinkRule(affinity=0.5))
    np.testing.assert_array_equal(link_sections(labels, earlier, LinkRule(affinity=0.5)), linked)
    assert 25 < len(np.unique(linked)) < 100


def test_threads_strides_and_read_only_inputs_change_nothing():
    rng = np.random.default_rng(4)
    labels = blocky(rng, (9, 20, 22), 40).astype(np.uint64) << 40
    wide = labels.repeat(2, axis=2)[:, :, ::2]
    wide.flags.writeable = False
    one = link_sections(labels, threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(link_sections(wide, threads=threads), one)
    np.testing.assert_array_equal(wide, labels)


def test_pairs_of_many_faces_form_groups():
    joined = join_pairs(np.array([[5, 9], [9, 2**60], [3, 4], [5, 9]], np.uint64))
    assert dict(zip(joined.old.tolist(), joined.new.tolist())) == {3: 3, 4: 3, 5: 5, 9: 5, 2**60: 5}
    assert len(join_pairs(np.empty((0, 2), np.uint64)).old) == 0
    assert len(merge_faces(np.zeros((0, 3), int), np.zeros((0, 3), int)).pairs) == 0


def test_nothing_to_link_gives_a_copy():
    for shape in ((0, 3, 3), (1, 3, 3), (3, 0, 3)):
        labels = np.ones(shape, np.uint16)
        linked = link_sections(labels)
        np.testing.assert_array_equal(linked, labels)
        assert not np.shares_memory(linked, labels)


@pytest.mark.parametrize("change, sentence", [
    ({"labels": np.ones((2, 3, 3))}, "labels must be integers or bool; got float64"),
    ({"labels": np.ones((3, 3), int)}, "labels must have 3 axes; got shape (3, 3)"),
    ({"labels": np.full((2, 3, 3), -1)}, "labels must not be negative; found -1"),
    ({"rule": LinkRule(iou=50)}, "iou must be between 0 (off) and 1; got 50"),
    ({"rule": LinkRule(affinity=0.5)}, "affinity=0.5 needs affs"),
    ({"affs": np.ones((3, 2, 3, 4), np.float32)}, "affs must lie on the labels (2, 3, 3); got (3, 2, 3, 4)"),
])
def test_a_wrong_argument_of_linking_is_named(change, sentence):
    with pytest.raises(InputError) as caught:
        link_sections(**{"labels": np.ones((2, 3, 3), int), **change})
    assert sentence in str(caught.value)


@pytest.mark.parametrize("change, sentence", [
    ({"second": np.ones((3, 4), int)}, "the two faces must have one shape; got (3, 3) and (3, 4)"),
    ({"affinity": 0.5}, "needs the affinities between the faces"),
    ({"affinities": np.ones((3, 4))}, "affinities must be floating point of shape (3, 3)"),
    ({"one_sided": -1}, "one_sided must be between 0 (off) and 1"),
])
def test_a_wrong_argument_of_face_merging_is_named(change, sentence):
    with pytest.raises(InputError) as caught:
        merge_faces(**{"first": np.ones((3, 3), int), "second": np.ones((3, 3), int), **change})
    assert sentence in str(caught.value)

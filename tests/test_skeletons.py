"""Skeletons against Dijkstra's algorithm in Python, and shapes whose skeleton is known."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.kernels import skeleton as kernel
from emcore.metrics import labels_at
from emcore.segment import Skeleton, connected_components, distance_transform, skeleton_volume, skeletonize
from tests.oracles import skeletons as oracle


def blobs(rng, largest=7):
    """Thick random labels: few values, smeared along the axes."""
    labels = rng.integers(0, 4, rng.integers(1, largest, 3)) * (rng.random() < 0.9)
    if rng.random() < 0.5:
        labels = labels.repeat(2, 1).repeat(2, 2)
    return labels.astype(np.uint32)


def runs_of(mask):
    """The runs (z, y, first x, end) of a mask, and how many slots the kernel needs for them."""
    runs = []
    for z, y, x in np.argwhere(mask).tolist():
        if runs and runs[-1][:2] == [z, y] and runs[-1][3] == x:
            runs[-1][3] += 1
        else:
            runs.append([z, y, x, x + 1])
    return np.array(runs, np.int32), int(mask.sum()) + 2 * len(runs) + 8


def tube(radius, direction, unit=(1, 1, 1), length=60):
    """A cylinder of a radius and a length along a direction through the middle of its box, and where that is."""
    direction, unit = np.array(direction) / np.linalg.norm(direction), np.array(unit)
    shape = np.ceil((np.abs(direction) * length + 2 * radius) / unit + 4).astype(int)
    middle = (shape - 1) / 2 * unit
    places = np.stack(np.mgrid[tuple(map(slice, shape))], -1) * unit - middle
    along = places @ direction
    across = np.sqrt(np.maximum(0, (places**2).sum(-1) - along**2))
    return ((np.abs(along) <= length / 2) & (across <= radius)).astype(np.uint8), middle


def degrees(skeleton):
    return np.bincount(skeleton.edges.ravel(), minlength=len(skeleton.vertices))


@pytest.mark.parametrize("unit", [(1, 1, 1), (40, 4, 4), (2.5, 1.7, 1.1)])
def test_equals_dijkstra_in_python(unit):
    """Depths are shaken a little, so that no two paths cost the same."""
    rng = np.random.default_rng([1, int(unit[0])])
    for _ in range(6):
        pieces, count = connected_components(blobs(rng), 26, count=True)
        scale, constant = rng.choice([0, 0.5, 1.5]), rng.choice([0, 1, 3]) * unit[2]
        squared = np.minimum(distance_transform(pieces, unit, squared=True),
                             ((np.array(pieces.shape) * unit) ** 2).sum(dtype=float))
        squared = (squared * rng.uniform(1, 1.2, squared.shape)).astype(np.float32)
        for piece in range(1, count + 1):
            radius = {tuple(voxel): np.sqrt(squared[tuple(voxel)]) for voxel in np.argwhere(pieces == piece).tolist()}
            expected = oracle.skeleton(radius, unit, scale, constant)
            runs, slots = runs_of(pieces == piece)
            rows = np.frombuffer(kernel.trace(runs, squared, np.array(unit, float), scale, constant,
                                              np.empty((4, slots), np.float32), np.empty(slots, np.int32),
                                              np.empty(slots, np.uint8)), np.int32).reshape(-1, 5).tolist()
            place = {slot: tuple(voxel) for slot, _, *voxel in rows}
            found = {tuple(voxel): place.get(following) for _, following, *voxel in rows}
            assert found == expected


@pytest.mark.parametrize("radius", [3, 4, 6])
@pytest.mark.parametrize("unit", [(1, 1, 1), (2.5, 1, 1)])
@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 0, 0), (0, 1, 1), (1, 1, 1), (1, 2, 3)])
def test_a_tube_has_its_length_and_radius_and_two_ends(radius, unit, direction):
    labels, middle = tube(radius, direction, unit)
    one = skeletonize(labels, unit)[1]
    along = (one.vertices - middle) @ direction / np.linalg.norm(direction)
    assert sorted(degrees(one))[:3] == [1, 1, 2]
    assert along.max() - along.min() == pytest.approx(60, abs=3)
    inner = np.abs(along) < 30 - 2 * radius
    assert np.median(one.radius[inner]) == pytest.approx(radius, abs=1 if unit[0] == 1 else 1.5)
    if direction != (1, 2, 3) and (unit[0] == 1 or 0 in direction):  # else steps between voxels make no straight line
        assert one.length == pytest.approx(60, abs=3)


def test_a_letter_y_has_three_branches():
    labels = np.zeros((7, 70, 70), np.uint32)
    for i in range(30):
        for y, x in ((35 + i, 35), (35 - i, 35 - i), (35 - i, 35 + i)):
            labels[2:5, y - 1:y + 2, x - 1:x + 2] = 1
    one = skeletonize(labels, (1, 1, 1), const_nm=5)[1]
    assert sorted(degrees(one)[degrees(one) != 2]) == [1, 1, 1, 3]
    assert one.length == pytest.approx(30 * (1 + 2 * 2**0.5), abs=6)


def test_a_sheet_ends_in_its_corners_and_the_middles_of_its_sides():
    """Three paths leave the corner where the root is, which stays an end."""
    one = skeletonize(np.pad(np.ones((3, 80, 80), np.uint8), 1), (1, 1, 1), const_nm=25)[1]
    assert np.count_nonzero(degrees(one) == 1) == 6
    corners = np.array([[y, x] for y in (1, 80) for x in (1, 80)])
    ends = one.vertices[degrees(one) == 1][:, 1:]
    assert (np.abs(ends[:, None] - corners).max(-1).min(0) <= 2).all()


@pytest.mark.parametrize("around, radius, unit, const", [
    (14, 3, (1, 1, 1), 2), (14, 3, (1, 1, 1), 5), (20, 4, (2.5, 1, 1), 3), (20, 6, (1, 1, 1), 1)])
def test_a_torus_is_cut_open_once_and_is_a_line_with_two_ends(around, radius, unit, const):
    places = np.stack(np.mgrid[-7:8, -27:28, -27:28], -1) * unit
    ring = (np.hypot(places[..., 1], places[..., 2]) - around) ** 2 + places[..., 0] ** 2 <= radius**2
    one = skeletonize(ring.astype(np.uint32), unit, const_nm=const)[1]
    assert len(one.edges) == len(one.vertices) - 1
    assert sorted(degrees(one))[:3] == [1, 1, 2]
    assert degrees(one).max() == 2
    assert one.length > 0.9 * 2 * np.pi * around


def test_the_runs_of_pieces_are_those_of_their_masks():
    rng = np.random.default_rng(8)
    for _ in range(20):
        pieces = rng.integers(0, 3, rng.integers(1, 8, 3)).astype(np.uint32)
        runs, voxels = np.zeros(3, np.int64), np.zeros(3, np.int64)
        kernel.count_runs(pieces, runs, voxels)
        runs[0] = 0
        ends, table = np.cumsum(runs), np.empty((runs.sum(), 4), np.int32)
        kernel.list_runs(pieces, ends - runs, table)
        for piece in (1, 2):
            expected, _ = runs_of(pieces == piece)
            np.testing.assert_array_equal(table[ends[piece] - runs[piece] : ends[piece]], expected.reshape(-1, 4))
            assert voxels[piece] == (pieces == piece).sum()


def test_a_single_voxel_is_one_vertex_and_pieces_are_several_trees():
    labels = np.zeros((5, 6, 20), np.uint64)
    labels[0, 0, 0] = 2**40
    labels[2, 2, 2:8] = labels[2, 2, 12:18] = 5
    found = skeletonize(labels, (4, 2, 1))
    assert list(found) == [5, 2**40]
    np.testing.assert_array_equal(found[2**40].vertices, [[0, 0, 0]])
    assert found[2**40].edges.shape == (0, 2)
    assert len(found[5].vertices) - len(found[5].edges) == 2
    assert found[5].length == 10
    assert list(skeletonize(labels, (4, 2, 1), dust_voxels=6)) == [5]
    assert skeletonize(labels, (4, 2, 1), dust_voxels=7) == {}


def test_an_object_that_fills_the_volume_has_a_skeleton():
    one = skeletonize(np.ones((3, 4, 30), np.uint8), (1, 1, 1), const_nm=1)[1]
    assert one.length >= 29
    assert np.isfinite(one.radius).all()


def test_trees_are_made_of_steps_between_neighbours_inside_the_object():
    labels = np.random.default_rng(3).integers(0, 3, (8, 12, 12)).repeat(2, 2)
    for label, one in skeletonize(labels, (1, 1, 1), const_nm=0).items():
        voxels = one.vertices.astype(int)
        assert (labels[tuple(voxels.T)] == label).all()
        assert (np.abs(voxels[one.edges[:, 0]] - voxels[one.edges[:, 1]]).max(1) == 1).all()
        assert len(np.unique(one.edges[:, 0])) == len(one.edges)  # one way to the root from every vertex


def test_the_volume_holds_each_label_on_its_own_vertices():
    labels = np.random.default_rng(4).integers(0, 3, (4, 8, 8)).repeat(2, 2).astype(np.uint16)
    volume = skeleton_volume(labels, (4, 1, 1), const_nm=1)
    assert volume.dtype == labels.dtype
    expected = np.zeros_like(labels)
    for label, one in skeletonize(labels, (4, 1, 1), const_nm=1).items():
        expected[tuple((one.vertices / (4, 1, 1)).astype(int).T)] = label
    np.testing.assert_array_equal(volume, expected)


@pytest.mark.parametrize("rounding", ["down", "nearest"])
def test_every_vertex_is_found_again_in_its_object(rounding):
    labels = np.random.default_rng(6).integers(1, 9, (5, 30, 70)).astype(np.uint32)
    resolution = (4.6, 1 / 3, 0.7)
    for label, one in skeletonize(labels, resolution, const_nm=0.1).items():
        assert (labels_at(labels, one.vertices, resolution, rounding=rounding) == label).all()


def test_any_number_of_threads_and_read_only_views_give_the_same_bits():
    labels = np.random.default_rng(5).integers(0, 9, (6, 9, 9)).repeat(2, 1).astype(np.int64)
    turned = labels.T.copy().T
    turned.flags.writeable = False
    one = skeletonize(labels, (3, 2, 1), threads=1)
    for threads in (2, 3, 7):
        other = skeletonize(turned, (3, 2, 1), threads=threads)
        assert list(one) == list(other)
        for label in one:
            for field in ("vertices", "edges", "radius"):
                np.testing.assert_array_equal(getattr(one[label], field), getattr(other[label], field))


def test_empty_volumes_have_no_skeletons():
    for shape in ((0, 4, 4), (3, 4, 5)):
        assert skeletonize(np.zeros(shape, np.uint32), (1, 1, 1)) == {}
        np.testing.assert_array_equal(skeleton_volume(np.zeros(shape, np.uint32), (1, 1, 1)), np.zeros(shape))


def test_a_skeleton_knows_its_length():
    vertices = np.array([[0, 0, 0], [0, 3, 4], [0, 3, 10]], np.float32)
    assert Skeleton(vertices, np.array([[1, 0], [2, 1]]), np.ones(3, np.float32)).length == 11


@pytest.mark.parametrize("labels, resolution, settings, sentence", [
    (np.zeros((3, 3), int), (1, 1, 1), {}, "labels must be"), (np.zeros((3, 3, 3)), (1, 1, 1), {}, "integers"),
    (np.zeros((3, 3, 3), int), (1, 1), {}, "resolution must be three"),
    (np.zeros((3, 3, 3), int), (1, 0, 1), {}, "resolution must be three"),
    (np.zeros((3, 3, 3), int), (5000, 1, 1), {}, "none more than 1000 times"),
    (np.zeros((3, 3, 3), int), (1, 1, 1), {"scale": -1}, "scale and const_nm must"),
    (np.zeros((3, 3, 3), int), (1, 1, 1), {"const_nm": np.inf}, "scale and const_nm must")])
def test_bad_input_is_named(labels, resolution, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        skeletonize(labels, resolution, **settings)

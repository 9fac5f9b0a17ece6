"""Meshes: closed surfaces without an edge too many, the volume of the voxels, equal from blocks and from the whole."""

import itertools
import json
import struct

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import Mesh, mesh, simplify_mesh, write_mesh
from emcore.segment import meshes as home
from emcore.segment.marching import loops_of, marching_table, share_side, triangulated
from emcore.segment.meshes import Frame, halves, join_pieces, pieces
from tests.oracles import meshes as oracle

UNIT = (1.0, 1.0, 1.0)


def ball(radius, shape=None, centre=None):
    shape = shape or (int(2 * radius) + 6,) * 3
    centre = centre or [length / 2 + shift for length, shift in zip(shape, (0.17, -0.23, 0.05))]
    return sum((at + 0.5 - middle) ** 2 for at, middle in zip(np.indices(shape), centre)) < radius**2


def torus(large, small, shape, centre):
    z, y, x = (at + 0.5 - middle for at, middle in zip(np.indices(shape), centre))
    return (np.hypot(y, x) - large) ** 2 + z**2 < small**2


SOLIDS = {  # mask, Euler characteristic, true area
    "ball": (ball(9.3), 2, 4 * np.pi * 9.3**2),
    "torus": (torus(14, 5, (16, 44, 44), (8.1, 22.2, 21.9)), 0, 4 * np.pi**2 * 70),
    "two holes": (torus(10, 4, (14, 32, 54), (7, 16, 16)) | torus(10, 4, (14, 32, 54), (7, 16, 37)), -2, None),
    "two balls": (ball(7, (20, 20, 40), (10, 10, 10)) | ball(7, (20, 20, 40), (10, 10, 29)), 4, None),
    "hollow": (ball(11) & ~ball(5, (28, 28, 28)), 4, None),
    "box": (np.pad(np.ones((11, 10, 12), bool), 2), 2, None),
    "line of two voxels": (np.pad(np.ones((2, 2, 300), bool), 3), 2, None),
}


def check_surface(found: Mesh) -> int:
    """Asserts a closed surface whose triangles make one ring around every vertex; its Euler characteristic."""
    faces = found.faces.astype(np.int64)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {tuple(edge) for edge in edges.tolist()}
    assert len(there) == len(edges)
    assert there == {(b, a) for a, b in there}
    assert set(faces.ravel().tolist()) == set(range(len(found.vertices)))
    follows = {}
    for a, b, c in faces.tolist():
        for vertex, one, other in ((a, b, c), (b, c, a), (c, a, b)):
            follows.setdefault(vertex, {})[one] = other
    for ring in follows.values():
        start = at = next(iter(ring))
        for step in range(1, len(ring) + 1):
            at = ring[at]
            assert (at == start) == (step == len(ring))
    return len(found.vertices) - len(edges) // 2 + len(faces)


def canonical(found: Mesh) -> np.ndarray:
    """The triangles by the places of their corners, each from its first one, in order."""
    ranks = np.unique(found.vertices, axis=0, return_inverse=True)[1].reshape(-1)[found.faces]
    order = (ranks.argmin(1)[:, None] + np.arange(3)) % 3
    turned = np.take_along_axis(found.vertices[found.faces], order[:, :, None], 1).reshape(-1, 9)
    return turned[np.lexsort(turned.T)]


def noise(rng, shape, labels):
    """Labels that meet at faces, edges and corners in every way."""
    drawn = rng.integers(0, labels + 1, shape).astype(np.uint64)
    return np.where(rng.random(shape) < 0.5, drawn, np.roll(drawn, 1, 2))


# ---- cells


def test_every_cell_is_cut_into_loops_without_a_chord_within_a_side():
    table = marching_table()
    assert table[:, 1].max() == 5
    assert table[0, 1] == table[255, 1] == 0
    for mask in range(256):
        loops = loops_of(mask)
        assert table[mask, 0] == sum(map(len, loops))
        assert table[mask, 1] == sum(len(loop) - 2 for loop in loops)
        for loop in loops:
            sides = {frozenset(pair) for pair in zip(loop, loop[1:] + loop[:1])}
            chords = {frozenset(pair) for triangle in triangulated(loop)
                      for pair in itertools.combinations(triangle, 2)}
            assert sides <= chords
            assert not any(share_side(*chord) for chord in chords - sides)


@pytest.mark.parametrize("seed", range(6))
def test_the_surface_is_that_of_the_oracle(seed):
    rng = np.random.default_rng(seed)
    labels = noise(rng, tuple(rng.integers(1, 6, 3)), int(rng.integers(1, 4)))
    found = mesh(labels, UNIT)
    assert sorted(found) == [label for label in np.unique(labels).tolist() if label]
    for label, got in found.items():
        near, loops, ways = oracle.surface(labels == label)
        assert all(len(others) == 4 for others in near.values())
        places = {vertex: oracle.place(vertex, ways) for vertex in near}
        assert len(got.vertices) == len(near)
        middles = np.array([oracle.place(vertex, dict.fromkeys(near, 0.0)) for vertex in near])
        wanted = np.array(list(places.values()))
        order, own = np.lexsort(wanted.T), np.lexsort(got.vertices.T)
        assert np.allclose(np.sort(got.vertices, 0), np.sort(wanted, 0), atol=1e-5)
        distance = np.abs(got.vertices[:, None] - wanted[None]).max(2)
        match = distance.argmin(1)
        assert distance.min(1).max() < 1e-5
        assert len(order) == len(own) == len(middles)
        vertices = list(near)
        edges = {frozenset((vertices[match[a]], vertices[match[b]])) for face in got.faces.tolist()
                 for a, b in itertools.combinations(face, 2)}
        assert {frozenset((one, other)) for one in near for other in near[one]} <= edges
        assert len(got.faces) == sum(len(loop) - 2 for loop in loops)


# ---- closed surfaces


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_have_their_holes_their_volume_and_about_their_area(name):
    mask, euler, area = SOLIDS[name]
    (found,) = mesh(mask, (4.0, 2.0, 3.0)).values()
    assert check_surface(found) == euler
    assert mask.sum() > 1000
    assert abs(found.volume / (24 * mask.sum()) - 1) < 0.01
    if area is not None:
        (plain,) = mesh(mask, UNIT).values()
        assert abs(plain.area / area - 1) < 0.06  # 0.08 without any smoothing, 0.5 of the sides of voxels


@pytest.mark.parametrize("seed", range(4))
def test_any_labels_have_closed_surfaces(seed):
    rng = np.random.default_rng(seed)
    labels = noise(rng, (11, 9, 10), 1 + seed)
    for found in mesh(labels, UNIT).values():
        check_surface(found)


def test_voxels_that_meet_at_an_edge_or_a_corner_are_apart():
    for other in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)):
        labels = np.zeros((4, 4, 4), np.uint8)
        labels[1, 1, 1] = labels[tuple(np.add(other, 1))] = 3
        assert check_surface(mesh(labels, UNIT)[3]) == 4
    ring = np.ones((3, 3, 1), bool)
    ring[1, 1] = False
    assert check_surface(mesh(np.pad(ring, 1), UNIT)[1]) == 0
    ring[0, 0] = False  # Now two voxels meet at an edge only, so the ring is open.
    assert check_surface(mesh(np.pad(ring, 1), UNIT)[1]) == 2


def test_objects_that_touch_have_a_surface_each_and_the_border_is_closed():
    labels = np.ones((12, 13, 14), np.uint16)
    labels[:, :, 7:] = 2
    for label, found in mesh(labels, UNIT).items():
        assert check_surface(found) == 2
        assert abs(found.volume / (12 * 13 * 7) - 1) < 0.01
        low, high = found.vertices.min(0), found.vertices.max(0)
        assert np.allclose(low, (0, 0, 7 * (label - 1)), atol=0.25)
        assert np.allclose(high, (12, 13, 7 * label), atol=0.25)


def test_flat_sides_lie_where_the_voxels_end_in_nm():
    labels = np.zeros((24, 26, 28), np.uint8)
    labels[4:20, 5:21, 6:22] = 1
    found = mesh(labels, (40.0, 8.0, 4.0), offset=(1000.0, 100.0, 10.0))[1]
    middle = np.median(found.vertices, axis=0)
    for axis, (first, unit, begin) in enumerate(zip((4, 5, 6), (40, 8, 4), (1000, 100, 10))):
        others = [other for other in range(3) if other != axis]
        inner = np.abs(found.vertices[:, others] - middle[others]) < 2 * np.array((40, 8, 4))[others]
        seen = found.vertices[inner.all(1), axis]
        sides = [first * unit + begin, (first + 16) * unit + begin]
        assert np.allclose(sorted({round(float(at)) for at in seen}), sides)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64, ">u4"])
def test_any_type_and_layout_of_labels(dtype):
    labels = np.zeros((9, 8, 14), dtype)
    labels[2:6, 2:6, 2:12] = 1
    for given in (labels, np.asfortranarray(labels), labels[::-1]):
        assert len(mesh(given, UNIT)[1].faces) == len(mesh(labels != 0, UNIT)[1].faces)


def test_ids_choose_objects_and_keep_their_surface():
    labels = noise(np.random.default_rng(5), (6, 7, 8), 3)
    labels[labels == 3] = 2**64 - 1
    every = mesh(labels, UNIT)
    assert sorted(every) == [1, 2, 2**64 - 1]
    (only,) = mesh(labels, UNIT, ids=[2**64 - 1]).values()
    assert np.array_equal(canonical(only), canonical(every[2**64 - 1]))
    assert mesh(np.zeros((3, 4, 5), int), UNIT) == mesh(np.zeros((0, 4, 5), int), UNIT) == {}


# ---- blocks


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_the_pieces_of_all_blocks_make_the_mesh_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    shape = (14, 18, 20)
    labels = np.kron(noise(rng, (5, 6, 7), 3), np.ones((3, 3, 3), np.uint64))[:14, :, :20]
    labels = np.where(rng.random(shape) < 0.05, rng.integers(0, 4, shape), labels).astype(np.uint64)
    frame = Frame(shape, (30.0, 8.0, 8.0), (90.0, -16.0, 4.0))
    whole = mesh(labels, frame.resolution, offset=frame.offset, threads=1)
    cores = [tuple(slice(0, length) for length in shape)]
    for _ in range(4):  # blocks of several sizes, all smaller than what they depend on
        cores = [half for core in cores for half in (halves(core) if rng.random() < 0.9 else [core])
                 if all(span.start < span.stop for span in half)]
    parts = {}
    for number in rng.permutation(len(cores)):
        for piece in pieces(labels[frame.window(cores[number])], cores[number], frame):
            parts.setdefault(piece.label, []).append(piece)
    assert parts.keys() == whole.keys()
    for label, found in parts.items():
        joined = join_pieces(found)
        check_surface(joined)
        assert np.array_equal(canonical(joined), canonical(whole[label]))
        assert len(joined.vertices) == len(whole[label].vertices)
        seams = {}  # the same key: the same place to the bit, and one place has one key
        for piece in found:
            for key, place in zip(piece.keys.tolist(), piece.vertices[piece.seam].tolist()):
                assert seams.setdefault(key, place) == place


def test_windows_and_threads_of_a_large_volume_change_nothing(monkeypatch):
    labels = noise(np.random.default_rng(2), (70, 5, 5), 2)
    whole = mesh(labels, UNIT, threads=1)
    for side, threads in ((256, 3), (19, 1)):
        monkeypatch.setattr(home, "SIDE", side)
        for label, found in mesh(labels, UNIT, threads=threads).items():
            assert np.array_equal(canonical(found), canonical(whole[label]))
    monkeypatch.undo()
    labels = np.arange(70, dtype=np.uint8)[:, None, None] // 12 + (labels > 1)
    whole = mesh(labels, UNIT)
    for limit, most in (("MOST_LABELS", 5), ("MOST_VOXELS", 1300)):  # windows are cut in halves until they hold no more
        monkeypatch.undo()
        monkeypatch.setattr(home, limit, most)
        assert_same(mesh(labels, UNIT, threads=1), whole)


def assert_same(meshes, whole):
    assert meshes.keys() == whole.keys()
    for label, found in meshes.items():
        assert np.array_equal(canonical(found), canonical(whole[label]))


# ---- fewer triangles


@pytest.mark.parametrize("name", ["ball", "torus", "two holes", "hollow"])
def test_a_simpler_mesh_stays_closed_and_within_the_error(name):
    mask, euler, _ = SOLIDS[name]
    (whole,) = mesh(mask, (2.0, 1.0, 1.0)).values()
    last = len(whole.faces)
    for error in (0.2, 0.8):
        found = simplify_mesh(whole, error)
        assert check_surface(found) == euler
        assert len(found.faces) < 0.6 * last
        last = len(found.faces)
        some = whole.vertices[:: len(whole.vertices) // 60]
        assert oracle.distances(some, found.vertices, found.faces).max() <= error * 1.0001
        some = found.vertices[:: max(1, len(found.vertices) // 20)]
        assert oracle.distances(some, whole.vertices, whole.faces).max() <= 2 * error
    assert np.array_equal(mesh(mask, (2.0, 1.0, 1.0), error=0.8)[1].faces, found.faces)


@pytest.mark.parametrize("seed", range(3))
def test_simpler_meshes_of_noise_keep_their_pieces_and_holes(seed):
    labels = noise(np.random.default_rng(seed), (9, 9, 9), 2)
    for whole in mesh(labels, UNIT).values():
        for error in (0.3, 3.0):
            found = simplify_mesh(whole, error)
            assert check_surface(found) == check_surface(whole)
            assert oracle.distances(whole.vertices[::19], found.vertices, found.faces).max() <= error * 1.0001


# ---- files


def test_ply_and_obj_hold_x_y_z_in_nm(tmp_path):
    found = mesh(np.pad(np.ones((2, 3, 4), np.uint8), 1), (30.0, 20.0, 10.0))[1]
    write_mesh(tmp_path / "a.ply", found)
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert f"element vertex {len(found.vertices)}\n".encode() in head
    assert b"binary_little_endian 1.0" in head
    points = np.frombuffer(body, "<f4", 3 * len(found.vertices)).reshape(-1, 3)
    assert np.array_equal(points, found.vertices[:, ::-1])
    rows = list(struct.iter_unpack("<B3I", body[points.nbytes :]))
    assert rows == [(3, *face) for face in found.faces.tolist()]
    write_mesh(tmp_path / "a.obj", found)
    lines = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    points = np.array([line[1:] for line in lines if line[0] == "v"], np.float32)
    assert np.array_equal(points, found.vertices[:, ::-1])
    assert [[int(at) - 1 for at in line[1:]] for line in lines if line[0] == "f"] == found.faces.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.obj", "a.ply"]


@pytest.mark.bench
@pytest.mark.parametrize("ending", ["ply", "obj"])
def test_trimesh_reads_the_files(tmp_path, ending):
    trimesh = pytest.importorskip("trimesh", reason="the reader trimesh is not installed")
    mask = SOLIDS["torus"][0]
    found = mesh(mask, (3.0, 2.0, 1.0))[1]
    write_mesh(tmp_path / f"a.{ending}", found)
    read = trimesh.load(tmp_path / f"a.{ending}", process=False)
    assert read.is_watertight
    assert read.is_winding_consistent
    assert read.euler_number == 0
    assert np.isclose(read.volume, found.volume, rtol=1e-4)
    assert np.isclose(read.area, found.area, rtol=1e-4)
    assert np.allclose(read.bounds[1], found.vertices.max(0)[::-1])


# ---- mistakes


@pytest.mark.parametrize(("given", "words"), [
    ({"labels": np.zeros((3, 3))}, "must be integers"), ({"labels": np.zeros((3, 3), int)}, r"must be \(z, y, x\)"),
    ({"labels": -np.ones((3, 3, 3), int)}, "must not be negative"), ({"resolution": (1, 1)}, "three lengths in nm"),
    ({"resolution": (1, 0, 1)}, "three lengths in nm"), ({"resolution": (1, np.nan, 1)}, "three lengths"),
    ({"offset": (0, 0)}, "three places in nm"), ({"error": -1}, "0 or more"), ({"error": np.nan}, "0 or more"),
    ({"ids": []}, "at least one"), ({"ids": [0]}, "above 0"), ({"ids": [1, 5]}, "no voxel of 5"),
    ({"ids": [-1]}, "ids must"), ({"threads": 0}, "threads must be at least 1")])
def test_mistakes_are_one_sentence(given, words):
    plain = {"labels": np.ones((3, 3, 3), int), "resolution": UNIT}
    with pytest.raises(InputError, match=words):
        mesh(**{**plain, **given})


def test_only_closed_meshes_can_be_simplified(tmp_path):
    found = mesh(np.ones((3, 3, 3), int), UNIT)[1]
    for wrong, words in ((Mesh(found.vertices, found.faces[1:]), "not closed"),
                         (Mesh(found.vertices, found.faces + 1), "faces must name"),
                         (Mesh(found.vertices, found.faces[:, :2]), "a mesh has"),
                         (Mesh(found.vertices, np.concatenate([found.faces] * 2)), "not closed")):
        with pytest.raises(InputError, match=words):
            simplify_mesh(wrong, 1.0)
    with pytest.raises(InputError, match="above 0"):
        simplify_mesh(found, 0)
    with pytest.raises(InputError, match=r"\.ply or \.obj"):
        write_mesh(tmp_path / "a.stl", found)
    assert json.dumps(list(tmp_path.iterdir())) == "[]"

"""Targets against golden counts, definitions and the way back to labels."""

import itertools

import numpy as np
import pytest
import torch

from emcore import config
from emcore.data import loops
from emcore.data.descriptors import local_shape
from emcore.data.distances import (
    _squared_distance,
    instance_distance,
    quantise_energy,
    signed_distance,
    skeleton_distance,
    squared_distance,
)
from emcore.data.targets import (
    _affinities,
    _erode_borders,
    affinities,
    boundary,
    erode_borders,
    make_targets,
    polarity,
    prepare_labels,
    smooth_outlines,
    split_pieces,
)
from emcore.errors import InputError
from emcore.settings.target import (
    AffinityTarget,
    BinaryTarget,
    InstanceDistanceTarget,
    Labels,
    LsdTarget,
    PolarityTarget,
    Target,
    channel_names,
)

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
AFF12 = ((0, 0, -1), (0, -1, 0), (-1, 0, 0), (-2, 0, 0), (-3, 0, 0), (-4, 0, 0), (0, 0, -3), (0, 0, -9), (0, 0, -27),
         (0, -3, 0), (0, -9, 0), (0, -27, 0))


def published():
    labels = torch.ones((6, 12, 12), dtype=torch.int64)
    labels[:, 6:] = 2
    labels[3:, 2:5, 2:5] = 3
    labels[0, 0, 0] = -1
    return labels[None]


def tissue(shape, objects, seed=0, background=0.2):
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.rand((objects, 3), generator=generator) * torch.tensor(shape)
    place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).float()
    labels = (place[..., None, :] - seeds).square().sum(-1).argmin(-1) + 1
    labels[torch.rand(shape, generator=generator) < background] = 0
    return labels[None]


def test_affinities_have_the_published_counts():
    values, valid = affinities(published(), AFF12)
    assert values.sum((0, 2, 3, 4)).tolist() == [773, 701, 710, 557, 404, 269, 602, 206, 0, 404, 0, 0]
    assert valid.sum((0, 2, 3, 4)).tolist() == [791, 791, 719, 575, 431, 287, 647, 215, 0, 647, 215, 0]
    earlier = [tuple(-step for step in offset) for offset in AFF12]
    other, other_valid = affinities(published(), earlier)
    assert other.sum((0, 2, 3, 4)).tolist() == values.sum((0, 2, 3, 4)).tolist()
    assert other_valid.sum().item() == valid.sum().item()


def test_the_sign_of_an_offset_says_where_the_edge_is_stored():
    line = torch.ones((1, 1, 1, 4), dtype=torch.int64)
    later, later_valid = affinities(line, [(0, 0, -1)])
    earlier, earlier_valid = affinities(line, [(0, 0, 1)])
    assert later.flatten().tolist() == later_valid.flatten().tolist() == [False, True, True, True]
    assert earlier.flatten().tolist() == earlier_valid.flatten().tolist() == [True, True, True, False]
    gap = torch.tensor([1, 1, -1, 1, 1]).view(1, 1, 1, 5)
    values, valid = affinities(gap, [(0, 0, 1)])
    assert values.flatten().tolist() == valid.flatten().tolist() == [True, False, False, True, False]


def test_affinities_equal_a_loop_over_voxels_for_any_offset():
    generator = torch.Generator().manual_seed(1)
    for trial in range(40):
        shape = [int(torch.randint(1, 5, (), generator=generator)) for _ in range(3)]
        labels = torch.randint(-1, 3, (2, *shape), generator=generator)
        offset = tuple(int(v) for v in torch.randint(-3, 4, (3,), generator=generator))
        border = ("ignore", "replicate", "zero")[trial % 3]
        background = ("negative", "ignore")[trial % 2]
        values, valid = affinities(labels, [offset], border, background)
        for n, *place in itertools.product(range(2), *map(range, shape)):
            partner = [p + o for p, o in zip(place, offset)]
            own = labels[(n, *place)].item()
            if all(0 <= p < s for p, s in zip(partner, shape)):
                other = labels[(n, *partner)].item()
                want = own == other and own > 0
                counts = own != -1 and other != -1 and (background == "negative" or 0 not in (own, other))
            else:
                want = border == "replicate" and own > 0
                counts = border != "ignore" and own != -1 and (background == "negative" or own != 0)
            assert values[(n, 0, *place)].item() == want
            assert valid[(n, 0, *place)].item() == counts


def test_the_compiled_loops_give_what_torch_gives_on_any_threads():
    generator = torch.Generator().manual_seed(2)
    before = torch.get_num_threads()
    try:
        for trial in range(60):
            shape = [int(torch.randint(0 if trial % 9 == 0 else 1, 9, (), generator=generator)) for _ in range(3)]
            labels = torch.randint(-1, 4, (2, *shape), generator=generator)
            labels = labels.transpose(2, 3) if trial % 2 else torch.where(labels > 2, 2**62 + labels, labels)
            offsets = torch.randint(-6, 7, (3, 3), generator=generator).tolist()
            torch.set_num_threads((1, 2, 3, 7)[trial % 4])
            kept = labels.clone()
            for border, background in itertools.product(("ignore", "replicate", "zero"), ("negative", "ignore")):
                ours = loops.affinities(labels, offsets, border, background)
                assert all(map(torch.equal, ours, _affinities(labels, offsets, border, background)))
            for radius in (1, 2, 5):
                assert torch.equal(loops.erode(labels, radius), _erode_borders(labels, radius))
            assert torch.equal(labels, kept)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["affinity", "binary", "polarity", "boundary", "signed_distance",
                                  "foreground_distance", "instance_distance", "skeleton_distance", "lsd"])
def test_ids_beyond_32_bits_give_the_targets_of_small_ids(kind):
    labels = tissue((4, 10, 10), 5)
    target = [config.from_table(Target, {"kind": kind, "erosion": 1} | ({"sigma": 3.0} if kind == "lsd" else {}))]
    small, valid = make_targets(labels, target)
    for step in (2**32, 2**61):  # even: polarity goes by odd and even
        large, large_valid = make_targets(torch.where(labels > 0, labels + step, labels), target)
        torch.testing.assert_close(large, small)
        assert torch.equal(large_valid, valid)


def test_an_offset_longer_than_the_patch_has_no_valid_voxel():
    values, valid = affinities(published(), [(0, 0, -27), (9, 0, 0)])
    assert not values.any()
    assert not valid.any()


def test_erosion_has_the_published_counts_and_touches_contacts_only():
    expected = {1: {-1: 1, 0: 201, 1: 299, 2: 360, 3: 3}, 2: {-1: 1, 0: 372, 1: 203, 2: 288}}
    for radius, counts in expected.items():
        ids, found = erode_borders(published(), radius).unique(return_counts=True)
        assert dict(zip(ids.tolist(), found.tolist())) == counts
    section = torch.ones((1, 1, 7, 7), dtype=torch.int64)
    section[..., 4:] = 2
    section[..., 0, 0] = 0
    section[..., -1, :] = 0
    widened = section.clone()
    widened[..., 3:5] = 0
    assert torch.equal(erode_borders(section, 1), widened)
    huge = torch.where(section == 1, 2**53 + 1, torch.where(section == 2, 2**53, 0))
    assert torch.equal(erode_borders(huge, 1) == 0, widened == 0)


def test_labels_come_back_from_their_affinities_as_components():
    segment = pytest.importorskip("emcore.segment")
    labels = split_pieces(tissue((5, 12, 14), 6))
    for offsets in (NEAREST, [tuple(-s for s in o) for o in NEAREST], NEAREST[::-1]):
        values, _ = affinities(labels, offsets)
        back = segment.affinity_components(segment.Affinities(values[0].numpy().astype(np.float32), offsets), 0.5)
        pairs = np.unique(np.stack([labels[0].numpy().ravel(), back.ravel().astype(np.int64)]), axis=1)
        inside = pairs[:, pairs[0] > 0]
        alone = np.isin(inside[0], inside[0][inside[1] == 0])  # a single voxel has no edge, so components leave it 0
        kept = inside[:, ~alone]
        assert len(np.unique(kept[0])) == kept.shape[1] == len(np.unique(kept[1]))


def test_disconnected_pieces_get_ids_of_their_own():
    labels = torch.tensor([[1, 1, 0, 1, -1, 2]]).view(1, 1, 1, 6)
    assert split_pieces(labels).flatten().tolist() == [1, 1, 0, 2, -1, 3]
    assert prepare_labels(labels, Labels(split=True)).flatten().tolist() == [1, 1, 0, 2, -1, 3]


def test_boundaries_polarity_and_binary_by_hand():
    line = torch.tensor([0, 0, 1, 1, 2, 2]).view(1, 1, 1, 6)
    assert boundary(line, 1, "foreground", True).flatten().int().tolist() == [0, 1, 1, 1, 1, 0]
    assert boundary(line, 1, "contacts", False).flatten().int().tolist() == [0, 0, 0, 1, 1, 0]
    assert boundary(line, 2, "contacts", False).flatten().int().tolist() == [0, 0, 1, 1, 1, 1]
    ids = torch.tensor([0, 1, 2, 3, 4, -1]).view(1, 1, 1, 6)
    assert polarity(ids, False).view(3, 6).tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0]]
    assert polarity(ids, True).flatten().tolist() == [0, 1, 2, 1, 2, 0]
    value, valid = make_targets(ids, [BinaryTarget(), PolarityTarget()])
    assert value.shape == (1, 4, 1, 1, 6)
    assert valid[0, 0].flatten().tolist() == [True] * 5 + [False]


def brute_squared(labels, resolution):
    out = np.full(labels.shape, np.inf)
    places = np.argwhere(np.ones(labels.shape, bool))
    for place in places:
        own = labels[tuple(place)]
        other = places[labels[tuple(places.T)] != own]
        if own == 0:
            out[tuple(place)] = 0
        elif len(other):
            out[tuple(place)] = (((other - place) * resolution) ** 2).sum(1).min()
    return out


@pytest.mark.parametrize("resolution", [(1, 1, 1), (40, 4, 4), (1.5, 2, 0.5)])
def test_distances_equal_all_pairs_of_voxels_on_every_device(resolution):
    for seed in range(6):
        labels = tissue((3, 5, 6), 3, seed)
        expected = brute_squared(labels[0].numpy(), np.array(resolution))
        np.testing.assert_allclose(_squared_distance(labels, resolution)[0].numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(squared_distance(labels, resolution)[0].numpy(), expected, rtol=1e-6)
    alone = torch.ones((1, 2, 3, 3), dtype=torch.int64)
    assert _squared_distance(alone, resolution).isinf().all()
    assert squared_distance(alone, resolution).isinf().all()


def test_signed_distance_is_one_inside_and_minus_one_where_nothing_is():
    assert signed_distance(torch.ones((1, 2, 3, 3), dtype=torch.int64), (1, 1, 1), 8).eq(1).all()
    assert signed_distance(torch.zeros((1, 2, 3, 3), dtype=torch.int64), (1, 1, 1), 8).eq(-1).all()
    line = torch.tensor([0, 0, 1, 1]).view(1, 1, 1, 4)
    expected = torch.tanh(torch.tensor([-2.0, -1, 1, 2]) / 8)
    torch.testing.assert_close(signed_distance(line, (40, 4, 4), 8).flatten(), expected)


def test_instance_distance_peaks_at_one_in_every_object_and_energy_is_quantised():
    labels = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2]).view(1, 1, 1, 9)
    energy = instance_distance(labels, (1, 1, 1), True).flatten()
    torch.testing.assert_close(energy, torch.tensor([-1, 0.5, 1, 0.5, 0.2, 0.4, 0.6, 0.8, 1]), atol=1e-5, rtol=0)
    classes = quantise_energy(torch.tensor([-1.0, 0, 0.49, 0.5, 0.99, 1.0]), 2)
    assert classes.tolist() == [0, 1, 1, 2, 2, 2]
    edges = np.concatenate([[-1], np.linspace(0, 1, 6)])
    edges[-1] = 1.1
    values = torch.linspace(-1, 1, 101)
    assert quantise_energy(values, 5).tolist() == (np.digitize(values.numpy(), edges) - 1).tolist()
    batch = torch.cat([labels, labels.flip(3)])
    both = instance_distance(batch, (1, 1, 1), False)
    torch.testing.assert_close(both[0], both[1].flip(2))


def reach(mask, starts, steps):
    """The voxels of the mask that steps lead to from the starts, one voxel at a time."""
    found, todo = set(starts), list(starts)
    while todo:
        place = todo.pop()
        for step in steps:
            to = tuple(p + s for p, s in zip(place, step))
            if all(0 <= t < n for t, n in zip(to, mask.shape)) and mask[to] and to not in found:
                found.add(to)
                todo.append(to)
    return found


def distance_of_pieces(labels, unit):
    """Every piece by itself: holes filled, each voxel's distance to the nearest one outside over the largest, by brute
    force; the larger value wins. labels may be a section."""
    around = [step for step in itertools.product((-1, 0, 1), repeat=labels.ndim) if any(step)]
    faces = [step for step in around if sum(map(abs, step)) == 1]
    out, done = np.full(labels.shape, -1.0), set()
    for seed in map(tuple, np.argwhere(labels > 0).tolist()):
        if seed in done:
            continue
        piece = reach(labels == labels[seed], [seed], around)
        done |= piece
        other = np.ones(labels.shape, bool)
        other[tuple(np.transpose(sorted(piece)))] = False
        rim = [place for place in map(tuple, np.argwhere(other).tolist())
               if any(p in (0, n - 1) for p, n in zip(place, labels.shape))]
        outside = np.array(sorted(reach(other, rim, faces)))
        inside = np.array([p for p in np.ndindex(labels.shape) if not len(outside) or not (outside == p).all(1).any()])
        values = np.array([np.sqrt((((outside - p) * unit) ** 2).sum(1).min()) if len(outside) else 1 for p in inside])
        place = tuple(inside.T)
        out[place] = np.maximum(out[place], values / (values.max() + 1e-6))
    return out


@pytest.mark.parametrize("in_plane", [False, True])
def test_relabelled_instance_distance_takes_pieces_apart_and_fills_their_holes(in_plane):
    labels = np.zeros((4, 9, 11), np.int64)
    labels[:, 1:8, 1:8] = 5
    labels[1:3, 3:6, 3:6] = 0  # a hole; in the sections at the ends there is none
    labels[1:3, 4, 4] = 7  # another object inside of it
    labels[:3, 1:3, 9:] = 5  # another piece of the same id, at the edge
    labels[3, 3, 8] = 5  # joined over a corner
    labels[0, 8, 10] = -1
    random = np.random.default_rng(0).integers(-1, 3, (4, 9, 11)) * (np.random.default_rng(1).random((4, 9, 11)) > 0.2)
    for volume in (labels, random, np.zeros_like(labels), np.ones_like(labels)):
        unit = (3.0, 1.0, 2.0)
        expected = (np.stack([distance_of_pieces(section, unit[1:]) for section in volume]) if in_plane
                    else distance_of_pieces(volume, unit))
        target = InstanceDistanceTarget(in_plane=in_plane, relabel=True)
        found = make_targets(torch.from_numpy(volume)[None], [target], unit)[0][0, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        if volume is labels:
            plain = make_targets(torch.from_numpy(volume)[None], [InstanceDistanceTarget(in_plane=in_plane)], unit)
            assert np.abs(plain[0][0, 0].numpy() - expected).max() > 0.9  # the hole alone is 1 + something away from -1


def test_skeleton_distance_is_high_on_the_skeleton_and_falls_back_without_one():
    labels = torch.zeros((1, 1, 5, 9), dtype=torch.int64)
    labels[..., 1:-1] = 4
    skeleton = torch.zeros_like(labels)
    skeleton[0, 0, 2, 1:-1] = 4
    energy = skeleton_distance(labels, (1, 1, 1), 0.8, skeleton)[0, 0]
    assert (energy[:, 0] == -1).all()
    torch.testing.assert_close(energy[2, 1:-1], torch.ones(7), atol=1e-5, rtol=0)
    assert (energy[0, 1:-1] < 0.8).all()
    fallback = skeleton_distance(labels, (1, 1, 1), 1.0, None)[0, 0, 0]
    torch.testing.assert_close(fallback[1:-1], torch.tensor([1, 2, 3, 4, 3, 2, 1]) / 4)


def test_shape_descriptors_of_a_symmetric_object_are_centred():
    labels = torch.zeros((1, 9, 9, 9), dtype=torch.int64)
    labels[0, 2:7, 2:7, 2:7] = 5
    shape = local_shape(labels, (1, 1, 1), 2.0)[0]
    assert shape[:, labels[0] == 0].eq(0).all()
    centre = shape[:, 4, 4, 4]
    torch.testing.assert_close(centre[:3], torch.full((3,), 0.5))
    torch.testing.assert_close(centre[6:9], torch.full((3,), 0.5), atol=1e-4, rtol=0)
    assert centre[3].item() == pytest.approx(centre[5].item(), abs=1e-5)
    assert shape[0, 2, 4, 4] > 0.5 > shape[0, 6, 4, 4]
    assert 0 < shape[9, 2, 2, 2] < centre[9] < 1
    alone = local_shape(torch.where(labels == 5, 77, labels), (1, 1, 1), 2.0)[0]
    assert torch.equal(alone, shape)


def test_smoothing_outlines_keeps_wide_things_and_erases_thin_ones():
    labels = torch.zeros((1, 1, 64, 64), dtype=torch.int64)
    labels[..., 10:13] = 1
    labels[..., 30:34] = 2
    labels[..., 44:56] = 3
    out = smooth_outlines(labels)
    assert not (out == 1).any()
    assert torch.equal((out == 2)[0, 0, 32], (labels == 2)[0, 0, 32])
    assert torch.equal((out == 3)[0, 0, 32], (labels == 3)[0, 0, 32])
    y, x = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 32, indexing="ij")
    for radius, pixels in ((4, 21), (6, 81), (10, 293), (15, 689)):
        disc = (y**2 + x**2 <= radius**2).long()[None, None]
        assert (smooth_outlines(disc) > 0).sum().item() == pytest.approx(pixels, abs=8)


def test_stacked_targets_name_their_channels_and_respect_the_mask():
    targets = (AffinityTarget(offsets=((0, 0, -1), (0, -9, 0))), BinaryTarget(), LsdTarget(), PolarityTarget())
    assert len(channel_names(targets)) == 16
    assert channel_names(targets)[:3] == ["affinity 0 0 -1", "affinity 0 -9 0", "binary"]
    labels = tissue((3, 12, 12), 3)
    mask = torch.ones(labels.shape, dtype=torch.bool)
    mask[..., :6] = False
    value, valid = make_targets(labels, targets, (1, 1, 1), mask)
    assert value.shape == valid.shape == (1, 16, 3, 12, 12)
    assert not valid[..., :6].any()
    assert torch.isfinite(value).all()
    with pytest.raises(InputError, match="labels must be int64"):
        make_targets(labels.float(), targets)

"""Skeletons box by box: the same to the bit as those of the whole volume."""

from dataclasses import replace

import numpy as np
import pytest

from emcore import segment
from emcore.blocks import skeletons as command
from emcore.errors import InputError, run_command
from emcore.segment import distance_transform, skeleton_boxes
from emcore.segment.distance import depths
from emcore.segment.skeleton_boxes import groups
from emcore.volumes import create_volume
from tests.test_skeletons import tube


def cells(rng, shape, count):
    """Cells around random points, some of them background, one of them the label of two others."""
    points = rng.uniform(0, 1, (count, 3)) * shape
    places = np.stack(np.mgrid[tuple(map(slice, shape))], -1)
    nearest = ((places[..., None, :] - points) ** 2).sum(-1).argmin(-1)
    names = rng.choice([0, 2, 3, 5, 9, 2**40, 2**63 + 1, 70, 71, 72], count).astype(np.uint64)
    return names[nearest]


def same(found, expected):
    assert found.keys() == expected.keys()
    for label, one in expected.items():
        for name in ("vertices", "edges", "radius"):
            assert getattr(found[label], name).tobytes() == getattr(one, name).tobytes()


@pytest.mark.parametrize("unit", [(1, 1, 1), (40.3, 4.1, 3.7), (1 / 3, 0.7, 1.9)])
def test_boxes_give_the_skeletons_of_the_whole(unit):
    rng = np.random.default_rng([3, int(unit[0])])
    for _ in range(8):
        labels = cells(rng, rng.integers(1, 26, 3), rng.integers(1, 12))
        settings = {"scale": rng.choice([0, 1.5]), "const_nm": unit[2] * rng.choice([0, 2]),
                    "dust_voxels": int(rng.choice([0, 9]))}
        whole = segment.skeletonize(labels, unit, **settings)
        table = segment.label_statistics(labels)
        for most in (1, 300, 3000, 2**40):
            boxes = list(segment.skeletonize_boxes(labels, unit, table, most_voxels=most, threads=1, **settings))
            assert len(boxes) == len(dict(boxes))
            same(dict(boxes), whole)


def test_depths_in_a_box_are_those_in_the_volume():
    """A thick object, for which distance_transform takes the envelope of parabolas in its box and not in the volume."""
    unit = (30, 0.7, 0.7)
    y, x = np.mgrid[:700, :300]
    labels = np.tile((np.hypot(y - 350, x - 150) < 140).astype(np.uint8), (3, 1, 1))
    whole = depths(labels, unit, 1)
    np.testing.assert_allclose(whole, distance_transform(labels, unit, squared=True), rtol=6e-7)
    box = np.s_[:, 209:492, 9:292]
    for threads in (1, 2):
        np.testing.assert_array_equal(depths(labels[box], unit, threads), whole[box])
    others = distance_transform(labels[box], unit, squared=True)
    assert (others != distance_transform(labels, unit, squared=True)[box]).any()


def test_groups_hold_every_object_once_and_no_more_than_their_box():
    rng = np.random.default_rng(5)
    first = rng.integers(0, 100, (200, 3))
    boxes = np.stack([first, first + rng.integers(1, 30, (200, 3))], 1)
    table = segment.LabelStatistics(np.arange(200, dtype=np.uint64), np.ones(200, np.int64), boxes,
                                    np.zeros((200, 3), np.int64), np.zeros((0, 2), np.uint64),
                                    np.zeros((0, 3), np.int64))
    order, starts = groups(table, 20_000)
    assert sorted(order.tolist()) == list(range(200))
    assert starts[0] == 0
    assert starts[-1] == 200
    assert (np.diff(starts) > 0).all()
    sizes = [np.prod(boxes[own, 1].max(0) - boxes[own, 0].min(0)) for own in np.split(order, starts[1:-1])]
    assert all(size <= 20_000 or count == 1 for size, count in zip(sizes, np.diff(starts)))
    assert len(starts) < 150
    order, starts = groups(table, 2**40, 8)
    assert (len(starts), np.diff(starts).max()) == (9, 25)


def test_the_command_writes_the_same_files_by_any_blocks_and_goes_on(tmp_path, monkeypatch, capsys):
    labels = cells(np.random.default_rng(2), (14, 30, 40), 9)
    labels[labels == 2**63 + 1] = 12
    with create_volume(tmp_path / "a.h5", labels.shape, np.uint64, (40, 8, 8), (400, 80, 0)) as out:
        out[...] = labels
    expected = segment.skeletonize(labels, (40, 8, 8))
    for name, more in (("one", []), ("two", ["--block", "8", "16", "16", "--most-voxels", "900"])):
        arguments = [str(tmp_path / "a.h5"), str(tmp_path / name), "--workers", "1", *more]
        if more:
            trace = skeleton_boxes.trace_group
            calls = []

            def failing(*given, trace=trace, calls=calls):
                calls.append(given)
                if len(calls) == 3:
                    raise InputError("enough")
                return trace(*given)

            monkeypatch.setattr(command, "trace_group", failing)
            assert run_command(command.main, arguments) == 2
            assert not (tmp_path / name).exists()
        assert run_command(command.main, arguments) == 0
        found = segment.read_skeletons(tmp_path / name)
        assert found.keys() == expected.keys()
        for label, one in expected.items():
            places = one.vertices + (np.array([400.0, 80, 0]) + np.array([40, 8, 8]) / 2)
            assert sorted(map(tuple, found[label].vertices.tolist())) == sorted(map(tuple, places.tolist()))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "one", "two"]
    assert f"{len(expected)} skeletons" in capsys.readouterr().out


@pytest.mark.parametrize("change, sentence", [
    ({"most_voxels": -1}, "most_voxels must be a whole number"), ({"resolution": (1, 1)}, "resolution must be three"),
    ({"labels": np.zeros((4, 4, 4), int)}, "the table is not that of the labels"),
    ({"table": 3}, "parts must be tables"),
    ({"labels": np.zeros((4, 4), int)}, r"labels must be \(z, y, x\)")])
def test_bad_input_is_named(change, sentence):
    labels = tube(3, (0, 0, 1), length=10)[0]
    given = {"labels": labels, "resolution": (1, 1, 1), "table": segment.label_statistics(labels)} | change
    with pytest.raises(InputError, match=sentence):
        list(segment.skeletonize_boxes(**given))


def test_what_does_not_fit_into_memory_is_said_before_it_is_read(monkeypatch):
    monkeypatch.setattr("emcore.memory.memory_there", lambda: 10_000)
    labels = tube(3, (0, 0, 1))[0]
    with pytest.raises(InputError, match=r"tracing label 1 in a box of .* needs about"):
        list(segment.skeletonize_boxes(labels, (1, 1, 1), segment.label_statistics(labels)))


@pytest.mark.parametrize("most", [1, 10_000])
def test_a_table_of_other_labels_is_refused(most):
    labels = np.zeros((4, 6, 20), np.uint8)
    labels[1:3, 1:3, 1:9], labels[1:3, 1:3, 11:19] = 5, 7
    table = segment.label_statistics(labels)
    assert len(list(segment.skeletonize_boxes(labels, (1, 1, 1), table, most_voxels=most))) == 2
    fewer, other, beyond = labels.copy(), labels.copy(), replace(table, ids=table.ids + np.uint64(256))
    fewer[1, 1, 4], other[labels == 7] = 0, 9
    nowhere, shifted = replace(beyond, voxels=0 * table.voxels), np.roll(labels, 1, axis=2)
    for given, rows, sentence in ((fewer, table, "near its box label 5 has 31 voxels, and in the table 32"),
                                  (other, table, "near its box label 7 has 0 voxels, and in the table 32"),
                                  (shifted, table, r"label [57] lies in the box \[\[1, 1, .*, and by the table in"),
                                  (labels, beyond, "label 261 has 0 voxels"),
                                  (labels, nowhere, "label 261 has 0 voxels")):
        with pytest.raises(InputError, match=f"the table is not that of the labels: .*{sentence}"):
            list(segment.skeletonize_boxes(given, (1, 1, 1), rows, most_voxels=most))


def test_more_voxels_than_any_box_has_are_as_many_as_it_has(tmp_path):
    labels = tube(3, (0, 0, 1), length=10)[0].astype(np.uint8)
    with create_volume(tmp_path / "a.h5", labels.shape, labels.dtype, (8, 8, 8)) as out:
        out[...] = labels
    given = [str(tmp_path / "a.h5"), str(tmp_path / "out"), "--workers", "1"]
    assert run_command(command.main, [*given, "--most-voxels", "0"]) == 2
    assert run_command(command.main, [*given, "--most-voxels", str(10**60)]) == 0
    assert segment.read_skeletons(tmp_path / "out").keys() == {1}

"""Synapses as annotations, whose indices are read back by other means, and their table."""

import itertools

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.files import write_text
from emcore.report import annotations
from emcore.report.wiring_files import read_synapses, synapses_csv
from emcore.segment.wiring import Partners
from tests.oracles.annotations import Annotations, cell_number

BIG = 2**40 + 5


def wide_table(count=900, seed=0):
    random = np.random.default_rng(seed)
    pre = random.integers(1, 40, count).astype(np.uint64)
    post = pre + np.uint64(BIG)
    sites = random.uniform(0, 1, (count, 3)) * (2000, 400, 900)
    other = (sites + random.normal(0, 30, (count, 3))).clip(0, (2000, 400, 900))
    post[:5] = 0
    return Partners(np.arange(1, count + 1, dtype=np.uint64), sites, random.integers(1, 99, count), pre, post,
                    random.random(count) < 0.5, random.random(count), random.random(count) * 100, sites, other)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Annotations of several levels and tables, and what they are of."""
    monkeypatch.setattr(annotations, "MOST_IN_CELL", 60)
    monkeypatch.setattr(annotations, "ENTRIES", 16)
    table = wide_table()
    box = np.array([[0, 0, 0], [2040, 404, 904]])
    assert annotations.write_annotations(tmp_path / "lines", table, (40, 4, 4), box) == 895
    return tmp_path / "lines", table


def wanted_line(table, row):
    ends = (table.sites[row - 5] + (20, 2, 2))[:, ::-1].astype(np.float32).tolist()
    return (*map(tuple, ends), {
        "voxels": table.size[row], "confidence": np.float32(table.confidence[row]),
        "contact_area_nm2": np.float32(table.contact_area[row]), "directed": table.directed[row]})


def test_every_index_of_annotations_leads_to_the_lines_of_the_table(written):
    folder, table = written
    found = Annotations(folder)
    lines = found.by_id()
    assert sorted(lines) == list(range(6, 901))  # the rows of the table that have both neurons, from 1
    for number, (line, related) in lines.items():
        assert line == wanted_line(table, number - 1)
        assert related == [(table.pre[number - 1],), (table.post[number - 1],)]
    for about in found.info["relationships"]:
        ids = getattr(table, about["id"])
        assert {key: set(own) for key, own in found.lists(about).items()} == {
            label: set((np.flatnonzero(ids == label) + 1).tolist()) - set(range(1, 6))
            for label in np.unique(ids[5:]).tolist()}


def test_the_levels_of_annotations_hold_each_line_in_every_cell_that_it_meets(written):
    folder, _ = written
    found = Annotations(folder)
    lines, low = {number: line for number, (line, _) in found.by_id().items()}, np.array(found.info["lower_bound"])
    seen = {}
    for level, about in enumerate(found.info["spatial"]):
        grid, size = about["grid_shape"], np.array(about["chunk_size"])
        assert np.allclose(size * grid, np.array(found.info["upper_bound"]) - low)
        cells = found.lists(about)
        assert max(map(len, cells.values())) == about["limit"]
        own = set().union(*cells.values())
        assert not own & seen.keys()
        for number in own:
            first, last = (((np.array(end) - low) // size).astype(int) for end in (
                np.minimum(*lines[number][:2]), np.maximum(*lines[number][:2])))
            met = [cell_number(cell, grid) for cell in itertools.product(*(range(a, min(b, top - 1) + 1)
                                                                           for a, b, top in zip(first, last, grid)))]
            assert sorted(met) == sorted(key for key, inside in cells.items() if number in inside)
        seen |= dict.fromkeys(own, level)
    assert seen.keys() == lines.keys()
    assert len(found.info["spatial"]) >= 3


def test_tensorstore_reads_the_shards(written):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed: the extra remote brings it")
    folder, _ = written
    found = Annotations(folder)
    for about in (found.info["by_id"], *found.info["relationships"], *found.info["spatial"]):
        shards = tensorstore.KvStore.open({
            "driver": "neuroglancer_uint64_sharded", "metadata": about["sharding"],
            "base": f"file://{folder}/{about['key']}/"}).result()
        for key, data in found.index(about).items():
            assert shards.read(key.to_bytes(8, "big")).result().value == data
        assert shards.read((12345).to_bytes(8, "big")).result().state == "missing"


@pytest.mark.bench
def test_neuroglancer_reads_the_annotations(written):
    reader = pytest.importorskip("neuroglancer.read_precomputed_annotations", reason="neuroglancer is not installed")
    folder, table = written
    found, ours = reader.AnnotationReader(f"file://{folder}/"), Annotations(folder)
    for number in range(6, 901, 9):
        line = found.by_id[number]
        pre, post, values = wanted_line(table, number - 1)
        assert (tuple(line.point_a), tuple(line.point_b)) == (pre, post)
        assert [float(value) for value in line.props] == [float(value) for value in values.values()]
        assert [list(map(int, ids)) for ids in line.segments] == [[table.pre[number - 1]], [table.post[number - 1]]]
    label = int(table.post[7])
    assert {int(line.id) for line in found.relationships["post"][label]} == set(
        ours.lists(ours.info["relationships"][1])[label])
    assert {int(line.id) for line in found.get_within_spatial_bounds()} == set(range(6, 901))
    about = ours.info["spatial"][-1]
    for cell in itertools.product(*map(range, about["grid_shape"])):
        wanted = ours.lists(about).get(cell_number(cell, about["grid_shape"]))
        if wanted is not None:  # the reader has no answer for an empty cell
            assert {int(line.id) for line in found.spatial[-1][cell]} == set(wanted)


def test_the_table_of_synapses_is_read_back_to_the_bit(tmp_path):
    table = wide_table(50)
    table.post_place[:5] = np.nan
    write_text(tmp_path / "synapses.csv", synapses_csv(table))
    found = read_synapses(tmp_path)
    for name in Partners.__dataclass_fields__:
        one, other = getattr(found, name), getattr(table, name)
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), name
    text = (tmp_path / "synapses.csv").read_text().splitlines()
    for wrong, told in ((text[8].replace(",", ",x", 1), "is not made of the 16 numbers"),
                        (f"{text[8]},1", "is not made of the 16 numbers"),
                        (f"{text[8].rpartition(',')[0]},nan", "lacks a place")):
        write_text(tmp_path / "synapses.csv", f"{text[0]}\n{wrong}\n")
        with pytest.raises(InputError, match=told):
            read_synapses(tmp_path)


def test_lines_across_the_volume_stay_in_coarse_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "MOST_IN_CELL", 5)
    table = wide_table(200)
    table.pre_place[:], table.post_place[:] = 10, 9990
    assert annotations.write_annotations(tmp_path / "lines", table, (8, 8, 8), np.array([[0] * 3, [10_000] * 3])) == 195
    found = Annotations(tmp_path / "lines")
    lists = [found.lists(about) for about in found.info["spatial"]]
    assert set().union(*(own for cells in lists for own in cells.values())) == set(range(6, 201))
    assert sum(len(own) for cells in lists for own in cells.values()) <= annotations.MOST_MET * 195

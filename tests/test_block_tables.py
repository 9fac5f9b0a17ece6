"""What reads fragments, graph and merges of labels reads those of a decoding in blocks, and finds the same to the bit."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from emcore import config, memory
from emcore.blocks import explain, store
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.run import work_of
from emcore.blocks.tables import BlockParts, parts_of, read_segmentation
from emcore.blocks.work import run_task
from emcore.decode.labels import decode
from emcore.errors import InputError
from emcore.metrics.evaluation import score_volume
from emcore.report.merges import packed_merges
from emcore.segment import Segmentation
from emcore.settings.decode import AffinityDecode
from emcore.settings.evaluate import Evaluate
from emcore.volumes import create_volume, open_volume
from tests.test_blocks import STATISTICS, make_prediction, random_grid, random_settings

CURVE = Evaluate(("voi", "rand", "curve"), border_nm=0.0)


def make_tables(work: AffinityWork) -> None:
    for stage in work.tree_stages():
        for number in range(stage.count):
            if not work.is_done(stage, number):
                run_task(work, stage, number)


def few_blocks(rng: np.random.Generator, shape: tuple[int, int, int], sections: bool) -> Grid:
    """A grid of at most three blocks along an axis, so that there are few files."""
    block = [int(rng.integers(-(-length // 3), length + 1)) for length in shape]
    return Grid(shape, (block[0], *shape[1:]) if sections else tuple(block))


def both_ways(folder: Path, seed: int, statistic: str, floods: bool = False,
              grid_of: Callable[..., Grid] = few_blocks) -> Iterator[tuple[Path, Path]]:
    """(labels file of the whole, labels file of blocks) for a random prediction and two grids."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(length) for length in rng.integers(4, 17, 3))
    prediction = make_prediction(folder / f"{seed}_prediction.h5", rng, shape)
    settings = random_settings(rng, statistic, floods)
    whole = decode(open_volume(prediction), settings, folder / f"{seed}_labels.h5")
    for turn in range(2):
        yield whole, in_blocks(whole, prediction, grid_of(rng, shape, floods), folder / f"{seed}_{turn}_labels.h5")


def in_blocks(whole: Path, prediction: Path, grid: Grid, out: Path) -> Path:
    """A file with the same labels that says of blocks how they were decoded, as infer.py writes it, and the blocks."""
    labels = open_volume(whole, "labels")
    about = {"folder": out.with_suffix(".blocks").name, "block": list(grid.block), "content": out.name,
             "prediction": prediction.name}
    with create_volume(f"{out}:labels", labels.shape, labels.dtype, labels.resolution, labels.offset,
                       {**labels.attrs, "blocks": about}) as stored:
        stored[...] = labels[...]
    make_tables(work_of(out))
    return out


def assert_equal(one: object, other: object, told: str) -> None:
    """Two trees or two graphs, in every field: values and types."""
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert type(left) is type(right), (field.name, told)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, (field.name, told)
            np.testing.assert_array_equal(left, right, err_msg=f"{field.name}, {told}")
        else:
            assert left == right, (field.name, told)


def check_tables(folder: Path, seed: int, statistic: str, floods: bool = False,
                 grid_of: Callable[..., Grid] = few_blocks) -> int:
    rng = np.random.default_rng(seed)
    merges = 0
    for whole, blocks in both_ways(folder, seed, statistic, floods, grid_of):
        told = f"seed {seed}, {work_of(blocks)}"
        wanted, found = Segmentation.read(whole), parts_of(blocks)
        assert isinstance(found, BlockParts)
        assert (found.statistic, found.ties) == (wanted.statistic, wanted.ties)
        assert_equal(found.tree(), wanted.tree, told)
        assert_equal(found.graph(), replace(wanted.graph, sizes=wanted.sizes), told)
        volume, stored = found.fragments(), open_volume(whole, "fragments")
        assert (volume.shape, volume.resolution, volume.offset) == (stored.shape, stored.resolution, stored.offset)
        assert volume.dtype == np.uint32
        np.testing.assert_array_equal(volume[...], wanted.fragments, err_msg=told)
        for _ in range(5):
            ends = [np.sort(rng.integers(0, length + 1, 2)) for length in volume.shape]
            box = tuple(slice(*map(int, pair), int(rng.integers(1, 5))) for pair in ends)
            np.testing.assert_array_equal(volume[box], wanted.fragments[box], err_msg=f"{box}, {told}")
        again = read_segmentation(blocks)
        for threshold in (0.2, 0.6):
            one, other = (tuple(rng.integers(0, volume.shape).tolist()) for _ in range(2))
            assert again.explain(one, threshold, other) == wanted.explain(one, threshold, other), told
            np.testing.assert_array_equal(again.labels(threshold, dust_size=4, remove_size=2),
                                          wanted.labels(threshold, dust_size=4, remove_size=2), err_msg=told)
        merges += len(wanted.tree.a)
    return merges


@pytest.mark.parametrize("statistic", STATISTICS)
def test_tables_of_blocks_are_those_of_the_whole(tmp_path, statistic):
    assert sum(check_tables(tmp_path, seed, statistic, seed == 2) for seed in range(3)) > 10


@pytest.mark.long
@pytest.mark.parametrize("statistic", STATISTICS)
def test_tables_of_many_blocks_are_those_of_the_whole(tmp_path, statistic):
    assert sum(check_tables(tmp_path, seed, statistic, seed % 5 == 0, random_grid) for seed in range(100, 150)) > 100


def test_the_command_prints_the_same(tmp_path, capsys):
    texts = []
    for turn, (whole, blocks) in enumerate(both_ways(tmp_path, 7, "mean")):
        for labels in (whole, blocks):
            for more in ([], ["--other", "1", "2", "3"], ["--threshold", "0.7", "--all"]):
                assert explain.main([str(labels), "2", "3", "1", *more]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[2 * turn] == texts[2 * turn + 1]
    assert "label" in texts[0]
    assert "in the file voxel" in texts[0]


@pytest.mark.parametrize("statistic", ["mean", "aff85_his256"])
def test_scores_curve_and_page_are_the_same(tmp_path, statistic):
    rng = np.random.default_rng(3)
    for whole, blocks in both_ways(tmp_path, 11, statistic):
        shape = open_volume(whole, "labels").shape
        truth = str(blocks.with_suffix(".truth.h5:truth"))
        with create_volume(truth, shape, "uint64", (30, 8, 8), (60, 0, 16)) as out:
            out[...] = np.kron(rng.integers(0, 6, (4, 4, 4)), np.ones((5, 5, 5)))[tuple(map(slice, shape))].astype(np.uint64)
        wanted, found = (score_volume(CURVE, truth, labels, tmp_path / "none.h5", parts_of=parts_of)
                         for labels in (whole, blocks))
        assert found == wanted
        assert len(found["curve"]["threshold"]) > 1
        page = packed_merges(blocks, 0.5)
        assert page == packed_merges(whole, 0.5)
        assert page["made"] > 0


def example(folder: Path) -> Path:
    return next(both_ways(folder, 5, "mean"))[1]


@pytest.mark.parametrize("stage", ["fragments", "seams", "graph", "merges 0"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "flipped"])
def test_a_damaged_file_is_one_sentence(tmp_path, stage, damage):
    labels = example(tmp_path)
    work = work_of(labels)
    path = work.path(next(one for one in work.tree_stages() if one.name == stage), 0)
    stored = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(stored[:-3])
    else:
        path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 4]))
    sentence = f"^{re.escape(str(path))} .*; run infer.py again, which makes it again$"
    parts = parts_of(labels)
    try:
        with pytest.raises(InputError, match=sentence):
            _ = parts.tree(), parts.graph(), parts.fragments()[...]
    except AssertionError:  # the last byte of these files is of a column that no table is made of
        assert damage == "flipped"
    make_tables(work)  # what infer.py does
    assert len(parts_of(labels).tree().a) > 0


def test_files_of_another_decoding_are_told(tmp_path):
    labels = example(tmp_path)
    work = work_of(labels)
    path = work.path(work.merge_stage(0), 0)
    columns = store.read_all(path)
    assert any(len(store.read(work.path(work.merge_stage(0), number), "a")[0])
               for number in range(work.grid.blocks()))
    names = parts_of(labels).names
    wrong = next(name for name in range(1, 10**6) if name not in names)
    store.write(path, {**columns, "a": np.full(1, wrong, np.uint64), "b": names[1:2], "height": np.zeros(1),
                       "key": np.zeros(1, np.uint64)})
    with pytest.raises(InputError, match="a block names a fragment that none has; remove that folder"):
        parts_of(labels).tree()


def test_what_memory_does_not_hold_is_one_sentence_before_anything_is_read(tmp_path, monkeypatch):
    labels = example(tmp_path)
    truth = f"{tmp_path}/truth.h5:truth"
    with create_volume(truth, open_volume(labels, "labels").shape, "uint64", (30, 8, 8), (60, 0, 16)) as out:
        out[...] = 1
    there = 2**30
    monkeypatch.setattr(memory, "memory_there", lambda: there)
    scored = score_volume(CURVE, truth, labels, tmp_path / "none.h5", parts_of=parts_of)
    assert "curve" in scored
    there = 100
    monkeypatch.setattr(store, "read", None)
    sentence = r"^to hold the \w+ of up to \d+ fragments needs about .*; the labels themselves, also those that infer.py"
    for ask in (BlockParts.tree, BlockParts.graph, lambda parts: parts.fragments()[0]):
        with pytest.raises(InputError, match=sentence):
            ask(parts_of(labels))
    without = score_volume(CURVE, truth, labels, tmp_path / "none.h5", parts_of=parts_of)
    assert "curve" not in without
    assert without["scores"] == scored["scores"]
    assert any(note.startswith("there is no curve over the thresholds: to hold the ") for note in without["notes"])


def test_a_segmentation_alone_says_who_reads_blocks(tmp_path):
    labels = example(tmp_path)
    with pytest.raises(InputError, match="was decoded in blocks, .* read them by emcore.blocks.tables"):
        Segmentation.read(labels)
    plain = f"{tmp_path}/plain.h5"
    with create_volume(f"{plain}:labels", (2, 3, 4), "uint32", attributes={"decode": config.to_table(
            AffinityDecode())}) as out:
        out[...] = 1
    assert parts_of(Path(plain)) is None
    with pytest.raises(InputError, match="has no merge tree"):
        read_segmentation(Path(plain))

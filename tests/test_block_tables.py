"""What reads fragments, graph and merges of labels reads those of a decoding in blocks, and finds the same bits."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from emcore import config, memory
from emcore.blocks import explain, store
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.run import ABOUT, work_of
from emcore.blocks.tables import BlockParts, parts_of, read_segmentation
from emcore.blocks.windows import Source
from emcore.blocks.work import run_inline
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


def few_blocks(rng: np.random.Generator, shape: tuple[int, int, int], sections: bool) -> Grid:
    """A grid of at most three blocks along an axis, so that there are few files."""
    block = [int(rng.integers(-(-length // 3), length + 1)) for length in shape]
    return Grid(shape, (block[0], *shape[1:]) if sections else tuple(block))


def both_ways(folder: Path, seed: int, statistic: str, floods: bool = False,
              grid_of: Callable[..., Grid] = few_blocks) -> tuple[Path, Path]:
    """(labels file of the whole, labels file in blocks) for a random prediction and a random grid."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(length) for length in rng.integers(4, 17, 3))
    path = make_prediction(folder / f"{seed}_prediction.h5", rng, shape)
    settings = random_settings(rng, statistic, floods)
    if seed % 2:  # these have many merges
        settings = replace(settings, low=0.1, high=0.95)
    prediction = open_volume(path)
    whole = decode(prediction, settings, folder / f"{seed}_labels.h5")
    out = folder / f"{seed}_in_labels.h5"
    work = AffinityWork(out.with_suffix(".blocks"), grid_of(rng, shape, floods), Source(str(path), settings), "content")
    run_inline(work)
    about = {"folder": work.folder.name, "block": list(work.grid.block), "content": work.content,
             "prediction": path.name, "end": work.end}
    return whole, work.join(out, prediction.resolution, prediction.offset,
                            {"decode": config.to_table(settings), ABOUT: about})


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
    """Compares everything that is read of blocks with that of the whole; how many merges there were."""
    whole, blocks = both_ways(folder, seed, statistic, floods, grid_of)
    rng, told = np.random.default_rng(seed), f"seed {seed}, {work_of(blocks)}"
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
    return len(wanted.tree.a)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_tables_of_blocks_are_those_of_the_whole(tmp_path, statistic):
    assert sum(check_tables(tmp_path, seed, statistic, seed == 3) for seed in range(1, 4)) > 10


@pytest.mark.long
@pytest.mark.parametrize("statistic", STATISTICS)
def test_tables_of_many_blocks_are_those_of_the_whole(tmp_path, statistic):
    assert sum(check_tables(tmp_path, seed, statistic, seed % 5 == 0, partial(random_grid, most=16))
               for seed in range(100, 106)) > 20


def test_the_command_prints_the_same(tmp_path, capsys):
    texts = []
    for labels in both_ways(tmp_path, 7, "mean"):
        for more in ([], ["--other", "1", "2", "3"], ["--threshold", "0.7", "--all"]):
            assert explain.main([str(labels), "2", "3", "1", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "what joined it" in texts[0]
    assert "in the file voxel" in texts[0]


@pytest.mark.parametrize("statistic", ["mean", "aff85_his256"])
def test_scores_curve_and_page_are_the_same(tmp_path, statistic):
    files = both_ways(tmp_path, 11, statistic)
    shape, rng = open_volume(files[0], "labels").shape, np.random.default_rng(3)
    truth, ids = f"{tmp_path}/truth.h5:truth", rng.integers(0, 6, (4, 4, 4)).astype(np.uint64)
    with create_volume(truth, shape, "uint64", (30, 8, 8), (60, 0, 16)) as out:
        out[...] = np.kron(ids, np.ones((5, 5, 5), np.uint64))[tuple(map(slice, shape))]
    wanted, found = (score_volume(CURVE, truth, labels, tmp_path / "none.h5", parts_of=parts_of) for labels in files)
    assert found == wanted
    assert len(found["curve"]["threshold"]) >= 10
    page, packed = (packed_merges(labels, 0.5) for labels in files)
    assert packed == page
    assert packed["made"] > 3


def example(folder: Path) -> Path:
    return both_ways(folder, 5, "mean")[1]


@pytest.mark.parametrize("stage, column", [("fragments", "names"), ("seams", None), ("graph", "u"),
                                           ("merges 0", "key")])
def test_a_damaged_file_is_one_sentence(tmp_path, stage, column):
    labels = example(tmp_path)
    work = work_of(labels)
    place = next(one for one in work.tree_stages() if one.name == stage)
    path = max((work.path(place, number) for number in range(place.count)), key=lambda path: path.stat().st_size)
    stored = path.read_bytes()
    at = len(store.MAGIC) + 20 if column is None else stored.index(store.read(path, column)[0].tobytes())
    for damaged in (None, stored[:-3], stored[:at] + bytes([stored[at] ^ 4]) + stored[at + 1:]):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        parts = parts_of(labels)
        with pytest.raises(InputError, match=f"^{re.escape(str(path))} .*; run infer.py again, which makes it again$"):
            _ = parts.tree(), parts.graph(), parts.fragments()[...]
        run_inline(work)  # what infer.py does
        assert path.read_bytes() == stored


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
    sentence = r"^to (hold|read) .* fragments needs about .*; the labels themselves, also those that infer.py --cut"
    for ask in (BlockParts.tree, BlockParts.graph, lambda parts: parts.fragments()[0]):
        with pytest.raises(InputError, match=sentence):
            ask(parts_of(labels))
    without = score_volume(CURVE, truth, labels, tmp_path / "none.h5", parts_of=parts_of)
    assert "curve" not in without
    assert without["scores"] == scored["scores"]
    assert any(note.startswith("there is no curve over the thresholds: to hold the ") for note in without["notes"])


def test_a_segmentation_alone_says_who_reads_blocks(tmp_path):
    labels = example(tmp_path)
    with pytest.raises(InputError, match=r"was decoded in blocks, .* read them by emcore.blocks.tables"):
        Segmentation.read(labels)
    plain = f"{tmp_path}/plain.h5"
    with create_volume(f"{plain}:labels", (2, 3, 4), "uint32", attributes={"decode": config.to_table(
            AffinityDecode())}) as out:
        out[...] = 1
    assert parts_of(Path(plain)) is None
    with pytest.raises(InputError, match="has no merge tree"):
        read_segmentation(Path(plain))

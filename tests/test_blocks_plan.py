"""The model of what large volumes take, against grids that are counted out and against the runs that it stems from."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from bench import blocks_plan
from bench.blocks_plan import EXPONENTS, LADDER, RATES, limits, plan_of, planes, print_plan, shape_of, told_rates
from bench.watch import Watched
from emcore.blocks.choice import Choice
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.run import decode_in_blocks
from emcore.blocks.windows import Source
from emcore.settings.blocks import Blocks
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = AffinityDecode(low=0.1, high=0.999)
GRIDS = [Grid((7, 9, 12), (2, 4, 3)), Grid((5, 5, 5), (5, 5, 5)), Grid((1, 8, 30), (1, 3, 4))]


@pytest.mark.parametrize("grid", GRIDS)
def test_faces_are_those_between_voxels_of_different_nodes(grid):
    for level in range(grid.levels):
        nodes = np.zeros(grid.shape, int)
        for number in range(grid.blocks(level)):
            nodes[grid.box(number, level)] = number
        assert planes(grid, level) == sum(np.count_nonzero(np.diff(nodes, axis=axis)) for axis in range(3))


@pytest.mark.parametrize("statistic", ["mean", "aff85_his256"])
@pytest.mark.parametrize("grid", GRIDS)
def test_tasks_are_those_of_the_work(tmp_path, grid, statistic):
    settings = AffinityDecode(statistic=statistic)
    stages = AffinityWork(tmp_path, grid, Source("", settings), "").stages()
    for exponent in EXPONENTS:
        plan = plan_of(grid, settings, exponent)
        assert sum(plan.tasks.values()) == sum(stage.count for stage in stages)
        assert plan.tasks["labels"] == grid.blocks()
        assert ("pairs" in plan.tasks) == (statistic != "mean")


def test_what_grows_with_the_voxels_does_and_what_climbs_has_two_ends():
    small, large = (Grid((side,) * 3, (256,) * 3) for side in (4096, 8192))
    ends = [[plan_of(grid, SETTINGS, exponent) for exponent in EXPONENTS] for grid in (small, large)]
    for part in ("disk", "cores"):
        (one, _), (eight, most) = ([getattr(plan, part) for plan in pair] for pair in ends)
        for stage in ("fragments", "graph", "labels", "numbers"):
            assert eight[stage] == most[stage] == pytest.approx(8 * one[stage])
        assert 6 < eight["merges"] / one["merges"] < 9
        assert most["merges"] > eight["merges"]
    tops = [[plan.memory["last merges"] - blocks_plan.WORKER for plan in pair] for pair in ends]
    assert tops[1][0] / tops[0][0] == pytest.approx(4 * 2 ** EXPONENTS[0])  # the faces of the children of the top
    assert tops[1][1] / tops[0][1] == pytest.approx(4 * 2 ** EXPONENTS[1])


@pytest.mark.parametrize("run", blocks_plan.RUNS)
def test_the_model_is_near_the_runs_that_were_made(run):
    modelled = blocks_plan.figures(run.grid, SETTINGS)
    for name, number in run.measured.items():
        least, most = modelled[name]
        assert number / 1.5 < most < 1.5 * number, name
        assert number / 2 < least <= most, name  # clusters as if they did not grow with the side of a node


def test_the_page_holds_the_ladder_that_is_printed(capsys):
    print_plan([], 512, SETTINGS, 1e12, None)
    ladder = capsys.readouterr().out.partition("The rates are ")[0]
    assert len(ladder.splitlines()) > 30
    assert ladder in (ROOT / "docs" / "blocks.md").read_text()


def test_it_says_what_no_machine_can_do():
    def said(shape, memory):
        grid = Grid(shape, (512,) * 3)
        return list(limits(grid, [plan_of(grid, SETTINGS, exponent) for exponent in EXPONENTS], memory))

    assert said(LADDER[0], 1e12) == []
    petavoxel = "\n".join(said(LADDER[-1], 1e12))
    for words in ("the single task seams takes ", "the single task numbers takes ",
                  "the single task last forest takes ", "the file of seams would name its columns in "):
        assert words in petavoxel
    assert " edges enter the last merges, which number them in 32 bits: " in "\n".join(said((10**6,) * 3, 1e12))
    assert "each task of a block takes 2.6 GB: a machine with 1.0 GB cannot do it" in said(LADDER[0], 1e9)


def test_volumes_are_printed_side_by_side(capsys):
    print_plan([(512,) * 3, shape_of("100,3000,20000")], 256, SETTINGS, 1e12, 1e6)
    told = capsys.readouterr().out
    assert "512×512×512" in told.splitlines()[0]
    assert "100×3000×20000" in told.splitlines()[0]
    rows = {line[:24].strip(): line[24:].split("  ") for line in told.splitlines()}
    assert [cell.strip() for cell in rows["blocks"] if cell.strip()] == ["8", "948"]
    assert [cell.strip() for cell in rows["GPU hours, prediction"] if cell.strip()] == ["0.04", "1.67"]
    assert "left out" not in told
    print_plan([(512,) * 3], 256, SETTINGS, 1e12, None)
    assert "GPU hours of the prediction are left out, as no rate was measured" in capsys.readouterr().out
    for wrong in ("512", "1,2", "0,5,5", "a,b,c", "1,2,3,4"):
        with pytest.raises(argparse.ArgumentTypeError, match="a shape is voxels along z, y, x, such as 4000,20000,"):
            shape_of(wrong)


def test_the_rates_of_a_run_add_up_to_what_it_took(tmp_path, monkeypatch):
    affs = np.random.default_rng(0).random((3, 20, 24, 28), np.float32)
    with create_volume(tmp_path / "a_prediction.h5", affs.shape, affs.dtype, attributes={
            "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
        out[...] = affs
    grid, labels = Grid(affs.shape[1:], (5, 24, 28)), tmp_path / "a_labels.h5"
    decode_in_blocks(tmp_path / "a_prediction.h5", SETTINGS, labels, Choice(grid, 1, ""), Blocks(workers=1),
                     {"prediction": {"digest": "test"}})
    work = AffinityWork(tmp_path, grid, Source("", SETTINGS), "")
    seconds = {stage.name: 1.0 for stage in work.stages()}
    monkeypatch.setattr(blocks_plan, "watch", lambda *task: Watched(0, 9.0, 0.5, 10**8 + 10**6 * (len(task) > 1), 0))
    disk, cores, memory = 0, 0, {}
    for line in told_rates(labels, seconds, 20.0):
        name, words = line.strip().split(": for each ")
        assert RATES[name].thing == words.split()[0]
        count, each, busy = (float(words.split()[place].rstrip(",")) for place in (2, 3, 5))
        disk, cores = disk + count * each, cores + count * busy / 1e9
        if "memory" in words:
            memory[name] = float(words.split()[7])
    files = [path for path in labels.with_suffix(".blocks").rglob("*") if path.suffix in (".columns", ".h5")]
    assert disk == pytest.approx(sum(path.stat().st_size for path in files), rel=0.01)
    assert cores == pytest.approx(20, rel=0.01)
    assert memory.keys() == {"seams", "forest", "merges", "cut", "numbers"}
    assert memory["seams"] == pytest.approx(10**6 / planes(grid, 0), rel=0.01)

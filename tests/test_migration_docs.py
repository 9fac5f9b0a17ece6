"""docs/migration.md says what runs: every right-hand side, and the left-hand ones of single calls where they can."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import metrics, segment
from emcore.data.targets import affinities
from tests.oracles import flood as oracle

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "migration.md").read_text()
PEERS = ("cc3d", "edt", "fastremap", "mwatershed", "scipy.ndimage", "skimage.measure", "skimage.metrics")


def statements(cell):
    return re.findall(r"`([^`]+)`", cell)


def rows(section):
    """(left, right) cells of the table of a section."""
    body = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]
    cells = [re.fullmatch(r"\| (.*?) \| (.*) \|", line) for line in body.splitlines() if line.startswith("| ")]
    return [(cell[1], cell[2]) for cell in cells if cell[1] not in ("you wrote", "you had")]


def things():
    """What the rows talk about: smooth affinities without ties, a truth, a mask."""
    random = np.random.default_rng(0)
    noise = random.random((3, 8, 24, 24), dtype=np.float32)
    affs = sum(np.roll(noise, shift, axis) for axis in (1, 2, 3) for shift in (0, 1)) / 6
    affs = np.ascontiguousarray((affs - affs.min()) / np.ptp(affs), np.float32)
    z, y, x = np.indices((8, 24, 24))
    truth = (1 + y // 8 + 3 * (x // 12) + 10 * (z // 4)).astype(np.uint32)
    truth[:, ::8] = 0
    other = np.roll(truth, 2, 1)
    return {"np": np, "torch": torch, "segment": segment, "metrics": metrics, "affinities": affinities, "affs": affs,
            "truth": truth, "other": other, "mask": random.random((8, 24, 24)) < 0.4, "volume": noise.copy(),
            "labels": other, "first": other[0], "second": other[1], "fragments": segment.watershed(affs)}


@pytest.mark.parametrize("section", ["Affinities", "waterz", "PyTorch Connectomics, DeepEM, dbMiM, CREMI",
                                     "Single calls"])
def test_every_right_hand_side_runs(section):
    table = rows(section)
    assert len(table) >= 2
    known = things()
    for _, right in table:
        assert statements(right), right
        for statement in statements(right):
            exec(statement, known)


def same(left, right):
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype.kind == "f" or left.size < 2:
        return np.allclose(left, right, rtol=1e-5)
    pairs = np.unique(np.stack([left.ravel().astype(np.int64), right.ravel().astype(np.int64)], 1), axis=0)
    return len(pairs) == len(np.unique(left)) == len(np.unique(right))  # the same pieces, whatever their names


@pytest.mark.parametrize("left, right", rows("Single calls"), ids=lambda cell: statements(cell)[0][:40])
def test_both_sides_of_a_single_call_agree(left, right):
    statement, = statements(left)
    peer = next(name for name in PEERS if f"{name}." in statement)
    pytest.importorskip(peer, reason=f"{peer} is not installed")
    theirs, ours = things(), things()
    for name in PEERS:
        if name == peer:
            theirs[name.split(".")[0]] = importlib.import_module(name.split(".")[0])
    exec(statement, theirs)
    for code in statements(right):
        exec(code, ours)
    for name in re.match(r"[\w, ]+", statement)[0].replace(" ", "").split(","):
        left, right = theirs[name], ours[name]
        if peer == "mwatershed":  # 0 there where nothing attracts, which ends alone
            assert (np.bincount(right.ravel())[right[left == 0]] == 1).all()
            left, right = left[left != 0], right[left != 0]
        assert same(left, right), name


def attracted(affs, offset, stride):
    """Where one of the edges that stay attracts: those whose end nearer to the origin is a multiple of the stride."""
    out, shape = np.zeros(affs.shape, bool), affs.shape
    for voxel in np.argwhere(affs > 0.5):
        other = voxel + offset
        if (other >= 0).all() and (other < shape).all() and not (np.minimum(voxel, other) % stride).any():
            out[tuple(voxel)] = out[tuple(other)] = True
    return out


def test_mwatershed_differs_in_single_voxels_and_in_the_phase_of_strides_of_negative_offsets():
    mwatershed = pytest.importorskip("mwatershed")
    affs, steps = things()["affs"][:1], [[2, 2, 2]]
    affs[affs < 0.45] = 0.5  # some weights are 0
    for offset, near in (((0, 0, -3), (0, 0, 3)), ((0, -1, 0), (0, 1, 0)), ((-1, -2, -1), (1, 2, 1))):
        theirs = mwatershed.agglom(affs.astype(float) - 0.5, [list(offset)], strides=steps)
        moved = np.roll(affs, offset, (1, 2, 3))
        ours = segment.mutex_watershed(moved, [near], attractive=0, bias=-0.5, strides=steps)
        labelled = attracted(affs[0], offset, steps[0])
        assert np.array_equal(theirs != 0, labelled)
        assert same(theirs[labelled], ours[labelled])
        stored = segment.mutex_watershed(affs, [offset], attractive=0, bias=-0.5, strides=steps)
        assert not same(theirs[labelled], stored[labelled])
    assert "a voxel the label 0 where none of its edges attracts" in TEXT
    nothing = np.full((1, 1, 2, 3), 0.5, np.float32)
    assert not mwatershed.agglom(nothing.astype(float) - 0.5, [[0, 0, 1]]).any()
    assert segment.mutex_watershed(nothing, [[0, 0, 1]], attractive=0, bias=-0.5).ravel().tolist() == [1, 2, 3, 4, 5, 6]


def test_the_contour_decoder_is_the_one_there_but_for_what_the_page_says():
    volume = np.zeros((3, 6, 20, 40), np.float32)
    volume[0, :, 2:18, 2:38], volume[0, :, :, 20], volume[2] = 0.95, 0, 0.1
    volume[2, 1:5, 6:12, 4:10] = volume[2, 1:5, 6:12, 26:32] = 0.8  # a seed at either side of a gap
    volume[0, :, :, 32:34] = 0  # cuts off a piece without a seed
    volume[2, 0, 2, 2:9] = -0.2  # above -0.5, but not above 0
    volume[2, :, 14, 2:19], volume[2, 1, 17, 3] = 0.05, 0.9  # a seed of one voxel
    seeds = connected((volume[0] > 0.9) & (volume[1] < 0.8) & (volume[2] > 0.5))
    seeds[np.bincount(seeds.ravel())[seeds] < 32] = 0
    foreground = (volume[0] > 0.85) & (volume[1] < 1.1) & (volume[2] > 0)
    theirs = oracle.flood(-np.maximum(volume[2].astype(float), 0), seeds) * foreground
    assert (theirs > 0).sum() == foreground.sum()
    found = {}
    for left, right in rows("PyTorch Connectomics, DeepEM, dbMiM, CREMI"):
        if "contour_distance" in left or "across the background" in left:
            known = things() | {"volume": volume.copy()}
            for statement in statements(right):
                exec(statement, known)
            found[left] = known["instances"]
    plain, across = found.values()
    assert same(theirs, across)
    assert len(np.unique(plain)) == 3
    pieces = connected(foreground)
    without = ~np.isin(pieces, pieces[seeds > 0])
    assert (without & foreground).any()
    assert np.array_equal(plain == 0, without | ~foreground)


def connected(mask):
    return segment.connected_components(mask, 26).astype(np.int64)

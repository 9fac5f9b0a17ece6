"""docs/migration.md says what runs: every right-hand side, and the left-hand ones of single calls where they can."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import metrics, segment
from emcore.data.targets import affinities

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
        if peer == "mwatershed":  # voxels without any edge are 0 there
            left, right = left[left != 0], right[left != 0]
        assert same(left, right), name

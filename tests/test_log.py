"""The files that a run keeps while it goes: whole rows, whole files, and one sentence where the disk is full."""

import csv
import re

import numpy as np
import pytest
import torch

from emcore import config
from emcore.engine import checkpoint, resume
from emcore.engine.log import Log
from emcore.errors import InputError
from emcore.files import append
from emcore.settings import Settings
from tests.disks import disk, resize

FULL = "cannot write {path}: the disk is full; make room and run the same command again"


def log_of(folder, step=0):
    log = Log(folder, ["loss"], step)
    log.board = None
    return log


def rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.reader(file))


def fill(folder):
    """Takes the room that is left on a disk."""
    with open(folder / "filler", "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_row_that_an_older_version_tore_is_not_taken_for_a_whole_one(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"step,loss\r\n2,0.5\r\n4,0.9")  # the row was cut within 0.964
    log_of(tmp_path, 4).write(6, {"loss": 0.25})
    assert rows(tmp_path) == [["step", "loss"], ["2", "0.5"], ["6", "0.25"]]


def test_a_disk_that_fills_leaves_whole_rows_and_one_sentence():
    with disk(64 << 10) as folder:
        log = log_of(folder)
        fill(folder)
        written = 0
        with pytest.raises(InputError, match=re.escape(FULL.format(path=folder / "log.csv"))):  # noqa: PT012
            while True:
                log.write(written + 1, {"loss": 1 / 3})
                written += 1
        assert written > 50, "the page of the file was not full"
        assert rows(folder) == [["step", "loss"], *([str(step + 1), repr(1 / 3)] for step in range(written))]
        before = (folder / "log.csv").read_bytes()
        with pytest.raises(InputError, match="the disk is full"):
            log_of(folder, written)
        assert (folder / "log.csv").read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == ["filler", "log.csv"]
        resize(folder, 128 << 10)
        log_of(folder, written).write(written + 1, {"loss": 0.5})
        assert len(rows(folder)) == written + 2


def test_what_does_not_fit_is_not_begun():
    with disk(16 << 10) as folder, open(folder / "a", "ab", buffering=0) as file:
        append(file, b"first\n")
        with pytest.raises(InputError, match="the disk is full"):
            append(file, bytes(40 << 10))
        assert (folder / "a").read_bytes() == b"first\n"


@pytest.mark.parametrize("size", [4 << 10, 60 << 10, 200 << 10])
def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_leaves_nothing(size):
    with disk(size + (8 << 10)) as folder:
        path = folder / "checkpoints" / "step_000000001.pt"
        with pytest.raises(InputError, match=re.escape(FULL.format(path=path))):
            checkpoint.save(path, {"model": {str(number): torch.zeros(8 << 10) for number in range(8)}})
        assert list(path.parent.iterdir()) == []


def test_a_damaged_config_of_a_run_is_taken_from_its_checkpoint(tmp_path, capsys):
    settings = Settings("x", seed=3)
    path = tmp_path / "checkpoints" / "step_000000001.pt"
    checkpoint.save(path, {"model": {"a": torch.tensor(np.ones(2))}, "config": config.to_table(settings)})
    text = config.to_toml(settings)
    for damaged in ("", text[: len(text) // 2], text[:100], None):
        (tmp_path / "config.toml").unlink(missing_ok=True)
        if damaged is not None:
            (tmp_path / "config.toml").write_text(damaged)
        resume.check_same_run(tmp_path, settings)
        assert "is missing or damaged; the config in step_000000001.pt holds" in capsys.readouterr().err
        with pytest.raises(InputError, match="seed was 3, is 4"):
            resume.check_same_run(tmp_path, Settings("x", seed=4))

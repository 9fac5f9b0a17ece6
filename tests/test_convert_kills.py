"""Conversions that are killed, and volumes that are replaced: there is always a whole one, and nothing else stays."""

import os
import signal
import time

import numpy as np
import pytest

from emcore import files
from emcore.volumes import create_volume, open_volume
from emcore.volumes.convert import main


def forked(work, *arguments):
    """The process that does some work, given no time to end well."""
    process = os.fork()
    if process == 0:
        try:
            work(*arguments)
        finally:
            os._exit(0)
    return process


@pytest.mark.parametrize("kills", [pytest.param(4, id="few", marks=pytest.mark.slow), pytest.param(60, id="many", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["h5", "npy", "tif", "zarr", "precomputed"])
def test_killed_conversions_leave_nothing_once_one_has_ended(tmp_path, kind, kills):
    pytest.importorskip({"zarr": "zarr", "tif": "tifffile"}.get(kind, "numpy"))
    random = np.random.default_rng(0)
    voxels = random.integers(0, 2**16, (40, 96, 96)).astype(np.uint16)
    source, target = tmp_path / "a.npy", tmp_path / f"b.{kind}"
    with create_volume(source, voxels.shape, voxels.dtype, (40, 4, 4)) as writer:
        writer[...] = voxels
    chunks = [] if kind in ("npy", "tif") else ["--chunks", "16", "16", "16"]
    arguments = [str(source), str(target), "--force", *chunks]
    start = time.monotonic()
    os.waitpid(forked(main, arguments), 0)
    seconds = time.monotonic() - start
    wanted, within = sorted(tmp_path.iterdir()), 0
    for _ in range(kills):
        process = forked(main, arguments)
        time.sleep(random.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        within += sorted(tmp_path.iterdir()) != wanted
        assert (open_volume(target)[...] == voxels).all(), "the volume of before stands there"
    print(f"{within} of {kills} kills left something")
    main(arguments)
    assert sorted(tmp_path.iterdir()) == wanted
    assert (open_volume(target)[...] == voxels).all()


@pytest.mark.parametrize("kind", ["zarr", "precomputed"])
def test_a_folder_that_is_replaced_has_a_volume_under_its_name_at_every_moment(tmp_path, kind):
    pytest.importorskip("zarr" if kind == "zarr" else "numpy")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not files.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two names in one step")
    source, target = tmp_path / "a.npy", tmp_path / f"b.{kind}"
    np.save(source, np.arange(8 * 16 * 16, dtype=np.uint16).reshape(8, 16, 16))
    told = target / {"zarr": ".zarray", "precomputed": "info"}[kind]
    main([str(source), str(target)])
    first = told.stat().st_ino

    def replace_often():
        for _ in range(20):
            main([str(source), str(target), "--force"])

    process = forked(replace_often)
    looks = 0
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        for _ in range(100):
            told.stat()
        looks += 100
    assert looks > 1000
    assert told.stat().st_ino != first

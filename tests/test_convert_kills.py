"""Conversions that are killed, and volumes that are replaced: there is always a whole one, and nothing else stays."""

import os
import signal
import time

import numpy as np
import pytest

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


KILLS = [pytest.param(4, id="few", marks=pytest.mark.slow), pytest.param(60, id="many", marks=pytest.mark.long)]


@pytest.mark.parametrize("kills", KILLS)
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
def test_a_folder_that_is_replaced_has_a_volume_under_its_name_at_every_moment(tmp_path, monkeypatch, kind):
    pytest.importorskip("zarr" if kind == "zarr" else "numpy")
    source, target = tmp_path / "a.npy", tmp_path / f"b.{kind}"
    np.save(source, np.arange(8 * 16 * 16, dtype=np.uint16).reshape(8, 16, 16))
    told = target / {"zarr": ".zarray", "precomputed": "info"}[kind]
    main([str(source), str(target)])
    first, there = told.stat().st_ino, []
    for name in ("replace", "rename", "rmdir", "unlink", "fsync"):  # what changes names, and what takes time
        monkeypatch.setattr(os, name, watched(getattr(os, name), lambda: there.append(told.exists())))
    main([str(source), str(target), "--force"])
    if not all(there) and not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange two names in one step")
    assert len(there) > 3
    assert all(there)
    assert told.stat().st_ino != first


def watched(call, look):
    def wrapper(*arguments, **options):
        found = call(*arguments, **options)
        look()
        return found

    return wrapper


def can_exchange(folder):
    from emcore.files import exchange

    for name in ("one", "other"):
        (folder / name).mkdir()
    return exchange(folder / "one", folder / "other")

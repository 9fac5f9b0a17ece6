"""Volumes of a million chunks: nothing lists them, the first parts come at once, and memory follows one part."""

import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.volumes import Layout, multiscale, open_volume, processes, remote, write_ome_zarr
from emcore.volumes.convert import blocks, convert
from emcore.volumes.stamp import content
from tests.served import served

CHUNKS = (100, 100, 100)
CHUNK = (8, 8, 8)
SHAPE = tuple(count * size for count, size in zip(CHUNKS, CHUNK))
LISTED: list[str] | None = None  # the folders that Python lists while somebody watches


def watch(event: str, arguments: tuple) -> None:
    if LISTED is not None and event in ("os.listdir", "os.scandir"):
        LISTED.append(os.fspath(arguments[0] or "."))


@pytest.fixture
def listed():
    global LISTED
    if LISTED is None and not hasattr(watch, "added"):
        sys.addaudithook(watch)  # which nobody can take away again
        watch.added = True
    LISTED = []
    yield LISTED
    LISTED = None


class Enough(InputError):
    """The first parts are there."""


class Virtual:
    """A million chunks that are made when they are read, and stop the reader after some."""

    shape, dtype, chunks, name = SHAPE, np.dtype("uint8"), CHUNK, "virtual"

    def __init__(self, most: int):
        self.most, self.read = most, []

    def __getitem__(self, box):
        if len(self.read) == self.most:
            raise Enough("enough")
        self.read.append(box)
        z, y, x = ((np.arange(span.start, span.stop) % 251).astype(np.uint8) for span in box)
        return z[:, None, None] + 3 * y[:, None] + 5 * x


class HelperInThread:
    """What a process of helpers does, done in this one, whose memory is measured."""

    def __init__(self, job):
        self.do, self.close = job.do, lambda: None


def first_parts(work, most_bytes: int) -> None:
    """Runs until the source stops it: soon, and within the memory that is stated."""
    tracemalloc.start()
    try:
        start = time.thread_time()
        with pytest.raises(Enough):
            work()
        assert time.thread_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def test_a_copy_begins_with_its_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("emcore.volumes.convert.BLOCK_BYTES", 1 << 14)  # so there are many thousands of blocks
    source = Virtual(4)
    first_parts(lambda: convert(open_volume(source), f"{tmp_path}/a.npy"), 1 << 20)
    assert len(source.read) == 4
    assert not list(tmp_path.glob("a.npy"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_volume_for_viewers_begins_with_its_first_part(tmp_path, monkeypatch, workers):
    pytest.importorskip("tensorstore", reason="the extra remote is not installed")
    monkeypatch.setattr(multiscale, "PART_BYTES", 512)  # each of the million chunks is a part
    monkeypatch.setattr(processes, "Helper", HelperInThread)
    source = Virtual(20)
    layout = Layout(chunks=CHUNK, levels=1, layer="image", workers=workers)
    first_parts(lambda: write_ome_zarr(open_volume(source), tmp_path / "a.ome.zarr", layout, "0.4"), 4 << 20)
    done = os.listdir(tmp_path / "a.ome.zarr.unfinished" / "done" / "0")
    assert len([name for name in done if name.isdigit()]) == 20
    z, y, x = (slice(0, 8),) * 3
    made = Virtual(1)[z, y, x]
    written = multiscale.need_tensorstore("a test").open(
        {"driver": "zarr", "kvstore": f"file://{tmp_path}/a.ome.zarr.unfinished/store/0/"}).result()
    np.testing.assert_array_equal(written[z, y, x].read().result(), made)


def empty_zarr(path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
    array = zarr.create_array(path, shape=SHAPE, dtype="uint8", chunks=CHUNK, fill_value=7, zarr_format=version)
    array[:8, :8, :16] = 3


@pytest.mark.parametrize("version", [2, 3])
def test_no_folder_of_chunks_is_listed_to_read_some(tmp_path, monkeypatch, listed, version):
    monkeypatch.setattr("emcore.volumes.convert.BLOCK_BYTES", 1 << 12)
    empty_zarr(tmp_path / "a.zarr", version)
    read = []

    def some(*arguments):
        for box in blocks(*arguments):
            if len(read) == 3:
                raise Enough("enough")
            read.append(box)
            yield box

    monkeypatch.setattr("emcore.volumes.convert.blocks", some)
    for place in (f"{tmp_path}/a.zarr", f"zarr://{tmp_path}/a.zarr"):
        if place.startswith("zarr:"):
            pytest.importorskip("tensorstore", reason="the extra remote is not installed")
        read.clear()
        listed.clear()
        with pytest.raises(Enough):
            convert(open_volume(place), f"{tmp_path}/b.npy")
        assert len(read) == 3
        assert not [folder for folder in listed if str(tmp_path / "a.zarr") in folder]
        assert open_volume(place)[0, 0, :24].tolist() == [3] * 16 + [7] * 8


def test_a_server_is_asked_for_what_is_copied_first(tmp_path, monkeypatch):
    pytest.importorskip("tensorstore", reason="the extra remote is not installed")
    info = {"@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": "uint8", "num_channels": 1,
            "scales": [{"key": "big", "size": SHAPE[::-1], "resolution": [4, 4, 40], "encoding": "raw",
                        "voxel_offset": [0, 0, 0], "chunk_sizes": [list(CHUNK)]}]}
    (tmp_path / "web" / "em").mkdir(parents=True)
    (tmp_path / "web" / "em" / "info").write_text(json.dumps(info))
    monkeypatch.setattr("emcore.volumes.convert.BLOCK_BYTES", 1 << 12)  # eight chunks
    kept = []

    def keep(path, values):
        if len(kept) == 3:
            raise Enough("enough")
        kept.append(values.shape)

    monkeypatch.setattr("emcore.volumes.fetched.write_block", keep)
    with served(tmp_path / "web") as server:
        place = f"{server.address}/em#missing=0"
        with pytest.raises(Enough):
            convert(open_volume(place), f"{tmp_path}/b.npy", reference=place)
        chunks = [path for path in server.requests if "/big/" in path]
        assert 3 * 8 <= len(chunks) <= 5 * 8 + remote.SAMPLES  # one block is fetched ahead
    assert len(kept) == 3


@pytest.mark.long
def test_a_million_chunks_are_walked_in_little_memory(tmp_path):
    pytest.importorskip("tensorstore", reason="the extra remote is not installed")
    empty_zarr(tmp_path / "a.zarr", 3)
    volume = open_volume(f"zarr://{tmp_path}/a.zarr", cache_bytes=0)
    tracemalloc.start()
    try:
        found = content(volume)
        assert tracemalloc.get_traced_memory()[1] < 320 << 20
    finally:
        tracemalloc.stop()
    values = np.full(SHAPE, 7, np.uint8)
    values[:8, :8, :16] = 3
    assert found == content(open_volume(values))



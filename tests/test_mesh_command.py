"""python -m emcore mesh: the files of every object from blocks, whole or not there, and gone on with after an end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from emcore.blocks import meshes as command
from emcore.blocks.grid import Grid
from emcore.errors import InputError, run_command
from emcore.segment import Mesh, mesh
from emcore.segment.meshes import Frame
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import join_blocks, write_block
from emcore.volumes.convert import convert
from tests.test_meshes import canonical

ROOT = Path(__file__).resolve().parent.parent
UNIT, OFFSET = (40.0, 8.0, 4.0), (400.0, 80.0, -8.0)
HUGE = 2**64 - 3


def drawn_labels():
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 4, (5, 5, 7)), np.ones((6, 6, 4), int)).astype(np.uint64)
    labels[rng.random(labels.shape) < 0.02] = 0
    labels[labels == 3] = HUGE
    return labels


@pytest.fixture
def stored(tmp_path):
    """Labels in blocks that one file joins, as a decoding in blocks leaves them."""
    labels, parts = drawn_labels(), []
    (tmp_path / "a.blocks").mkdir()
    for number, start in enumerate(range(0, 30, 12)):
        box = (slice(start, min(start + 12, 30)), slice(0, 30), slice(0, 28))
        write_block(tmp_path / "a.blocks" / f"{number}.h5", labels[box])
        parts.append((box, f"a.blocks/{number}.h5"))
    join_blocks(tmp_path / "a.h5", "labels", labels.shape, np.dtype(np.uint64), parts, UNIT, OFFSET, {})
    return tmp_path / "a.h5"


def run(*arguments):
    return run_command(command.main, [str(argument) for argument in arguments])


def read_fragment(path):
    """A fragment as the format describes it, in z, y, x."""
    data = path.read_bytes()
    count = int.from_bytes(data[:4], "little")
    points = np.frombuffer(data, "<f4", 3 * count, 4).reshape(-1, 3)
    faces = np.frombuffer(data, "<u4", -1, 4 + points.nbytes).reshape(-1, 3)
    return Mesh(points[:, ::-1], faces)


def read_object(folder, label):
    fragments = json.loads((folder / f"{label}:0").read_text())["fragments"]
    (fragment,) = fragments
    return read_fragment(folder / fragment)


def assert_is(found, wanted):
    assert len(found.vertices) == len(wanted.vertices)
    assert np.array_equal(canonical(found), canonical(wanted))


@pytest.mark.parametrize("block", [(256, 256, 256), (9, 30, 13)])
def test_meshes_of_blocks_are_those_of_the_whole(stored, tmp_path, capsys, block):
    out = tmp_path / "out"
    assert run(stored, out, "--workers", 1, "--block", *block) == 0
    whole = mesh(drawn_labels(), UNIT, offset=OFFSET)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["info", *(f"{label}:0{end}" for label in whole for end in ("", ":mesh"))])
    assert json.loads((out / "info").read_text()) == {"@type": "neuroglancer_legacy_mesh"}
    for label, wanted in whole.items():
        assert_is(read_object(out, label), wanted)
    told = capsys.readouterr().out
    assert f"3 meshes, {sum(len(found.vertices) for found in whole.values())} vertices" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.blocks", "a.h5", "out"]


def test_a_simpler_mesh_does_not_depend_on_the_blocks_in_shape(stored, tmp_path):
    """Its vertices come in another order, so that other edges of the same cost may go first."""
    whole = mesh(drawn_labels(), UNIT, offset=OFFSET, error=6.0)
    assert run(stored, tmp_path / "one", "--format", "ply", "--error", 6, "--ids", f"1,{HUGE}", "--workers", 1) == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["1.ply", f"{HUGE}.ply"]
    body = (tmp_path / "one" / "1.ply").read_bytes().partition(b"end_header\n")[2]
    points = np.frombuffer(body, "<f4", 3 * len(whole[1].vertices)).reshape(-1, 3)
    assert np.array_equal(points[:, ::-1], whole[1].vertices)


def test_a_precomputed_volume_gets_its_meshes_where_a_viewer_shows_its_voxels(stored, tmp_path):
    volume = tmp_path / "a.precomputed"
    convert(open_volume(stored), str(volume))
    assert run(stored, volume, "--workers", 1) == 0
    info = json.loads((volume / "info").read_text())
    assert info["mesh"] == "mesh"
    assert info["type"] == "segmentation"
    assert np.array_equal(open_volume(volume)[...], drawn_labels())
    for label, wanted in mesh(drawn_labels(), UNIT, offset=OFFSET).items():
        assert_is(read_object(volume / "mesh", label), wanted)
    assert run(volume, volume, "--workers", 1, "--ids", 1) == 0  # labels and meshes in one folder
    with create_volume(tmp_path / "b.h5:labels", (3, 4, 5), "uint8", UNIT) as out:
        out[...] = 1
    assert run(tmp_path / "b.h5", volume, "--workers", 1) == 2


@pytest.mark.bench
def test_zmesh_reads_a_fragment(stored, tmp_path):
    zmesh = pytest.importorskip("zmesh", reason="the reader zmesh is not installed")
    assert run(stored, tmp_path / "out", "--workers", 1, "--ids", 2) == 0
    read = zmesh.Mesh.from_precomputed((tmp_path / "out" / "2:0:mesh").read_bytes())
    assert_is(Mesh(np.asarray(read.vertices)[:, ::-1], np.asarray(read.faces)),
              mesh(drawn_labels(), UNIT, offset=OFFSET, ids=[2])[2])


@pytest.mark.bench
def test_cloudvolume_reads_the_meshes(stored, tmp_path):
    cloudvolume = pytest.importorskip("cloudvolume", reason="the reader cloud-volume is not installed")
    volume = tmp_path / "a.precomputed"
    convert(open_volume(stored), str(volume))
    assert run(stored, volume, "--workers", 1) == 0
    read = cloudvolume.CloudVolume(f"precomputed://file://{volume}").mesh.get([1, HUGE], fuse=False)
    for label, wanted in mesh(drawn_labels(), UNIT, offset=OFFSET, ids=[1, HUGE]).items():
        assert_is(Mesh(np.asarray(read[label].vertices, np.float32)[:, ::-1], np.asarray(read[label].faces)), wanted)


def test_a_box_is_closed_where_it_ends_and_stays_in_its_place(stored, tmp_path):
    assert run(stored, tmp_path / "out", "--box", "4:20,0:30,5:28", "--block", 8, 9, 10, "--workers", 1,
               "--format", "obj", "--ids", 2) == 0
    begin = tuple(at + first * unit for at, first, unit in zip(OFFSET, (4, 0, 5), UNIT))
    wanted = mesh(drawn_labels()[4:20, :, 5:], UNIT, offset=begin, ids=[2])[2]
    lines = [line.split() for line in (tmp_path / "out" / "2.obj").read_text().splitlines()]
    points = np.array([line[1:] for line in lines if line[0] == "v"], np.float32)[:, ::-1]
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int) - 1
    assert_is(Mesh(points, faces), wanted)


# ---- ends and damages


def work_of(labels, out, block=(9, 30, 13)):
    shape, whole = (30, 30, 28), tuple(slice(0, length) for length in (30, 30, 28))
    return command.MeshWork(out.with_name(out.name + ".blocks"), str(labels), whole, Grid(shape, block), "same",
                            Frame(shape, UNIT, OFFSET), None, 0.0, "precomputed", out)


def test_damaged_pieces_and_lost_meshes_are_made_again(stored, tmp_path):
    work = work_of(stored, tmp_path / "out")
    work.out.mkdir()
    command.engines.run(work, command.Blocks(workers=1))
    stages = work.stage_named
    first = {path.name: path.read_bytes() for path in work.out.iterdir()}
    piece = work.path(stages["pieces"], 2)
    data = bytearray(piece.read_bytes())
    data[-100] ^= 1
    piece.write_bytes(data)
    (work.out / f"{HUGE}:0:mesh").unlink()
    (work.out / "1:0").write_bytes(b"{")
    work.path(stages["objects"], 0).unlink()
    command.engines.run(work, command.Blocks(workers=1))
    assert {path.name: path.read_bytes() for path in work.out.iterdir()} == first


def test_a_command_that_is_killed_goes_on(stored, tmp_path):
    out, known = tmp_path / "out", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "emcore", "mesh", str(stored), str(out), "--block", "8", "8", "10", "--workers", "1"]
    process = subprocess.Popen(words, env=known, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(tmp_path.glob("out.blocks/pieces-*/*.columns"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.blocks/pieces-*/*.columns")}
    assert 4 <= len(done) < 48
    assert not list(out.glob("*mesh"))
    times = {}
    finish, command.shutil.rmtree = command.shutil.rmtree, lambda folder, **_: times.update(
        {path: path.stat().st_mtime_ns for path in Path(folder).glob("pieces-*/*.columns")})
    try:
        assert run(*words[4:]) == 0
    finally:
        command.shutil.rmtree = finish
    assert {path: times[path] for path in done} == done
    for label, wanted in mesh(drawn_labels(), UNIT, offset=OFFSET).items():
        assert_is(read_object(out, label), wanted)


def test_labels_of_background_alone_have_no_mesh(tmp_path, capsys):
    with create_volume(tmp_path / "a.h5:labels", (3, 4, 5), "uint8", UNIT):
        pass
    assert run(tmp_path / "a.h5", tmp_path / "out", "--workers", 1) == 0
    assert "0 meshes, 0 vertices, 0 triangles" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["{0}/none.h5", "{0}/out"], "there is no file"), (["{0}/a.h5", "{0}/a.h5"], "is a file"),
    (["{0}/a.h5", "{0}/out", "--ids", "1,x"], "labels with commas"), (["{0}/a.h5", "{0}/out", "--ids", "0"], "above 0"),
    (["{0}/a.h5", "{0}/out", "--error", "-1"], "0 or more"), (["{0}/a.h5", "{0}/out", "--error", "nan"], "0 or more"),
    (["{0}/a.h5", "{0}/out", "--box", "0:99,0:1,0:1"], "--box is z0:z1"),
    (["{0}/a.h5", "{0}/out", "--resolution", "1", "0", "1"], "resolution"),
    (["{0}/a.h5", "{0}/out", "--block", "0", "1", "1"], "must be above 0")])
def test_mistakes_write_nothing(stored, tmp_path, capsys, arguments, words):
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.blocks", "a.h5"]


def test_ids_that_are_not_there_and_labels_without_resolution_are_told(stored, tmp_path, capsys):
    assert run(stored, tmp_path / "out", "--ids", "1,77", "--workers", 1) == 2
    assert "it has no voxel of 77" in capsys.readouterr().err
    np.save(tmp_path / "b.npy", drawn_labels())
    assert run(tmp_path / "b.npy", tmp_path / "b") == 2
    assert "--resolution Z Y X" in capsys.readouterr().err
    convert(open_volume(stored), str(tmp_path / "a.precomputed"))
    volume = open_volume(stored)
    with pytest.raises(InputError, match="a folder of their own"):
        command.frame_of(volume, command.box_of(None, volume), (1.0, 1.0, 1.0), tmp_path / "a.precomputed")

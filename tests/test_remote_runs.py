"""Runs whose volumes are at addresses: copies that go on after a break, training, prediction, and what they record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emcore import open_volume
from emcore.errors import InputError
from emcore.volumes import fetched, remote
from emcore.volumes.convert import main as convert
from emcore.volumes.fetched import box_of
from emcore.volumes.inspect import main as inspect
from tests.scripts import run_script
from tests.served import served

pytest.importorskip("tensorstore", reason="the extra remote is not installed")

from tests.test_remote import RESOLUTION, SHAPE, precomputed, quick_tries, sample, smooth  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent


# ---- copies


@pytest.mark.parametrize("target", ["a.h5:labels", "a.npy", "a.precomputed"])
def test_a_box_of_a_remote_volume_is_copied_to_its_place(tmp_path, target):
    values = sample("uint64")
    precomputed(tmp_path / "a", values, "compressed_segmentation", True)
    with served(tmp_path, "drop", every=5) as server:
        convert([f"{server.address}/a", f"{tmp_path}/{target}", "--box", "3:20,5:34,1:45", "--scale", "4_8_40"])
    copy = open_volume(f"{tmp_path}/{target}")
    np.testing.assert_array_equal(copy[...], values[3:20, 5:34, 1:45])
    assert (copy.resolution, copy.offset) == (RESOLUTION, (360 + 3 * 40, 64 + 5 * 8, 28 + 4))
    assert sorted(path.name for path in tmp_path.glob("*.fetched*")) == []


def test_a_copy_that_breaks_off_goes_on_where_it_was_unless_the_volume_has_changed(tmp_path, monkeypatch, capsys):
    values = sample("uint8", (64, 64, 64))
    precomputed(tmp_path / "a", values)
    monkeypatch.setattr("emcore.volumes.convert.BLOCK_BYTES", 16 * 64 * 64)
    with served(tmp_path) as server:
        chunks = [f"{server.address}/a", f"{tmp_path}/b.npy"]
        real, count = fetched.write_block, []

        def breaks(path, block):
            count.append(path)
            if len(count) >= 3:
                raise InputError("the connection is lost")
            real(path, block)

        monkeypatch.setattr(fetched, "write_block", breaks)
        with pytest.raises(InputError, match="connection is lost"):
            convert(chunks)
        assert len(list((tmp_path / "b.npy.fetched").glob("*.h5"))) == 2
        assert not (tmp_path / "b.npy").exists()
        monkeypatch.setattr(fetched, "write_block", real)
        server.requests.clear()
        convert(chunks)
        np.testing.assert_array_equal(open_volume(tmp_path / "b.npy")[...], values)
        assert not (tmp_path / "b.npy.fetched").exists()
        files = [path for path in server.requests if "4_8_40" in path]
        assert 32 <= len(files) <= 32 + 2 * remote.SAMPLES  # half of 64, and those that tell whether it is the same
        count.clear()
        monkeypatch.setattr(fetched, "write_block", breaks)
        with pytest.raises(InputError, match="connection is lost"):
            convert([*chunks, "--force"])
        monkeypatch.setattr(fetched, "write_block", real)
        precomputed(tmp_path / "new", values + 1)
        for path in (tmp_path / "new" / "4_8_40").iterdir():
            path.replace(tmp_path / "a" / "4_8_40" / path.name)
        convert([*chunks, "--force"])
        np.testing.assert_array_equal(open_volume(tmp_path / "b.npy")[...], values + 1)


def test_bad_boxes_and_targets_are_one_sentence(tmp_path):
    precomputed(tmp_path / "a", sample("uint8"))
    for text in ("0:3", "0:3,0:3,0:x", "3:3,0:3,0:3", "0:22,0:3,0:3", "-1:3,0:3,0:3", "0:3,0:3,0:3,0:3"):
        with pytest.raises(InputError, match=r"\A[^\n]*box[^\n]*\Z"):
            box_of(text, SHAPE)
    with pytest.raises(InputError, match="written to paths of this machine"):
        convert([f"{tmp_path}/a", "gs://bucket/b"])
    (tmp_path / "b.npy.fetched").mkdir()
    with served(tmp_path) as server, pytest.raises(InputError, match="move it away"):
        convert([f"{server.address}/a", f"{tmp_path}/b.npy"])


def test_inspect_lists_scales_codecs_and_bounds(tmp_path, capsys):
    precomputed(tmp_path / "a", sample("uint64"), "compressed_segmentation", True)
    with served(tmp_path) as server:
        assert inspect([f"{server.address}/a"]) == 0
        told = capsys.readouterr().out
        for text in ("precomputed", "4_8_40", "21 x 34 x 45 uint64", "chunks 16 x 16 x 16", "compressed_segmentation",
                     "shards of", "voxels z 9:30, y 8:42, x 7:52 from the origin", "40 x 8 x 4 nm"):
            assert text in told, told
        assert not [path for path in server.requests if "4_8_40" in path]  # no voxel is fetched
        assert inspect([f"{server.address}/a:0", "--json"]) == 0
        entry = json.loads(capsys.readouterr().out)[0]["datasets"][0]
        assert entry["bounds"] == [[9, 30], [8, 42], [7, 52]]
        assert entry["sample"]["max"] <= 2**64 - 1
        assert inspect([f"{server.address}/nothing"]) == 2


# ---- runs

SMALL = ["train.steps=2", "train.batch=1", "train.log_steps=1", "train.validate.steps=2", "train.validate.crops=1",
         "train.save.steps=2", "data.patch=[4,32,32]", "infer.window=[4,32,32]", "train.precision=fp32",
         "train.layout=contiguous", "infer.layout=contiguous", "device=cpu", "data.percentiles=[0.0,100.0]"]


def config_of(folder: Path, address: str) -> Path:
    lines = f'image = "{address}/em"\nlabel = "{address}/seg"'
    text = (f'base = "{ROOT}/configs/demo.toml"\nname = "away"\n[data]\nfolder = ""\nstorage = "lazy"\nworkers = 2\n'
            "remote_disk = 0.01\n")
    text += "".join(f"[[data.{name}]]\n{lines}\n" for name in ("train", "validation", "test"))
    path = folder / "away.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_net_is_trained_and_a_volume_is_predicted_from_addresses(tmp_path):
    pytest.importorskip("torch")
    shape = (16, 64, 64)
    precomputed(tmp_path / "em", smooth(shape), "jpeg")
    precomputed(tmp_path / "seg", (sample("uint64", shape) >> np.uint64(60)) + np.uint64(1), "compressed_segmentation",
                True)
    with served(tmp_path, "drop", every=7) as server:
        path = config_of(tmp_path, server.address)
        done = run_script("train.py", "--cfg", path, *SMALL, place=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "outputs/away/log.csv").read_text().count("\n") == 3
        done = run_script("infer.py", "--cfg", path, *SMALL, place=tmp_path)
        assert done.returncode == 0, done.stderr
        results = tmp_path / "outputs" / "away" / "results_step=2"
        found = open_volume(results / "test_im_prediction.h5")
        assert found.shape == (3, *shape)
        volume = found.attrs["record"]["volume"]
        assert (volume["image"], volume["offset"]) == (f"{server.address}/em", [360.0, 64.0, 28.0])
        assert volume["stamp"]
        done = run_script("infer.py", "--cfg", path, *SMALL, place=tmp_path)
        assert "already there" in done.stdout
        done = run_script("evaluate.py", "--cfg", path, *SMALL, place=tmp_path)
        assert done.returncode == 0, done.stderr
        local = tmp_path / "local.npy"
        np.save(local, open_volume(tmp_path / "em")[...])
        # the same voxels on this disk are the same volume, and others at the old address are not
        precomputed(tmp_path / "new", smooth(shape) + np.uint8(40), "jpeg")
        for chunk in (tmp_path / "new" / "4_8_40").iterdir():
            chunk.replace(tmp_path / "em" / "4_8_40" / chunk.name)
        done = run_script("infer.py", "--cfg", path, *SMALL, place=tmp_path)
        assert done.returncode == 2
        assert "the volume was" in done.stderr


@pytest.mark.long
def test_a_server_that_goes_away_during_a_prediction_is_one_sentence(tmp_path):
    pytest.importorskip("torch")
    precomputed(tmp_path / "em", smooth((16, 64, 64)))
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from emcore.volumes import remote
remote.WAITS, remote.RETRIES = (0.1, 0.2), 1
from emcore.errors import run_command
import runpy
main = runpy.run_path({str(ROOT / "infer.py")!r})["main"]
sys.exit(run_command(main, sys.argv[1:]))
"""
    with served(tmp_path) as server:
        path = config_of(tmp_path, server.address)
        path.write_text(path.read_text().replace(f'label = "{server.address}/seg"\n', "", 3))
        checkpoint = ROOT / "weights" / "isbi2012_membranes.pt"
        server.after, server.trouble = 60, "503"
        done = subprocess.run([sys.executable, "-c", code, "--cfg", path, "--checkpoint", checkpoint, *SMALL,
                               "decode.kind=none"], cwd=tmp_path, capture_output=True, text=True, timeout=280,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "is tried again" in done.stderr
    assert "was tried 3 times" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*prediction.h5"))

"""docs/tutorials/published_volume.md, run against a server that has the same layout, as tensorstore wrote it."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from emcore import open_volume
from emcore.volumes.convert import main as convert
from emcore.volumes.inspect import main as inspect
from tests.scripts import run_script
from tests.served import served
from tests.test_tutorials import blocks, commands

tensorstore = pytest.importorskip("tensorstore", reason="the extra remote is not installed")
pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tutorials" / "published_volume.md"
BUCKET = "gs://neuroglancer-public-data"
SMALLER = {"4000,4128,3000,3256,3000,3256": "16,48,8,72,8,72", "4000:4128,3000:3256,3000:3256": "16:48,8:72,8:72",
           "2000:2032, 1500:1628, 1500:1628": "8:24, 4:36, 4:36", "infer.window=[64,64,64]": "infer.window=[32,32,32]"}


def publish(folder: Path) -> None:
    """image and ground_truth as jpeg and compressed segmentation, at 8 and 16 nm, of 64 x 80 x 80 voxels."""
    for name, dtype, encoding in (("image", "uint8", "jpeg"), ("ground_truth", "uint64", "compressed_segmentation")):
        for factor in (1, 2):
            z, y, x = np.ogrid[:64 // factor, :80 // factor, :80 // factor]
            values = 120 + 60 * np.sin(z / 5) * np.cos(y / 7) * np.cos(x / 6)
            values = (values > 120) + np.uint64(2**63) if name == "ground_truth" else values
            scale = {"size": [80 // factor, 80 // factor, 64 // factor], "resolution": [8 * factor] * 3,
                     "chunk_size": [32] * 3, "encoding": encoding}
            if name == "ground_truth":
                scale["compressed_segmentation_block_size"] = [8, 8, 8]
            store = tensorstore.open({
                "driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/flyem_fib-25/{name}/",
                "scale_metadata": scale, "create": True, "open": True,
                "multiscale_metadata": {"type": "image", "data_type": dtype, "num_channels": 1}}).result()
            store[..., 0].write(np.transpose(values.astype(dtype))).result()


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "web")
    with served(tmp_path / "web") as server:
        def small(text: str) -> str:
            for long, short in {**SMALLER, BUCKET: server.address}.items():
                text = text.replace(long, short)
            assert BUCKET not in text
            return text

        lines = [shlex.split(small(line)) for line in commands(PAGE)]
        assert [line[3] if line[1] == "-m" else line[1] for line in lines] == [
            "inspect", "infer.py", "convert", "convert"]
        assert inspect(lines[0][4:]) == 0
        told = capsys.readouterr().out
        assert re.search(r"8_8_8  64 x 80 x 80 uint8.*jpeg", told)
        assert "voxels z 0:64" in told
        arguments = [ROOT / word if word.startswith(("configs/", "weights/")) else word for word in lines[1][2:]]
        done = run_script("infer.py", *arguments, "train.precision=fp32", "device=cpu", "infer.layout=contiguous",
                          place=tmp_path)
        assert done.returncode == 0, done.stderr
        results = tmp_path / "outputs" / "published_weights=fib25_neurons"
        prediction, labels = (open_volume(results / f"piece_{name}.h5") for name in ("prediction", "labels"))
        assert (prediction.shape, labels.shape) == ((9, 32, 64, 64), (32, 64, 64))
        assert prediction.offset == labels.offset == (128.0, 64.0, 64.0)
        assert prediction.attrs["record"]["volume"]["image"] == f"{server.address}/flyem_fib-25/image"
        for line in lines[2:]:
            convert(line[4:])
        raw, truth = open_volume("piece.h5:raw"), open_volume("piece.h5:labels")
        assert raw.offset == truth.offset == prediction.offset
        assert set(np.unique(truth[...]).tolist()) == {2**63, 2**63 + 1}
        found: dict = {}
        exec(small(blocks(PAGE, "python")[0]), found)
        assert found["patch"].shape == (16, 32, 32)
        assert found["volume"].resolution == (16.0, 16.0, 16.0)

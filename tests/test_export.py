"""Exported nets work without emcore's model code, as docs/embedding.md says."""

import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.prediction import predict
from emcore.prediction.export import export_model, load_exported
from emcore.settings.model import MedNeXtModel, MedNeXtSizes, RSUNetModel, RSUNetSizes, UNETRModel, UNETRSizes
from tests.scripts import run_script
from tests.test_train import ROOT, environment, place, train  # noqa: F401 (place is a fixture)

NETS = {
    "rsunet": RSUNetModel(out_channels=3, rsunet=RSUNetSizes(width=(4, 8))),
    "folded": RSUNetModel(out_channels=3, rsunet=RSUNetSizes(width=(4, 8), fold=(1, 2, 2))),
    "unetr": UNETRModel(out_channels=3, transformer=UNETRSizes((2, 8, 8), 16, 4, 2, features=8)),
    "mednext": MedNeXtModel(mednext=MedNeXtSizes(width=4, heads=(("a", 2), ("b", 1)))),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "rsunet" else pytest.mark.long)
                                  for name in NETS])
def test_an_exported_net_gives_what_the_net_gives_for_any_batch(tmp_path, name):
    torch.manual_seed(0)
    window = (32, 32, 32) if name == "mednext" else (4, 16, 16)
    net = build_model(NETS[name], window).eval()
    path = export_model(net, tmp_path / "net.pt2", window, 1, {"offsets": [[-1, 0, 0]]})
    again, notes = load_exported(path)
    assert notes == {"window": list(window), "offsets": [[-1, 0, 0]]}
    for batch in (1, 5):
        image = torch.rand(batch, 1, *window)
        with torch.no_grad():
            ours, theirs = net(image), again(image)
        for one, other in zip(*(list(out.values()) if isinstance(out, dict) else [out] for out in (ours, theirs))):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


def test_only_pt2_files_are_exported(tmp_path):
    sentence = r"an exported net is a \.pt2 file \(or \.pt: the weights alone\); got net\.onnx"
    with pytest.raises(InputError, match=sentence):
        export_model(torch.nn.Identity(), tmp_path / "net.onnx", (1, 1, 1), 1, {})


@pytest.mark.slow
def test_the_example_of_the_page_predicts_segments_and_scores_without_model_code(place):  # noqa: F811
    done = train(place, "train.steps=2", "train.validate.steps=0")
    assert done.returncode == 0, done.stderr
    exported = run_script("infer.py", "--cfg", "run.toml", "--export", "net.pt2", place=place)
    assert exported.returncode == 0, exported.stderr
    (place / "vol.h5").rename(place / "volume.h5")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.DOTALL)[1]
    code += "import sys\nassert not [name for name in sys.modules if name.startswith('emcore.models')]\n"
    shown = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, env=environment())
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"Voi\(split=[\d.]+, merge=[\d.]+\)", shown.stdout)


def test_shared_weights_are_small_and_predict_like_the_checkpoint_they_come_from(place):  # noqa: F811
    done = train(place, "train.steps=3", "train.validate.steps=0", "train.ema.decay=0.5")
    assert done.returncode == 0, done.stderr
    options = ["--cfg", "run.toml", "decode.kind=none", 'data.test=[{image="vol.h5:raw"}]']
    predictions = []
    for extra in ([], ["--export", "net.pt"], ["--checkpoint", "net.pt"]):
        done = run_script("infer.py", *options, *extra, place=place)
        assert done.returncode == 0, done.stderr
        if "--export" not in extra:
            folder = "tiny_weights=net" if extra else "tiny/results_step=3"
            path = place / "outputs" / folder / "test_im_prediction.h5"
            with h5py.File(path) as file:
                predictions.append(file["main"][...])
            path.unlink()
    assert np.array_equal(*predictions)
    whole = (place / "outputs" / "tiny" / "checkpoints" / "step_000000003.pt").stat().st_size
    assert (place / "net.pt").stat().st_size < whole / 2


def test_prediction_does_not_need_the_model_code():
    subprocess.run([sys.executable, "-c", "import emcore.prediction.streaming, sys; "
                    "assert not [m for m in sys.modules if m.startswith(('emcore.models', 'emcore.losses'))]"],
                   check=True, cwd=ROOT)


def test_volumes_of_another_kind_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.random.default_rng(0).integers(0, 60000, (6, 20, 20)).astype(np.uint16)
    out = predict(torch.nn.Conv3d(1, 1, 1).eval(), str(tmp_path / "a.h5"), window=(4, 16, 16))
    assert np.isfinite(out).all()

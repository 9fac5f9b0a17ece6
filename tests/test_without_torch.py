"""What a wheel gives to an environment without torch, without Cython and without a compiler: all but the nets."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.test_pipeline import blocks, exact_affinities
from tests.test_train import ROOT, environment

CONFIG = """
name = "made"
[[data.test]]
image = "raw.h5"
label = "truth.h5:labels"
[decode]
kind = "affinities"
low = 0.1
high = 0.9
[tune.space]
statistic = ["mean"]
low = [0.1]
high = [0.9]
"""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="the folders of a virtual environment have other names there"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a fresh environment that holds numpy, h5py, numba and a wheel of this checkout alone."""
    folder = tmp_path_factory.mktemp("environment")

    def run(*command) -> subprocess.CompletedProcess:
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=1200)

    run(sys.executable, "-m", "venv", folder / "venv")
    inside = folder / "venv" / "bin" / "python"
    pip = ("-m", "pip", "--disable-pip-version-check", "--retries", "0")
    done = run(inside, *pip, "install", "-q", "--no-compile", "--only-binary", ":all:",
               "-c", ROOT / "constraints.txt", "numpy", "h5py", "numba")
    if done.returncode:
        pytest.skip(f"no package index gives numpy, h5py and numba here: {done.stderr.strip().splitlines()[-1]}")
    source = folder / "source"  # a copy, so that nothing is left in the checkout
    for name in ("emcore", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "scripts"))
    for place in ROOT.glob("build/lib.*/emcore/kernels"):  # what `make` has compiled is not compiled again
        shutil.copytree(place, source / place.relative_to(ROOT))
    for path in [*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        shutil.copy(path, source)
    done = run(sys.executable, *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index",
               "-w", folder / "dist", source)
    assert done.returncode == 0, done.stderr
    done = run(inside, *pip, "install", "-q", "--no-deps", "--no-index", *(folder / "dist").glob("*.whl"))
    assert done.returncode == 0, done.stderr
    return inside


@pytest.fixture
def run(python, tmp_path):
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"} | {"PATH": "/nowhere"}

    def run(*arguments: str) -> str:
        done = subprocess.run([python, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_core_and_its_commands_need_numpy_h5py_and_numba_alone(run, python, tmp_path):
    code = ("import emcore, emcore.decode, emcore.segment, emcore.metrics, emcore.volumes, emcore.settings\n"
            "import importlib.util, numpy\nfrom pathlib import Path\n"
            "absent = [name for name in ('torch', 'Cython', 'pytest') if importlib.util.find_spec(name) is None]\n"
            "place = Path(emcore.__file__).parent\n"
            "names = [getattr(one, name) for one in (emcore.segment, emcore.metrics, emcore.decode)\n"
            "         for name in one.__all__]\n"
            "print(place, absent, (place / 'py.typed').exists(), len(names) > 60,\n"
            "      emcore.segment.watershed(numpy.ones((3, 4, 4, 4), numpy.float32)).max())")
    place, rest = run("-c", code).split(maxsplit=1)
    assert Path(place).is_relative_to(python.parent.parent)
    assert rest.strip() == "['torch', 'Cython', 'pytest'] True True 1"
    compiled = [path.name for path in Path(place).glob("kernels/*.so")]
    assert len(compiled) == len(list((ROOT / "kernels").glob("*.pyx"))) + 1  # and what they share

    np.save(tmp_path / "labels.npy", np.arange(8 * 16 * 16, dtype=np.uint64).reshape(8, 16, 16) // 256 + 1)
    assert "usage: python -m emcore" in run("-m", "emcore")
    assert "[decode]" in run("-m", "emcore", "config", "infer")
    assert "8 x 16 x 16 uint64" in run("-m", "emcore", "inspect", "labels.npy")
    run("-m", "emcore", "convert", "labels.npy", "labels.h5:labels")
    assert re.search(r"cremi +0.000000 +0.000000", run("-m", "emcore", "score", "labels.h5", "labels.npy"))
    for script in ("train", "infer", "evaluate"):
        assert "--cfg" in run("-m", "emcore", script, "--help")


def test_a_stored_prediction_is_decoded_cut_scored_tuned_and_shown(run, tmp_path):
    truth = blocks()
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["labels"] = truth
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = (truth * 37 % 200).astype(np.uint8)
    results = Path("outputs", "made", "results_step=1")
    (tmp_path / results).mkdir(parents=True)
    with h5py.File(tmp_path / results / "test_im_prediction.h5", "w") as file:
        file["main"] = exact_affinities(truth)
        file["main"].attrs["offsets"] = np.array([[-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    (tmp_path / "made.toml").write_text(CONFIG)
    stored = ("--from", str(results / "test_im_prediction.h5"))
    made = []
    for script, *options in (("infer", *stored), ("infer", *stored, "--cut", "0.3"), ("infer", "--cut", "0.4"),
                             ("evaluate",), ("evaluate", "--tune")):
        run("-m", "emcore", script, "--cfg", "made.toml", *options)
        made.append({path.name for path in (tmp_path / results).iterdir()})
    for name, files in zip(("test_im_labels.h5", "test_im_labels_0.3.h5", "test_im_labels_0.4.h5", "scores.json",
                            "best_params.toml"), made):
        assert name in files
    assert (tmp_path / "outputs" / "made" / "report.html").exists()

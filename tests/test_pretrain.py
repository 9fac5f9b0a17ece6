"""Masked pretraining as dbMiM's recommended arm does it, on the published check of the code: noisy ellipsoids."""

import h5py
import numpy as np
import pytest

from tests.test_train import ROOT, rows, train

CONFIG = """
base = "{root}/configs/dbmim_pretrain_r33.toml"
name = "ellipsoids"
[data]
folder = "."
patch = [8, 32, 32]
workers = 0
train = [{volumes}]
[model.transformer]
patch = [2, 8, 8]
width = 64
depth = 2
heads = 4
[pretrain]
decoder_width = 64
structure_weight = 0.05
[train]
steps = 200
batch = 2
precision = "fp32"
compile = "off"
layout = "contiguous"
log_steps = 10
preview_steps = 0
[train.optimizer]
lr = 1e-3
"""


def ellipsoids(seed: int) -> np.ndarray:
    """Six bright ones, fading outwards, in noise."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (8, 32, 32)), indexing="ij")
    bright = np.zeros((8, 32, 32))
    for _ in range(6):
        centre, radius = random.uniform(-0.8, 0.8, 3), [random.uniform(0.25, 0.55), *random.uniform(0.18, 0.45, 2)]
        distance = sum(((axis - middle) / size) ** 2 for axis, middle, size in zip(grid, centre, radius))
        bright = np.maximum(bright, np.exp(-2.5 * distance))
    return np.clip(0.15 + 0.75 * bright + 0.06 * random.standard_normal(bright.shape), 0, 1).astype(np.float32)


@pytest.mark.slow
def test_the_loss_of_masked_pretraining_falls_below_what_the_published_runs_end_with(tmp_path):
    with h5py.File(tmp_path / "volumes.h5", "w") as file:
        for number in range(16):
            file[f"v{number}"] = ellipsoids(number)
    volumes = ", ".join(f'{{image = "volumes.h5:v{number}"}}' for number in range(16))
    (tmp_path / "run.toml").write_text(CONFIG.format(root=ROOT, volumes=volumes))
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr
    names, *values = rows(tmp_path, "ellipsoids")
    loss = [float(row[names.index("loss/train")]) for row in values]
    assert loss[0] > 0.07
    assert np.mean(loss[-5:]) < 0.045, "the published arms end at 0.049 to 0.070, on tissue"

"""Masked pretraining as dbMiM's recommended arm does it, on the published check of the code: noisy ellipsoids."""

import runpy
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from emcore import config
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.steps import Masked
from emcore.errors import InputError, run_command
from emcore.settings import Settings
from emcore.volumes import split_reference
from tests.test_train import ROOT, rows, train

CONFIG = """
base = "{root}/configs/dbmim/dbmim_pretrain_r33.toml"
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


@pytest.mark.long
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


@pytest.mark.parametrize("warmup, freeze, frozen", [(0, 0, False), (9, 0, False), (0, 1, True), (0, 1, False)])
def test_what_an_adaptive_policy_samples_is_what_its_mask_has(warmup, freeze, frozen):
    """At step 3: it learns, it has not begun, it decides frozen, or it is frozen and chance decides."""
    policy = {"kind": "adaptive", "hidden": 16, "ratios": [0.25, 0.5], "edge_fractions": [0.125, 0.375],
              "warmup": warmup, "freeze": freeze, "use_frozen": frozen}
    settings = config.from_table(Settings, {
        "name": "run", "data": {"patch": [4, 16, 16]}, "pretrain": {"policy": policy, "edge_fraction": 0.5},
        "model": {"transformer": {"patch": [2, 8, 8], "width": 16, "depth": 1, "heads": 2}}})
    task = Masked(settings, Mode("cpu", "fp32", "contiguous", False), (1, 1, 1))
    image = torch.rand(16, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    terms = {name: float(value) for name, value in task({"image": image}, 3)[1].items()}
    assert list(terms) == list(task.columns)
    decides = warmup == 0 and (freeze == 0 or frozen)
    if not decides:
        assert (terms["sampled_mask_ratio"], terms["edge_fraction"]) == (0.75, 0.5)
    else:
        assert 0.25 <= terms["sampled_mask_ratio"] <= 0.5
        assert terms["sampled_mask_ratio"] == pytest.approx(terms["mask_ratio"])  # 2 or 4 of 8 patches
        assert 0.125 <= terms["edge_fraction"] <= 0.375
        # a mean over 16 samples of two values each: which share was drawn is told exactly
        assert (terms["edge_fraction"] - 0.125) / 0.25 * 16 == pytest.approx(
            round((terms["edge_fraction"] - 0.125) / 0.25 * 16), abs=1e-4)


def test_a_run_without_its_pretraining_says_at_once_how_to_begin_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("dbmim_pretrain_r33", "dbmim_finetune_r33", "dbmim_finetune_scratch"):
        shutil.copy(ROOT / "configs" / "dbmim" / f"{name}.toml", tmp_path / "recipes")
    main = main_of("train")
    monkeypatch.setattr("emcore.engine.arithmetic.verdict.agree", begins)
    assert run_command(main, ["--cfg", "recipes/dbmim_finetune_r33.toml"]) == 2
    told = capsys.readouterr().err
    assert "there is no file outputs/dbmim_pretrain_r33/checkpoints/step_000160000.pt" in told
    assert "data.train.0: there is no file" in told  # and not when the arithmetic is chosen
    assert "`python train.py --cfg recipes/dbmim_pretrain_r33.toml` makes it" in told
    assert 'add `train.start_from=""`' in told
    assert told.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
    assert run_command(main, ["--cfg", "recipes/dbmim_finetune_r33.toml", "train.start_from=elsewhere.pt"]) == 2
    assert "the run that writes it comes first" in capsys.readouterr().err
    settings = config.load(Settings, "recipes/dbmim_finetune_r33.toml")
    for volume in (*settings.data.train, *settings.data.validation):
        for reference in filter(None, (volume.image, volume.label)):
            path = split_reference(Path(settings.data.folder, reference))[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for empty in ("train.start_from=", 'train.start_from=""'):  # by a shell, by a list of arguments
        assert run_command(main, ["--cfg", "recipes/dbmim_finetune_r33.toml", empty]) == 2
        assert "work begins" in capsys.readouterr().err
    (tmp_path / "elsewhere.pt").write_bytes(b"")
    assert run_command(main, ["--cfg", "recipes/dbmim_finetune_r33.toml", "train.start_from=elsewhere.pt"]) == 2
    assert "work begins" in capsys.readouterr().err


def main_of(name):
    return runpy.run_path(str(ROOT / f"{name}.py"))["main"]


def begins(*_):
    raise InputError("work begins")

"""Synapses with two sides, from the recipes of EM-R50 to their F1, on synthetic tissue."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from emcore import metrics
from emcore.segment import polarity_instances
from emcore.synth import synthesize, write_layout
from emcore.volumes import open_volume

ROOT = Path(__file__).resolve().parent.parent
RESOLUTION = (40.0, 10.0, 10.0)
SMALL = [  # the recipe's structure at a size for one core
    "data.resolution=[40.0,10.0,10.0]", "data.patch=[12,64,64]", "data.pad=[0,0,0]", "data.workers=0",
    "data.reject_below=200", "model.rsunet.width=[8,16,24]", "model.rsunet.down=[[1,2,2],[1,2,2]]", "device=cpu",
    "train.batch=2", "train.precision=fp32", "train.compile=off", "train.layout=contiguous", "train.optimizer.lr=4e-3",
    "train.ema.decay=0.97", "train.ema.warmup=20", "train.validate.steps=0", "train.preview_steps=0",
    "augment.elastic.probability=0", "augment.missing_section.probability=0", "augment.blur.probability=0",
    "augment.misalignment.probability=0", "infer.window=[12,64,64]", "infer.pad=[0,0,0]", "infer.views.flips=[]",
    "decode.small=16", "evaluate.synapse_size=20", "evaluate.synapse_margin=0",
]


def scores_of(recipe, tissues, folder, steps):
    """The scores of one recipe: trained on the first tissue, scored on the second."""
    for sample, tissue in enumerate(tissues):
        write_layout(folder / "data", "polarity", tissue, sample)
    options = ["--cfg", str(ROOT / "configs" / "emr50" / f"{recipe}.toml"), f"outputs={folder}",
               f"data.folder={folder / 'data'}", f"train.steps={steps}", *SMALL]
    for script in ("train", "infer", "evaluate"):
        assert runpy.run_path(str(ROOT / f"{script}.py"))["main"](options) == 0
    found = json.loads((folder / recipe / f"results_step={steps}" / "scores.json").read_text())
    return {row["score"]: row["value"] for row in found["vol4"]["scores"]}


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_truth_as_a_prediction_decodes_to_a_perfect_score(exclusive):
    truth = synthesize((16, 96, 96), RESOLUTION, 3, synapses=12).polarity
    pre, post = truth % 2 == 1, (truth > 0) & (truth % 2 == 0)
    prediction = np.stack([truth == 0, pre, post] if exclusive else [pre, post, truth > 0]).astype(np.float32)
    labels = polarity_instances(prediction, small=0, dilate_size=1, exclusive=exclusive)
    table = metrics.contingency(truth, labels, ignore_truth=())
    assert len(np.unique(truth)) > 4
    assert metrics.synapse_f1(table, "em_r50").f1 == metrics.synapse_f1(table, "sides").f1 == 1
    swapped = np.where(labels > 0, labels + np.where(labels % 2 == 1, 1, -1), 0).astype(labels.dtype)
    table = metrics.contingency(truth, swapped, ignore_truth=())
    assert (metrics.synapse_f1(table, "em_r50").f1, metrics.synapse_f1(table, "sides").f1) == (1, 0)


@pytest.mark.long
def test_a_small_net_finds_whole_synapses(tmp_path):
    """Two minutes on one core: whole synapses are found. Sides take longer, see docs/tutorials/emr50_polarity.md."""
    tissues = [synthesize((24, 160, 160), RESOLUTION, seed, synapses=60) for seed in range(2)]
    scores = scores_of("emr50_polarity", tissues, tmp_path, 300)
    labels = open_volume(tmp_path / "emr50_polarity" / "results_step=300" / "vol4_labels.h5", "labels")[...]
    elsewhere = metrics.contingency(tissues[1].polarity, labels[:, ::-1, ::-1], ignore_truth=())
    chance = metrics.synapse_f1(elsewhere, "em_r50").f1
    assert scores["synapse_f1"] > 0.4 + chance

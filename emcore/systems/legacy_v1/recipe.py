"""The flags of the tutorial as settings: what the core's sampler, targets, loss, optimizer and prediction take."""

import argparse

from emcore import config
from emcore.settings import Settings
from emcore.systems.legacy_v1.flags import CHANNELS
from emcore.systems.legacy_v1.samples import sample_size

RAW_CREMI = (2**64 - 1, 2**64 - 2)  # no cleft, and unlabelled, in files as the challenge gave them out
NEVER = 10_000  # draws until a sample is taken as it is
BALANCE = {"A": "negative", "B": "positive"}
# the mean loss of ten iterations is one value of the schedule: training.py takes it
PLATEAU = {"kind": "plateau", "factor": 0.1, "patience": 1000, "window": 1, "least": 1e-7}


def training(flags: argparse.Namespace) -> Settings:
    """Places over all volumes alike, samples with little cleft mostly rejected; patches as large as samples are cut."""
    pad = flags.pad or (tuple(n // 2 for n in flags.patch) if flags.train_pad else (0, 0, 0))
    synapses = flags.task == "synapse"
    return config.from_table(Settings, {
        "name": "legacy_v1",
        "outputs": flags.output,
        "seed": flags.seed,
        "data": {
            "train": [{"image": f"{image}:main", "label": f"{label}:main"}
                      for image, label in zip(flags.images, flags.labels)],
            "patch": sample_size(flags.patch), "pad": pad, "choose": "positions", "normalise": "divide",
            "background": RAW_CREMI, "ignore": [-1], "reject_below": flags.reject_voxels + 1 if synapses else 0,
            "reject_probability": 1 - flags.reject_keep, "reject_tries": NEVER, "workers": flags.num_cpu},
        "labels": {"smooth": flags.smooth_labels},
        "target": [{"kind": "binary" if synapses else "affinity"}],
        "loss": {"terms": [{"kind": "legacy_bce", "balance": BALANCE[flags.weight_rule]}]},
        "model": {"name": "unet_v1", "out_channels": flags.out_channel or CHANNELS[flags.task or "neuron"]},
        "train": {
            "steps": flags.iteration_total + 1, "batch": flags.batch_size, "schedule": PLATEAU,
            "optimizer": {"kind": "adam", "lr": flags.lr, "weight_decay": 1e-6, "decay_norms": True, "amsgrad": True,
                          "clip": 0.0}}})


def prediction(flags: argparse.Namespace) -> Settings:
    """Patches that overlap by half, blended by a Gaussian; the net gives probabilities."""
    views = {"flips": [0, 1, 2], "turns": flags.patch[1] == flags.patch[2]} if flags.test_augmentation else {}
    return config.from_table(Settings, {
        "name": "legacy_v1",
        "data": {"normalise": "divide", "normalise_by": "volume", "storage": "lazy", "patch": flags.patch},
        "target": [{"kind": "affinity" if flags.task == "neuron" else "binary"}],
        "infer": {"window": flags.patch, "blend": "gaussian", "pad": flags.pad or tuple(n // 2 for n in flags.patch),
                  "batch": flags.batch_size, "views": views, "activation": [{"kind": "none"}], "compile": "off"}})

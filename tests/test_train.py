"""train.py as a user runs it: learns, resumes to the bit, is killed, stopped, run on two ranks, given nonsense."""

import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from emcore.engine import checkpoint
from emcore.report.page import read_log, training_plots
from tests.scripts import ROOT, begin, environment, run_python, run_ranks

CONFIG = """
name = "tiny"
[data]
patch = [4, 16, 16]
workers = 0
[[data.train]]
image = "vol.h5:raw"
label = "vol.h5:labels"
[[data.validation]]
image = "vol.h5:raw"
label = "vol.h5:labels"
[[target]]
kind = "affinity"
[model]
out_channels = 3
[model.rsunet]
width = [4, 8]
norm = "batch"
[augment.flip]
probability = [0.5, 0.5, 0.5]
[augment.noise]
probability = 0.5
[train]
steps = 20
batch = 2
log_steps = 2
preview_steps = 0
precision = "fp32"
layout = "contiguous"
compile = "off"
[train.save]
steps = 5
[train.validate]
steps = 10
crops = 4
[train.ema]
decay = 0.9
"""
PRETRAIN = """
[pretrain]
edge_fraction = 0.5
decoder_width = 16
[pretrain.policy]
kind = "adaptive"
hidden = 16
[model.transformer]
patch = [2, 8, 8]
width = 16
depth = 2
heads = 2
"""


@pytest.fixture
def place(tmp_path):
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(1, 50, (4, 6, 6)), np.ones((3, 6, 6), int))
    with h5py.File(tmp_path / "vol.h5", "w") as f:
        f["labels"] = labels.astype(np.uint32)
        f["raw"] = ((labels * 37) % 200 + 20 + random.integers(0, 30, labels.shape)).astype(np.uint8)
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def command(*overrides, ranks=1, config="run.toml"):
    script = [str(ROOT / "train.py"), "--cfg", config, *overrides]
    if ranks == 1:
        return [sys.executable, *script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *script]


def train(place, *overrides, ranks=1, config="run.toml"):
    script = [str(ROOT / "train.py"), "--cfg", config, *overrides]
    return run_python(script, place) if ranks == 1 else run_ranks(script, place, ranks)


def rows(place, name="tiny"):
    with open(place / "outputs" / name / "log.csv", newline="") as file:
        return list(csv.reader(file))


def state(place, name, step):
    return checkpoint.read(place / "outputs" / name / "checkpoints" / f"step_{step:09d}.pt")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "config")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def wait_for_rows(place):
    """Until a run in the background has learned for some steps."""
    log = place / "outputs" / "tiny" / "log.csv"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.05)


def refused(place, sentence, *overrides, **options):
    done = train(place, *overrides, **options)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.search(sentence, errors[0]), errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_that_stops_half_way_and_resumes_is_the_uninterrupted_run_to_the_bit(place):
    whole = train(place, "name=whole")
    assert whole.returncode == 0, whole.stderr
    first = train(place, "name=parts", "train.save.at=[7]", "train.save.steps=1000", "train.save.minutes=0")
    assert first.returncode == 0, first.stderr
    folder = place / "outputs" / "parts" / "checkpoints"
    for step in (10, 20):  # they were validated, so they were saved
        (folder / f"step_{step:09d}.pt").unlink()
    assert [step for step, _ in checkpoint.all_steps(folder)] == [7]
    again = train(place, "name=parts")
    assert "resuming from" in again.stdout
    assert "step 7 of 20" in again.stdout
    assert rows(place, "whole") == rows(place, "parts")
    assert same(state(place, "whole", 20), state(place, "parts", 20))
    assert float(rows(place, "whole")[-1][2]) < float(rows(place, "whole")[1][2])


@pytest.mark.slow
def test_two_ranks_learn_what_one_rank_learns_from_the_same_batch(place):
    options = ["train.steps=50", "train.log_steps=1", "train.batch=4", "model.rsunet.norm=instance",
               "train.validate.steps=0", "data.validation=[]", "target.0.kind=binary", "model.out_channels=1",
               "train.save.steps=100"]
    done = train(place, "name=ranks1", *options)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(command("name=ranks2", *options, ranks=2), cwd=place, capture_output=True, text=True,
                          env=environment(), timeout=280)  # by torchrun itself
    assert done.returncode == 0, done.stderr
    one, two = (np.array([float(row[2]) for row in rows(place, f"ranks{n}")[1:]]) for n in (1, 2))
    assert len(one) == 50
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.slow
def test_accumulated_micro_batches_learn_what_one_batch_learns(place):
    options = ["train.steps=10", "train.log_steps=1", "train.batch=4", "model.rsunet.norm=instance",
               "data.validation=[]", "target.0.kind=binary", "model.out_channels=1"]
    for parts in (1, 2):
        assert train(place, f"name=parts{parts}", f"train.accumulate={parts}", *options).returncode == 0
    one, two = (np.array([float(row[2]) for row in rows(place, f"parts{n}")[1:]]) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("how", [pytest.param("file", marks=pytest.mark.long),
                                 pytest.param("SIGTERM", marks=pytest.mark.slow),
                                 pytest.param("SIGUSR1", marks=pytest.mark.long)])
def test_a_run_asked_to_stop_ends_with_a_checkpoint_and_continues(place, how):
    begun = begin(command("train.steps=100000", "train.save.steps=100000")[1:], place)
    log = place / "outputs" / "tiny" / "log.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 4):
        time.sleep(0.05)
    if how == "file":
        (place / "outputs" / "tiny" / "STOP").touch()
    else:
        os.kill(begun.process.pid, getattr(signal, how))
    done = begun.ended(timeout=60)
    assert done.returncode == 0, done.stderr
    assert "as asked; the same command continues" in done.stdout
    step = checkpoint.all_steps(place / "outputs" / "tiny" / "checkpoints")[0][0]
    assert step > 0
    assert not (place / "outputs" / "tiny" / "STOP").exists()
    more = train(place, f"train.steps={step + 2}")
    assert f"step {step} of {step + 2}" in more.stdout


@pytest.mark.slow
def test_masked_pretraining_learns_and_its_encoder_starts_a_finetuning(place):
    (place / "pretrain.toml").write_text(CONFIG + PRETRAIN)
    done = train(place, "name=pre", config="pretrain.toml")
    assert done.returncode == 0, done.stderr
    table = rows(place, "pre")
    assert "loss/train/policy" in table[0]
    plots = training_plots(read_log(place / "outputs" / "pre" / "log.csv"))
    for name, low, high in (("sampled_mask_ratio", 0.5, 0.875), ("edge_fraction", 0.25, 0.75)):  # what it learned
        assert all(low <= float(row[table[0].index(name)]) <= high for row in table[1:])
        assert f">{name}<" in plots
    assert float(table[-1][2]) < float(table[1][2])
    transformer = CONFIG.replace('[model]\n', '[model]\nname = "unetr"\n').replace(
        '[model.rsunet]\nwidth = [4, 8]\nnorm = "batch"\n', PRETRAIN[PRETRAIN.index("[model.transformer]"):])
    (place / "tune.toml").write_text(transformer)
    start = "outputs/pre/checkpoints/step_000000020.pt"
    done = train(place, "name=fine", "model.transformer.features=4", f"train.start_from={start}",
                 "train.freeze=[\"patch_embed\"]", "train.optimizer.encoder_lr=1e-5", config="tune.toml")
    assert done.returncode == 0, done.stderr
    assert "29 tensors taken from" in done.stdout
    before, after = state(place, "pre", 20), state(place, "fine", 20)
    weights = before["ema"]["weights"]
    assert torch.equal(weights["patch_embed.proj.weight"], after["model"]["patch_embed.proj.weight"])
    assert not torch.equal(weights["norm.weight"], after["model"]["norm.weight"])


@pytest.mark.slow
def test_the_run_folder_tells_everything_and_rebuilds_the_net(place):
    done = train(place, "train.preview_steps=10")
    assert done.returncode == 0, done.stderr
    folder = place / "outputs" / "tiny"
    assert json.loads((folder / "environment.json").read_text())["torch"] == torch.__version__
    assert (folder / "previews" / "step_000000020.png").read_bytes().startswith(b"\x89PNG")
    assert rows(place)[0] == ["step", "lr", "loss/train", "loss/train/0 bce", "loss/val"]
    assert (folder / "speed.csv").read_text().startswith("time,step,seconds,waiting")
    import emcore
    net = emcore.load_model(folder / "checkpoints" / "step_000000020.pt")
    assert not net.training
    content = state(place, "tiny", 20)
    assert torch.equal(net.state_dict()["tail.2.weight"], content["ema"]["weights"]["tail.2.weight"])
    assert not torch.equal(content["model"]["tail.2.weight"], content["ema"]["weights"]["tail.2.weight"])
    assert not any(name.startswith(("module.", "_orig_mod.", "net.")) for name in content["model"])


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_exit_code_2(place):
    refused(place, "unknown setting train.stepz; did you mean train.steps?", "train.stepz=3")
    refused(place, r"patch of \[4, 15, 16\] does not fit .* nearest that fit are \[4, 14, 16\] or \[4, 16, 16\]",
            "data.patch=[4, 15, 16]")
    refused(place, "compares 2 prediction channels with 3 target channels", "model.out_channels=2")
    refused(place, "data.train.0: there is no file absent.h5", "data.train.0.image=absent.h5")
    if not torch.cuda.is_available():
        refused(place, "device = cuda, but this torch", "device=cuda")
    refused(place, "train.freeze: no weight begins with 'nothing'; the net has decoder, encoder",
            'train.freeze=["nothing"]')
    (place / "file").write_text("")
    refused(place, "cannot write into the run folder file/tiny", "outputs=file")


@pytest.mark.slow
def test_a_folder_of_another_run_a_cut_and_a_hostile_checkpoint_are_told_apart(place):
    assert train(place, "train.steps=5").returncode == 0
    refused(place, r"holds a run of another config: train.optimizer.lr was 0.001, is 0.1\. Use another name",
            "train.optimizer.lr=0.1")
    path = place / "outputs" / "tiny" / "checkpoints" / "step_000000005.pt"
    whole = path.read_bytes()
    path.with_name("step_000000009.pt").write_bytes(whole[:-100])
    assert checkpoint.newest(path.parent) == path
    hostile = place / "hostile.pt"
    with open(hostile, "wb") as file:
        pickle.dump({"model": os.system}, file)
    torch.save({"model": torch.zeros(1), "other": Path("x")}, place / "object.pt")
    refused(place, "could run code, so it is not read", "name=b", f"train.start_from={hostile}")
    refused(place, "could run code, so it is not read", "name=b", f"train.start_from={place / 'object.pt'}")
    refused(place, "no tensor of .* fits this net", "name=b", f"train.start_from={path}", "model.name=linear_head",
            "model.transformer.patch=[2, 8, 8]", "model.transformer.width=16", "model.transformer.heads=2")
    (place / "cut.pt").write_bytes(whole[:2000])
    refused(place, "is not a whole checkpoint", "name=b", f"train.start_from={place / 'cut.pt'}")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_samples(place):
    refused(place, r"the loss of step \d+ is (nan|inf); its samples were vol at \[\d+, \d+, \d+\]",
            "train.optimizer.lr=1e30", "train.optimizer.clip=0", "loss.clamp=0", "model.rsunet.norm=none",
            "train.optimizer.kind=sgd")
    assert list((place / "outputs" / "tiny").glob("bad_batch_step_*_rank_0.pt"))


@pytest.mark.long
def test_when_a_rank_dies_the_others_end_within_a_minute(place):
    process = subprocess.Popen(command("train.steps=100000", ranks=2), cwd=place, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_rows(place)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    start = time.monotonic()
    _, errors = process.communicate(timeout=90)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    assert re.search(r"rank\s*:\s*[01]", errors)
    assert "Signal 9" in errors or "-9" in errors


DECODED = """
[[data.validation]]
image = "vol.h5:raw"
label = "vol.h5:labels"
name = "again"
[infer]
tile = [6, 0, 0]
[decode]
kind = "affinities"
low = 0.1
high = 0.9
"""


@pytest.mark.long
def test_validation_scores_the_decoded_volumes_the_same_on_one_rank_and_on_two(place):
    (place / "run.toml").write_text(CONFIG + DECODED)
    options = ["train.steps=4", "train.validate.steps=2", "train.validate.crops=0",
               'train.validate.scores=["voi", "rand"]',
               "train.save.monitor=voi/val", "data.validation_part=[0.0,0.5]", "train.save.steps=2",
               "model.rsunet.norm=none"]
    one = train(place, "name=one", *options)
    assert one.returncode == 0, one.stderr
    two = train(place, "name=two", *options, ranks=2)
    assert two.returncode == 0, two.stderr
    first, second = rows(place, "one"), rows(place, "two")
    assert first[0][-3:] == ["loss/val", "voi/val", "rand/val"]
    values = [[float(value) for value in row[-3:]] for row in first[1:] if row[-1]]
    assert len(values) == 2
    np.testing.assert_allclose(values, [[float(v) for v in row[-3:]] for row in second[1:] if row[-1]], rtol=1e-3)
    best = {step: value[1] for step, value in zip((2, 4), values)}
    assert min(state(place, "one", 4)["best"].items(), key=lambda item: item[1])[0] == str(min(best, key=best.get))
    refused(place, "save.monitor = voi/val is never computed", "train.save.monitor=voi/val", "name=three")
    assert not list((place / "outputs" / "one").glob(".validation_*"))


@pytest.mark.long
def test_batch_statistics_over_two_ranks_learn_what_one_rank_learns(place):
    options = ["train.batch=4", "train.steps=6", "augment.noise.probability=0", "train.sync_batchnorm=true",
               "train.log_steps=1"]
    one = train(place, "name=one", *options)
    assert one.returncode == 0, one.stderr
    two = train(place, "name=two", *options, ranks=2)
    assert two.returncode == 0, two.stderr
    losses = [np.array([[float(value or 0) for value in row[2:4]] for row in rows(place, name)[1:]])
              for name in ("one", "two")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    buffers = [state(place, name, 6)["model"]["encoder.0.pre.0.running_mean"] for name in ("one", "two")]
    np.testing.assert_allclose(*buffers, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_half_precision_scales_its_loss_and_resumes_with_the_scale(place):
    done = train(place, "train.precision=fp16", "train.steps=4", "train.save.steps=2")
    assert done.returncode == 0, done.stderr
    assert all(np.isfinite(float(row[2])) for row in rows(place)[1:])
    scale = state(place, "tiny", 2)["scaler"]["scale"]
    assert scale >= 1
    (place / "outputs" / "tiny" / "checkpoints" / "step_000000004.pt").unlink()
    before = rows(place)
    again = train(place, "train.precision=fp16", "train.steps=4", "train.save.steps=2")
    assert "step 2 of 4" in again.stdout
    assert rows(place) == before


@pytest.mark.slow
def test_the_draws_of_a_sample_stand_in_the_log_the_same_after_a_resume(place):
    with h5py.File(place / "vol.h5", "r+") as f:
        labels = f["labels"][...]
        labels[:, :, 12:] = 0
        f["labels"][...] = labels
    options = ("data.reject_below=900", "data.reject_probability=1.0", "train.steps=10", "train.save.steps=5")
    assert train(place, *options).returncode == 0
    whole = rows(place)
    assert whole[0][:5] == ["step", "lr", "loss/train", "loss/train/0 bce", "draws"]
    draws = [float(row[4]) for row in whole[1:]]
    assert min(draws) >= 1
    assert max(draws) > 1.5
    (place / "outputs" / "tiny" / "checkpoints" / "step_000000010.pt").unlink()
    assert "step 5 of 10" in train(place, *options).stdout
    assert rows(place) == whole


@pytest.mark.slow
def test_an_error_in_a_loader_process_is_told_as_its_own_sentence(place):
    with h5py.File(place / "vol.h5", "r+") as f:
        labels = f["labels"][...].astype(np.int32)
        del f["labels"]
        labels[6] = -7
        f["labels"] = labels
    refused(place, r"the labels of vol hold -7, which is no object: name it in data.background", "data.workers=2",
            "data.storage=lazy")


@pytest.mark.slow
def test_a_killed_loader_process_ends_the_run_with_one_sentence(place):
    process = subprocess.Popen(command("train.steps=100000", "data.workers=2", "data.storage=lazy"), cwd=place,
                               env={**environment(), "PYTHONFAULTHANDLER": "1"}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    wait_for_rows(place)
    readers = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
    os.kill(int(readers.stdout.split()[-1]), signal.SIGKILL)
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it then says where it stands
        pytest.fail(f"the run goes on without its reader:\n{process.communicate()[1]}")
    assert process.returncode == 2, errors
    assert re.search(r"error: a process that reads patches died: .*(killed by signal|exited unexpectedly)", errors)

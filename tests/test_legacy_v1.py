"""The command line of the 2019 synapse tutorial against the numbers measured on the published code."""

import math
import re
import shlex
import zipfile

import numpy as np
import pytest
import torch

from emcore.engine import checkpoint
from emcore.engine.schedule import Plateau
from emcore.errors import InputError
from emcore.losses import LossPlan
from emcore.models.unet_v1 import UNetV1
from emcore.settings.augment import Fold
from emcore.settings.loss import LegacyBceTerm, Loss
from emcore.settings.model import UNetV1Model
from emcore.systems.legacy_v1 import recipe, samples
from emcore.systems.legacy_v1.__main__ import main
from emcore.systems.legacy_v1.flags import read_flags
from emcore.systems.legacy_v1.inference import positions, prediction
from emcore.systems.legacy_v1.samples import augment, sample_size
from emcore.systems.legacy_v1.weights import NUISANCE, from_published, load_net, published, save_net, update_momentum
from emcore.volumes import create_volume, open_volume
from tests.test_unet_v1 import filled, grid

SEED = shlex.split("-t /path/to/cremi/ -dn images/im_A_v2_200.h5@images/im_B_v2_200.h5@images/im_C_v2_200.h5 "
                   "-mi 8,256,256 -g 4 -c 4 -ac unetv0 --task 2")
TRAIN = [*SEED, *shlex.split(
    "-ln gt-syn/syn_A_v2_200.h5@gt-syn/syn_B_v2_200.h5@gt-syn/syn_C_v2_200.h5 -o outputs/unetv0 "
    "-lr 1e-03 --iteration-total 100000 --iteration-save 10000 -b 8")]
TEST = [*SEED, *shlex.split("-b 16 -lm True -pm outputs/unetv0/volume_50000.pth")]


def write(path, values):
    with create_volume(f"{path}:main", values.shape, values.dtype) as out:
        out[...] = values


def filled_net(out=1):
    net = UNetV1(UNetV1Model(out_channels=out))
    filled(net)
    return net


def test_the_tutorials_command_lines_are_read_as_they_stand():
    train = read_flags("train", TRAIN)
    assert train.images[1] == "/path/to/cremi/images/im_B_v2_200.h5"
    assert train.labels[2] == "/path/to/cremi/gt-syn/syn_C_v2_200.h5"
    assert (train.task, train.patch, train.lr, train.batch_size) == ("synapse", (8, 256, 256), 1e-3, 8)
    assert (train.iteration_total, train.iteration_save, train.output) == (100_000, 10_000, "outputs/unetv0")
    test = read_flags("test", TEST)
    assert test.load_model
    assert test.pre_model == "outputs/unetv0/volume_50000.pth"
    assert test.output == "result/train/"  # the tutorial gives no -o to test
    short = read_flags("train", [*TRAIN, "--iteration-t", "7", "--iteration-s", "3"])
    assert (short.iteration_total, short.iteration_save) == (7, 3)
    defaults = read_flags("train", ["-ac", "unetv0"])
    assert (defaults.task, defaults.patch, defaults.lr, defaults.iteration_total, defaults.iteration_save) == (
        "neuron", (31, 204, 204), 1e-4, 1000, 100)
    assert read_flags("train", ["-t", "a/@b/", "-dn", "x@y", "-ln", "p@q", "-ac", "unetv0"]).images == ["a/x", "a/y"]
    later = read_flags("test", [*TEST, "-mo", "3,116,116", "-mp", "4,128,128", "--test-stride", "4,64,64"])
    assert (later.pad, later.stride) == ((4, 128, 128), (4, 64, 64))


@pytest.mark.parametrize("text, value", [("True", True), ("False", False), ("true", True), ("0", False), ("", False)])
def test_load_model_means_what_it_says(text, value):
    assert read_flags("test", [*SEED, "-lm", text, "-pm", "x.pth"]).load_model is value


@pytest.mark.parametrize("change, sentence", [
    (["--task", "3"], r"--task is 1 \(neuron\) or 2 \(synapse\), as the tutorial numbers them; got 3"),
    (["-ac", "fpn"], "there is unetv0; got fpn"),
    (["-mi", "8,256"], "-mi takes three numbers z,y,x such as 8,256,256; got '8,256'"),
    (["-ln", "a.h5"], "-dn names 3 images and -ln 1 label files"),
    (["-lm", "perhaps"], "-lm takes True or False; got 'perhaps'"),
    (["-lm", "True"], "needs the file to load"),
    (["-b", "0"], "-b must be 1 or more; got 0"),
    (["-lr", "0"], "-lr must be above 0; got 0.0"),
])
def test_wrong_flags_are_told_in_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        read_flags("train", [*TRAIN, *change])


def test_samples_are_cut_as_large_as_the_augmentations_need():
    assert sample_size((8, 256, 256)) == (10, 497, 497)
    assert sample_size((4, 128, 128)) == (6, 270, 270)


def test_patches_of_a_prediction_stand_where_they_stood():
    assert positions(80, 32, 16) == [0, 16, 32, 48]
    assert positions(10, 4, 2) == [0, 2, 4, 6]
    starts = [positions(n, w, s) for n, w, s in zip((133, 1506, 1506), (8, 256, 256), (4, 128, 128))]
    assert [len(s) for s in starts] == [33, 11, 11]
    assert [s[-1] for s in starts] == [125, 1250, 1250]
    assert positions(5, 8, 4) == [0]


def test_inference_gives_the_published_bytes(tmp_path, capsys):
    z, y, x = np.meshgrid(np.arange(6), np.arange(48), np.arange(48), indexing="ij")
    image = np.floor(127.5 + 127.4 * np.sin(0.13 * x + 0.007 * y**2 + 0.8 * z)).astype(np.uint8)
    assert image.sum() == 1_755_290
    write(tmp_path / "a.h5", image)
    write(tmp_path / "b.h5", image[:2, :32, :32])
    net = filled_net().eval()
    save_net(net, tmp_path / "net.pth", 1.0)
    flags = [*f"-t {tmp_path}/ -dn a.h5@b.h5 -mi 4,32,32 -b 7 -ac unetv0 -lm True -o {tmp_path}/out".split(),
             "-pm", f"{tmp_path}/net.pth", "--task", "2"]
    assert main(["test", *flags]) == 0
    assert "Output shape: (1, 6, 48, 48)" in capsys.readouterr().out
    stored = open_volume(tmp_path / "out" / "volume_0.h5:main")
    assert (stored.shape, stored.dtype) == ((1, 6, 48, 48), np.uint8)
    values = stored[...]
    golden = {(0, 0, 0): (0.081229, 20), (2, 10, 33): (0.044074, 11), (3, 24, 24): (0.647183, 165),
              (5, 47, 47): (0.017141, 4)}
    assert {place: int(values[(0, *place)]) for place in golden} == {place: v for place, (_, v) in golden.items()}
    assert abs(int(values.sum(dtype=np.int64)) - 1_385_737) <= 5
    assert open_volume(tmp_path / "out" / "volume_1.h5:main").shape == (1, 2, 32, 32)
    job = prediction(net, f"{tmp_path}/a.h5:main", read_flags("test", flags))
    probability = np.concatenate([part() for _, _, part in job.pieces(job.whole)], 1)
    assert probability.mean() == pytest.approx(0.3949978, abs=2e-6)
    assert probability.std() == pytest.approx(0.2953850, abs=2e-6)
    denser = prediction(net, f"{tmp_path}/a.h5:main", read_flags("test", [*flags, "--test-stride", "2,8,16"]))
    assert denser.starts == [[0, 2, 4, 6], list(range(0, 49, 8)), [0, 16, 32, 48]]
    with pytest.raises(InputError, match="--test-stride must be 1 to the patch"):
        read_flags("test", [*flags, "--test-stride", "2,33,16"])
    for place, (value, _) in golden.items():
        assert probability[(0, *place)] == pytest.approx(value, abs=2e-5)  # the order of float32 sums


@pytest.mark.parametrize("rule, loss, norms", [
    ("A", 0.17953344, (0.943675086, 1.48299788e-2, 1.82130942e-4, 3.38350483e-2, 0.834985107, 1.96050028e-3)),
    ("B", 1.46117770, (7.69808591, 1.22898464e-1, 1.51132166e-3, 2.80462386e-1, 6.78104640, 1.63418976e-2)),
])
def test_a_training_step_has_the_published_loss_and_gradients(rule, loss, norms):
    net = filled_net().double().train()
    first, (z, y, x) = grid(torch.float64)
    second = 0.5 + 0.5 * torch.cos(0.03 * y**2 / 7 + 0.17 * x - 0.4 * z)
    image = torch.stack([first, second])[:, None]
    label = (image > 0.97).double()
    assert label.mean((1, 2, 3, 4)).tolist() == pytest.approx([0.11187744, 0.10766602], abs=1e-8)
    out = net(image)
    assert out.mean().item() == pytest.approx(0.49970180, abs=1e-8)
    plan = LossPlan(Loss((LegacyBceTerm(balance=recipe.BALANCE[rule]),)))
    value = plan(out, label).total
    assert value.item() == pytest.approx(loss, rel=1e-5)
    value.backward()
    found = {name: p.grad.norm().item() for name, p in net.named_parameters()}
    names = ("layer1_E.0.conv.0.0.1.weight", "center.1.se.1.weight", "layer3_D.0.conv.1.0.1.weight",
             "fconv.0.1.weight", "fconv.1.bias")
    assert math.sqrt(sum(v**2 for v in found.values())) == pytest.approx(norms[0], rel=2e-5)
    assert [found[name] for name in names] == pytest.approx(list(norms[1:]), rel=2e-5)


def test_weights_balance_each_sample_by_either_rule():
    some, none = torch.zeros(1, 1, 1, 20, 20), torch.zeros(1, 1, 1, 20, 20)
    some.view(-1)[:10] = 1
    prediction = torch.full_like(some, 0.3)
    for rule, label, expected in (("A", none, 0.0), ("B", none, 0.3566750), ("A", some, 0.0390162),
                                  ("B", some, 1.5216314)):
        plan = LossPlan(Loss((LegacyBceTerm(balance=recipe.BALANCE[rule]),)))
        found = plan(prediction, label).total.item()
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_learning_rate_falls_at_the_published_iterations():
    train = recipe.training(read_flags("train", TRAIN)).train
    plateau, changes, rate = Plateau(train.schedule, train.optimizer.lr), [], 1e-3
    for iteration in range(10, 60_001, 10):
        if abs(plateau.update(0.5) - rate) > 1e-8:  # what torch's scheduler takes for a change
            rate = plateau.lr
            changes.append((iteration, round(rate, 12)))
    assert changes == [(10_020, 1e-4), (20_030, 1e-5), (30_040, 1e-6), (40_050, 1e-7)]


def test_running_statistics_are_unbiased_means_from_the_first_step():
    norm = torch.nn.BatchNorm3d(1)
    batches = [torch.randn(2, 1, 2, 4, 4) + 3 for _ in range(5)]
    mean, variance, k, count = 0.0, 1.0, 1.0, 1.0
    for batch in batches:
        count = update_momentum(norm, count)
        norm(batch)
        mean, variance, k = 0.999 * mean + batch.mean(), 0.999 * variance + batch.var(), 0.999 * k + 1
        assert norm.running_mean.item() == pytest.approx((mean / k).item(), rel=1e-5)
        assert norm.running_var.item() == pytest.approx((variance / k).item(), rel=1e-5)
    assert count == pytest.approx(k)


def test_files_have_the_grammar_that_the_old_code_loads_strictly(tmp_path):
    net = filled_net()
    save_net(net, tmp_path / "volume_7.pth", 3.5)
    assert not zipfile.is_zipfile(tmp_path / "volume_7.pth")  # torch 1.0 reads no zip
    state = checkpoint.read(tmp_path / "volume_7.pth")
    assert len(state) == 495
    assert all(name.startswith("module.") for name in state)
    block = [name for name in state if name.startswith("module.layer1_E.0.conv.0.1.")]
    assert [name.rsplit(".", 1)[-1] for name in block] == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked", *NUISANCE]
    assert state["module.fconv.1._running_iter"].shape == (1,)
    assert torch.allclose(state["module.fconv.1._tmp_running_var"], 3.5 * net.fconv[1].running_var)
    again, count = load_net(str(tmp_path / "volume_7.pth"))
    assert count == 3.5
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values()))
    assert load_net_of_late_file(tmp_path, net) == pytest.approx(1000)
    assert list(published(net, 1.0)) == list(state)


def load_net_of_late_file(folder, net):
    torch.save(net.state_dict(), folder / "late.pth")
    return load_net(str(folder / "late.pth"))[1]


def test_image_and_labels_are_moved_alike(monkeypatch):
    monkeypatch.setattr(samples, "FOLD", Fold(probability=0.0, width=40))
    z, y, x = np.meshgrid(*(np.arange(n) for n in sample_size((4, 32, 32))), indexing="ij")
    label = torch.from_numpy((np.sin(x / 9) + np.sin(y / 7 + z / 3) > 0).astype(np.int64))[None]
    shares = []
    for number in range(30):
        image, moved = augment(label.float(), label, (4, 32, 32), np.random.default_rng(number))
        assert image.shape == moved.shape == (1, 4, 32, 32)
        assert moved.min() >= 0  # nothing outside of the sample is ever seen
        middle = (image.min() + image.max()) / 2
        shares.append(((image > middle) == (moved > 0)).float().mean().item())
    assert np.median(shares) > 0.95
    assert min(shares) > 0.8  # sections differ in contrast


def test_samples_with_little_cleft_are_mostly_rejected(tmp_path):
    from emcore.data.sampler import Sampler
    from emcore.data.sources import open_sources
    size = sample_size((2, 32, 32))
    label = np.zeros((size[0], size[1] + 100, size[2]), np.uint64)
    label[:2, -10:, :11] = 7  # 220 voxels; seen whole by few places
    write(tmp_path / "im.h5", np.zeros(label.shape, np.uint8))
    write(tmp_path / "syn.h5", label)
    flags = read_flags("train", f"-t {tmp_path}/ -dn im.h5 -ln syn.h5 -mi 2,32,32 -ac unetv0 --task 2".split())
    data = recipe.training(flags).data
    assert (data.patch, data.choose, data.reject_below) == (size, "positions", 101)
    sampler = Sampler(open_sources(data, "train"), data, 0)
    kept = [np.count_nonzero(sampler[number]["label"] > 0) > 100 for number in range(300)]
    accepted = np.mean([np.count_nonzero(label[:, y:y + size[1]]) > 100 for y in range(101)])
    expected = accepted / (accepted + 0.1 * (1 - accepted))
    assert np.mean(kept) == pytest.approx(expected, abs=0.1)


def make_data(folder):
    random = np.random.default_rng(0)
    size = (6, 110, 104)
    label = np.zeros(size, np.uint64)
    label[1:5, 30:60, 20:80] = 5
    write(folder / "im.h5", (random.integers(40, 80, size) + 120 * (label > 0)).astype(np.uint8))
    write(folder / "syn.h5", np.where(label == 0, np.uint64(2**64 - 1), label))  # as CREMI gives them out
    return f"-t {folder}/ -dn im.h5 -ln syn.h5 -mi 2,32,32 -ac unetv0 --task 2 -c 0 -b 2 -o {folder}/out".split()


def test_training_writes_the_files_and_logs_of_the_tutorial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = make_data(tmp_path)
    assert main(["train", *flags, "-lr", "1e-3", "--iteration-total", "11", "--iteration-save", "5"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"0\. initial setup[\s\S]*1\. setup data[\s\S]*2\.0 setup model\nUNetV1\n[\s\S]*"
                     r"3\. setup optimizer\n4\. start training\n[\s\S]*5\. finish training\n", told)
    assert len(re.findall(r"^\[Iteration 10\] train_loss=\d+\.\d{4} lr=0\.001000$", told, re.M)) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pth")) == [
        "volume_0.pth", "volume_10.pth", "volume_11.pth", "volume_5.pth"]
    log, = (tmp_path / "out").glob("log_approx_*.txt")
    assert re.fullmatch(r"log_approx_\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d\.txt", log.name)
    lines = log.read_text().splitlines()
    assert len(lines) == 12
    assert re.fullmatch(r"\[Volume 11\] train_loss=\d+\.\d{4} lr=0\.00100", lines[11])
    losses = [float(line.split("loss=")[1].split()[0]) for line in lines]
    assert 0 < min(losses) <= max(losses) < 3
    states = [checkpoint.read(tmp_path / "out" / f"volume_{number}.pth") for number in (0, 11)]
    assert all(not torch.equal(a, b) for (name, a), b in zip(states[0].items(), states[1].values())
               if name.endswith("weight"))
    net, count = load_net(str(tmp_path / "out" / "volume_10.pth"))
    assert net.fconv[0][1].out_channels == 1
    assert count == pytest.approx(sum(0.999**k for k in range(12)), rel=1e-5)
    # a warm start takes the weights, and nothing else
    warm = [*flags, "-lm", "True", "-pm", f"{tmp_path}/out/volume_10.pth", "--iteration-total", "0", "-lr", "1e-30"]
    assert main(["train", *warm]) == 0
    again, _ = load_net(str(tmp_path / "out" / "volume_0.pth"))
    assert torch.equal(again.fconv[0][1].weight, net.fconv[0][1].weight)
    with pytest.raises(InputError, match=r"1 output channels, as a net of --task 2 \(synapse\); --task .* say 3"):
        main(["train", *warm, "--out-channel", "3"])


def test_one_smallest_patch_a_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nothing from one patch of \[2, 32, 32\]"):
        main(["train", *make_data(tmp_path), "-b", "1"])


def test_the_neuron_task_learns_three_affinities(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = make_data(tmp_path)
    assert main(["train", *flags, "--task", "1", "--iteration-total", "0"]) == 0
    assert from_published(checkpoint.read(tmp_path / "out" / "volume_0.pth")).fconv[0][1].out_channels == 3


def test_a_net_tested_without_its_task_says_which_it_is_and_a_file_without_resolution_too(tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    write(tmp_path / "a.h5", image)
    with create_volume(f"{tmp_path / 'b.h5'}:main", image.shape, image.dtype, (40, 4, 4), (80, 0, 0)) as out:
        out[...] = image
    for task, channels in ((2, 1), (1, 3)):
        save_net(UNetV1(UNetV1Model(out_channels=channels)), tmp_path / "net.pth", 1.0)
        flags = [*f"-t {tmp_path}/ -dn a.h5@b.h5 -mi 2,32,32 -ac unetv0 -lm True -o {tmp_path}/out{task}".split(),
                 "-pm", f"{tmp_path}/net.pth"]
        assert main(["test", *flags]) == 0
        told = capsys.readouterr().out
        name = {1: "neuron", 2: "synapse"}[task]
        assert f"net.pth has {channels} output channels, as a net of --task {task} ({name})" in told
        assert "a.h5 does not say its resolution" in told
        assert "b.h5 does not say" not in told
        without, known = (open_volume(tmp_path / f"out{task}" / f"volume_{number}.h5:main") for number in (0, 1))
        assert (without.resolution, known.resolution, known.offset) == (None, (40, 4, 4), (80, 0, 0))
        other = {1: "synapse", 2: "neuron"}[task]
        with pytest.raises(InputError, match=f"as a net of --task {task} .*; --task says {other}"):
            main(["test", *flags, "--task", other])

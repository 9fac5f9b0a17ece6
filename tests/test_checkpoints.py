"""What was saved is what is read: damaged and hostile files, which weights are taken, and which checkpoint is best."""

import io
import json
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import config, metrics
from emcore.data.augment import augment_batch
from emcore.data.sampler import load
from emcore.engine import checkpoint, resume
from emcore.engine.best import Best, best_checkpoint, best_checkpoints
from emcore.engine.ema import MovingAverage
from emcore.engine.log import Log
from emcore.engine.ranks import Ranks
from emcore.errors import InputError
from emcore.prediction.validation import Validation
from emcore.settings.augment import Augment
from emcore.settings.train import Save
from emcore.systems.checkpoints import load_model
from tests import damaged_files
from tests.test_train import environment, place, rows, state, train  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    damaged_files.make(folder)
    return folder


def is_right(found, kind):
    """No file gives another value; a file without checksums may, but fails in one sentence or not at all."""
    return found.get("traceback", 0) == 0 and (kind == "legacy" or found.get("other", 0) == 0)


@pytest.mark.parametrize("kind, count", [("run", 20), ("weights", 20), ("lightning", 15), ("legacy", 5)])
def test_damaged_files_are_refused_in_one_sentence_or_give_what_was_saved(files, tmp_path, kind, count):
    shutil.copy(files / damaged_files.KINDS[kind], tmp_path)
    found = damaged_files.read_damaged(tmp_path, kind, 0, count)
    assert is_right(found, kind), found["worst"]
    assert found["refused"] > count / 3


@pytest.mark.long
@pytest.mark.parametrize("kind, count", [("run", 300), ("weights", 300), ("lightning", 300), ("legacy", 100)])
def test_a_thousand_damaged_files_give_no_other_value_no_traceback_and_take_no_memory(files, tmp_path, kind, count):
    shutil.copy(files / damaged_files.KINDS[kind], tmp_path)
    done = subprocess.run([sys.executable, "-m", "tests.damaged_files", str(tmp_path), kind, "1000", str(count)],
                          cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(kind, found)
    assert is_right(found, kind), found["worst"]
    assert found["refused"] + found.get("same", 0) + found.get("other", 0) == count
    assert found["bytes"] < 1e9


# ---- files whose checksums are right


class Claim:
    """Pickled as torch does it, with sizes of one's choice."""

    def __init__(self, numbers, offset, shape, strides):
        self.arguments = (self, offset, shape, strides, False, OrderedDict())
        self.numbers = numbers

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Stored(self.numbers), *self.arguments[1:])


class Stored:
    def __init__(self, numbers):
        self.numbers = numbers


class Call:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


class Writer(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Stored):
            return "storage", torch.FloatStorage, "0", "cpu", value.numbers
        return None


def pickled(content):
    stream = io.BytesIO()
    Writer(stream, protocol=2).dump(content)
    return stream.getvalue()


def packed(path, content, record=bytes(40)):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content if isinstance(content, bytes) else pickled(content))
        archive.writestr("x/version", "3")
        archive.writestr("x/data/0", record)
    return path


def test_a_file_with_right_checksums_is_read_only_if_its_tensors_fit_their_records(tmp_path):
    whole = checkpoint.read(packed(tmp_path / "a.pt", {"a": Claim(10, 2, (2, 4), (4, 1))}))
    assert whole["a"].tolist() == [[0.0] * 4] * 2
    for claim in (Claim(10**7, 0, (10,), (1,)), Claim(5, 0, (5,), (1,)), Claim(10, 0, (11,), (1,)),
                  Claim(10, 3, (2, 4), (4, 1)), Claim(10, 0, (10**12,), (0,)), Claim(10, -1, (4,), (1,)),
                  Claim(10, 9, (4,), (-1,))):
        with pytest.raises(InputError, match=r"a.pt is not a whole checkpoint: .*(should have|does not fit)"):
            checkpoint.read(packed(tmp_path / "a.pt", {"a": claim}))
    deep = pickle.dumps({"a": 1}, protocol=2).replace(b"K\x01", b")" + b"\x85" * 10**6 + b"K\x01")
    with pytest.raises(InputError, match="tuples are nested more than 100 deep"):
        checkpoint.read(packed(tmp_path / "a.pt", deep))
    for made in (Call(bytearray, 3 * 10**9), Call(torch.FloatTensor, 10**9), Call(set, Claim(10, 0, (4,), (1,)))):
        with pytest.raises(InputError, match="could run code, so it is not read"):
            checkpoint.read(packed(tmp_path / "a.pt", {"a": made}))


def test_the_old_format_is_read_without_checksums_and_says_so(tmp_path, capsys):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    assert checkpoint.read(path)["a"].tolist() == list(range(6))
    assert capsys.readouterr().err.count("old.pth is of the format before torch 1.6, which holds no checksums") == 1
    data = path.read_bytes()
    many = data.replace(b"K\x06", b"J" + struct.pack("<i", 2**30), 1)  # the length of the storage
    assert many != data
    path.write_bytes(many)
    with pytest.raises(InputError, match=r"old\.pth is not a whole checkpoint"):
        checkpoint.read(path)


def test_what_torch_save_did_not_write_is_refused_without_reading_it(tmp_path):
    with open(tmp_path / "volume.h5", "wb") as file:
        file.write(b"\x89HDF\r\n\x1a\n")
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(InputError, match=r"volume.h5 is not a whole checkpoint: torch.save did not write it"):
        checkpoint.read(tmp_path / "volume.h5")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "program.pt"))
    with pytest.raises(InputError, match=r"program.pt is not a whole checkpoint"):
        checkpoint.read(tmp_path / "program.pt")


HUGE = 10**9
NETS = [
    {"in_channels": HUGE}, {"out_channels": HUGE}, {"rsunet": {"width": [4, HUGE]}}, {"rsunet": {"width": [4] * 9999}},
    {"rsunet": {"width": [4, 6], "fold": [HUGE, 1, 1]}}, {"rsunet": {"width": [4, 6], "kernel": HUGE}},
    {"rsunet": {"width": [4, 6], "kernel": 21}}, {"rsunet": {"width": []}}, {"in_channels": -1}, {"in_channels": "x"},
    {"name": "mednext", "mednext": {"width": HUGE}}, {"name": "mednext", "mednext": {"head_blocks": HUGE}},
    {"name": "unet_v1", "unet_v1": {"filters": [HUGE] * 5}}, {"name": "none"}, {"name": "linear_head"},
    {"name": "unetr", "transformer": {"depth": HUGE}}, {"name": "unetr", "transformer": {"head_depth": HUGE}},
    {"name": "unetr", "transformer": {"width": HUGE, "heads": HUGE}}]


def test_a_config_that_its_tensors_do_not_fill_builds_no_net(files, tmp_path):
    content = torch.load(files / damaged_files.KINDS["weights"], weights_only=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for change in NETS:
        torch.save({**content, "config": {**content["config"], "model": {**content["config"]["model"], **change}}},
                   tmp_path / "a.pt")
        with pytest.raises(InputError) as error:
            load_model(tmp_path / "a.pt")
        assert str(tmp_path / "a.pt") in str(error.value), change
        assert "\n" not in str(error.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 5e8


def test_what_is_whole_but_no_checkpoint_gets_one_sentence(files, tmp_path):
    parts = damaged_files.parts_of(damaged_files.settings())
    content = torch.load(files / damaged_files.KINDS["run"], weights_only=True)
    moments = {number: {**moment, "exp_avg": torch.zeros(1, 2)}
               for number, moment in content["optimizer"]["state"].items()}
    for name, value in (("model", [1]), ("model", {}), ("model", {1: "x"}), ("optimizer", None), ("step", "x"),
                        ("optimizer", {**content["optimizer"], "state": moments}), ("ema", {"updates": 1}),
                        ("ema", {"updates": 1, "weights": {name: torch.zeros(1) for name in content["model"]}}),
                        ("best", 3), ("window", 3), ("config", [])):
        other = {**content, name: value}
        path = tmp_path / "step_000000005.pt"
        torch.save(other, path)
        with pytest.raises(InputError) as error:
            resume.resume(tmp_path.parent / tmp_path.name, parts, ALONE) or resume.restore(path, other, parts)
        assert str(path) in str(error.value), name
        assert "\n" not in str(error.value)


# ---- a run goes on from what is whole


def test_a_resume_passes_over_a_damaged_checkpoint_says_so_and_deletes_no_whole_one(tmp_path, capsys):
    wanted = damaged_files.settings(last=1, best=0)
    parts = damaged_files.parts_of(wanted)
    folder = tmp_path / "checkpoints"
    for step in (5, 10):
        resume.keep(tmp_path, step, wanted, parts, {"steps": 1.0})
        (folder / f"step_{step:09d}.pt").rename(tmp_path / f"{step}.pt")
    for step in (5, 10):
        shutil.copy(tmp_path / f"{step}.pt", folder / f"step_{step:09d}.pt")
    assert resume.resume(tmp_path, parts, ALONE)[1] == 10
    newest = folder / "step_000000010.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    path, step, total = resume.resume(tmp_path, parts, ALONE)
    assert (path.name, step, total) == ("step_000000005.pt", 5, {"steps": 1.0})
    told = capsys.readouterr().err
    assert "step_000000010.pt is not a whole checkpoint: the checksum of its record" in told
    assert "step_000000005.pt is taken, the newest that is whole" in told
    assert checkpoint.newest(folder) == path
    resume.keep(tmp_path, 6, wanted, parts, {"steps": 1.0})
    assert [step for step, _ in checkpoint.all_steps(folder)] == [10, 6]
    (folder / "step_000000006.pt").write_bytes(data[:1000])
    with pytest.raises(InputError, match=r"none of the 2 checkpoints in .* can be read"):
        checkpoint.newest(folder)
    assert checkpoint.newest(tmp_path / "absent") is None


# ---- which weights


def test_the_choice_of_weights_is_done_or_refused_and_recorded_in_exported_files(files, tmp_path):
    content = checkpoint.read(files / damaged_files.KINDS["run"])
    choose = checkpoint.choose_weights
    for choice, held in (("auto", "averaged"), ("averaged", "averaged"), ("plain", "plain")):
        weights, found = choose(content, choice, "a.pt")
        assert found == held
        assert weights is (content["ema"]["weights"] if held == "averaged" else content["model"])
        checkpoint.save_weights(content, tmp_path / "shared.pt", choice)
        shared = checkpoint.read(tmp_path / "shared.pt")
        assert choose(shared, "auto", "a.pt")[1] == held
        assert damaged_files.same(dict(weights), shared["model"])
        checkpoint.save_weights(shared, tmp_path / "again.pt")
        assert checkpoint.read(tmp_path / "again.pt")["weights"] == held
        refused = "plain" if held == "averaged" else "averaged"
        with pytest.raises(InputError, match=f"infer.weights = {refused}, but a.pt holds {held} weights alone"):
            choose(shared, refused, "a.pt")
    plain = {**content, "ema": None}
    assert choose(plain, "auto", "a.pt")[1] == choose(plain, "plain", "a.pt")[1] == "plain"
    with pytest.raises(InputError, match=r"a\.pt holds plain weights alone"):
        choose(plain, "averaged", "a.pt")
    older = checkpoint.read(ROOT / "weights" / "fib25_neurons.pt")
    assert choose(older, "auto", "a.pt")[1] == "not recorded"
    with pytest.raises(InputError, match=r"a\.pt does not record whether its weights are averaged"):
        choose(older, "averaged", "a.pt")
    plain_net = load_model(files / damaged_files.KINDS["run"], choice="plain")
    assert torch.equal(plain_net.state_dict()["tail.2.bias"], content["model"]["tail.2.bias"])


# ---- which is best


def test_best_is_the_mean_of_the_last_steps_of_every_checkpoint_and_survives_a_resume():
    losses = [5.0, 4.0, 9.0, 1.0, 2.0, 3.0, 8.0]
    best = Best(Save(monitor="loss/train", window=3, best=2))
    for step, loss in enumerate(losses, 1):
        best.learned(loss)
        best.consider(step, {})
        if step == 4:
            content = {**best.state(), "config": {"train": {"save": {"monitor": "loss/train"}}}}
    assert best.steps == {6: 2.0, 5: 4.0}
    again = Best(Save(monitor="loss/train", window=3, best=2))
    again.load(content)
    for step, loss in enumerate(losses[4:], 5):
        again.learned(loss)
        again.consider(step, {})
    assert (again.steps, list(again.losses)) == (best.steps, list(best.losses))
    older = Best(Save(monitor="loss/train", window=3))
    older.load({key: value for key, value in content.items() if key != "losses"})
    older.learned(1.0)
    older.consider(5, {})
    assert older.steps == {5: 1.0}


def test_jaccard_is_best_where_it_is_highest_and_a_new_monitor_ranks_anew(capsys):
    best = Best(Save(monitor="jaccard/val", best=2))
    for step, value in ((1, 0.5), (2, 0.7), (3, 0.6), (4, float("nan"))):
        best.consider(step, {"jaccard/val": value})
    best.consider(5, {})
    assert list(best.steps.items()) == [(2, 0.7), (3, 0.6)]
    other = Best(Save(monitor="loss/val"))
    other.load({**best.state(), "config": {"train": {"save": {"monitor": "jaccard/val"}}}})
    assert other.steps == {}
    assert "of steps 2, 3, were ranked by jaccard/val; now loss/val ranks" in capsys.readouterr().err


def test_the_best_checkpoints_of_a_run_are_listed_and_one_is_taken(tmp_path):
    wanted = damaged_files.settings(last=1, best=2)
    parts = damaged_files.parts_of(wanted)
    with pytest.raises(InputError, match="has no best checkpoint"):
        best_checkpoint(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 9.0)):
        parts["best"].losses.clear()
        parts["best"].learned(loss)
        parts["best"].consider(step, {})
        resume.keep(tmp_path, step, wanted, parts, {"steps": 1.0})
    found = best_checkpoints(tmp_path)
    assert [(step, value, path.name) for step, value, path in found] == [
        (2, 1.0, "step_000000002.pt"), (3, 2.0, "step_000000003.pt")]
    assert [step for step, _ in checkpoint.all_steps(tmp_path / "checkpoints")] == [4, 3, 2]
    assert best_checkpoint(tmp_path) == found[0][2]
    found[0][2].unlink()
    assert best_checkpoint(tmp_path) == found[1][2]


@pytest.mark.slow
def test_a_run_ranks_every_saved_step_by_the_loss_of_its_window_also_after_a_resume(place):  # noqa: F811
    options = ["train.steps=10", "train.save.monitor=loss/train", "train.save.window=4", "train.save.steps=3",
               "train.save.minutes=0", "train.save.best=9", "data.validation=[]"]
    told = train(place, "name=each", "train.log_steps=1", *options)
    assert told.returncode == 0, told.stderr
    losses = [float(row[2]) for row in rows(place, "each")[1:]]
    done = train(place, "train.log_steps=4", *options)
    assert done.returncode == 0, done.stderr
    wanted = {str(step): np.mean(losses[max(0, step - 4):step]) for step in (3, 6, 9, 10)}
    found = state(place, "tiny", 10)
    assert found["best"] == pytest.approx(wanted)
    assert f"best by loss/train: {min(wanted.values()):.6g} at step {min(wanted, key=wanted.get)}\n" in done.stdout
    assert [step for step, *_ in best_checkpoints(place / "outputs" / "tiny")] == [
        int(step) for step in sorted(wanted, key=wanted.get)]
    for step in (9, 10):
        (place / "outputs" / "tiny" / "checkpoints" / f"step_{step:09d}.pt").unlink()
    assert "step 6 of 10" in train(place, "train.log_steps=4", *options).stdout
    assert damaged_files.same(state(place, "tiny", 10), found)


@pytest.mark.long
def test_validated_steps_are_saved_and_ranked_and_masks_have_a_jaccard_index_on_any_number_of_ranks(place):  # noqa: F811
    options = ["target.0.kind=binary", "model.out_channels=1", "train.steps=4", "train.validate.steps=2",
               "train.validate.crops=4", "train.save.monitor=jaccard/val", "train.save.steps=3", "train.save.best=9",
               "train.batch=2", "model.rsunet.norm=none", "data.train.0.label=vol.h5:labels"]
    for ranks in (1, 2):
        done = train(place, f"name=ranks{ranks}", *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = rows(place, "ranks1"), rows(place, "ranks2")
    assert one[0][-3:] == ["loss/val", "jaccard/val", "jaccard/val plain"]
    values, others = ([[float(value) for value in row[-3:]] for row in table[1:] if row[-1]] for table in (one, two))
    assert len(values) == 2
    np.testing.assert_allclose(values, others, rtol=1e-3)
    assert all(0 <= share <= 1 for row in values for share in row[1:])
    assert {int(step): value for step, value in state(place, "ranks1", 4)["best"].items()} == {
        2: values[0][1], 4: values[1][1]}
    done = train(place, "name=other", "train.save.monitor=jaccard/val")
    assert done.returncode == 2
    assert "train.save.monitor = jaccard/val is never computed: not all targets are masks" in done.stderr


def test_the_logged_jaccard_is_that_of_the_averaged_and_of_the_plain_weights(place, monkeypatch):  # noqa: F811
    monkeypatch.chdir(place)
    table = config.to_table(damaged_files.settings())
    table["data"] |= {"workers": 0, "validation": [{"image": "vol.h5:raw", "label": "vol.h5:labels"}]}
    table["train"]["validate"] = {"crops": 5}
    wanted = config.from_table(type(damaged_files.settings()), table)
    task = damaged_files.parts_of(wanted)["task"]
    average = MovingAverage(task.net, wanted.train.ema)
    for name in average.learned:
        average.weights[name] += 0.3
    validation = Validation(wanted, ALONE, task, average, place)
    found = validation.run()
    expected = []
    for use in (average.weights, task.net.state_dict()):
        net = damaged_files.parts_of(wanted)["task"].net.eval()
        net.load_state_dict(use)
        patches = [augment_batch(read, Augment(), wanted.data, wanted.seed)
                   for read in load(validation.sampler, [[number] for number in range(5)], 0)]
        with torch.no_grad():
            logits = torch.cat([net(patch["image"])[:, 0] for patch in patches])
        truth = torch.cat([patch["label"] for patch in patches]).clamp(min=0)
        expected.append(metrics.jaccard(truth.numpy().astype(np.uint64), logits.numpy(), 0.0))
    assert list(found) == ["loss/val", "jaccard/val", "jaccard/val plain"]
    assert [found["jaccard/val"], found["jaccard/val plain"]] == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_a_run_of_an_older_version_without_the_new_columns_goes_on(tmp_path):
    (tmp_path / "log.csv").write_text("step,lr,loss/val\n5,0.1,0.5\n10,0.1,0.4\n")
    Log(tmp_path, ["lr", "loss/val", "jaccard/val"], 5).close()
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,lr,loss/val,jaccard/val", "5,0.1,0.5,"]
    with pytest.raises(InputError, match="use another run name"):
        Log(tmp_path, ["lr", "loss/train"], 5)

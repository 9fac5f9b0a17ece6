"""One verdict on arithmetic a run: all ranks take that of the first, a resume that of the run, or they say why not."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
import torch

from emcore.engine import ranks
from emcore.engine.arithmetic import probe, verdict
from emcore.engine.arithmetic.machine import LIMIT
from emcore.engine.arithmetic.mode import Mode
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.train import Train
from tests.scripts import run_ranks
from tests.test_train import CONFIG, same, state, train

BEGUN = Mode("cpu", "bf16", "channels_last", False, "", "bf16, channels_last", "2.0", "a processor avx512_bf16", 4)
HERE = {"torch": "2.0", "processor": "a processor avx512_bf16", "threads": 4}
# a training whose measurements are invented: every rank likes another layout, and has a cache of its own
DRIVER = """
import os, sys
from pathlib import Path
rank = os.environ.get("RANK", "0")
os.environ["XDG_CACHE_HOME"] = str(Path(f"cache_{rank}").resolve())
from emcore.engine.arithmetic import probe

def tried(work, candidate, *more):
    with open(f"measured_{rank}", "a") as file:
        print(candidate.layout, file=file)
    liked = ["channels_last", "contiguous"][int(rank) ^ int(os.environ["TURNED"])]
    return {"first": 1.0, "seconds": 1.0 if candidate.layout == liked else 2.0}, 0, ""

probe._try = tried
from emcore.engine.arithmetic import net
place = net.place

def placed(net, chosen):
    with open(f"placed_{rank}", "a") as file:
        print(chosen.layout, file=file)
    return place(net, chosen)

net.place = placed
import train
from emcore.errors import run_command
sys.exit(run_command(train.main, sys.argv[1:]))
"""


@pytest.fixture
def place(tmp_path):
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(1, 50, (4, 6, 6)), np.ones((3, 6, 6), int))
    with h5py.File(tmp_path / "vol.h5", "w") as file:
        file["labels"] = labels.astype(np.uint32)
        file["raw"] = ((labels * 37) % 200 + 20).astype(np.uint8)
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was begun and has a checkpoint; what would be chosen now is contiguous."""
    monkeypatch.delenv(LIMIT, raising=False)
    monkeypatch.setattr(probe, "cache_folder", lambda name: None)
    monkeypatch.setattr(verdict, "surroundings", lambda: HERE)
    monkeypatch.setattr(verdict, "choose_mode", lambda work, train, device, steps: Mode(
        "cpu" if device == "auto" else device, "fp32" if train.precision == "auto" else train.precision,
        "contiguous" if train.layout == "auto" else train.layout, train.compile == "on"))
    folder = tmp_path / "outputs" / "a"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_000000005.pt").touch()
    verdict.keep(folder, BEGUN)
    return folder


def settings_of(folder, **train):
    return Settings("a", outputs=str(folder.parent), train=Train(**train))


def settled(folder, **train):
    return verdict.settle(settings_of(folder, **train), folder)()


def test_a_resume_takes_the_arithmetic_of_the_run_and_says_what_is_otherwise_here(run, monkeypatch, capsys):
    assert settled(run) == BEGUN
    assert capsys.readouterr().out == ""
    now = replace(BEGUN, layout="contiguous", instructions=probe.SAFE)
    monkeypatch.setattr(verdict, "remembered_mode", lambda *a: now)
    monkeypatch.setattr(verdict, "surroundings", lambda: HERE | {"processor": "another", "threads": 2})
    assert settled(run) == BEGUN
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"{run} goes on in bf16, channels_last on cpu as it began; this machine would now choose bf16, "
        f"contiguous on cpu, {LIMIT} = {probe.SAFE}",
        f"{run} was begun under other conditions: here is processor another instead of a processor avx512_bf16, "
        "threads 2 instead of 4, so its last bits may differ from those of a run that went on under those"]


def test_a_setting_that_is_told_wins_and_leaves_the_rest_as_it_was(run, monkeypatch, capsys):
    changed = settled(run, precision="fp32")
    assert (changed.precision, changed.layout, changed.compile) == ("fp32", "channels_last", False)
    assert "was computed in bf16, channels_last on cpu so far; by train.precision = fp32 it goes on" in (
        capsys.readouterr().out)
    assert settled(run, precision="bf16", layout="channels_last", compile="off") == BEGUN, "the same, only told"
    assert settled(run, compile="on").compile
    monkeypatch.setenv(LIMIT, "AVX2")
    settled(run)
    assert f"by {LIMIT} = AVX2 it goes on otherwise" in capsys.readouterr().out


def test_a_new_run_chooses_one_without_a_record_too_and_a_broken_record_is_told(run, capsys):
    (run / verdict.FILE).write_text("{")
    with pytest.raises(InputError, match=r"arithmetic\.json, which says .* cannot be read .* or remove it"):
        settled(run)
    (run / verdict.FILE).write_text(json.dumps(asdict(BEGUN) | {"layout": "sideways"}))
    with pytest.raises(InputError, match=r"cannot be read \(layout must be"):
        settled(run)
    (run / verdict.FILE).unlink()
    assert settled(run).layout == "contiguous"
    assert "does not say in which arithmetic it was computed" in capsys.readouterr().out
    verdict.keep(run, BEGUN)
    shutil.rmtree(run / "checkpoints")
    assert settled(run).layout == "contiguous", "nothing was learned yet: it begins"


def test_a_process_that_cannot_compute_as_decided_stops_with_one_sentence(run, monkeypatch):
    settings = settings_of(run)

    def refused(chosen, sentence, settings=settings):
        with pytest.raises(InputError, match=rf"this run computes in .*, as rank 0 decided, but here {sentence}"):
            verdict.comply(chosen, settings, "as rank 0 decided")

    monkeypatch.setattr(verdict, "multiplies_bf16", lambda: True)
    verdict.comply(BEGUN, settings, "")
    monkeypatch.setattr(verdict, "multiplies_bf16", lambda: False)
    refused(BEGUN, "is a processor without instructions for bf16 .* or set train.precision to fp32")
    verdict.comply(BEGUN, settings_of(run, precision="bf16"), "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(replace(BEGUN, device="cuda"), r"torch .* finds no usable GPU: start it where .* or set device=cpu")
    monkeypatch.setattr("emcore.engine.arithmetic.net.why_not_compiled", lambda device: "no compiler")
    refused(replace(BEGUN, precision="fp32", compile=True), r"torch.compile fails \(no compiler\): install")
    monkeypatch.setenv(LIMIT, "AVX2")
    refused(replace(BEGUN, precision="fp32"), f"{LIMIT} is AVX2: unset it, or set it for all processes")


def hear(port, rank, lead, answers):
    """One process of a start: what it hears, or the sentence with which it ends."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks.SILENCE, ranks.BEAT = 2.0, 0.2
    try:
        answers.put((rank, ranks.from_lead(lead if rank == 0 else None)))
    except InputError as error:
        answers.put((rank, str(error)))
    if rank == 0:
        time.sleep(100)  # it goes on to train; the test ends it


def fail():
    raise InputError("this net cannot take a step")


@pytest.mark.parametrize("lead, sentence", [
    (lambda: {"layout": "contiguous"}, None),
    (fail, "rank 0 has stopped: this net cannot take a step"),
    (lambda: os._exit(1), "rank 0, which chooses the arithmetic of this run, has ended"),
    (lambda: os.kill(os.getpid(), signal.SIGSTOP), "has given no sign for 2 s"),
], ids=["decides", "fails", "dies", "is silent"])
def test_the_ranks_hear_the_first_one_or_that_it_is_gone(lead, sentence, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if sentence and "no sign" in sentence:  # under torchrun the meeting point is held by torchrun
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        held = torch.distributed.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
        assert held.port == port
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=hear, args=(port, rank, lead, answers), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        heard = {}
        while 1 not in heard:
            rank, answer = answers.get(timeout=100)
            heard[rank] = answer
    finally:
        for process in processes:
            process.kill()
    assert heard[1] == lead() if sentence is None else sentence in heard[1]


@pytest.mark.long
def test_two_ranks_and_a_resume_compute_as_the_first_rank_decided_when_the_run_began(place, monkeypatch):
    (place / "driver.py").write_text(DRIVER)
    words = ["driver.py", "--cfg", "run.toml", "train.layout=auto", "train.steps=6", "train.save.at=[3]",
             "train.save.minutes=0"]

    def start(turned):
        monkeypatch.setenv("TURNED", turned)
        done = run_ranks(words, place, ranks=2)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert start("0").count("measuring how fast this net runs here, up to 480 s\n") == 1
    assert (place / "measured_0").read_text().split() == ["channels_last", "contiguous"]
    assert not (place / "measured_1").exists(), "only the first rank measures"
    assert json.loads((place / "outputs" / "tiny" / verdict.FILE).read_text())["layout"] == "channels_last"
    whole = state(place, "tiny", 6)
    (place / "outputs" / "tiny" / "checkpoints" / "step_000000006.pt").unlink()
    shutil.rmtree(place / "cache_0")
    said = start("1")
    assert "resuming from" in said
    assert "measuring" not in said
    for rank in range(2):
        assert set((place / f"placed_{rank}").read_text().split()) == {"channels_last"}
    assert same(state(place, "tiny", 6), whole)


@pytest.mark.long
def test_two_ranks_really_measure_once(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))  # else what another test measured is taken
    done = train(place, "train.layout=auto", "train.steps=2", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("measuring how fast") == 1
    kept = json.loads((place / "outputs" / "tiny" / verdict.FILE).read_text())
    assert (kept["device"], kept["precision"], kept["compile"], kept["threads"]) == ("cpu", "fp32", False, 1)
    assert kept["reason"].startswith(f"fp32, {kept['layout']}, ")


@pytest.mark.slow
def test_a_limit_of_instruction_sets_holds_when_it_is_set_after_torch_is_loaded():
    """What rank 0 decides reaches the others through torch: the limit must still be read then."""
    script = (f"import os, torch; os.environ['{LIMIT}'] = 'SSE41'; "
              "torch.nn.functional.conv3d(torch.rand(2, 16, 16, 64, 64), torch.rand(16, 16, 3, 3, 3))")
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200,
                          env={**os.environ, "ONEDNN_VERBOSE": "1"})
    assert "SSE4.1" in next(line for line in done.stdout.splitlines() if "cpu,isa:" in line)

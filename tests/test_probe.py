"""The choice of arithmetic: what dies is passed over, what is fastest is taken, what is known is not tried again."""

import fcntl
import json
import threading
import time
from dataclasses import replace

import pytest

from emcore.engine.arithmetic import machine, probe, trial
from emcore.errors import InputError
from emcore.settings.model import RSUNetModel, RSUNetSizes
from emcore.settings.train import Train

NET = RSUNetModel(out_channels=3, rsunet=RSUNetSizes(width=(4, 8)))


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Answers of the children by (precision, layout, compiled, limit); the list of what was tried."""
    monkeypatch.setattr(probe, "cache_folder", lambda name: tmp_path)
    monkeypatch.setattr(machine, "processor", lambda: "a processor avx512_bf16")
    monkeypatch.delenv(probe.LIMIT, raising=False)
    log, answers = [], {}

    def answer(work, candidate, deadline, lock):
        if "question" in work:
            return {"device": "cpu"}, 0, ""
        key = (candidate.precision, candidate.layout, candidate.compile, candidate.instructions)
        log.append(key)
        fitting = [value for rule, value in answers.items() if all(a in (None, b) for a, b in zip(rule, key))]
        seconds = fitting[0] if fitting else 1.0
        if isinstance(seconds, str):
            return {}, 1, seconds
        return ({}, seconds, "") if seconds < 0 else ({"first": 10 * seconds, "seconds": seconds}, 0, "")

    monkeypatch.setattr(probe, "_try", answer)
    return log, answers


def choose(train=None, steps=100, patch=(4, 16, 16)):
    return probe.choose_mode(probe.work_of(NET, patch, 1), train or Train(), "auto", steps)


def test_the_fastest_layout_wins(tried):
    _, answers = tried
    answers[("bf16", "contiguous", None, None)] = 0.5
    assert (choose().precision, choose().layout) == ("bf16", "contiguous")


def test_arithmetic_that_kills_its_process_is_limited_and_if_that_dies_too_it_is_fp32(tried):
    log, answers = tried
    answers[("bf16", None, None, "")] = -11
    chosen = choose()
    assert (chosen.precision, chosen.instructions) == ("bf16", probe.SAFE)
    assert "because more crashes here" in chosen.reason
    assert ("bf16", "contiguous", False, "") not in log, "the other layout of what has just died is not tried"
    answers[("bf16", None, None, None)] = -11
    chosen = choose(Train(batch=2), patch=(4, 32, 32))
    assert (chosen.precision, chosen.instructions) == ("fp32", "")


def test_compilation_is_taken_where_it_pays_within_the_run_and_left_where_it_fails(tried):
    _, answers = tried
    answers[(None, None, True, None)] = 0.6
    assert not choose(steps=100).compile, "too short a run to be worth the wait"
    assert choose(steps=1000).compile
    assert "not compiled (only 100 steps)" in choose(steps=100).reason
    answers[(None, None, True, None)] = 0.97
    assert "not compiled (it pays from 324 steps on)" in choose(steps=323, patch=(4, 8, 8)).reason
    assert choose(steps=324, patch=(4, 8, 8)).compile
    answers[(None, None, True, None)] = "no compiler"
    chosen = choose(steps=1000, patch=(8, 16, 16))
    assert not chosen.compile
    assert "it fails here" in chosen.reason


def test_a_verdict_is_kept_for_the_same_net_patch_and_settings(tried, monkeypatch, tmp_path):
    log, _ = tried
    first = choose()
    count = len(log)
    assert choose() == first
    assert len(log) == count
    choose(Train(precision="fp32"))
    assert len(log) > count
    count = len(log)
    monkeypatch.setattr(probe, "_nets", lambda: "other code")
    choose()
    assert len(log) > count, "the code of the nets has changed"
    count = len(log)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    choose()
    assert len(log) > count, "other threads make other layouts fast"
    next(tmp_path.glob("*.json")).write_text("{}")
    choose()
    assert choose() == choose(), "what another version wrote is measured again"


def test_where_nothing_runs_the_first_reason_is_told(tried):
    _, answers = tried
    answers[(None, None, None, None)] = "RuntimeError: no memory"
    with pytest.raises(InputError, match="cannot take a step on cpu: bf16 channels_last: RuntimeError: no memory"):
        choose()


def test_where_every_step_takes_too_long_the_run_begins_unmeasured(tried, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "_try", lambda *a: ({"device": "cpu"}, 0, "") if "question" in a[0] else
                        ({}, probe.LATE, "took more than 240 s"))
    chosen = choose()
    assert (chosen.precision, chosen.layout) == ("fp32", "contiguous")
    assert "not measured: a step takes too long here" in chosen.reason
    assert not list(tmp_path.glob("*.json")), "another time it may be measured"


def test_a_processor_that_has_no_bf16_is_not_asked_for_it(tried, monkeypatch):
    log, _ = tried
    monkeypatch.setattr(machine, "processor", lambda: "a processor avx2")
    assert choose().precision == "fp32"
    assert {precision for precision, *_ in log} == {"fp32"}


def test_what_takes_its_time_is_announced_and_never_runs_beside_another(tried, tmp_path, capsys):
    """The lock is that of a measurement elsewhere; when it ends, what it found is taken."""
    log, _ = tried
    work = probe.work_of(NET, (4, 16, 16), 1)
    probe.announce(work, Train(), "auto", 100)
    assert capsys.readouterr().out == "measuring how fast this net runs here, up to 600 s\n"
    probe.announce(work, Train(precision="fp32", layout="contiguous", compile="off"), "auto", 100)
    assert capsys.readouterr().out == "", "there is nothing to measure"
    chosen = []
    with open(tmp_path / f"{probe.machine()}.lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: chosen.append(choose()))
        waiting.start()
        time.sleep(0.5)
        assert not log
    waiting.join(30)
    assert len(chosen) == 1
    assert "another run is measuring on this machine; waiting for it" in capsys.readouterr().out
    count = len(log)
    assert choose() == chosen[0]
    probe.announce(work, Train(), "auto", 100)
    assert len(log) == count
    assert capsys.readouterr().out == "", "it is known already"


def test_gradients_that_vanish_explode_or_are_no_numbers_are_counted():
    plain = [1.0, 0.5, 0.002, 1e-5]
    assert trial.wrong_gradients(plain, [0.9, 0.55, 0.0021, 3e-7]) == 0  # the last is rounding
    assert trial.wrong_gradients(plain, [0.9, 0.0, 0.0, 0.0]) == 2
    assert trial.wrong_gradients(plain, [float("nan"), 0.5, 0.03, float("inf")]) == 2
    assert trial.wrong_gradients([], [1.0]) == 0  # a plain step is not compared


@pytest.mark.slow
def test_a_compiled_step_with_wrong_gradients_is_not_taken(monkeypatch, tmp_path):
    """A compiler whose code forgets gradients: the child finds out and the run goes on without it."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys
class Forgetful:
    def find_spec(self, name, path, target=None):
        if name == "emcore.engine.arithmetic.net":
            import torch
            def forget(net, **options):
                kernel = next(weight for weight in net.parameters() if weight.dim() > 1)
                kernel.register_hook(lambda gradient: gradient * 0)
                return net
            torch.compile = forget
sys.meta_path.insert(0, Forgetful())
""")
    monkeypatch.setattr(probe, "cache_folder", lambda name: tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    train, work = Train(precision="fp32", layout="contiguous"), probe.work_of(NET, (4, 16, 16), 1)
    chosen = probe.choose_mode(work, train, "cpu", 10**9)
    assert not chosen.compile
    assert "1 of " in chosen.reason
    assert "gradients of the compiled step are wrong" in chosen.reason
    with pytest.raises(InputError, match="gradients of the compiled step are wrong"):
        probe.choose_mode(work, replace(train, compile="on"), "cpu", 10**9)


@pytest.mark.long
def test_a_real_probe_takes_a_step_and_falls_back_where_there_is_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "cache_folder", lambda name: tmp_path)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    work = probe.work_of(NET, (4, 16, 16), 1)
    chosen = probe.choose_mode(work, Train(precision="fp32", layout="contiguous"), "cpu", 10**9)
    assert (chosen.precision, chosen.compile) == ("fp32", False)
    assert "it fails here" in chosen.reason
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["mode"]["precision"] == "fp32"


def test_a_run_with_nothing_to_choose_waits_for_no_measurement(monkeypatch):
    def waits():
        raise AssertionError("it takes the lock of measurements")

    monkeypatch.setattr(probe, "_alone_on_this_machine", waits)
    settings = Train(precision="fp32", layout="contiguous", compile="off")
    chosen = probe.choose_mode(probe.work_of(RSUNetModel(), (4, 16, 16), 1), settings, "cpu")
    assert (chosen.precision, chosen.layout, chosen.compile) == ("fp32", "contiguous", False)

"""The choice of arithmetic: what dies is passed over, what is fastest is taken, what is known is not tried again."""

import json
from dataclasses import replace

import pytest

from emcore.engine import mode
from emcore.errors import InputError
from emcore.settings.model import Model, RSUNetSizes
from emcore.settings.train import Train

NET = Model(out_channels=3, rsunet=RSUNetSizes(width=(4, 8)))


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Answers of the children by (precision, layout, compiled, limit); the list of what was tried."""
    monkeypatch.setattr(mode, "cache_folder", lambda name: tmp_path)
    monkeypatch.delenv(mode.LIMIT, raising=False)
    log, answers = [], {}

    def answer(work, candidate):
        if "question" in work:
            return {"device": "cpu"}, 0, ""
        key = (candidate.precision, candidate.layout, candidate.compile, candidate.instructions)
        log.append(key)
        fitting = [value for rule, value in answers.items() if all(a in (None, b) for a, b in zip(rule, key))]
        seconds = fitting[0] if fitting else 1.0
        if isinstance(seconds, str):
            return {}, 1, seconds
        return ({}, seconds, "") if seconds < 0 else ({"first": 10 * seconds, "seconds": seconds}, 0, "")

    monkeypatch.setattr(mode, "_try", answer)
    return log, answers


def choose(train=None, steps=100):
    return mode.choose_mode(NET, train or Train(), (4, 16, 16), 1, "auto", steps)


def test_the_fastest_layout_wins(tried):
    _, answers = tried
    answers[("bf16", "contiguous", None, None)] = 0.5
    assert (choose().precision, choose().layout) == ("bf16", "contiguous")


def test_arithmetic_that_kills_its_process_is_limited_and_if_that_dies_too_it_is_fp32(tried):
    log, answers = tried
    answers[("bf16", None, None, "")] = -11
    chosen = choose()
    assert (chosen.precision, chosen.instructions) == ("bf16", mode.SAFE)
    assert "because more crashes here" in chosen.reason
    assert ("bf16", "contiguous", False, "") not in log, "the other layout of what has just died is not tried"
    answers[("bf16", None, None, None)] = -11
    chosen = mode.choose_mode(NET, Train(batch=2), (4, 32, 32), 1, "auto", 100)
    assert (chosen.precision, chosen.instructions) == ("fp32", "")


def test_compilation_is_taken_where_it_pays_within_the_run_and_left_where_it_fails(tried):
    _, answers = tried
    answers[(None, None, True, None)] = 0.6
    assert choose(steps=1000).compile
    assert not choose(steps=100).compile, "too short a run to be worth the wait"
    answers[(None, None, True, None)] = "no compiler"
    chosen = mode.choose_mode(NET, Train(), (8, 16, 16), 1, "auto", 1000)
    assert not chosen.compile
    assert "it fails here" in chosen.reason


def test_a_verdict_is_kept_for_the_same_net_patch_and_settings(tried, monkeypatch):
    log, _ = tried
    first = choose()
    count = len(log)
    assert choose() == first
    assert len(log) == count
    choose(Train(precision="fp32"))
    assert len(log) > count
    count = len(log)
    monkeypatch.setattr(mode, "_nets", lambda: "other code")
    choose()
    assert len(log) > count, "the code of the nets has changed"


def test_where_nothing_runs_the_first_reason_is_told(tried):
    _, answers = tried
    answers[(None, None, None, None)] = "RuntimeError: no memory"
    with pytest.raises(InputError, match="cannot take a step on cpu: bf16 channels_last: RuntimeError: no memory"):
        choose()


def test_gradients_that_vanish_explode_or_are_no_numbers_are_counted():
    plain = [1.0, 0.5, 0.002, 1e-5]
    assert mode.wrong_gradients(plain, [0.9, 0.55, 0.0021, 3e-7]) == 0  # the last is rounding
    assert mode.wrong_gradients(plain, [0.9, 0.0, 0.0, 0.0]) == 2
    assert mode.wrong_gradients(plain, [float("nan"), 0.5, 0.03, float("inf")]) == 2
    assert mode.wrong_gradients([], [1.0]) == 0  # a plain step is not compared


@pytest.mark.slow
def test_a_compiled_step_with_wrong_gradients_is_not_taken(monkeypatch, tmp_path):
    """A compiler whose code forgets gradients: the child finds out and the run goes on without it."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys
class Forgetful:
    def find_spec(self, name, path, target=None):
        if name == "emcore.engine.arithmetic":
            import torch
            def forget(net, **options):
                kernel = next(weight for weight in net.parameters() if weight.dim() > 1)
                kernel.register_hook(lambda gradient: gradient * 0)
                return net
            torch.compile = forget
sys.meta_path.insert(0, Forgetful())
""")
    monkeypatch.setattr(mode, "cache_folder", lambda name: tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    train = Train(precision="fp32", layout="contiguous")
    chosen = mode.choose_mode(NET, train, (4, 16, 16), 1, "cpu", 10**9)
    assert not chosen.compile
    assert "1 of " in chosen.reason
    assert "gradients of the compiled step are wrong" in chosen.reason
    with pytest.raises(InputError, match="gradients of the compiled step are wrong"):
        mode.choose_mode(NET, replace(train, compile="on"), (4, 16, 16), 1, "cpu", 10**9)


@pytest.mark.slow
def test_a_real_probe_takes_a_step_and_falls_back_where_there_is_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(mode, "cache_folder", lambda name: tmp_path)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    chosen = mode.choose_mode(NET, Train(precision="fp32", layout="contiguous"), (4, 16, 16), 1, "cpu", 10**9)
    assert (chosen.precision, chosen.compile) == ("fp32", False)
    assert "it fails here" in chosen.reason
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["precision"] == "fp32"

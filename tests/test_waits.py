"""How often a training step makes the host wait for the device: once, when all of the step has been handed over.

Tensors that stand for those of a GPU remember it in everything that is computed from them, and a call that would read
a value back is noted with its place if it is one of those below. So the loop of train.py is counted without a GPU. With
fp16, which needs a GPU, the scaler of the gradients waits once more in every step.
"""

import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from emcore import config, smoke
from emcore.data import augment, distances, targets
from emcore.settings import Settings
from tests.scripts import ROOT

BACK = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__bool__,
        torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.equal, torch.Tensor.equal,
        torch.nonzero, torch.Tensor.nonzero, torch.argwhere, torch.Tensor.argwhere, torch.unique, torch.Tensor.unique,
        torch.unique_consecutive, torch.Tensor.unique_consecutive, torch.bincount, torch.Tensor.bincount,
        torch.masked_select, torch.Tensor.masked_select, torch.repeat_interleave, torch.Tensor.repeat_interleave,
        torch.allclose, torch.Tensor.allclose, torch.is_nonzero, torch.Tensor.is_nonzero}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
OVER = {torch.tensor, torch.as_tensor}
# what a run does now and then, and not in every step
SELDOM = {"validation.py", "checkpoint.py", "archive.py", "preview.py", "resume.py", "streaming.py"}
# targets and augmentations that look at the objects of a patch: they read their ids back
OBJECTS = {"augment.py:_copy_paste", "targets.py:split_pieces", "targets.py:smooth_outlines", "targets.py:partners",
           "distances.py:_distance_of_pieces", "distances.py:instance_distance", "distances.py:_dense",
           "distances.py:skeleton_distance", "decision.py:decide_mixture"}


def place() -> str:
    """File and function of this project that called torch."""
    frame = sys._getframe(2)
    while frame and (not frame.f_code.co_filename.startswith(str(ROOT)) or frame.f_code.co_filename == __file__
                     or Path(frame.f_code.co_filename).name in ("overrides.py", "_tensor.py")  # torch in .venv
                     or frame.f_code.co_name.startswith("<")):  # comprehensions are functions before Python 3.12
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" if frame else "elsewhere"


def reads_back(function, arguments, options) -> bool:
    """Whether this call of torch would wait for the values of a GPU."""
    if function in INDEXING:
        index = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        masks = any(getattr(one, "dtype", None) is torch.bool for one in index)
        # one value under a mask is filled in where it stands
        return masks and not (function is torch.Tensor.__setitem__ and is_number(arguments[2]))
    if function is torch.Tensor.to:
        return any(str(one) == "cpu" for one in (*arguments[1:], *options.values()))
    if function in (torch.where, torch.Tensor.where):
        return len(arguments) + len(options) == 1
    return function in BACK


def is_number(value) -> bool:
    return not isinstance(value, torch.Tensor) or value.dim() == 0


def stands_for_a_gpu(waits: Counter) -> type[torch.Tensor]:
    class OnDevice(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            if reads_back(function, arguments, options or {}):
                waits[place()] += 1
            return super().__torch_function__(function, types, arguments, options or {})

    return OnDevice


class Uploads(TorchFunctionMode):
    """Counts the tensors that are made of Python's numbers, by their place."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function in OVER:
            self.found[place()] += 1
        return function(*arguments, **(options or {}))


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Trains a reduced recipe; returns its steps, the places that waited and the places that uploaded."""
    def train(recipe: str) -> tuple[int, Counter, Counter]:
        waits, uploads = Counter(), Uploads()
        kind, whole = stands_for_a_gpu(waits), augment.on_device

        def tagged(batch, device):
            moved = whole(batch, device)
            return {name: tensor.as_subclass(kind) if name in augment.COMPUTED else tensor
                    for name, tensor in moved.items()}

        # what runs on a GPU, and not the compiled loops that serve a CPU
        monkeypatch.setattr(targets, "affinities", targets._affinities)
        monkeypatch.setattr(targets, "erode_borders",
                            lambda labels, radius: targets._erode_borders(labels, radius) if radius else labels)
        monkeypatch.setattr(augment, "_counts", augment._counts_without_waiting)
        monkeypatch.setattr(distances, "squared_distance", distances._squared_distance)
        monkeypatch.setattr(augment, "on_device", tagged)
        settings = config.load(Settings, ROOT / "configs" / recipe)
        small = smoke.reduced(settings, tmp_path)
        small = replace(small, data=replace(small.data, workers=0), train=replace(
            small.train, start_from="", precision="fp32", compile="off", layout="contiguous", preview_steps=0))
        (tmp_path / small.name).mkdir(parents=True)
        smoke.write_files(settings, small)
        file = tmp_path / "small.toml"
        file.write_text(config.to_toml(small))
        with uploads:
            assert runpy.run_path(str(ROOT / "train.py"))["main"](["--cfg", str(file)]) == 0
        return small.train.steps * small.train.accumulate, waits, uploads.found
    return train


def each_step(found: Counter) -> dict[str, int]:
    return {place: count for place, count in found.items() if place.split(":")[0] not in SELDOM}


RECIPES = ["cremi/cremi_clefts.toml", "demo.toml", "tissue/fib25_neurons.toml", "snemi/snemi_neurons.toml",
           "dbmim/dbmim_finetune_r29.toml", "emr50/emr50_polarity.toml", "dbmim/dbmim_pretrain_r23_full.toml",
           "tissue/synth_synapses.toml"]


@pytest.mark.parametrize("recipe", [RECIPES[0], *(pytest.param(one, marks=pytest.mark.long) for one in RECIPES[1:])])
def test_a_step_waits_once(counted, recipe):
    steps, waits, uploads = counted(recipe)
    waited = each_step(waits)
    assert waited.pop("train.py:run") == steps
    assert waited.keys() <= OBJECTS, waited
    assert not {place for place in each_step(uploads) if place.startswith(("losses.py:bce", "train.py:"))}


def test_the_count_sees_a_wait():
    waits = Counter()
    tensor = torch.arange(3).as_subclass(stands_for_a_gpu(waits))
    made = (tensor * 2 + torch.ones(3)).sum()
    assert not waits
    assert made > 8
    assert float(made) == 9.0
    assert tensor[tensor > 0].tolist() == [1, 2]
    assert sum(waits.values()) == 4


@pytest.mark.parametrize("call", [
    lambda values, mask: torch.masked_select(values, mask), lambda values, mask: values[0, mask[0]],
    lambda values, mask: values[:, mask[0]], lambda values, mask: values.__setitem__(mask, torch.zeros(3)),
    lambda values, mask: values.__setitem__((0, mask[0]), torch.zeros(3)), lambda values, mask: torch.where(mask),
    lambda values, mask: torch.argwhere(mask), lambda values, mask: values.to("cpu"),
    lambda values, mask: values[0].repeat_interleave(values[0].long()),
    lambda values, mask: torch.unique_consecutive(mask),
    lambda values, mask: torch.allclose(values, values), lambda values, mask: torch.is_nonzero(mask[0, 0]),
])
def test_every_other_way_to_read_back_is_seen(call):
    waits = Counter()
    values = torch.arange(6.0).view(2, 3).as_subclass(stands_for_a_gpu(waits))
    mask = torch.ones(2, 3, dtype=torch.bool).as_subclass(type(values))
    mask[1] = False
    values[values > 9] = 0.0
    torch.where(mask, values, 0.0).to(torch.float64)
    assert not waits
    call(values, mask)
    assert sum(waits.values()) == 1


def test_values_are_counted_alike_on_every_device():
    values = torch.randint(0, 256, (3, 1000), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augment._counts(values), augment._counts_without_waiting(values))

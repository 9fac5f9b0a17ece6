"""The arithmetic of a prediction: decided once, taken by all that join, or they say why they cannot."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from emcore.engine.arithmetic import prediction as module
from emcore.engine.arithmetic.mode import Arithmetic, fast_precision
from emcore.engine.arithmetic.net import FORMATS
from emcore.engine.arithmetic.prediction import comply, decide
from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.prediction import predict
from emcore.prediction.windows import passes
from emcore.settings import Settings
from emcore.settings.data import Data
from emcore.settings.model import (
    LightUNETRModel,
    LightUNETRSizes,
    LinearHeadModel,
    LinearHeadSizes,
    MedNeXtModel,
    MedNeXtSizes,
    RSUNetModel,
    RSUNetSizes,
    UNETRModel,
    UNETRSizes,
    UNetV1Model,
    UNetV1Sizes,
)
from emcore.settings.predict import Infer
from emcore.settings.train import Train

WINDOW = (4, 16, 16)
TOKENS = (2, 8, 8), 16, 4, 2
NETS = {
    "rsunet": (RSUNetModel(out_channels=3, rsunet=RSUNetSizes(width=(4, 8), fold=(1, 2, 2), norm="instance")), WINDOW),
    "unet_v1": (UNetV1Model(out_channels=2, unet_v1=UNetV1Sizes((16,) * 5)), (4, 32, 32)),
    "unetr": (UNETRModel(out_channels=3, transformer=UNETRSizes(*TOKENS, features=8)), WINDOW),
    "unetr_light": (LightUNETRModel(out_channels=3, transformer=LightUNETRSizes(*TOKENS, features=8)), WINDOW),
    "linear_head": (LinearHeadModel(out_channels=3, transformer=LinearHeadSizes(*TOKENS)), WINDOW),
    "mednext": (MedNeXtModel(mednext=MedNeXtSizes(width=4, heads=(("a", 2), ("b", 1)))), (32, 32, 32)),
}
PLAIN = Arithmetic("cpu", "fp32", "contiguous", False)


def settings(**infer):
    return Settings("a", data=Data(patch=WINDOW), infer=Infer(**infer), train=Train(precision="fp32"))


def small_net():
    torch.manual_seed(0)
    return build_model(NETS["rsunet"][0], WINDOW).eval()


def small_image():
    return np.random.default_rng(0).integers(0, 255, (6, 20, 20)).astype(np.uint8)


def layout_of(net):
    weight = next(weight for weight in net.parameters() if weight.dim() == 5 and min(weight.shape[:2]) > 1)
    return next(name for name, memory in FORMATS.items() if weight.is_contiguous(memory_format=memory))


def test_a_layout_is_measured_once_and_taken_by_all(monkeypatch, capsys):
    net, image = small_net(), small_image()
    before = predict(net, image, window=WINDOW)
    tries = []
    monkeypatch.setattr(module, "_seconds", lambda model, *a: tries.append(layout_of(model)) or -len(tries))
    found = decide(settings(), net, 100)
    assert found == Arithmetic("cpu", "fp32", "channels_last", False)
    assert tries == ["contiguous", "channels_last"]
    assert "measuring which memory layout predicts faster here" in capsys.readouterr().out
    assert decide(settings(), net, 3) == PLAIN, "for three windows it is not worth it"
    assert decide(settings(layout="channels_last"), net, 3).layout == "channels_last"
    assert len(tries) == 2
    other = comply(Arithmetic(**asdict(found)), settings(), small_net())
    assert layout_of(other) == "channels_last"
    np.testing.assert_allclose(predict(other, image, window=WINDOW, arithmetic=found), before, atol=1e-5)
    assert np.array_equal(predict(comply(PLAIN, settings(), other), image, window=WINDOW, arithmetic=PLAIN), before)
    assert np.array_equal(predict(small_net(), image, window=WINDOW, arithmetic=replace(PLAIN, precision="bf16")),
                          predict(small_net(), image, window=WINDOW, arithmetic="bf16"))


def test_the_layout_of_a_net_that_takes_no_smaller_window_is_measured_on_a_whole_one():
    model, window = NETS["mednext"]  # half of it leaves one voxel, which cannot be normalised
    net = build_model(model, window).eval()
    assert decide(replace(settings(), data=Data(patch=window)), net, 100).layout in FORMATS


def test_a_process_that_cannot_compute_as_decided_stops_with_one_sentence(monkeypatch):
    net, gpu = small_net(), replace(PLAIN, device="cuda", precision="bf16")

    def refused(arithmetic, sentence, chosen):
        with pytest.raises(InputError, match=f"this prediction is computed in .*, but here {sentence}"):
            comply(arithmetic, chosen, net)

    auto = replace(settings(), train=Train())
    refused(gpu, "device is cpu: set it to auto or cuda, or predict anew", replace(auto, device="cpu"))
    refused(gpu, "train.precision is fp32: set it to auto or bf16, or predict anew", settings())
    refused(PLAIN, "infer.layout is channels_last: set it to auto or contiguous", settings(layout="channels_last"))
    refused(replace(PLAIN, compile=True), "infer.compile is off: set it to auto or on", settings(compile="off"))
    comply(PLAIN, settings(compile="on"), net)  # where it was decided the compiler had failed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(gpu, r"torch .* finds no usable GPU: go on where there is one", auto)
    monkeypatch.setattr(module, "multiplies_bf16", lambda: False)
    bf16 = replace(PLAIN, precision="bf16")
    refused(bf16, r"is a processor without instructions for bf16 \(.*\): go on where there are some", auto)
    comply(bf16, replace(auto, train=Train(precision="bf16")), net)
    monkeypatch.setattr(module, "multiplies_bf16", lambda: True)
    comply(bf16, auto, net)
    monkeypatch.setattr("emcore.engine.arithmetic.mode.multiplies_bf16", lambda: False)
    assert fast_precision("auto", "cpu") == "fp32"


def test_a_compiler_that_fails_is_done_without_where_it_is_decided_and_an_error_where_it_was(monkeypatch, capsys):
    def stumbling(model, dynamic):
        def run(x):
            raise RuntimeError("no compiler here\nand much more")
        return run

    net = small_net()
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled.append(model) or model)
    chosen = settings(compile="on")
    decided = decide(chosen, net, 3)
    assert decided.compile
    expected = predict(net, small_image(), window=WINDOW)
    compiled.clear()
    assert np.array_equal(predict(net, small_image(), window=WINDOW, arithmetic=decided), expected)
    assert compiled == [net]
    monkeypatch.setattr(torch, "compile", stumbling)
    assert not decide(chosen, net, 3).compile
    assert "not compiled: no compiler here\n" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"by a compiled net, but here torch\.compile fails \(no compiler here\)"):
        predict(comply(decided, chosen, net), small_image(), window=WINDOW, arithmetic=decided)


@pytest.mark.parametrize("name", NETS)
def test_the_channels_of_a_net_are_counted_without_a_window(name, monkeypatch):
    model, window = NETS[name]
    net, calls = build_model(model, window).eval(), []
    net.register_forward_pre_hook(lambda net, images: calls.append(images[0].device.type))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    image = np.zeros((window[0], window[1] + 1, window[2]), np.uint8)
    channels = 3 if name == "mednext" else model.out_channels
    assert predict(net, image, window=window).shape == (channels, *image.shape)
    assert calls.count("cpu") == passes(image.shape, Infer(), window) == 2
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_net_that_needs_values_is_counted_by_a_window():
    class Choosy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return self.net(x) if x.max().item() >= 0 else x

    assert predict(Choosy().eval(), small_image(), window=WINDOW).shape[0] == 2

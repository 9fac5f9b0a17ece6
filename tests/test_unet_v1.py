"""The 2019 network against golden vectors of the published one."""

import math

import pytest
import torch

from emcore.errors import InputError
from emcore.models.unet_v1 import UNetV1
from emcore.settings.model import UNetV1Model, UNetV1Sizes
from emcore.systems.legacy_v1.weights import NUISANCE, from_published


def filled(net):
    """Weights of a fixed rule: tensor number t, element i, s = sin(0.7 i + 1.3 t + 0.5)."""
    state, t = net.state_dict(), 0
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        s = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + 1.3 * t + 0.5).view(tensor.shape)
        if tensor.dim() == 5:
            value = s * math.sqrt(2 / tensor[0].numel())
        elif name.endswith(("running_mean", "bias")):
            value = 0.1 * s
        else:
            value = 1 + (0.25 if name.endswith("running_var") else 0.2) * s
        tensor.copy_(value)
        t += 1
    return t


def grid(dtype=torch.float32):
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (4, 64, 64)), indexing="ij")
    return (0.5 + 0.5 * torch.sin(0.00625 * x**2 + 0.11 * y + 0.9 * z)).to(dtype), (z, y, x)


def test_it_has_the_published_tensors():
    for out, count in ((1, 7_731_922), (3, 7_733_654)):
        net = UNetV1(UNetV1Model(out_channels=out))
        assert sum(p.numel() for p in net.parameters()) == count
        assert len(list(net.parameters())) == 177
        assert len(net.state_dict()) == 336
    state = net.state_dict()
    assert state["layer4_E.0.conv.1.0.1.weight"].shape == (256, 256, 3, 3, 3)
    assert state["layer1_E.1.se.1.weight"].shape == (16, 32, 1, 1, 1)
    assert next(iter(state)).startswith("layer1_E.0.conv.0.0.1")
    small = UNetV1(UNetV1Model(unet_v1=UNetV1Sizes((8, 12, 16, 20, 24))))
    assert sum(p.numel() for p in small.parameters()) == 77_521


@pytest.mark.parametrize("out", [1, 3])
def test_its_output_is_the_published_one(out):
    net = UNetV1(UNetV1Model(out_channels=out)).eval()
    assert filled(net) == 283
    x, _ = grid()
    with torch.no_grad():
        y = net.double()(x[None, None].double())[0]
    golden = [((0, 0, 0), 0.12596435), ((0, 31, 17), 0.02838596), ((1, 5, 60), 0.38156266),
              ((2, 40, 33), 0.37431133), ((3, 63, 63), 0.12837884)]
    for place, value in golden:
        assert y[(0, *place)].item() == pytest.approx(value, abs=2e-8)
    if out == 1:
        assert y.mean().item() == pytest.approx(0.26354360, abs=1e-8)
        assert y.std().item() == pytest.approx(0.22231270, abs=5e-8)
        assert y.max().item() == pytest.approx(0.99998034, abs=1e-8)
    else:
        others = {1: [0.11981096, 0.92535735, 0.08368436, 0.06983196, 0.33699866],
                  2: [0.95623776, 0.99327706, 0.71917245, 0.73262721, 0.94827481]}
        for channel, values in others.items():
            assert [y[(channel, *place)].item() for place, _ in golden] == pytest.approx(values, abs=1e-8)


@pytest.mark.parametrize("prefix, old", [("module.", True), ("", False)])
def test_published_checkpoints_of_both_eras_load(prefix, old):
    net = UNetV1(UNetV1Model(out_channels=2))
    filled(net)
    state = {prefix + name: value for name, value in net.state_dict().items() if not (old and "tracked" in name)}
    if old:
        for name in [n for n in state if n.endswith("running_mean")]:
            for extra in NUISANCE:
                state[name.replace("running_mean", extra)] = torch.zeros(1)
    loaded = from_published(state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]) or "tracked" in name


def test_another_checkpoint_is_refused_with_the_tensors_that_differ():
    with pytest.raises(InputError, match="no unet_v1 checkpoint: it has no tensor 'layer1_E"):
        from_published({"a.weight": torch.zeros(1)})
    state = UNetV1().state_dict()
    state["extra"] = torch.zeros(1)
    del state["conv1.0.1.weight"]
    with pytest.raises(InputError, match=r"differs in 2 tensors, first conv1\.0\.1\.weight, extra"):
        from_published(state)

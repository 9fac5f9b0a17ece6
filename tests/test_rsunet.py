"""RSUNet: the parameter counts and sizes of the published nets, and the fixed up-sampling against its definition."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from emcore.models.rsunet import RSUNet, bilinear_up, enlarged, folded, unfolded
from emcore.settings.model import RSUNetModel, RSUNetSizes

SMALL, LARGE = (18, 36, 48, 64, 80), (32, 64, 96, 128, 160)


def rsunet(out_channels=1, deep_supervision=False, checkpointing=False, **sizes):
    return RSUNet(RSUNetModel(out_channels=out_channels, deep_supervision=deep_supervision,
                              checkpointing=checkpointing, rsunet=RSUNetSizes(**sizes)))


@pytest.mark.parametrize("count, options", [
    (8_904_003, dict(width=LARGE, depth_2d=1)),
    (8_904_003, dict(width=LARGE, depth_2d=1, norm="group", groups=8)),
    (8_904_069, dict(width=LARGE, depth_2d=1, out_channels=3)),
    (2_292_615, dict(width=SMALL, depth_2d=1)),
    (2_292_824, dict(width=SMALL, depth_2d=1, out_channels=12, norm="group", groups=4)),
    (9_033_603, dict(width=LARGE)),
    (8_904_040, dict(width=LARGE, depth_2d=1, act="prelu")),
    (2_333_972, dict(width=SMALL, out_channels=12)),
    (2_647_267, dict(width=(16, 32, 64, 128), act="relu", down=((1, 2, 2),) * 3)),
    (2_647_284, dict(width=(16, 32, 64, 128), act="relu", out_channels=2)),
])
def test_parameter_counts_are_the_published_ones(count, options):
    with torch.device("meta"):
        net = rsunet(**options)
    assert sum(p.numel() for p in net.parameters()) == count


def caffe_kernel(factor):
    """The bilinear filler: kernel 2f - f%2, centre (2h-1-h%2)/(2h) with h = ceil(k/2)."""
    size = 2 * factor - factor % 2
    half = math.ceil(size / 2)
    centre = (2 * half - 1 - half % 2) / (2 * half)
    return torch.tensor([1 - abs(i / half - centre) for i in range(size)], dtype=torch.float64)


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2), (1, 3, 3), (1, 4, 4), (1, 1, 1), (2, 4, 3)])
def test_up_sampling_equals_the_transposed_convolution_with_the_bilinear_kernel(factor):
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    z, y, x_axis = (caffe_kernel(f) for f in factor)
    kernel = (z[:, None, None] * y[:, None] * x_axis).expand(3, 1, -1, -1, -1)
    padding = tuple(math.ceil((f - 1) / 2) for f in factor)
    expected = functional.conv_transpose3d(x, kernel, stride=factor, padding=padding, groups=3)
    torch.testing.assert_close(bilinear_up(x, factor), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(caffe_kernel(2), torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 2, 2), (4, 1, 1), (1, 2, 2), (2, 3, 3)])
def test_up_sampling_without_weights_along_z_equals_the_kernel_that_weighs_y_and_x_alone(factor):
    # voxel by voxel, as the published net defines it
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    weights = [torch.ones(2 * factor[0] - factor[0] % 2, dtype=torch.float64), *map(caffe_kernel, factor[1:])]
    expected = torch.zeros(1, 2, *(n * f for n, f in zip(x.shape[2:], factor)), dtype=torch.float64)
    for place in itertools.product(*map(range, x.shape[2:])):
        for step in itertools.product(*(range(len(weight)) for weight in weights)):
            to = [p * f - math.ceil((f - 1) / 2) + k for p, f, k in zip(place, factor, step)]
            if all(0 <= t < n for t, n in zip(to, expected.shape[2:])):
                expected[:, :, *to] += x[:, :, *place] * math.prod(float(w[k]) for w, k in zip(weights, step))
    torch.testing.assert_close(enlarged(x, factor, "bilinear_yx"), expected, rtol=1e-12, atol=1e-12)
    if factor[0] > 1:
        assert (enlarged(x, factor, "trilinear") - expected).abs().max() > 0.3


@pytest.mark.parametrize("options, shape", [
    (dict(width=(4, 8, 12), out_channels=2), (2, 1, 4, 16, 20)),
    (dict(width=(4, 8, 12), down=((2, 2, 2),) * 2, norm="instance"), (1, 1, 8, 8, 8)),
    (dict(width=(4, 8), norm="none", act="leakyrelu", kernel=((1, 5, 5), (3, 3, 3))), (1, 1, 3, 6, 10)),
    (dict(width=(4, 8, 12), norm="group", groups=8, act="prelu", depth_2d=2), (1, 1, 5, 8, 8)),
])
def test_the_output_has_the_size_of_the_input(options, shape):
    net = rsunet(**options)
    assert net(torch.randn(shape)).shape == (shape[0], options.get("out_channels", 1), *shape[2:])


def test_deep_supervision_gives_a_head_for_what_enters_each_decoder_block():
    out = rsunet(width=(4, 8, 12), deep_supervision=True, out_channels=3)(torch.randn(1, 1, 4, 16, 16))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "output": (1, 3, 4, 16, 16), "ds_1": (1, 3, 4, 4, 4), "ds_2": (1, 3, 4, 8, 8)}


def test_checkpointing_changes_no_gradient():
    x = torch.randn(1, 1, 2, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = rsunet(width=(4, 8), checkpointing=checkpointing)
        net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, saved in zip(*gradients):
        torch.testing.assert_close(plain, saved, rtol=0, atol=0)


def test_folding_moves_every_voxel_of_a_block_into_its_channels_and_back():
    x, factor = torch.arange(2 * 3 * 4 * 6 * 4.0).view(2, 3, 4, 6, 4), (2, 3, 2)
    out = folded(x, factor)
    assert out.shape == (2, 36, 2, 2, 2)
    for z, y, x_axis in ((0, 0, 0), (3, 4, 1), (2, 5, 3)):
        inner = ((z % 2) * 3 + y % 3) * 2 + x_axis % 2
        torch.testing.assert_close(out[:, inner::12, z // 2, y // 3, x_axis // 2], x[:, :, z, y, x_axis])
    assert torch.equal(unfolded(out, factor), x)


def test_a_folding_net_answers_at_full_size_sees_farther_and_needs_larger_multiples():
    def reach(**options):
        torch.manual_seed(0)
        net = rsunet(width=(4, 8), out_channels=2, norm="none", depth_2d=2, **options).double()
        x = torch.randn(1, 1, 2, 160, 160, dtype=torch.float64, requires_grad=True)
        out = net(x * 1)  # the first activation works in place
        assert out.shape == (1, 2, 2, 160, 160)
        out[0, 0, 0, 80, 80].backward()
        return net.multiple, int((x.grad[0, 0, 0].abs().sum(0) > 0).sum())

    (plain, near), (multiple, far) = reach(), reach(fold=(1, 2, 2))
    assert (plain, multiple) == ((1, 2, 2), (1, 4, 4))
    assert far > 1.8 * near
    supervised = rsunet(width=(4, 8), fold=(1, 2, 2), deep_supervision=True)(torch.randn(1, 1, 2, 16, 16))
    assert supervised["ds_1"].shape == (1, 1, 2, 8, 8)

"""Layers with channels last: the values and gradients of torch's own layers, and the layout stays."""

import pytest
import torch
from torch import nn

from emcore.models.layers import Convolution, InstanceNorm

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def same_as(ours: nn.Module, theirs: nn.Module, x: torch.Tensor):
    ours.load_state_dict(theirs.state_dict())
    results = []
    for net in (ours, theirs):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = net(image)
        weighted = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).sin()
        results.append([out, *torch.autograd.grad((out * weighted).sum(), [image, *net.parameters()])])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert results[0][0].is_contiguous(memory_format=torch.channels_last_3d) == \
        x.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3])
def test_instance_norm_is_that_of_torch_in_both_layouts(layout, samples):
    torch.manual_seed(0)
    theirs = nn.InstanceNorm3d(5, affine=True)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    scale = torch.arange(1.0, samples + 1).view(-1, 1, 1, 1, 1)  # samples that must not share their statistics
    same_as(InstanceNorm(5), theirs, (torch.randn(samples, 5, 3, 6, 7) * scale).contiguous(memory_format=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (1, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_within_sections_is_that_of_torch_in_both_layouts(layout, kernel, bias):
    torch.manual_seed(0)
    sizes = {"padding": tuple(k // 2 for k in kernel), "bias": bias}
    same_as(Convolution(4, 6, kernel, **sizes), nn.Conv3d(4, 6, kernel, **sizes),
            torch.randn(2, 4, 3, 8, 9).contiguous(memory_format=layout))

"""Nets from [model]: every name builds, sizes are checked before any step; MedNeXt's own tests."""

import dataclasses

import pytest
import torch

from emcore.errors import InputError
from emcore.models.build import build_model, check_patch
from emcore.models.mednext import MedNeXt
from emcore.settings.model import MedNeXtSizes, Model, RSUNetSizes, TransformerSizes, UNetV1Sizes

SMALL = Model(out_channels=3, rsunet=RSUNetSizes(width=(4, 8, 8)), unet_v1=UNetV1Sizes((8, 12, 16, 20, 24)),
              transformer=TransformerSizes(patch=(4, 8, 8), width=16, depth=2, heads=4, features=4),
              mednext=MedNeXtSizes(width=4))


@pytest.mark.parametrize("name", ["rsunet", "unet_v1", "unetr", "unetr_light", "linear_head", "mednext"])
def test_every_net_gives_channels_at_the_size_of_its_patch(name):
    net = build_model(dataclasses.replace(SMALL, name=name), (16, 32, 64)).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 1, 16, 32, 64)).shape == (1, 3, 16, 32, 64)


def test_a_patch_that_does_not_fit_is_told_with_the_two_nearest():
    with pytest.raises(InputError, match=r"patch of \[18, 250, 256\] does not fit .* multiples of \[1, 16, 16\]; the "
                                         r"nearest that fit are \[18, 240, 256\] or \[18, 256, 256\]"):
        build_model(Model(), (18, 250, 256))
    with pytest.raises(InputError, match=r"nearest that fit are \[16, 16, 16\]"):
        check_patch(MedNeXt(width=2), (8, 16, 16))


def test_options_that_a_net_does_not_have_are_refused():
    for option in ("deep_supervision", "checkpointing"):
        with pytest.raises(InputError, match=f"model.{option} needs the net rsunet or mednext; got unetr"):
            build_model(Model(name="unetr", **{option: True}), (32, 160, 160))


def test_mednext_s_has_the_size_of_the_paper():
    assert 5.4e6 < sum(p.numel() for p in MedNeXt().parameters()) < 5.8e6


def test_mednext_gives_one_tensor_a_head_or_a_level():
    x = torch.rand(1, 1, 16, 16, 32)
    heads = MedNeXt(width=4, heads={"aff": 3, "sdt": 1})(x)
    shapes = {name: tuple(value.shape[1:]) for name, value in heads.items()}
    assert shapes == {"aff": (3, 16, 16, 32), "sdt": (1, 16, 16, 32)}
    levels = MedNeXt(width=4, out_channels=2, deep_supervision=True)(x)
    assert [tuple(levels[name].shape[1:]) for name in ("output", "ds_1", "ds_4")] == [
        (2, 16, 16, 32), (2, 1, 1, 2), (2, 8, 8, 16)]


def test_mednext_refuses_what_it_cannot_be():
    with pytest.raises(InputError, match="size of mednext must be one of S, B, M, L; got 'XL'"):
        MedNeXt(size="XL")
    with pytest.raises(InputError, match="either several heads or deep supervision"):
        MedNeXt(heads={"a": 1}, deep_supervision=True)
    with pytest.raises(InputError, match="must be odd"):
        MedNeXt(kernel=4)

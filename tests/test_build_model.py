"""Nets from [model]: every name builds, sizes are checked before any step; MedNeXt's own tests."""

import pytest
import torch

from emcore import config
from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.models.mednext import MedNeXt
from emcore.settings.model import (
    EncoderSizes,
    MaskedAutoencoderModel,
    MedNeXtModel,
    MedNeXtSizes,
    Model,
    RSUNetModel,
)

TOKENS = {"patch": [4, 8, 8], "width": 16, "depth": 2, "heads": 4}
SMALL = {
    "rsunet": {"rsunet": {"width": [4, 8, 8]}}, "unet_v1": {"unet_v1": {"filters": [8, 12, 16, 20, 24]}},
    "unetr": {"transformer": {**TOKENS, "features": 4}}, "unetr_light": {"transformer": {**TOKENS, "features": 4}},
    "linear_head": {"transformer": TOKENS}, "mednext": {"mednext": {"width": 4}},
}


@pytest.mark.parametrize("name", list(SMALL))
def test_every_net_gives_channels_at_the_size_of_its_patch(name):
    model = config.from_table(Model, {"name": name, "out_channels": 3, **SMALL[name]})
    net = build_model(model, (16, 32, 64)).eval()
    assert len(net.state_dict()) >= model.layers
    with torch.no_grad():
        assert net(torch.rand(1, 1, 16, 32, 64)).shape == (1, 3, 16, 32, 64)


def test_a_patch_that_does_not_fit_is_told_with_the_two_nearest():
    with pytest.raises(InputError, match=r"patch of \[18, 250, 256\] does not fit .* multiples of \[1, 16, 16\]; the "
                                         r"nearest that fit are \[18, 240, 256\] or \[18, 256, 256\]"):
        build_model(RSUNetModel(), (18, 250, 256))
    with pytest.raises(InputError, match=r"nearest that fit are \[16, 16, 16\]"):
        build_model(MedNeXtModel(), (8, 16, 16))
    with pytest.raises(InputError, match="masked_autoencoder predicts nothing"):
        build_model(MaskedAutoencoderModel(transformer=EncoderSizes(depth=1)), (32, 160, 160))


def test_mednext_s_has_the_size_of_the_paper():
    assert 5.4e6 < sum(p.numel() for p in MedNeXt().parameters()) < 5.8e6


def test_mednext_gives_one_tensor_a_head_or_a_level():
    x = torch.rand(1, 1, 16, 16, 32)
    heads = MedNeXt(MedNeXtModel(mednext=MedNeXtSizes(width=4, heads=(("aff", 3), ("sdt", 1)))))(x)
    shapes = {name: tuple(value.shape[1:]) for name, value in heads.items()}
    assert shapes == {"aff": (3, 16, 16, 32), "sdt": (1, 16, 16, 32)}
    levels = MedNeXt(MedNeXtModel(out_channels=2, deep_supervision=True, mednext=MedNeXtSizes(width=4)))(x)
    assert [tuple(levels[name].shape[1:]) for name in ("output", "ds_1", "ds_4")] == [
        (2, 16, 16, 32), (2, 1, 1, 2), (2, 8, 8, 16)]


@pytest.mark.parametrize("table, says", [
    ({"name": "mednext", "mednext": {"size": "XL"}}, "model.mednext.size must be one of 'S', 'B', 'M', 'L', got 'XL'"),
    ({"name": "mednext", "mednext": {"heads": [["a", 1]]}, "deep_supervision": True},
     "model.deep_supervision does not go with several heads"),
    ({"name": "mednext", "mednext": {"kernel": 4}}, "model.mednext.kernel must be odd; got 4"),
    ({"rsunet": {"width": [8]}}, "model.rsunet.width needs at least 2 levels"),
    ({"rsunet": {"width": [8, 8, 8], "down": [[1, 2, 2]]}}, "model.rsunet.down needs 2 factors for 3 widths; got 1"),
    ({"rsunet": {"norm": "layer"}}, "model.rsunet.norm must be one of"),
    ({"rsunet": {"fold": [1, 0, 1]}}, r"model.rsunet.fold\[1\] must be at least 1; got 0"),
    ({"name": "unetr", "transformer": {"heads": 5}}, "model.transformer.width must be a multiple of .* heads, 5"),
])
def test_sizes_that_no_net_can_have_are_refused(table, says):
    with pytest.raises(InputError, match=says):
        config.from_table(Model, table, "model")

"""Lightning files of the published RSUNet and dbMiM's files become ours, and nothing in them is run."""

import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import config
from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.models.unetr import UNETR
from emcore.settings import Settings
from emcore.settings.model import UNETRModel, UNETRSizes
from emcore.systems.checkpoints import load_model
from emcore.systems.dbmim.published import translated
from emcore.systems.pytc.checkpoint import BLOCK, import_checkpoint, main
from emcore.volumes import create_volume, open_volume
from tests.scripts import run_script
from tests.test_unetr_mae import LARGE, autoencoder, fill

LEVELS = 3
SETTINGS = dict(name="t", data=dict(patch=[4, 16, 16]), model=dict(
    out_channels=2, rsunet=dict(width=[4, 6, 8], depth_2d=1, norm="group", groups=2, act="prelu")))


def settings(**rsunet):
    table = {**SETTINGS, "model": {**SETTINGS["model"], "rsunet": {**SETTINGS["model"]["rsunet"], **rsunet}}}
    return config.from_table(Settings, table)


def published_name(name):
    """Our name as the published net has it, written down once more, from our side."""
    ends = {"tail.0": "final_norm.norm", "tail.1": "final_norm.act", "tail.2": "output_head"}
    for ours, theirs in ends.items():
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    side, level, rest = re.fullmatch(r"(encoder|decoder|lateral)\.(\d+)\.(.*)", name).groups()
    up = LEVELS - 2 - int(level)
    if side == "lateral":
        return f"up_blocks.{up}.proj.{rest}"
    place = f"up_blocks.{up}.conv" if side == "decoder" else (
        "input_conv" if level == "0" else f"down_blocks.{int(level) - 1}.conv")
    theirs = next(theirs + rest[len(ours):] for theirs, ours in BLOCK if rest.startswith(ours))
    return f"{place}.{theirs}"


class Custom:
    """What a config object of another package is to the reader."""

    touched = False

    def __init__(self):
        self.values = {"a": [1, 2]}

    def __setstate__(self, state):
        Custom.touched = True


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters."""


class Evil:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return self.function, ("open('/tmp/emcore-was-here', 'w')",)


def lightning(path, net, average=None, **more):
    state = OrderedDict((f"model.{published_name(name)}", value) for name, value in net.state_dict().items())
    state["model.up_blocks.0.up.weight"] = torch.ones(8, 1, 1, 4, 4)
    callbacks = {"ModelCheckpoint{'monitor': 'x'}": {"best_model_path": "a"}}
    if average is not None:
        callbacks["EMAWeightsCallback"] = {"decay": 0.999, "updates": 12, "ema_state": {
            published_name(name): value for name, value in average.items()}}
    torch.save({"epoch": 3, "global_step": 77, "pytorch-lightning_version": "2.5.0", "state_dict": state,
                "callbacks": callbacks, "optimizer_states": [{"state": {}}], **more}, path)


@pytest.mark.parametrize("rsunet", [{}, {"norm": "batch", "act": "elu"}])
def test_a_lightning_file_becomes_ours_with_its_averaged_weights(tmp_path, rsunet, capsys):
    wanted = settings(**rsunet)
    net = build_model(wanted.model, wanted.data.patch)
    average = {name: value + 1 if value.is_floating_point() else value for name, value in net.named_parameters()}
    lightning(tmp_path / "last.ckpt", net, average, hyper_parameters=AttributeDict(cfg=Custom(), folder=Path("x")))
    (tmp_path / "x.toml").write_text(config.to_toml(wanted))
    assert main([str(tmp_path / "last.ckpt"), "-o", str(tmp_path / "ours.pt"), "--cfg", str(tmp_path / "x.toml")]) == 0
    assert "tensors of step 77, averaged over 12 updates" in capsys.readouterr().out
    assert not Custom.touched
    content = checkpoint.read(tmp_path / "ours.pt")
    assert all(torch.equal(content["model"][name], value) for name, value in net.state_dict().items())
    loaded = load_model(tmp_path / "ours.pt")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in average.items())
    assert checkpoint.start_from(build_model(wanted.model, wanted.data.patch), content, tmp_path / "ours.pt", (), ())


def forward(state, image, factors, depth_2d):
    """The logits of the published net, written from its description and from the names of its own file."""
    elu, levels = torch.nn.functional.elu, len(factors)

    def norm_act(x, name):
        return elu(torch.nn.functional.batch_norm(x, *(state[f"{name}.norm.{part}"] for part in (
            "running_mean", "running_var", "weight", "bias"))))

    def convolved(x, name):
        kernel = state[f"{name}.weight"]
        return torch.nn.functional.conv3d(x, kernel, padding=tuple(n // 2 for n in kernel.shape[2:]))

    def block(x, name):
        x = convolved(norm_act(x, f"{name}.pre.0"), f"{name}.pre.1")
        inner = convolved(norm_act(x, f"{name}.res.norm_act1"), f"{name}.res.conv1")
        x = x + convolved(norm_act(inner, f"{name}.res.norm_act2"), f"{name}.res.conv2")
        return convolved(norm_act(x, f"{name}.post.0"), f"{name}.post.1")

    def enlarged(x, factor):
        assert factor[1:] == (2, 2)
        weight = torch.tensor([0.25, 0.75, 0.75, 0.25])
        kernel = (weight[:, None] * weight).expand(x.shape[1], 1, 2 * factor[0] - factor[0] % 2, 4, 4)
        padding = tuple(-(-(f - 1) // 2) for f in factor)
        return torch.nn.functional.conv_transpose3d(x, kernel, stride=factor, padding=padding, groups=x.shape[1])

    x, skips = block(image, "input_conv"), []
    for level, factor in enumerate(factors):
        skips.append(x)
        x = block(torch.nn.functional.max_pool3d(x, factor), f"down_blocks.{level}.conv")
    for number in range(levels):
        level = levels - 1 - number
        x = convolved(enlarged(x, factors[level]), f"up_blocks.{number}.proj") + skips[level]
        x = block(x, f"up_blocks.{number}.conv")
    return torch.nn.functional.conv3d(norm_act(x, "final_norm"), state["output_head.weight"],
                                      state["output_head.bias"])


@pytest.mark.parametrize("arch, factors", [
    ("rsunet, rsunet: {down_factors: [[2, 2, 2], [1, 2, 2]], ", ((2, 2, 2), (1, 2, 2))),
    ("rsunet, rsunet: {", ((1, 2, 2), (1, 2, 2))),
    ("rsunet_iso, rsunet: {", ((2, 2, 2), (2, 2, 2)))])
def test_an_imported_net_with_a_factor_along_z_predicts_as_the_published_one(tmp_path, arch, factors):
    pytest.importorskip("yaml")
    from emcore.systems.pytc.config import import_config
    kind, rest = arch.split(",", 1)
    more = "" if "down" in arch or "iso" in arch else "down_factors: [[1, 2, 2], [1, 2, 2]], "
    (tmp_path / "net.yaml").write_text(
        f"model: {{arch: {{type: {kind}}}, out_channels: 2, {rest}{more}width: [4, 6, 8], norm: batch, "
        "activation: elu, depth_2d: 1}}\ndata: {dataloader: {patch_size: [8, 16, 16]}}")
    wanted = import_config(tmp_path / "net.yaml")[0]
    net = build_model(wanted.model, wanted.data.patch)
    random = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=random) + 0.5 if "running_var" in name else
                        torch.randn(value.shape, generator=random) * 0.4)
    lightning(tmp_path / "last.ckpt", net)
    content = import_checkpoint(tmp_path / "last.ckpt", wanted)
    checkpoint.save(tmp_path / "ours.pt", content)
    image = torch.rand((1, 1, 8, 16, 16), generator=random)
    state = {published_name(name): value for name, value in net.state_dict().items()}
    with torch.no_grad():
        expected, found = forward(state, image, factors, 1), load_model(tmp_path / "ours.pt")(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if factors[0][0] == 1:
        return
    del content["config"]["model"]["rsunet"]["up"]  # a file from before there was a choice
    checkpoint.save(tmp_path / "old.pt", content)
    assert load_model(tmp_path / "old.pt").up == "trilinear"
    with pytest.raises(InputError, match=r'set model\.rsunet\.up = "bilinear_yx"; it is trilinear'):
        import_checkpoint(tmp_path / "last.ckpt", config.from_table(Settings, {
            "name": "t", "model": content["config"]["model"]}))


def test_without_averaged_weights_the_plain_ones_are_taken(tmp_path):
    net = build_model(settings().model, (4, 16, 16))
    lightning(tmp_path / "last.ckpt", net)
    assert import_checkpoint(tmp_path / "last.ckpt", settings())["ema"] is None


def test_their_instance_norm_has_no_scale(tmp_path):
    wanted = settings(norm="instance", act="elu")
    net = build_model(wanted.model, (4, 16, 16))
    lightning(tmp_path / "full.ckpt", net)
    content = torch.load(tmp_path / "full.ckpt", weights_only=True)
    content["state_dict"] = {name: value for name, value in content["state_dict"].items() if "norm." not in name}
    torch.save(content, tmp_path / "last.ckpt")
    found = import_checkpoint(tmp_path / "last.ckpt", wanted)["model"]
    assert found["encoder.0.pre.0.weight"].tolist() == [1.0]
    assert torch.equal(found["encoder.1.pre.2.weight"], net.state_dict()["encoder.1.pre.2.weight"])


def test_a_file_that_wants_to_run_something_runs_nothing(tmp_path):
    mark = Path("/tmp/emcore-was-here")
    mark.unlink(missing_ok=True)
    net = build_model(settings().model, (4, 16, 16))
    lightning(tmp_path / "last.ckpt", net, hyper_parameters=Evil(os.system))
    with pytest.raises(InputError, match="could run code, so it is not read"):
        import_checkpoint(tmp_path / "last.ckpt", settings())
    for function in (eval, exec):  # a stand-in takes their place
        lightning(tmp_path / "last.ckpt", net, hyper_parameters=Evil(function))
        import_checkpoint(tmp_path / "last.ckpt", settings())
    assert not mark.exists()


def test_another_net_is_refused_with_the_first_five_tensors(tmp_path):
    net = build_model(settings().model, (4, 16, 16))
    lightning(tmp_path / "last.ckpt", net)
    with pytest.raises(InputError, match=r"belongs to another net .* tensors differ, first encoder\.\S+ \(") as error:
        import_checkpoint(tmp_path / "last.ckpt", settings(width=[4, 6, 10]))
    assert str(error.value).count(" against ") == 5
    with pytest.raises(InputError, match="key names of RSUNet alone"):
        import_checkpoint(tmp_path / "last.ckpt", config.from_table(Settings, {"name": "t", "model": {
            "name": "mednext"}}))
    for content, sentence in (({"a": 1}, "it has no state_dict; it has a"), ([1], "holds a list")):
        torch.save(content, tmp_path / "odd.ckpt")
        with pytest.raises(InputError, match=sentence):
            import_checkpoint(tmp_path / "odd.ckpt", settings())
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"not a whole checkpoint|holds more than"):
        import_checkpoint(tmp_path / "cut.ckpt", settings())


# what the published files say of themselves
DBMIM = {"model": {"architecture": "unetr_aniso_em", "in_channels": 1, "out_channels": 3,
                   "volume_size": [32, 160, 160], "patch_size": [4, 16, 16], "embed_dim": 192, "depth": 6,
                   "num_heads": 6, "feature_size": 32, "dropout": 0.05, "em_refine_depth": 2,
                   "channel_bias_init": [-0.2, 0.0, 0.0]}, "train": {"lr": 8.0e-05}}


def test_the_published_pretraining_gives_77_tensors_to_a_net_of_any_size(tmp_path):
    net = fill(autoencoder())
    said = {**DBMIM, "model": {**DBMIM["model"], "architecture": "dbmim"}}
    torch.save({"model": net.state_dict(), "decision_module": None, "optimizer": {"state": {}}, "epoch": 1,
                "policy_optimizer": None, "global_step": 160_000, "config": said}, tmp_path / "pretrained_latest.pt")
    path = tmp_path / "pretrained_latest.pt"
    content = translated(checkpoint.read(path))
    taken = checkpoint.start_from(UNETR(UNETRModel(out_channels=3), LARGE), content, path, (), ())
    assert len(taken) == 77
    prefixes = ("patch_embed", "pos_embed", "encoder_blocks", "norm.")
    small = UNETR(UNETRModel(out_channels=3), (16, 64, 64))
    assert len(checkpoint.start_from(small, content, path, prefixes, ())) == 77
    assert small.pos_embed.shape[1] == 4 * 4 * 4
    with pytest.raises(InputError, match=r"masked_autoencoder predicts nothing: .* are taken by train\.start_from"):
        load_model(path)


def test_the_published_finetuned_net_predicts_as_it_is(tmp_path):
    net = fill(UNETR(UNETRModel(out_channels=3), LARGE))
    torch.save({"model": net.state_dict(), "postprocess": None, "optimizer": {}, "epoch": 9, "global_step": 12_000,
                "best_score": 0.5, "config": DBMIM, "last_eval": {}}, tmp_path / "finetuned_latest.pt")
    loaded = load_model(tmp_path / "finetuned_latest.pt")
    assert len(loaded.state_dict()) == 214
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert checkpoint.step_of(translated(checkpoint.read(tmp_path / "finetuned_latest.pt"))) == 12_000


@pytest.mark.parametrize("architecture, tensors", [("paper_unetr", 192), ("unetr", 124), ("mae_head", 79)])
def test_the_other_published_architectures_are_known_by_all_their_names(tmp_path, architecture, tensors):
    from emcore.settings.model import Model
    content = translated({"config": {**DBMIM, "model": {**DBMIM["model"], "architecture": architecture}}})
    table, patch = content["config"]["model"], content["config"]["data"]["patch"]
    with torch.device("meta"):
        net = build_model(config.from_table(Model, table, "model"), tuple(patch))
    assert len(net.state_dict()) == tensors


@pytest.mark.slow
def test_infer_predicts_from_a_published_file_as_it_is(tmp_path):
    sizes = UNETRSizes(patch=(2, 8, 8), width=16, depth=4, heads=4, features=8)
    net = UNETR(UNETRModel(out_channels=3, transformer=sizes), (8, 32, 32))
    said = {"model": {"architecture": "unetr_aniso_em", "volume_size": [8, 32, 32], "patch_size": [2, 8, 8],
                      "embed_dim": 16, "depth": 4, "num_heads": 4, "feature_size": 8, "out_channels": 3}}
    torch.save({"model": net.state_dict(), "global_step": 12, "config": said}, tmp_path / "finetuned_latest.pt")
    image = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    with create_volume(tmp_path / "a.h5:raw", image.shape, image.dtype) as out:
        out[...] = image
    (tmp_path / "x.toml").write_text("name = 't'\n[data]\npatch = [8, 32, 32]\ntest = [{image = 'a.h5:raw'}]\n"
                                     "[[target]]\nkind = 'affinity'\n[train]\nprecision = 'fp32'\n")
    done = run_script("infer.py", "--cfg", "x.toml", "--checkpoint", "finetuned_latest.pt", "device=cpu",
                      place=tmp_path)
    assert done.returncode == 0, done.stderr
    found = open_volume(tmp_path / "outputs" / "t_weights=finetuned_latest" / "test_im_prediction.h5")
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(image / np.float32(255))[None, None]).sigmoid()[0]
    assert found.attrs["offsets"] == [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    assert np.abs(found[...] - expected.numpy()).max() < 0.02  # intensities by the volume's range, near 0..255

"""Losses against golden values, by hand, and the plan around them."""

import math

import pytest
import torch
from torch.nn import functional

from emcore import config
from emcore.data.targets import FALSE, IGNORE
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.steps import Supervised
from emcore.errors import InputError
from emcore.losses import LOSSES, LossPlan, class_balance, shrink
from emcore.models.unet_v1 import UNetV1
from emcore.settings import Settings
from emcore.settings.channels import channels_of
from emcore.settings.checks import check_terms
from emcore.settings.loss import BceTerm, DiceTerm, LegacyBceTerm, Loss
from emcore.settings.model import MedNeXtModel, MedNeXtSizes, RSUNetModel, UNETRModel, UNetV1Model


@pytest.fixture
def fixture():
    x = torch.linspace(-2, 2, 16).view(1, 2, 2, 2, 2)
    y = (torch.arange(16) % 3 == 0).float().view(1, 2, 2, 2, 2)
    w = torch.ones(1, 2, 2, 2, 2)
    w[0, 0, 0] = 0
    return x, y, w


@pytest.mark.parametrize("masked, value, options", [
    (False, 0.86436, dict(kind="bce")), (True, 0.822439, dict(kind="bce")),
    (False, 1.540167, dict(kind="bce", positive_weight=3.0)),
    (False, 2.179258, dict(kind="per_channel_bce")), (True, 2.0514, dict(kind="per_channel_bce")),
    (False, 0.599953, dict(kind="dice")), (False, 1.886111, dict(kind="mse")),
    (True, 0.482902, dict(kind="mse", tanh=True)), (True, 0.822222, dict(kind="mae")),
    (False, 0.404265, dict(kind="smooth_l1", tanh=True))])
def test_golden_values(fixture, masked, value, options):
    x, y, w = fixture
    assert plan(**options)(x, y, w if masked else None).total.item() == pytest.approx(value, abs=2e-6)


def test_weights_that_a_prediction_saw_first_serve_a_training_and_may_be_a_list(fixture):
    x, y, w = fixture
    for given in (3.125, [3.125, 3.125]):  # a number that no other test has sent to the device
        with torch.inference_mode():
            plan(positive_weight=given)(x, y, w)
        prediction = x.clone().requires_grad_()
        plan(positive_weight=given)(prediction, y, w).total.backward()
        assert prediction.grad.abs().sum() > 0


def plan(**options):
    kind = options.pop("kind", "bce")
    return LossPlan(Loss((next(term for term in LOSSES if term.kind == kind)(**options),)))


def test_automatic_weights_count_only_what_is_valid_and_are_capped():
    target = torch.tensor([1.0, 0, 0, 0, 1, 1]).view(1, 1, 1, 1, 6)
    valid = torch.tensor([1.0, 1, 1, 0, 0, 0]).view(1, 1, 1, 1, 6)
    zeros = torch.zeros(1, 1, 1, 1, 6)
    value = plan(positive_weight="auto")(zeros, target, valid).total
    assert value.item() == pytest.approx(math.log(2) * (2 + 1 + 1) / 3)
    rare = torch.zeros(1, 1, 1, 1, 32)
    rare[..., 0] = 1
    value = plan(positive_weight="auto")(torch.zeros_like(rare), rare).total
    assert value.item() == pytest.approx(math.log(2) * (10 + 31) / 32)
    for empty in (torch.zeros_like(rare), torch.ones_like(rare)):
        assert plan(positive_weight="auto")(torch.zeros_like(rare), empty).total.item() == pytest.approx(math.log(2))


def test_a_channel_without_any_valid_voxel_costs_nothing_and_gives_no_nan():
    x, y = torch.randn(1, 2, 2, 2, 2, requires_grad=True), torch.ones(1, 2, 2, 2, 2)
    valid = torch.zeros(1, 2, 2, 2, 2)
    for kind in ("bce", "per_channel_bce", "mse", "sigmoid_mse", "focal"):
        loss = plan(kind=kind)(x, y, valid).total
        assert loss.item() == 0
        loss.backward()
        assert torch.isfinite(x.grad).all()


def test_halves_give_both_classes_the_same_weight():
    target = torch.tensor([0.0, 0, 0, 1]).view(1, 1, 1, 1, 4)
    weights = class_balance(BceTerm(balance="halves"), target)
    assert weights.flatten().tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])
    assert class_balance(BceTerm(balance="halves"), torch.zeros(1, 1, 1, 1, 4)).unique().tolist() == [1]


def test_the_legacy_rules_weigh_as_published():
    label = torch.zeros(1, 1, 1, 20, 20)
    label.view(-1)[:10] = 1
    later = class_balance(LegacyBceTerm(balance="positive"), label).flatten()
    first = class_balance(LegacyBceTerm(balance="negative"), label).flatten()
    assert (later[0].item(), later[-1].item()) == pytest.approx((39, 1))
    assert (first[0].item(), first[-1].item()) == pytest.approx((1, 0.025641), abs=1e-6)
    chance = torch.full_like(label, 0.3)
    for balance, value, empty in (("negative", 0.0390162, 0.0), ("positive", 1.5216314, 0.3566750)):
        assert plan(kind="legacy_bce", balance=balance)(chance, label).total.item() == pytest.approx(value, abs=1e-6)
        nothing = plan(kind="legacy_bce", balance=balance)(chance, torch.zeros_like(label)).total
        assert nothing.item() == pytest.approx(empty, abs=1e-6)


def test_training_the_2019_network_gives_the_published_loss_and_gradients():
    from tests.test_unet_v1 import filled, grid
    x, (z, y, x_axis) = grid(torch.float64)
    other = 0.5 + 0.5 * torch.cos(0.03 * y**2 / 7 + 0.17 * x_axis - 0.4 * z)
    batch = torch.stack([x, other])[:, None]
    label = (batch > 0.97).double()
    names = ["layer1_E.0.conv.0.0.1.weight", "center.1.se.1.weight", "layer3_D.0.conv.1.0.1.weight", "fconv.0.1.weight"]
    golden = {"negative": (0.17953344, 0.943675086, [1.48299788e-2, 1.82130942e-4, 3.38350483e-2, 0.834985107]),
              "positive": (1.46117770, 7.69808591, [1.22898464e-1, 1.51132166e-3, 2.80462386e-1, 6.78104640])}
    for balance, (loss, norm, parts) in golden.items():
        net = UNetV1()
        filled(net)
        value = plan(kind="legacy_bce", balance=balance)(net.double()(batch), label).total
        assert value.item() == pytest.approx(loss, rel=1e-5)
        value.backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        assert math.sqrt(sum(g.square().sum().item() for g in gradients.values())) == pytest.approx(norm, rel=1e-4)
        assert [gradients[name].norm().item() for name in names] == pytest.approx(parts, rel=1e-3)


def test_dice_and_focal_and_cross_entropy_by_hand():
    target = torch.tensor([1.0, 0]).view(1, 1, 1, 1, 2)
    zeros = torch.zeros(1, 1, 1, 1, 2)
    assert plan(kind="dice", smooth=0.0)(zeros, target).total.item() == pytest.approx(1 - 2 * 0.5 / 2)
    assert plan(kind="focal", gamma=2.0)(zeros, target).total.item() == pytest.approx(0.25 * math.log(2))
    logits = torch.tensor([[0.0, 0], [0, 0], [math.log(2), 0]]).view(1, 3, 1, 1, 2)
    classes = torch.tensor([2.0, 1]).view(1, 1, 1, 1, 2)
    value = plan(kind="weighted_ce", class_weights=(1.0, 3.0, 1.0))(logits, classes).total
    assert value.item() == pytest.approx((1 * math.log(2) + 3 * math.log(3)) / 4)
    half = torch.tensor([1.0, 0]).view(1, 1, 1, 1, 2)
    value = plan(kind="weighted_ce")(logits, classes, half).total
    assert value.item() == pytest.approx(math.log(2))


def test_slices_pick_channels_and_wrong_ones_are_told_before_the_first_step():
    assert channels_of("0:-1", 6, "x") == slice(0, 5)
    assert channels_of("-1:", 6, "x") == slice(5, 6)
    assert channels_of("-1", 6, "x") == slice(5, 6)
    assert channels_of(":", 6, "x") == slice(0, 6)
    for wrong, count in (("0:-2", 2), ("7:", 6), ("a", 6), ("6", 6), ("0:2:1", 6), ("", 6)):
        with pytest.raises(InputError, match="names no channels of the"):
            channels_of(wrong, count, "loss.terms.0.prediction")
    x = torch.randn(1, 3, 1, 2, 2)
    y = torch.zeros(1, 2, 1, 2, 2)
    part = LossPlan(Loss((BceTerm(prediction="1:", target=":"),)))
    torch.testing.assert_close(part(x, y).total, plan()(x[:, 1:], y).total)
    three, heads = RSUNetModel(out_channels=3), MedNeXtModel(mednext=MedNeXtSizes(heads=(("aff", 3), ("sdt", 1))))
    for options, net, targets, says in (
            ({}, three, 2, "loss.terms.0 compares 3 prediction channels with 2 target channels"),
            ({"kind": "weighted_ce"}, three, 2, "needs one target channel of class numbers; got 2"),
            ({}, heads, 4, "head is ''; the net has the heads aff, sdt"),
            ({"head": "aff"}, three, 3, "head is 'aff'; the net rsunet has no heads to choose from"),
            ({"kind": "legacy_bce"}, three, 3, "legacy_bce takes probabilities; the net rsunet gives logits")):
        with pytest.raises(InputError, match=says):
            check_terms(plan(**options).loss, net, targets)
    check_terms(plan(head="aff", target="0:3").loss, heads, 4)
    check_terms(plan(kind="legacy_bce").loss, UNetV1Model(), 1)
    with pytest.raises(InputError, match="positive_weight needs 1 or 2 values, got 3"):
        plan(positive_weight=(1.0, 2.0, 3.0))(y, y)


def test_predictions_are_limited_and_computed_in_fp32():
    x = torch.full((1, 1, 1, 1, 1), 500.0)
    assert plan()(x, torch.zeros_like(x)).total.item() == pytest.approx(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = plan(kind="mse")(torch.full((1, 1, 1, 1, 1), 1.2345), torch.zeros(1, 1, 1, 1, 1)).total
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1.2345**2)


def test_uncertainty_balances_and_learns():
    balanced = LossPlan(Loss((BceTerm(), DiceTerm(weight=2.0)), uncertainty=True))
    x, y = torch.randn(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    value = balanced(x, y)
    assert value.total.item() == pytest.approx(0.5 * (value.terms[0] + 2 * value.terms[1]).item(), rel=1e-6)
    value.total.backward()
    assert balanced.balance.grad.abs().min() > 0


def test_heads_and_levels_are_summed():
    y = torch.tensor([[1.0, 0, 0, 1]]).view(1, 1, 1, 1, 4)
    heads = LossPlan(Loss((BceTerm(head="a"), BceTerm(head="b", weight=3.0))))
    a, b = torch.randn(1, 1, 1, 1, 4), torch.randn(1, 1, 1, 1, 4)
    torch.testing.assert_close(heads({"a": a, "b": b}, y).total, plan()(a, y).total + 3 * plan()(b, y).total)
    coarse, middle = torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 2)
    levels = plan()({"output": a, "ds_1": coarse, "ds_2": middle}, y)
    small = [plan()(level, shrink(y, level.shape[2:], "value")).total for level in (middle, coarse)]
    torch.testing.assert_close(levels.total, plan()(a, y).total + 0.5 * small[0] + 0.25 * small[1])
    torch.testing.assert_close(levels.terms[0], plan()(a, y).total)


def test_a_coarse_voxel_counts_only_if_all_of_it_does():
    mask = torch.tensor([1.0, 1, 0, 1]).view(1, 1, 1, 1, 4)
    assert shrink(mask, torch.Size((1, 1, 2)), "least").flatten().tolist() == [1, 0]
    classes = torch.tensor([2.0, 2, 0, 1]).view(1, 1, 1, 1, 4)
    assert set(shrink(classes, torch.Size((1, 1, 2)), "value").flatten().tolist()) <= {0.0, 1.0, 2.0}


@pytest.mark.slow
def test_the_losses_of_masked_finetuning_are_the_published_ones():
    from emcore.models.unetr import UNETR
    from tests.test_unetr_mae import fill
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (32, 160, 160)), indexing="ij")
    image = 0.5 + 0.25 * torch.sin(0.9 * z + 0.05 * y) + 0.25 * torch.cos(0.13 * x - 0.07 * y)
    image = image.clamp(0, 1).float()[None, None]
    label = (1 + z // 8 + 4 * (y // 40) + 16 * (x // 32)).long()
    label[(y % 40 == 0) | (x % 32 == 0)] = 0
    target = torch.stack([torch.where(label.roll(1, axis) == label, (label > 0), False) for axis in range(3)]).float()
    for axis in range(3):  # the first plane has no earlier neighbour: its own foreground stands there
        target[axis].select(axis, 0).copy_((label > 0).float().select(axis, 0))
    target = target[None]
    assert target.mean((0, 2, 3, 4)).tolist() == pytest.approx([0.85598147, 0.92031252, 0.9140625], abs=1e-6)
    with torch.no_grad():
        logits = fill(UNETR(UNETRModel(out_channels=3), (32, 160, 160)))(image)
    maws = dict(membrane_weight=0.75, channel_weights=(1.35, 1.0, 1.0))
    for value, options in [
            (0.24219228, dict(kind="sigmoid_mse", **maws)),
            (0.24274316, dict(kind="sigmoid_mse", channel_weights=(1.35, 1.0, 1.0))),
            (0.45193323, dict(kind="sigmoid_mse", balance="superhuman", **maws)),
            (1.51397634, dict(kind="sigmoid_mse", balance="superhuman", over="voxels", **maws)),
            (0.67741519, dict(kind="bce", **maws)), (0.67854862, dict(kind="bce", channel_weights=(1.35, 1.0, 1.0)))]:
        assert plan(**options)(logits, target, image=image).total.item() == pytest.approx(value, abs=3e-6), options


def test_what_an_earlier_net_invented_is_background_that_weighs_more():
    labels = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    labels[0, 0, 0], labels[0, 1, 1], labels[0, 1, 3] = 1, FALSE, IGNORE
    batch = {"image": torch.rand(1, 1, 2, 4, 4), "label": labels}
    settings = config.from_table(Settings, {
        "name": "again", "data": {"train": [{"image": "raw", "label": "labels", "found": "found"}],
                                  "patch": [2, 4, 4], "false_weight": 3.0},
        "target": [{"kind": "binary"}], "model": {"out_channels": 1, "rsunet": {"width": [2, 2]}}})
    task = Supervised(settings, Mode("cpu", "fp32", "contiguous", False), (1.0, 1.0, 1.0))
    target, weight = task.targets(batch)
    assert torch.equal(target[0, 0], (labels[0] == 1).float())
    assert torch.equal(weight[0, 0], torch.where(labels[0] == FALSE, 3.0, (labels[0] != IGNORE).float()))
    with torch.no_grad():
        prediction = task.net(batch["image"])
    each = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none")
    assert task(batch, 0)[0].item() == pytest.approx(((each * weight).sum() / 28).item(), rel=1e-5)
    both, either = task.overlap(batch)[1].tolist()
    truth, found = (labels == 1)[:, None], (prediction >= 0) & (labels != IGNORE)[:, None]
    assert [both, either] == [(found & truth).sum(), (found | truth).sum()]

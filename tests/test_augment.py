"""Augmentations: image and labels move together, nothing moves at probability 0, parameters have the said ranges."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from emcore.data.augment import augment_batch, check_augment, normalise, percentiles
from emcore.data.defects import DEFECTS, INTENSITY, inner_sections
from emcore.data.warps import Plan, deviation, draw_plan, margin, move, smooth_field
from emcore.errors import InputError
from emcore.settings import augment as steps
from emcore.settings.augment import Augment
from emcore.settings.data import Data

PATCH = (6, 32, 32)
AS_IS = Data(patch=PATCH, normalise="none")


def batch(patch=PATCH, around=((0, 0),) * 3, n=2, seed=0):
    """Images whose values are their labels, so that any difference in how they move shows."""
    shape = [p + low + high for p, (low, high) in zip(patch, around)]
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 40, (n, *shape), generator=generator)
    for axis, size in ((1, 4), (2, 7), (3, 7)):
        label = label.repeat_interleave(size, axis).narrow(axis, 1, shape[axis - 1])
    return {"image": label[:, None].float(), "label": label, "number": torch.arange(n) + 10 * seed,
            "statistics": torch.tensor([[0.0, 1.0]] * n)}


def done(augment, patch=PATCH, n=2, seed=0, data=None):
    given = batch(patch, margin(augment, patch), n, seed)
    return given, augment_batch(given, augment, data or dataclasses.replace(AS_IS, patch=patch), 3)


def moved(tensors, plan, patch):
    return move(tensors, plan, patch, torch.Generator().manual_seed(0))


def test_probability_zero_is_the_identity_bit_for_bit():
    given, out = done(Augment())
    assert torch.equal(out["image"], given["image"])
    assert torch.equal(out["label"], given["label"])


GEOMETRY = {
    "flip": Augment(flip=steps.Flip((1.0, 1.0, 1.0))),
    "flip z": Augment(flip=steps.Flip((1.0, 0.0, 0.0))),
    "turn": Augment(turn=steps.Turn(1.0)),
    "slip": Augment(misalignment=steps.Misalignment(1.0, 5, slip_ratio=1.0)),
    "translation": Augment(misalignment=steps.Misalignment(1.0, 5, slip_ratio=0.0)),
    "deleted": Augment(deleted_section=steps.DeletedSection(1.0, 2)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_exact_moves_take_image_and_labels_to_the_same_place_bit_for_bit(name):
    for seed in range(5):
        given, out = done(GEOMETRY[name], seed=seed)
        assert torch.equal(out["image"][:, 0].long(), out["label"])
        assert out["label"].shape == (2, *PATCH)
        middle = [slice((have - want) // 2, (have - want) // 2 + want)
                  for have, want in zip(given["label"].shape[1:], PATCH)]
        assert not torch.equal(out["label"], given["label"][(slice(None), *middle)])


WARPS = {
    "rotate": Augment(rotate=steps.Rotate(1.0)),
    "scale": Augment(scale=steps.Scale(1.0, (0.7, 1.3))),
    "shear": Augment(shear=steps.Shear(1.0, 0.2)),
    "elastic": Augment(elastic=steps.Elastic(1.0, (5, 8), (200, 300))),
    "elastic in sections": Augment(elastic=steps.Elastic(1.0, (5, 8), (200, 300), depth=0.0)),
    "flat elastic": Augment(elastic=steps.Elastic(1.0, (4, 4), (20, 20), flat=True)),
    "turned sections": Augment(misalignment=steps.Misalignment(1.0, 8, rotate_ratio=1.0)),
    "all": Augment(flip=steps.Flip(), turn=steps.Turn(0.5), rotate=steps.Rotate(0.5), scale=steps.Scale(0.5),
                   elastic=steps.Elastic(0.5), misalignment=steps.Misalignment(0.7, 4, 0.3)),
}


@pytest.mark.parametrize("name", WARPS)
def test_warps_take_image_and_labels_to_the_same_place(name):
    """Where labels are even all around, the interpolated image is exactly the label; a flipped axis would break it."""
    for seed in range(4):
        _, out = done(WARPS[name], seed=seed)
        label = out["label"]
        assert (label >= 0).all(), "the margin did not suffice"
        even = torch.ones_like(label, dtype=torch.bool)
        for axis in (1, 2, 3):
            for step in (-1, 1):
                even &= label.roll(step, axis) == label
        even[:, 0] = even[:, -1] = even[..., 0, :] = even[..., -1, :] = even[..., 0] = even[..., -1] = False
        image = out["image"][:, 0]
        assert even.sum() > 30
        close = (image[even] - label[even]).abs() < 1e-3
        assert close.float().mean() > 0.97


def test_a_quarter_turn_by_angle_is_the_exact_quarter_turn():
    tensor = torch.rand(1, 3, 16, 16)
    angle = math.pi / 2
    matrix = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    warped = moved({"image": tensor}, Plan(matrix=matrix), (3, 16, 16))["image"]
    exact = [tensor.rot90(k, (2, 3)) for k in (1, 3)]
    assert min((warped - e).abs().max() for e in exact) < 1e-4
    nearest = moved({"label": (tensor * 1000).long()}, Plan(matrix=matrix), (3, 16, 16))["label"]
    assert any(torch.equal(nearest, (e * 1000).long()) for e in exact)


def test_an_object_enlarged_twice_is_twice_as_large():
    label = torch.zeros(1, 2, 64, 64, dtype=torch.int64)
    label[..., 24:40, 28:36] = 9
    out = moved({"label": label}, Plan(matrix=np.diag([1, 0.5, 0.5])), (2, 64, 64))["label"]
    assert (out == 9).sum().item() == pytest.approx(4 * (label == 9).sum().item(), rel=0.02)


def test_huge_ids_survive_every_warp():
    label = torch.full((1, 3, 20, 20), 2**53 + 1)
    out = moved({"label": label}, Plan(elastic=(5.0, 2.0)), (3, 16, 16))["label"]
    assert set(out.unique().tolist()) <= {2**53 + 1, -1}


def test_elastic_shifts_have_the_stated_deviation_and_smoothness():
    assert deviation(steps.Elastic(), 5.0, 100.0) == pytest.approx(
        100 * np.sqrt(1 / 3) * (1 / (2 * np.sqrt(np.pi) * 5)) ** 1.5)
    for sigma in (4.0, 8.0):
        fields = torch.cat([smooth_field(4, (48, 64, 64), sigma, torch.Generator().manual_seed(s)) for s in range(12)])
        assert fields.std().item() == pytest.approx(1, abs=0.12)
        lag = round(sigma)
        together = (fields[..., lag:] * fields[..., :-lag]).mean() / fields.square().mean()
        assert together.item() == pytest.approx(math.exp(-(lag**2) / (4 * sigma**2)), abs=0.08)


def test_the_depth_of_elastic_says_how_far_it_shifts_along_z():
    ramp = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 24, 24)  # its value is its section
    whole, half, none = (moved({"image": ramp}, Plan(elastic=(5.0, 1.0), depth=depth), (6, 24, 24))["image"]
                         for depth in (1.0, 0.5, 0.0))
    section = torch.arange(3.0, 9.0).view(1, 6, 1, 1)
    torch.testing.assert_close(half - section, (whole - section) / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(none, section.expand_as(none))
    shallow, deep = (margin(Augment(elastic=steps.Elastic(1.0, depth=depth)), PATCH)[0][0] for depth in (0.0, 1.0))
    assert (shallow, deep > 1) == (0, True)


def test_misalignment_moves_one_section_or_all_that_follow_within_its_range():
    slip, translation = steps.Misalignment(1.0, 7, slip_ratio=1.0), steps.Misalignment(1.0, 7, slip_ratio=0.0)
    seen = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        plan = draw_plan(Augment(misalignment=slip), PATCH, random, {"misalignment"})
        moved = np.flatnonzero(plan.shifts.any(1))
        assert len(moved) <= 1
        assert not set(moved) & {0, 5}
        plan = draw_plan(Augment(misalignment=translation), PATCH, random, {"misalignment"})
        assert len(np.unique(plan.shifts, axis=0)) <= 2
        seen.append(plan.shifts)
    seen = np.concatenate(seen)
    assert (seen.min(), seen.max()) == (-7, 7)


def test_misalignment_of_the_image_alone_leaves_labels():
    augment = Augment(misalignment=steps.Misalignment(1.0, 5, labels=False))
    given, out = done(augment)
    middle = given["label"][:, :, 5:-5, 5:-5]
    assert torch.equal(out["label"], middle)
    assert not torch.equal(out["image"][:, 0].long(), middle)


def test_a_sample_is_the_same_in_any_batch():
    augment = dataclasses.replace(
        WARPS["all"], noise=steps.Noise(0.5), blur=steps.Blur(0.5), missing_section=steps.MissingSection(0.5),
        exclusive=("misalignment", "blur", "missing_section"))
    given = batch(PATCH, margin(augment, PATCH), 4)
    whole = augment_batch(given, augment, AS_IS, 3)
    for i in (3, 1):
        single = augment_batch({key: value[i:i + 1] for key, value in given.items()}, augment, AS_IS, 3)
        assert torch.equal(single["image"][0], whole["image"][i])
        assert torch.equal(single["label"][0], whole["label"][i])
    other = augment_batch(given, augment, AS_IS, 4)
    assert not torch.equal(other["image"], whole["image"])


def test_flips_and_turns_happen_as_often_as_said():
    augment = Augment(flip=steps.Flip((0.5, 0.2, 0.9)), turn=steps.Turn(0.6))
    plans = [draw_plan(augment, PATCH, np.random.default_rng(seed), set()) for seed in range(2000)]
    shares = [np.mean([axis in plan.flips for plan in plans]) for axis in range(3)]
    assert shares == pytest.approx([0.5, 0.2, 0.9], abs=0.04)
    turns = np.bincount([plan.turns for plan in plans], minlength=4) / 2000
    assert turns == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.04)


def image_of(depth=8, size=40):
    return torch.rand(1, depth, size, size, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


def changed_sections(before, after):
    return (before != after).any(3).any(2)[0].nonzero().flatten().tolist()


ALWAYS = {
    "missing_section": steps.MissingSection(1.0, (1, 3)), "lost_section": steps.LostSection(1.0, 2),
    "missing_part": steps.MissingPart(1.0), "fold": steps.Fold(0.7, 3), "blur": steps.Blur(1.0, 2),
    "motion": steps.Blur(1.0, 2, motion=True), "cut_noise": steps.CutNoise(1.0), "cut_blur": steps.CutBlur(1.0),
    "stripes": steps.Stripes(1.0), "noise": steps.Noise(1.0), "shift": steps.Shift(1.0), "gamma": steps.Gamma(1.0),
    "contrast": steps.Contrast(1.0, 0.5, gamma=(0.5, 2.0)),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_every_defect_changes_the_image_and_keeps_its_input(name):
    function = {**INTENSITY, **DEFECTS, "motion": DEFECTS["blur"]}[name]
    image = image_of()
    kept = image.clone()
    different = 0
    for seed in range(10):
        out = function(image, ALWAYS[name], np.random.default_rng(seed), torch.Generator().manual_seed(seed))
        assert torch.isfinite(out).all()
        assert torch.equal(image, kept)
        different += not torch.equal(out, image)
    assert different >= 8


def test_first_and_last_sections_are_never_lost():
    for seed in range(50):
        random = np.random.default_rng(seed)
        assert not set(inner_sections(6, (0, 9), random)) & {0, 5}
        image = image_of()
        for name in ("missing_section", "lost_section"):
            out = DEFECTS[name](image, ALWAYS[name], random, None)
            assert not set(changed_sections(image, out)) & {0, 7}
    assert inner_sections(2, 3, random) == []


def test_defects_do_exactly_what_they_say():
    image, random = image_of(), np.random.default_rng(0)
    out = DEFECTS["missing_section"](image, steps.MissingSection(1.0, 2, 1.0, fill=(0.4, 0.4)), random, None)
    for z in changed_sections(image, out):
        assert (out[0, z] == torch.tensor(0.4)).all()
    assert len(changed_sections(image, out)) == 2
    out = DEFECTS["lost_section"](image, steps.LostSection(1.0, 1, "previous"), random, None)
    z, = changed_sections(image, out)
    assert torch.equal(out[0, z], image[0, z - 1])
    out = DEFECTS["missing_part"](image, steps.MissingPart(1.0, (0.25, 0.5)), random, None)
    z, = changed_sections(image, out)
    assert 0.05 < (out[0, z] == 0).float().mean() < 0.3
    out = DEFECTS["blur"](image, steps.Blur(1.0, 3, full=1.0), random, None)
    assert len(changed_sections(image, out)) == 3
    z = changed_sections(image, out)[0]
    assert out[0, z].std() < image[0, z].std() / 2
    assert out[0, z].mean().item() == pytest.approx(image[0, z].mean().item(), abs=0.02)
    out = DEFECTS["cut_noise"](image, steps.CutNoise(1.0, (0.5, 0.5), (0.1, 0.1)), random, torch.Generator())
    assert (out != image).float().mean().item() == pytest.approx(0.125, abs=0.02)
    assert (out - image).abs().max() <= 0.1001
    gamma = INTENSITY["gamma"](image, steps.Gamma(1.0, (2.0, 2.0)), random, None)
    low, high = image.min(), image.max()
    torch.testing.assert_close(gamma, ((image - low) / (high - low)) ** 2 * (high - low) + low)


def test_exclusive_defects_happen_one_at_a_time():
    names = ("missing_section", "lost_section", "blur")
    augment = Augment(missing_section=steps.MissingSection(1.0, 1, 1.0, fill=(5, 5)),
                      lost_section=steps.LostSection(1.0, 1), blur=steps.Blur(1.0, 1, full=1.0), exclusive=names)
    data = dataclasses.replace(AS_IS, patch=(6, 16, 16))
    counts = []
    for seed in range(40):
        given = {"image": torch.rand(1, 1, 6, 16, 16), "number": torch.tensor([seed]),
                 "statistics": torch.tensor([[0.0, 1.0]])}
        counts.append(len(changed_sections(given["image"][0], augment_batch(given, augment, data, 0)["image"][0])))
        free = augment_batch(given, dataclasses.replace(augment, exclusive=()), data, 0)["image"][0]
        assert 1 <= len(changed_sections(given["image"][0], free)) <= 3
    assert set(counts) == {1}


def test_mixup_mixes_within_the_batch_and_leaves_labels():
    augment = Augment(mixup=steps.Mixup(1.0, (0.75, 0.75)))
    given, out = done(augment)
    torch.testing.assert_close(out["image"][0], given["image"][0] * 0.75 + given["image"][1] * 0.25)
    assert torch.equal(out["label"], given["label"])


@pytest.mark.parametrize("chosen, others, new", [(3, (), 1), (4, (), 2), (1, (3, 5), 7), (2**63 - 1, (1,), 3)])
def test_a_pasted_object_has_its_image_and_a_new_id_that_is_odd_or_even_like_its_own(chosen, others, new):
    label = torch.zeros(1, 2, 16, 16, dtype=torch.int64)
    label[..., 1:4, 1:6] = chosen
    for number, other in enumerate(others):
        label[..., :, 15 - number] = other
    image = torch.where(label == chosen, 3.5, 0.5)[:, None]
    given = {"image": image, "label": label, "number": torch.tensor([0]), "statistics": torch.tensor([[0.0, 1.0]])}
    data = dataclasses.replace(AS_IS, patch=(2, 16, 16))
    # larger objects are not copied: only the chosen one fits
    out = augment_batch(given, Augment(copy_paste=steps.CopyPaste(1.0, largest=31 / 512)), data, 0)
    assert out["label"].unique().tolist() == sorted({0, chosen, new, *others})
    assert (out["image"][0, 0][out["label"][0] == new] == 3.5).all()


def test_intensities_are_scaled_per_patch_or_volume():
    image = torch.randint(0, 255, (3, 1, 4, 9, 9), dtype=torch.uint8)
    image[2] = 7
    plain = normalise(image, torch.zeros(3, 2), Data())
    assert plain[:2].amin((1, 2, 3, 4)).tolist() == [0, 0]
    assert plain[:2].amax((1, 2, 3, 4)).tolist() == [1, 1]
    assert (plain[2] == 0).all(), "constant images become 0, not NaN"
    cut = normalise(image, torch.zeros(3, 2), Data(percentiles=(5.0, 95.0)))
    low, high = np.percentile(image[0].numpy(), (5, 95))
    np.testing.assert_allclose(cut[0].numpy(), np.clip((image[0].numpy() - low) / (high - low), 0, 1), atol=1e-5)
    score = normalise(image, torch.zeros(3, 2), Data(normalise="score"))
    assert score[0].mean().item() == pytest.approx(0, abs=1e-5)
    statistics = torch.tensor([[10.0, 100.0]] * 3)
    volume = normalise(image, statistics, Data(normalise_by="volume"))
    torch.testing.assert_close(volume, ((image.float() - 10) / 100).clamp(0, 1))
    rows = torch.rand(2, 101)
    for ours, expected in zip(percentiles(rows, (1.0, 99.0)), np.percentile(rows.numpy(), (1, 99), axis=1)):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


def test_what_cannot_be_done_is_told_before_anything_starts():
    with pytest.raises(InputError, match=r"augment.turn needs square sections; data.patch is \[6, 32, 48\]"):
        check_augment(Augment(turn=steps.Turn(0.5)), (6, 32, 48))
    with pytest.raises(InputError, match="needs cubic patches"):
        check_augment(Augment(turn=steps.Turn(0.5, any_axis=True)), (6, 32, 32))
    with pytest.raises(InputError, match=r"augment.exclusive names blurr; it can hold .*blur"):
        check_augment(Augment(exclusive=("blurr",)), PATCH)
    check_augment(Augment(turn=steps.Turn(0.5, any_axis=True)), (32, 32, 32))


def test_any_turn_of_a_cube_is_drawn_and_moves_both():
    augment = Augment(turn=steps.Turn(1.0, any_axis=True))
    plans = {(p.order, p.flips) for p in
             (draw_plan(augment, (8, 8, 8), np.random.default_rng(s), set()) for s in range(1000))}
    assert len(plans) == 48
    _, out = done(augment, patch=(8, 8, 8))
    assert torch.equal(out["image"][:, 0].long(), out["label"])

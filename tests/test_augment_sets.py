"""The published sets of augmentations are configurations, and what they draw has the published distributions."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import config
from emcore.data.augment import augment_batch, check_augment, margin
from emcore.data.defects import DEFECTS, INTENSITY
from emcore.data.targets import make_targets, prepare_labels
from emcore.data.warps import draw_plan
from emcore.settings import Settings
from emcore.settings import augment as steps
from emcore.settings.augment import Augment

FOLDER = Path(__file__).resolve().parent.parent / "bench" / "pipelines"
NAMES = ("cremi", "snemi", "dbmim", "legacy")
MANY = 1500


def loaded(name):
    settings = config.load(Settings, FOLDER / f"{name}.toml", [])
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, patch=(8, 32, 32)))


def plans(augment, patch=(8, 64, 64), chosen=("misalignment", "deleted_section")):
    return [draw_plan(augment, patch, np.random.default_rng(seed), set(chosen)) for seed in range(MANY)]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_set_runs_and_gives_finite_images_and_targets(name):
    settings = loaded(name)
    check_augment(settings.augment, settings.data.patch)
    patch = settings.data.patch
    shape = [p + low + high for p, (low, high) in zip(patch, margin(settings.augment, patch))]
    image = torch.randint(0, 255, (3, 1, *shape), dtype=torch.uint8)
    label = torch.randint(0, 9, (3, *shape)).repeat_interleave(6, 3)[..., :shape[2]]
    read = {"image": image, "label": label, "number": torch.arange(3), "statistics": torch.tensor([[0.0, 255.0]] * 3)}
    kept = {key: value.clone() for key, value in read.items()}
    out = augment_batch(read, settings.augment, settings.data, 0)
    assert all(torch.equal(read[key], kept[key]) for key in read)
    assert out["image"].shape == (3, 1, 8, 32, 32)
    assert torch.isfinite(out["image"]).all()
    assert out["image"].std() > 0.05
    target, valid = make_targets(prepare_labels(out["label"], settings.labels), settings.target)
    assert target.shape == (3, sum(len(target.channels) for target in settings.target), 8, 32, 32)
    assert torch.isfinite(target).all()
    assert valid.any()


def test_the_set_of_2019_draws_as_its_record_says():
    drawn = plans(loaded("legacy").augment)
    angles, factors = [], []
    for plan in drawn:
        turned = plan.matrix[1:, 1:]
        scale = np.sqrt((turned**2).sum(0))
        factors.append(scale)
        angles.append(np.arctan2(turned[1, 0] / scale[0], turned[0, 0] / scale[0]))
    quarters = np.histogram(angles, 4, (-np.pi, np.pi))[0] / MANY
    assert quarters == pytest.approx([0.25] * 4, abs=0.05)
    factors = 1 / np.array(factors)
    assert np.isclose(factors, 1).all(1).mean() == pytest.approx(0.5, abs=0.05)
    assert np.mean([plan.elastic is not None for plan in drawn]) == pytest.approx(0.75, abs=0.05)
    assert all(plan.flat and plan.elastic[0] == 4.0 for plan in drawn if plan.elastic)
    assert np.mean([plan.sections is not None for plan in drawn]) == pytest.approx(0.5, abs=0.05)
    for plan in drawn:
        if plan.sections is not None:
            assert len(plan.sections) == 8
            assert plan.sections[0] == 0
            assert plan.sections[-1] == 9
    moved = np.array([plan.shifts.any(1).sum() for plan in drawn])
    assert (moved > 0).mean() > 0.95
    assert max(np.abs(plan.shifts).max() for plan in drawn) == 8


def test_a_fold_is_gated_by_patch_and_by_section():
    step = steps.Fold(1.0, patches=0.4, width=1)
    data = dataclasses.replace(loaded("legacy").data, patch=(4, 8, 8), normalise="none")
    image = torch.rand(1, 1, 4, 8, 8)
    changed = 0
    for seed in range(300):
        read = {"image": image, "number": torch.tensor([seed]), "statistics": torch.zeros(1, 2)}
        changed += not torch.equal(augment_batch(read, Augment(fold=step), data, 0)["image"], image)
    assert changed / 300 == pytest.approx(0.4, abs=0.08)


def test_the_set_of_masked_pretraining_draws_as_its_record_says():
    augment = loaded("dbmim").augment
    drawn = plans(augment)
    shares = [np.mean([axis in plan.flips for plan in drawn]) for axis in range(3)]
    assert shares == pytest.approx([0.2, 0.5, 0.5], abs=0.04)
    assert np.bincount([plan.turns for plan in drawn], minlength=4) / MANY == pytest.approx([0.25] * 4, abs=0.04)
    flat = torch.full((1, 4, 40, 40), 0.5)
    noisy = INTENSITY["noise"](flat, augment.noise, np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert (noisy - flat).std().item() == pytest.approx(0.035, rel=0.05)
    edge = INTENSITY["noise"](flat * 0, augment.noise, np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert edge.min() == 0


def drawn_values(name, step, read_off):
    flat = torch.linspace(0.2, 0.8, 64).view(1, 1, 8, 8)
    return np.array([read_off(flat, INTENSITY[name](flat, step, np.random.default_rng(seed),
                                                    torch.Generator().manual_seed(seed))) for seed in range(MANY)])


def test_random_parameters_fill_their_ranges_evenly():
    """Ten equal bins of the range hold a tenth each; nothing lies outside."""
    cases = {
        "shift": (steps.Shift(1.0, 0.1), (-0.1, 0.1), lambda a, b: (b - a).mean().item()),
        "gamma": (steps.Gamma(1.0, (0.7, 1.4)), (0.7, 1.4), lambda a, b: (
            ((b - 0.2) / 0.6)[0, 0, 4, 0].log() / ((a - 0.2) / 0.6)[0, 0, 4, 0].log()).item()),
        "contrast": (steps.Contrast(1.0, gain=(0.5, 1.5), bias=(0.0, 0.0), clip=False), (0.5, 1.5),
                     lambda a, b: (b / a).mean().item()),
    }
    for name, (step, bounds, read_off) in cases.items():
        values = drawn_values(name, step, read_off)
        inside = (bounds[0] - 1e-3, bounds[1] + 1e-3)
        assert inside[0] <= values.min(), name
        assert values.max() <= inside[1], name
        assert np.histogram(values, 10, inside)[0] / MANY == pytest.approx([0.1] * 10, abs=0.035), name
    wide = torch.zeros(1, 2, 64, 64)
    deviations = [INTENSITY["noise"](wide, steps.Noise(1.0, 0.1), np.random.default_rng(s),
                                     torch.Generator().manual_seed(s)).std().item() for s in range(400)]
    assert np.histogram(deviations, 4, (0, 0.103))[0] / 400 == pytest.approx([0.25] * 4, abs=0.08)


def test_sections_are_drawn_evenly_and_in_the_numbers_asked_for():
    image = torch.rand(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    counts, places = np.zeros(8), np.zeros(8)
    for seed in range(MANY):
        step = steps.MissingSection(1.0, (0, 5), full=1.0, fill=(2.0, 2.0))
        out = DEFECTS["missing_section"](image, step, np.random.default_rng(seed), None)
        lost = (out == 2).all(3).all(2)[0].numpy()
        counts[lost.sum()] += 1
        places += lost
    assert counts[:6] / MANY == pytest.approx([1 / 6] * 6, abs=0.04)
    assert places[[0, 7]].tolist() == [0, 0]
    assert places[1:7] / MANY == pytest.approx([2.5 / 6] * 6, abs=0.05)


CHECKED = {
    "flip": Augment(flip=steps.Flip((0.5, 0.5, 0.5))), "turn": Augment(turn=steps.Turn(1.0)),
    "any turn": Augment(turn=steps.Turn(1.0, any_axis=True)), "rotate": Augment(rotate=steps.Rotate(1.0)),
    "scale": Augment(scale=steps.Scale(1.0, (0.7, 1.3), depth=(0.8, 1.2))), "shear": Augment(shear=steps.Shear(1.0)),
    "elastic": Augment(elastic=steps.Elastic(1.0, (6, 8), (100, 200))),
    "misalignment": Augment(misalignment=steps.Misalignment(1.0, 5)),
    "turned sections": Augment(misalignment=steps.Misalignment(1.0, 5, rotate_ratio=1.0)),
    "deleted sections": Augment(deleted_section=steps.DeletedSection(1.0, 2)),
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_checkerboard_and_its_labels_stay_together(name):
    """Black cells are 0 and white cells 1 in image and labels; a grid flipped along one axis for one of them fails."""
    augment, patch = CHECKED[name], (16, 16, 16)
    around = margin(augment, patch)
    shape = [p + low + high for p, (low, high) in zip(patch, around)]
    # cells of unequal sizes, so that no mirror image looks the same
    random = np.random.default_rng(3)
    axes = [torch.from_numpy(np.repeat(np.arange(n), random.integers(2, 8, n))[:n]) for n in shape]
    board = (axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]) % 2
    data = dataclasses.replace(loaded("cremi").data, patch=patch, normalise="none")
    agree, mirrored = [], []
    for seed in range(6):
        read = {"image": board[None, None].float(), "label": board[None] + 1, "number": torch.tensor([seed]),
                "statistics": torch.zeros(1, 2)}
        out = augment_batch(read, augment, data, 5)
        image, label = out["image"][0, 0] > 0.5, out["label"][0]
        assert (label >= 1).all()
        agree.append((image == (label == 2)).float().mean().item())
        mirrored.append([(image.flip(axis) == (label == 2)).float().mean().item() for axis in range(3)])
    assert min(agree) > 0.93
    assert (np.mean(mirrored, 0) < 0.9).all(), "the test could not see a mirrored axis"

"""Geometry on whole batches: exact moves first, then one sampling grid and one interpolation; labels take the nearest.

A warp is the place in the source, in voxels, at which every output voxel looks. Images interpolate there, labels of any
integer size are gathered from the nearest voxel, so both move alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emcore.data.sampler import Margin
from emcore.data.targets import IGNORE
from emcore.errors import InputError
from emcore.settings.augment import Augment, Elastic

Triple = tuple[int, int, int]
REACH = 3.0  # standard deviations that elastic shifts at most


@dataclass
class Plan:
    """The geometry of one sample."""

    flips: tuple[int, ...] = ()  # axes 0 z, 1 y, 2 x
    turns: int = 0  # quarter turns in y, x
    order: tuple[int, int, int] = (0, 1, 2)  # axes of the source that become z, y, x
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))  # source offset = matrix @ output offset
    elastic: tuple[float, float] | None = None  # sigma, standard deviation of the shift
    flat: bool = False  # elastic moves y and x alone, all sections alike
    depth: float = 1.0  # factor of the elastic shift along z
    sections: list[int] | None = None  # which section of the source each output section is, where some are deleted
    shifts: np.ndarray | None = None  # (z, 2) y, x shift of every section
    angles: np.ndarray | None = None  # (z,) turn of every section, radians
    move_labels: bool = True  # by shifts and angles

    @property
    def interpolates(self) -> bool:
        return self.elastic is not None or not np.array_equal(self.matrix, np.eye(3))


def margin(augment: Augment, patch: Triple) -> Margin:
    """Voxels that the geometry may need beyond the patch, the same on both sides of an axis."""
    z, y, x = 0.0, 0.0, 0.0
    if augment.rotate.probability > 0:
        most = max(abs(augment.rotate.degrees[0]), abs(augment.rotate.degrees[1]))
        angle = math.radians(min(45.0, most))
        size = max(patch[1:])
        y = x = size * (math.cos(angle) + math.sin(angle) - 1) / 2
    if augment.shear.probability > 0:
        y, x = y + augment.shear.amount * patch[2] / 2, x + augment.shear.amount * patch[1] / 2
    if augment.scale.probability > 0:
        grow = 1 / min(1.0, augment.scale.factor[0])
        y, x = (patch[1] / 2 + y) * grow - patch[1] / 2, (patch[2] / 2 + x) * grow - patch[2] / 2
        z = patch[0] / 2 / min(1.0, augment.scale.depth[0]) - patch[0] / 2
    if augment.elastic.probability > 0:
        elastic = augment.elastic
        reach = REACH * deviation(elastic, elastic.sigma[0], elastic.magnitude[1])
        y, x, z = y + reach, x + reach, z + (0 if elastic.flat else reach * elastic.depth)
    if augment.misalignment.probability > 0:
        extra = augment.misalignment.displacement
        y, x = y + extra, x + extra
    if augment.deleted_section.probability > 0:
        z += math.ceil(augment.deleted_section.sections / 2)
    if augment.turn.probability > 0:
        y = x = max(y, x)
        if augment.turn.any_axis:
            z = y = x = max(z, y, x)
    z, y, x = (math.ceil(v) for v in (z, y, x))
    return (z, z), (y, y), (x, x)


def deviation(elastic: Elastic, sigma: float, magnitude: float) -> float:
    """Standard deviation, in voxels, of uniform noise of this magnitude after smoothing by a Gaussian."""
    dimensions = 2 if elastic.flat else 3
    return magnitude * math.sqrt(1 / 3) * (1 / (2 * math.sqrt(math.pi) * max(sigma, 0.3))) ** (dimensions / 2)


def check_geometry(augment: Augment, patch: Triple) -> None:
    """Refuses turns of patches that do not fit themselves when turned."""
    if augment.turn.probability > 0 and patch[1] != patch[2]:
        raise InputError(f"augment.turn needs square sections; data.patch is {list(patch)}")
    if augment.turn.probability > 0 and augment.turn.any_axis and len(set(patch)) > 1:
        raise InputError(f"augment.turn.any_axis needs cubic patches; data.patch is {list(patch)}")


def draw_plan(augment: Augment, patch: Triple, random: np.random.Generator, chosen: set[str]) -> Plan:
    """The geometry of one sample; chosen: names of the defects that may happen."""
    plan = Plan()
    plan.flips = tuple(axis for axis, p in enumerate(augment.flip.probability) if random.random() < p)
    if random.random() < augment.turn.probability:
        if augment.turn.any_axis:
            plan.order = tuple(int(a) for a in random.permutation(3))
            plan.flips = tuple(axis for axis in range(3) if random.random() < 0.5)
        else:
            plan.turns = int(random.integers(1, 4))
    if random.random() < augment.rotate.probability:
        angle = math.radians(random.uniform(*augment.rotate.degrees))
        turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        plan.matrix = plan.matrix @ turn
    if random.random() < augment.scale.probability:
        y, x = random.uniform(*augment.scale.factor, 2)
        z = random.uniform(*augment.scale.depth)
        plan.matrix = plan.matrix @ np.diag([1 / z, 1 / y, 1 / (y if augment.scale.together else x)])
    if random.random() < augment.shear.probability:
        a, b = random.uniform(-augment.shear.amount, augment.shear.amount, 2)
        plan.matrix = plan.matrix @ np.array([[1, 0, 0], [0, 1, a], [0, b, 1]])
    if random.random() < augment.elastic.probability:
        sigma, magnitude = random.uniform(*augment.elastic.sigma), random.uniform(*augment.elastic.magnitude)
        plan.elastic, plan.flat = (sigma, deviation(augment.elastic, sigma, magnitude)), augment.elastic.flat
        plan.depth = augment.elastic.depth
    depth = patch[0]
    deleted = augment.deleted_section
    if "deleted_section" in chosen and depth > 2 and random.random() < deleted.probability:
        total = depth + deleted.sections
        gone = set(random.choice(np.arange(1, total - 1), deleted.sections, replace=False).tolist())
        plan.sections = [z for z in range(total) if z not in gone]
    if "misalignment" in chosen and depth > 2 and random.random() < augment.misalignment.probability:
        _draw_misalignment(plan, augment, patch, random)
    return plan


def _draw_misalignment(plan: Plan, augment: Augment, patch: Triple, random: np.random.Generator) -> None:
    step, depth = augment.misalignment, patch[0]
    section = int(random.integers(1, depth - 1))
    moved = np.zeros(depth, bool)
    if random.random() < step.slip_ratio:
        moved[section] = True
    else:
        moved[section:] = True
    plan.move_labels = step.labels
    if random.random() < step.rotate_ratio:
        reach = (step.displacement / 2) / max(1.0, (patch[1] - step.displacement) / 2 * 1.42)
        most = 2 * math.asin(min(1.0, reach))
        plan.angles = np.where(moved, random.uniform(-most, most), 0.0)
    else:
        first, second = random.integers(-step.displacement, step.displacement + 1, (2, 2))
        # all that is not moved stays together: one shift on each side of the fault
        one = first if not moved[:section].any() and moved[section + 1:].any() else np.zeros(2, int)
        plan.shifts = np.where(moved[:, None], second, one)


def move(tensors: Mapping[str, Tensor], plan: Plan, patch: Triple, generator: torch.Generator) -> dict[str, Tensor]:
    """One sample, (c, Z, Y, X) each with its margin, moved and cut to the patch; all but "image" take the nearest."""
    out, places = {}, {}
    bend = _bend(plan, patch, generator)  # one for all
    for name, tensor in tensors.items():
        tensor = _exactly(tensor, plan)
        faults = plan.move_labels or name == "image"
        shifts, angles = (plan.shifts, plan.angles) if faults else (None, None)
        if not plan.interpolates and angles is None:
            out[name] = _cut(tensor, patch, shifts)
            continue
        if faults not in places:
            places[faults] = _places(plan, bend, shifts, angles, tensor.shape[1:], patch)
        out[name] = (_interpolated(tensor, places[faults], plan.matrix[0, 0] == 1) if name == "image"
                     else _nearest(tensor, places[faults]))
    return out


def _exactly(tensor: Tensor, plan: Plan) -> Tensor:
    """The sample with axes exchanged, mirrored, turned, and without its deleted sections."""
    if plan.order != (0, 1, 2):
        tensor = tensor.permute(0, *(axis + 1 for axis in plan.order))
    if plan.flips:
        tensor = tensor.flip([axis + 1 for axis in plan.flips])
    if plan.turns:
        tensor = tensor.rot90(plan.turns, (2, 3))
    if plan.sections is not None:
        depth = tensor.shape[1]
        start = (depth - (max(plan.sections) + 1)) // 2
        before, after = list(range(start)), list(range(start + max(plan.sections) + 1, depth))
        keep = np.array(before + [start + z for z in plan.sections] + after)
        runs = np.split(keep, np.flatnonzero(np.diff(keep) != 1) + 1)  # slices need no index on the device
        tensor = torch.cat([tensor[:, run[0]:run[-1] + 1] for run in runs], 1)
    return tensor


def _cut(tensor: Tensor, patch: Triple, shifts: np.ndarray | None) -> Tensor:
    """The middle of a sample; every section moved by its shift."""
    start = [(have - want) // 2 for have, want in zip(tensor.shape[1:], patch)]
    if shifts is None:
        return tensor[:, start[0]:start[0] + patch[0], start[1]:start[1] + patch[1], start[2]:start[2] + patch[2]]
    rows = []
    for z in range(patch[0]):
        y, x = start[1] + int(shifts[z, 0]), start[2] + int(shifts[z, 1])
        rows.append(tensor[:, start[0] + z, y:y + patch[1], x:x + patch[2]])
    return torch.stack(rows, 1)


def smooth_field(components: int, shape: Sequence[int], sigma: float, generator: torch.Generator) -> Tensor:
    """(components, *shape) of unit variance whose correlation over d voxels is exp(-d² / 4 sigma²).

    Random weights stand on a grid of points sigma apart; a voxel sums the Gaussian bells around the points. That close
    together the bells add up evenly, and one matrix an axis does it.
    """
    spacing = max(1.0, sigma)
    device = generator.device
    bells = []
    for length in shape:
        voxels = torch.arange(length, device=device, dtype=torch.float32)[:, None]
        points = (torch.arange(-4, math.ceil((length - 1) / spacing) + 5, device=device) * spacing)[None, :]
        bell = torch.exp(-(voxels - points).square() / (2 * sigma**2))
        bells.append(bell / bell.square().sum(1, keepdim=True).sqrt())  # independent weights keep their variance
    weights = torch.randn((components, *(bell.shape[1] for bell in bells)), device=device, generator=generator)
    z, y, x = bells
    field = torch.tensordot(weights, z, ([1], [1]))  # (components, y, x, Z)
    return torch.tensordot(torch.tensordot(field, y, ([1], [1])), x, ([1], [1]))


def _bend(plan: Plan, patch: Triple, generator: torch.Generator) -> Sequence[Tensor]:
    """The elastic shift of every voxel along z, y, x, each broadcastable to the patch."""
    if plan.elastic is None:
        return (torch.zeros((), device=generator.device),) * 3
    sigma, spread = plan.elastic
    shape = (1, *patch[1:]) if plan.flat else patch
    bend = smooth_field(2 if plan.flat else 3, shape, sigma, generator).clamp_(-REACH, REACH).mul_(spread)
    if plan.flat or plan.depth == 0:
        return (torch.zeros((), device=generator.device), *bend[-2:])
    bend[0].mul_(plan.depth)
    return tuple(bend)


def _places(plan: Plan, bend: Sequence[Tensor], shifts: np.ndarray | None, angles: np.ndarray | None,
            source: Sequence[int], patch: Triple) -> tuple[Tensor, Tensor, Tensor]:
    """z, y, x in the source of every output voxel, each broadcastable to the patch."""
    device = bend[0].device
    z, y, x = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in patch)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    if angles is not None:
        turn = torch.as_tensor(angles, device=device, dtype=torch.float32)[:, None, None]
        y, x = turn.cos() * y - turn.sin() * x, turn.sin() * y + turn.cos() * x
    if shifts is not None:
        moved = torch.as_tensor(shifts, device=device, dtype=torch.float32)
        y, x = y + moved[:, 0, None, None], x + moved[:, 1, None, None]
    z, y, x = (line + moved for line, moved in zip((z, y, x), bend))
    m = plan.matrix
    if m[1, 2] or m[2, 1]:
        y, x = m[1, 1].item() * y + m[1, 2].item() * x, m[2, 1].item() * y + m[2, 2].item() * x
    else:
        y, x = m[1, 1].item() * y, m[2, 2].item() * x
    z = m[0, 0].item() * z
    middle = [(have - 1) / 2 for have in source]
    # an odd difference between source and patch is cut like the plain crop does, half a voxel early
    early = [((have - want) % 2) / 2 for have, want in zip(source, patch)]
    return tuple(place + centre - half for place, centre, half in zip((z, y, x), middle, early))


def _nearest(tensor: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Labels or a mask at the nearest voxel; IGNORE or False where that lies outside."""
    index = torch.zeros((), dtype=torch.int64, device=tensor.device)
    inside = torch.ones((), dtype=torch.bool, device=tensor.device)
    for place, length in zip(places, tensor.shape[1:]):
        near = place.round()
        held = near.clamp(0, length - 1)
        inside = inside & (near == held)
        index = index * length + held.long()
    out = tensor.flatten(1).index_select(1, index.flatten()).view(-1, *index.shape)
    return torch.where(inside, out, IGNORE if tensor.dtype == torch.int64 else False)


def _interpolated(tensor: Tensor, places: Sequence[Tensor], whole: bool) -> Tensor:
    """The image between the voxels; beyond its edge the edge goes on. whole: depth is not scaled."""
    source, patch = tensor.shape[1:], torch.broadcast_shapes(*(place.shape for place in places))
    if whole and places[0].numel() == patch[0]:  # whole sections move: two dimensions, a quarter of the work
        chosen = tensor[:, places[0].flatten().long().clamp(0, source[0] - 1)].transpose(0, 1)
        moved = functional.grid_sample(chosen, _grid(places[1:], source[1:], patch), "bilinear", "border",
                                       align_corners=True)
        return moved.transpose(0, 1)
    # every output section its own batch entry, the source shared: torch works on batch entries in parallel
    spread = tensor[None].expand(patch[0], -1, -1, -1, -1)
    moved = functional.grid_sample(spread, _grid(places, source, patch)[:, None], "bilinear", "border",
                                   align_corners=True)
    return moved[:, :, 0].transpose(0, 1)


def _grid(places: Sequence[Tensor], source: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Places as torch wants them: x first, -1 and 1 at the outermost voxels."""
    return torch.stack([(place * (2 / max(1, length - 1)) - 1).expand(patch)
                        for place, length in zip(reversed(places), reversed(source))], -1)

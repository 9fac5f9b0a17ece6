"""What the net learns, made from a batch of labels (n, z, y, x) on its device: values and which of them count.

Label 0 is background, IGNORE (-1) is unknown: it takes part in no edge and counts in no channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from emcore import segment
from emcore.data.descriptors import local_shape
from emcore.data.distances import (
    foreground_distance,
    instance_distance,
    quantise_energy,
    signed_distance,
    skeleton_distance,
)
from emcore.errors import InputError
from emcore.segment.synapses import VECTOR_NM
from emcore.settings.target import (
    AffinityTarget,
    BinaryTarget,
    BoundaryTarget,
    ForegroundDistanceTarget,
    InstanceDistanceTarget,
    Labels,
    LsdTarget,
    PartnersTarget,
    PolarityTarget,
    SignedDistanceTarget,
    SkeletonDistanceTarget,
    Target,
    Triple,
)

IGNORE = -1
FALSE = -2  # This is background that an earlier net took for an object.


def _pairs(size: Sequence[int], offset: Triple) -> tuple[tuple, tuple] | None:
    """Slices of the voxels whose partner at v + offset lies inside, and of the partners; None where there are none."""
    here, there = [slice(None)], [slice(None)]
    for length, step in zip(size, offset):
        if abs(step) >= length:
            return None
        here.append(slice(max(0, -step), length - max(0, step)))
        there.append(slice(max(0, step), length - max(0, -step)))
    return tuple(here), tuple(there)


def affinities(labels: Tensor, offsets: Sequence[Triple], border: str = "ignore",
               background: str = "negative") -> tuple[Tensor, Tensor]:
    """Values and validity, (n, channels, z, y, x); channel c at v says whether v and v + offset belong together.

    An edge holds where both labels are equal and not 0. A negative offset stores it at the later voxel, a positive one
    at the earlier. The offset (0, 0, 0) is the foreground.
    """
    if labels.device.type == "cpu":
        from emcore.data import loops  # machine code that a GPU does not need
        return loops.affinities(labels, offsets, border, background)
    return _affinities(labels, offsets, border, background)


def _affinities(labels: Tensor, offsets: Sequence[Triple], border: str, background: str) -> tuple[Tensor, Tensor]:
    """The same on any device."""
    shape = (labels.shape[0], len(offsets), *labels.shape[1:])
    values = torch.zeros(shape, device=labels.device)
    valid = torch.zeros(shape, dtype=torch.bool, device=labels.device)
    inside = labels > 0
    known = labels != IGNORE
    for channel, offset in enumerate(offsets):
        if border != "ignore":
            valid[:, channel] = known & inside if background == "ignore" else known
            if border == "replicate":
                values[:, channel] = inside.float()
        pairs = _pairs(labels.shape[1:], offset)
        if pairs is None:
            continue
        here, there = pairs
        values[:, channel][here] = ((labels[here] == labels[there]) & inside[here]).float()
        both = known[here] & known[there]
        if background == "ignore":
            both = both & (labels[here] != 0) & (labels[there] != 0)
        valid[:, channel][here] = both
    return values, valid


def erode_borders(labels: Tensor, radius: int) -> Tensor:
    """Labels with 0 wherever the (2 radius + 1)² window of a section holds two different objects; IGNORE stays."""
    if radius < 1:
        return labels
    if labels.device.type == "cpu":
        from emcore.data import loops
        return loops.erode(labels, radius)
    return _erode_borders(labels, radius)


def _erode_borders(labels: Tensor, radius: int) -> Tensor:
    """The same on any device."""
    top = torch.iinfo(labels.dtype).max
    largest = labels.clamp_min(0)
    smallest = torch.where(labels > 0, labels, top)
    for axis in (2, 3):
        # mirrored borders add nothing new to a window that is cut by the volume's edge: shrinking it is the same
        largest = _window(largest, axis, radius, torch.maximum)
        smallest = _window(smallest, axis, radius, torch.minimum)
    return torch.where((largest != smallest) & (labels > 0), 0, labels)


def _window(values: Tensor, axis: int, radius: int, choose) -> Tensor:
    """The largest or smallest value within radius along an axis."""
    out, length = values.clone(), values.shape[axis]
    for step in range(1, min(radius, length - 1) + 1):
        ahead = out.narrow(axis, 0, length - step)
        ahead.copy_(choose(ahead, values.narrow(axis, step, length - step)))
        behind = out.narrow(axis, step, length - step)
        behind.copy_(choose(behind, values.narrow(axis, 0, length - step)))
    return out


def split_pieces(labels: Tensor) -> Tensor:
    """Labels in which every 6-connected piece of an id has an id of its own, patch by patch."""
    pieces = [torch.from_numpy(segment.connected_components(label.clamp_min(0).cpu().numpy(), 6).astype("int64"))
              for label in labels]
    return torch.where(labels == IGNORE, IGNORE, torch.stack(pieces).to(labels.device))


def boundary(labels: Tensor, thickness: int, where: str, in_plane: bool) -> Tensor:
    """True where a face neighbour has another label, on both sides of the change; thickness widens it."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (2, 3) if in_plane else (1, 2, 3):
        first = labels.narrow(axis, 0, labels.shape[axis] - 1)
        second = labels.narrow(axis, 1, labels.shape[axis] - 1)
        change = (first != second) & (first != IGNORE) & (second != IGNORE)
        if where == "foreground":
            change &= (first > 0) | (second > 0)
        elif where == "contacts":
            change &= (first > 0) & (second > 0)
        edge.narrow(axis, 0, change.shape[axis]).logical_or_(change)
        edge.narrow(axis, 1, change.shape[axis]).logical_or_(change)
    if thickness > 1:
        kernel = (1 if in_plane else 2 * thickness - 1, 2 * thickness - 1, 2 * thickness - 1)
        edge = functional.max_pool3d(edge[:, None].float(), kernel, 1, tuple(k // 2 for k in kernel))[:, 0] > 0
    return edge


def polarity(labels: Tensor, exclusive: bool) -> Tensor:
    """Channels pre (odd ids), post (even ids), either; exclusive: one channel of classes 0, 1 pre, 2 post."""
    pre, post = (labels > 0) & (labels % 2 == 1), (labels > 0) & (labels % 2 == 0)
    if exclusive:
        return (pre.float() + 2 * post.float())[:, None]
    return torch.stack([pre, post, pre | post], 1).float()


def partners(labels: Tensor, resolution: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Channels z, y, x: from the middle of a presynaptic side (odd ids) to each voxel behind it (even), in VECTOR_NM.

    The middle is that of what the patch holds of the side, which is all that the net can see of it. Voxels behind a
    side that the patch does not hold do not count.
    """
    values = torch.zeros((len(labels), 3, *labels.shape[1:]), device=labels.device)
    valid = torch.zeros_like(values, dtype=torch.bool)
    size = torch.tensor(resolution, device=labels.device, dtype=torch.float64)
    for label, value, counts in zip(labels, values, valid):
        at = (label > 0).nonzero()
        ids = label[tuple(at.T)]
        before = ids % 2 == 1
        numbers, synapse = torch.div(ids + 1, 2, rounding_mode="floor").unique(return_inverse=True)
        own = synapse[before]
        voxels = torch.bincount(own, minlength=len(numbers))
        middle = torch.zeros((len(numbers), 3), device=labels.device, dtype=torch.float64)
        middle = middle.index_add_(0, own, at[before].double()) / voxels.clamp_min(1)[:, None]
        behind = ~before & (voxels > 0)[synapse]
        place = (slice(None), *at[behind].T)
        value[place] = ((at[behind] - middle[synapse[behind]]) * size / VECTOR_NM).float().T
        counts[place] = True
    return values, valid


def smooth_outlines(labels: Tensor) -> Tensor:
    """Labels whose outlines are rounded section by section, twice: dilate, blur, dilate, threshold (2019 tutorial)."""
    steps = torch.arange(-8, 9, device=labels.device, dtype=torch.float32)
    bell = torch.exp(-steps.square() / (2 * 2.0**2))
    bell = bell / bell.sum()

    def cross(mask: Tensor) -> Tensor:
        tall, wide = functional.max_pool2d(mask, (3, 1), 1, (1, 0)), functional.max_pool2d(mask, (1, 3), 1, (0, 1))
        return torch.maximum(tall, wide)

    out = torch.where(labels > 0, 0, labels)
    for identity in labels[labels > 0].unique():
        mask = (labels == identity).float().flatten(0, 1)[:, None]
        for _ in range(2):
            blurred = cross(mask)
            for weights in (bell.view(1, 1, -1, 1), bell.view(1, 1, 1, -1)):
                pad = (0, 0, 8, 8) if weights.shape[2] > 1 else (8, 8, 0, 0)
                mode = "reflect" if min(mask.shape[2:]) > 8 else "replicate"
                blurred = functional.conv2d(functional.pad(blurred, pad, mode=mode), weights)
            mask = (cross(blurred) > 0.8).float()
        out = torch.where(mask[:, 0].view_as(labels) > 0, identity, out)
    return out


def prepare_labels(labels: Tensor, settings: Labels) -> Tensor:
    """Labels after what [labels] asks for, common to all targets."""
    if settings.smooth:
        labels = smooth_outlines(labels)
    if settings.split:
        labels = split_pieces(labels)
    return erode_borders(labels, settings.erosion)


@dataclass(frozen=True)
class Surroundings:
    """What some targets need besides the labels."""

    resolution: Sequence[float]  # nm, z y x
    skeleton: Tensor | None  # ids on the skeletons of the labels


def _of_instances(target: InstanceDistanceTarget, labels: Tensor, place: Surroundings) -> Tensor:
    return quantise_energy(instance_distance(labels, place.resolution, target.in_plane, target.relabel), target.levels)


def _of_skeletons(target: SkeletonDistanceTarget, labels: Tensor, place: Surroundings) -> Tensor:
    return quantise_energy(skeleton_distance(labels, place.resolution, target.alpha, place.skeleton), target.levels)


# kind of target -> its values (n, z, y, x), or with channels; those of affinities come with what counts
MAKERS: dict[type, Callable] = {
    AffinityTarget: lambda target, labels, place: affinities(labels, target.offsets, target.border, target.background),
    BinaryTarget: lambda target, labels, place: labels > 0,
    PolarityTarget: lambda target, labels, place: polarity(labels, target.exclusive),
    PartnersTarget: lambda target, labels, place: partners(labels, place.resolution),
    BoundaryTarget: lambda target, labels, place: boundary(labels, target.thickness, target.where, target.in_plane),
    SignedDistanceTarget: lambda target, labels, place: signed_distance(labels, place.resolution, target.scale),
    ForegroundDistanceTarget: lambda target, labels, place: foreground_distance(labels),
    InstanceDistanceTarget: _of_instances,
    SkeletonDistanceTarget: _of_skeletons,
    LsdTarget: lambda target, labels, place: local_shape(labels, place.resolution, target.sigma),
}


def make_targets(labels: Tensor, targets: Sequence[Target], resolution: Sequence[float] = (1.0, 1.0, 1.0),
                 mask: Tensor | None = None, skeleton: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Target and validity, float32 and bool, (n, channels, z, y, x).

    labels are int64 after augmentation and prepare_labels; mask is true where the volume may be used; skeleton holds
    the object's id on its skeleton (for skeleton_distance); resolution is nm, z y x.
    """
    if labels.dtype != torch.int64 or labels.dim() != 4:
        raise InputError(f"labels must be int64 (n, z, y, x); got {labels.dtype} {tuple(labels.shape)}")
    place, known = Surroundings(resolution, skeleton), labels != IGNORE
    values, counts = [], []
    for target in targets:
        made = MAKERS[type(target)](target, erode_borders(labels, target.erosion), place)
        value, valid = made if isinstance(made, tuple) else (made, known[:, None])
        value = value if value.dim() == 5 else value[:, None]
        values.append(value.float())
        counts.append(valid.expand_as(value))
    if len(targets) == 1:
        value, count = values[0], counts[0]
    else:
        value, count = torch.cat(values, 1), torch.cat(counts, 1)
    return value, count if mask is None else count & mask[:, None]
